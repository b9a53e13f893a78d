# SPDX-License-Identifier: Apache-2.0
"""What is kept of a half-made base, for the next maker to go on with.

The file ``kept`` in its partial tells how large the base shall be, and how
many of its first bytes are on stable storage. It is written after they are.
What lies behind them in the image may be anything, and is cut off.
"""

import os
import pathlib
from typing import Self

from cinder_cow import direct_io

NAME = 'kept'
# The image of a base in its partial; its directory is what is published.
IMAGE = pathlib.Path('base', 'image.raw')

_DIGITS = 20


class Record:
    """How much of a base is kept.

    :param size: bytes that the base shall have
    :param done: bytes that are kept, from its start
    """

    def __init__(self, descriptor: int, size: int, done: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self.done = done

    @classmethod
    def opened(cls, partial: pathlib.Path, size: int) -> Self:
        """Open the record of a partial that is held, or begin one.

        :raises OSError: it cannot be written
        """
        done = bytes_kept(partial, size)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        record = cls(os.open(partial / NAME, flags, 0o600), size, done)
        try:
            # Also tells that somebody was here: see ``age`` of what is dead.
            record.write(done)
        except BaseException:
            record.close()
            raise
        return record

    def write(self, done: int) -> None:
        """Record that so many bytes are on stable storage.

        :raises OSError: it cannot be written
        """
        # Always as long, so that no old digit remains.
        os.pwrite(self._descriptor, _pack(self._size, done), 0)
        self.done = done

    def forget(self) -> None:
        """Record that nothing is kept, before other bytes are written.

        :raises OSError: it cannot be written
        """
        self.write(0)
        # Or after a power failure the old number may stand for new bytes.
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def bytes_kept(partial: pathlib.Path, size: int | None = None) -> int:
    """Tell how many bytes a partial has that can be gone on with; 0: none.

    They end where the next direct write may begin.

    :param size: bytes that the base shall have; None: whatever it has
    """
    try:
        text = (partial / NAME).read_bytes()
        there = (partial / IMAGE).lstat().st_size
    except OSError:
        return 0
    of, done = text[:_DIGITS], text[_DIGITS + 1 : 2 * _DIGITS + 1]
    if not (of.isdigit() and done.isdigit()):
        return 0
    found = int(of)
    if size not in (None, found) or not int(done) <= found == there:
        return 0
    return _aligned(int(done), found)


def _pack(size: int, done: int) -> bytes:
    return b'%0*d %0*d\n' % (_DIGITS, size, _DIGITS, done)


def _aligned(done: int, size: int) -> int:
    if done == size:
        return done
    return done - done % direct_io.ALIGNMENT
