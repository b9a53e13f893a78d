# SPDX-License-Identifier: Apache-2.0
"""Reads a raw file."""

from collections.abc import Iterator
import fcntl
import io
import os
import pathlib
import struct

from cinder_cow import exception
from cinder_cow import file_locks
from cinder_cow import file_state
from cinder_cow import refusal
from cinder_cow import sparse
from cinder_cow.drivers import common
from cinder_cow.drivers import file_layout

# struct flock: type, whence, start, length, process.
_FLOCK = 'hhqqi4x'
# QEMU, block/file-posix.c: RAW_LOCK_PERM_BASE, and behind it the number of
# the bit BLK_PERM_WRITE.
_QEMU_WRITES = 100 + 1


class RawReader(common.ReaderMixin):
    """Reads a raw file; see the contract in :mod:`.base`."""

    def __init__(self, path: pathlib.Path, backend: str) -> None:
        self._backend = backend
        self._file = path.open('rb', buffering=0)
        self._status = os.fstat(self._file.fileno())
        self.size = self._status.st_size

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise ValueError('read beyond the size')
        with file_layout.translated(self._backend):
            return read_exactly(self._file, length, offset)

    def check_unchanged(self) -> None:
        check_unchanged(self._file, self._status)

    def extents(self) -> Iterator[sparse.Extent]:
        with file_layout.translated(self._backend):
            yield from sparse.file_extents(self._file.fileno(), self.size)

    def close(self) -> None:
        self._file.close()


def check_unchanged(file: io.FileIO, was: os.stat_result) -> None:
    """Make sure that nobody wrote to an open file since it had that status.

    :raises BackendError: BUSY
    """
    if file_state.has_changed(file.fileno(), was):
        raise in_use()


def in_use(seconds: float = 0) -> exception.BackendError:
    """Make the error that somebody else is at a volume.

    :param seconds: how long was waited
    """
    return exception.BackendError.because(
        refusal.Reason.BUSY,
        what='the volume',
        owner='a process that writes to it',
        seconds=seconds,
    )


def is_open_for_writing(descriptor: int) -> bool:
    """Tell whether QEMU has an open file for writing, or it is extended.

    QEMU locks a byte of its images for each thing that it may do; asking
    for the lock takes none.

    :raises OSError: it cannot be asked
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _QEMU_WRITES, 1, 0)
    told = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    if struct.unpack(_FLOCK, told)[0] != fcntl.F_UNLCK:
        return True
    is_free = file_locks.try_lock(descriptor, fcntl.LOCK_SH)
    if is_free:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    return not is_free


def read_exactly(file: io.FileIO, length: int, offset: int) -> bytes:
    """Read so many bytes of a file.

    :raises OSError: also where the file ends before
    """
    data = os.pread(file.fileno(), length, offset)
    if len(data) != length:
        raise OSError(f'{file.name} is cut short')
    return data
