# SPDX-License-Identifier: Apache-2.0
"""Holes: runs of zeros that take no space, and how they are found."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import errno
import os
from typing import Protocol

from oslo_utils import units

# Bytes read at once: an object of Ceph, usually, so that it need not be
# gathered to be written.
CHUNK = 4 * units.Mi
# Runs of zeros shorter than this are written: a hole in every page would
# cost a write call each, and a seek for whoever reads it.
GRANULE = 64 * units.Ki

_ZEROS = bytes(GRANULE)


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes; a hole reads as zeros and takes no space."""

    offset: int
    length: int
    hole: bool


class Sparse(Protocol):
    """What takes data and holes, in order."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def skip(self, length: int) -> None: ...


def file_extents(descriptor: int, size: int) -> Iterator[Extent]:
    """Tell the data and holes of an open file, by SEEK_DATA and SEEK_HOLE.

    A file system that knows no holes tells one extent of data.

    :raises OSError: also where the file ends before its size
    """
    offset = 0
    while offset < size:
        try:
            data = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if os.fstat(descriptor).st_size < size:
                raise OSError(errno.EIO, 'the file was cut short') from error
            data = size  # nothing but a hole follows
        data = min(data, size)
        if data > offset:
            yield Extent(offset, data - offset, hole=True)
        if data == size:
            return
        offset = min(os.lseek(descriptor, data, os.SEEK_HOLE), size)
        yield Extent(data, offset - data, hole=False)


def file_pieces(descriptor: int, size: int) -> Iterator[bytes | int]:
    """Read an open file in order: data, or the length of a hole.

    :raises OSError: also where the file ends before its size
    """

    def read(offset: int, length: int) -> bytes:
        data = os.pread(descriptor, length, offset)
        if not data:
            raise OSError(errno.EIO, 'the file was cut short')
        return data

    return pieces(file_extents(descriptor, size), read)


def pieces(
    extents: Iterable[Extent], read: Callable[[int, int], bytes]
) -> Iterator[bytes | int]:
    """Read extents in order: data, or the length of a hole.

    :param read: gives bytes at an offset, so many or fewer, but not none
    """
    for extent in extents:
        if extent.hole:
            yield extent.length
            continue
        offset, end = extent.offset, extent.offset + extent.length
        while offset < end:
            data = read(offset, min(CHUNK, end - offset))
            yield data
            offset += len(data)


def between(
    extents: Iterable[Extent], start: int, end: int
) -> Iterator[Extent]:
    """Cut what lies between two offsets out of extents, in order."""
    for extent in extents:
        first = max(start, extent.offset)
        last = min(end, extent.offset + extent.length)
        if first < last:
            yield Extent(first, last - first, extent.hole)


def runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Cut data into runs of zeros and runs of others, by granule.

    :returns: start, end and whether it is all zeros, of each run in order
    """
    start, start_is_hole = 0, _is_zeros(data, 0)
    for offset in range(GRANULE, len(data), GRANULE):
        if _is_zeros(data, offset) is not start_is_hole:
            yield start, offset, start_is_hole
            start, start_is_hole = offset, not start_is_hole
    if data:
        yield start, len(data), start_is_hole


def _is_zeros(data: bytes, offset: int) -> bool:
    # The first byte tells most granules without copying them.
    if offset >= len(data) or data[offset]:
        return False
    granule = data[offset : offset + GRANULE]
    return granule == _ZEROS[: len(granule)]


def put(sink: Sparse, piece: bytes | int) -> int:
    """Append data or the length of a hole, skipping what is zeros.

    :returns: how many bytes were written
    """
    if isinstance(piece, int):
        sink.skip(piece)
        return 0
    written = 0
    view = memoryview(piece)
    for start, end, hole in runs(piece):
        if hole:
            sink.skip(end - start)
        else:
            sink.write(view[start:end])
            written += end - start
    return written
