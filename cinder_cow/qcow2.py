# SPDX-License-Identifier: Apache-2.0
"""The few fields of a qcow2 file that are read without starting a process.

Source: QEMU's docs/interop/qcow2.txt.
"""

import array
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
import pathlib
import struct
import sys
import zlib

_HEADER = struct.Struct('>4sIQIIQIIQQII')
# QEMU's own limit for the name of a backing file.
_MAX_BACKING_NAME = 1023
# QEMU's own limit of the L1 table, bytes.
_MAX_L1_TABLE = 32 * 2**20
_COMPRESSED = 1 << 62
_SECTOR = 512
# Streams looked at by us; more can only be of a made-up image.
_MAX_STREAMS = 64
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """Of a file that we made: bytes a guest sees, and its backing file."""

    size: int
    backing: str


def read_header(path: pathlib.Path) -> Header:
    """Read the header of an overlay that we made.

    :raises OSError: the file cannot be read, or is no qcow2 file
    """
    with path.open('rb') as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(b'QFI\xfb'):
            raise OSError(f'{path} is not a qcow2 file')
        _magic, _version, offset, length, _bits, size, *_ = _HEADER.unpack(
            head
        )
        file.seek(offset)
        name = file.read(min(length, _MAX_BACKING_NAME)) if offset else b''
    return Header(size, os.fsdecode(name))


def is_encrypted(head: bytes) -> bool:
    """Tell by the first bytes of an image whether its data are encrypted."""
    return len(head) >= _HEADER.size and _HEADER.unpack_from(head)[6] != 0


# Reads bytes at an offset, so many or fewer where there are no more.
Read = Callable[[int, int], bytes]


def used_end(read: Read, size: int) -> int:
    """Return where the tables and compressed data must end in the file.

    Cut, tables read as unused and compressed data decompress to something
    (deflate has no checksum): QEMU notices neither.

    :param read: of an image that ``qemu-img check`` finds no fault in
    :param size: its bytes
    """
    head = _HEADER.unpack(read(0, _HEADER.size))
    bits, entries, offset = head[4], head[7], head[8]
    cluster = 1 << bits
    length = min(entries * 8, _MAX_L1_TABLE)
    first = _table(read, offset, length)
    # Each table once, however many entries name it.
    starts = {entry & _OFFSET_MASK for entry in first} - {0}
    return max(
        int(offset + length),
        max((start + cluster for start in starts), default=0),
        _compressed_end(read, size, starts, bits),
    )


def _compressed_end(read: Read, size: int, tables: set[int], bits: int) -> int:
    """Return where compressed data must end, as far as the file is too short.

    Their length is kept in sectors, and not every writer fills the last
    one: whether less than a sector was cut, the stream itself tells.
    """
    cluster = 1 << bits
    whole: set[int] = set()
    for table in tables:
        for start, end in _compressed(_table(read, table, cluster), bits):
            if end <= size or start in whole:
                continue
            whole.add(start)
            if (
                end - size >= _SECTOR
                or len(whole) > _MAX_STREAMS
                or not _is_whole(read, start, cluster)
            ):
                return end
    return 0


def _compressed(table: Sequence[int], bits: int) -> Iterator[tuple[int, int]]:
    """Tell where the compressed clusters of an L2 table begin and end."""
    shift = 62 - (bits - 8)
    offset_mask, count_mask = (1 << shift) - 1, (1 << (bits - 8)) - 1
    for entry in table:
        if entry & _COMPRESSED:
            sectors = ((entry >> shift) & count_mask) + 1
            start = entry & offset_mask
            yield start, (start // _SECTOR + sectors) * _SECTOR


def _is_whole(read: Read, start: int, cluster: int) -> bool:
    """Tell whether a deflate stream ends in the file; of zstd, never."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(read(start, cluster), cluster)
    except zlib.error:
        return False
    return stream.eof and len(data) == cluster


def _table(read: Read, offset: int, length: int) -> Sequence[int]:
    """Read a table of big-endian 64-bit entries, or what there is of it."""
    data = read(offset, length)
    table = array.array('Q')
    table.frombytes(data[: len(data) // 8 * 8])
    if sys.byteorder == 'little':
        table.byteswap()
    return table
