# SPDX-License-Identifier: Apache-2.0
"""Reads a raw file."""

from collections.abc import Iterator
import io
import os
import pathlib

from cinder_cow import exception
from cinder_cow import file_state
from cinder_cow import refusal
from cinder_cow import sparse
from cinder_cow.drivers import common
from cinder_cow.drivers import file_layout


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


def read_exactly(file: io.FileIO, length: int, offset: int) -> bytes:
    """Read so many bytes of a file.

    :raises OSError: also where the file ends before
    """
    data = os.pread(file.fileno(), length, offset)
    if len(data) != length:
        raise OSError(f'{file.name} is cut short')
    return data
