# SPDX-License-Identifier: Apache-2.0
"""The few fields of a VHD file: the older images of Hyper-V, and of Azure.

A fixed one is a raw disk and a footer. A dynamic one has a copy of the
footer in front, a header, a table of blocks (BAT) and the blocks. Source:
Microsoft's Virtual Hard Disk Image Format Specification.

The size of the disk is the current size in the footer. The geometry there
may stand for less or for more, and QEMU goes by it for some creators; it is
told not to (``qemu_img.py``).
"""

from collections.abc import Iterator
import os
import struct
from typing import NamedTuple

from cinder_cow import disk_tables
from cinder_cow.refusal import Reason

FOOTER = 512
_MAGIC = b'conectix'
_FIELDS = struct.Struct('>16xQ24xQ4xII')
_CHECKSUM_AT = 64
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_HEADER = struct.Struct('>8s8xQ4xIII')
_HEADER_LENGTH = 1024
_HEADER_CHECKSUM_AT = 36
_HOLE = 0xFFFF_FFFF
# 2 TiB, the most there is, in blocks of 512 KiB take half of it. QEMU reads
# the whole table, wanted or not.
_MAX_ENTRIES = 2**23
_MIN_BLOCK = 4096


class _Footer(NamedTuple):
    header_offset: int
    size: int
    kind: int
    checksum: int


class _Header(NamedTuple):
    magic: bytes
    table_offset: int
    table_entries: int
    block_size: int
    checksum: int


def has_footer(tail: bytes) -> bool:
    """Tell whether these last bytes of a file are a footer.

    The checksum makes sure that it is none by chance.
    """
    return _footer(tail[-FOOTER:]) is not None


def read(head: bytes, tail: bytes = b'') -> int:
    """Tell the bytes of the disk.

    :param tail: empty where it cannot be had; of no use for a fixed one then
    :raises FormatError: it is not to be taken
    """
    footer, last = _footer(head[:FOOTER]), _footer(tail[-FOOTER:])
    if not head.startswith(_MAGIC):
        footer = last
    if footer is None:
        raise disk_tables.FormatError('its footer is cut or damaged')
    if footer.kind == _DIFFERENCING:
        raise disk_tables.FormatError('', Reason.BACKING_FILE)
    if footer.kind != (_DYNAMIC if head.startswith(_MAGIC) else _FIXED):
        raise disk_tables.FormatError(
            f'its footer, of kind {footer.kind}, is in the wrong place'
        )
    if footer.size % disk_tables.SECTOR:
        raise disk_tables.FormatError(f'its disk has {footer.size} bytes')
    if tail and (last is None or last[:3] != footer[:3]):
        raise disk_tables.FormatError('it does not end with its footer')
    return footer.size


def _footer(data: bytes) -> _Footer | None:
    if len(data) != FOOTER or not data.startswith(_MAGIC):
        return None
    footer = _Footer(*_FIELDS.unpack_from(data))
    if footer.checksum != _checksum(data, _CHECKSUM_AT):
        return None
    return footer


def _checksum(data: bytes, at: int) -> int:
    """Add up all bytes but those of the checksum itself."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFF_FFFF


def used(descriptor: int) -> disk_tables.Used:
    """Tell how much of the disk is in the file, and where that must end.

    :raises FormatError: its footer, header or table is damaged
    """
    file_size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, FOOTER, 0)
    tail = os.pread(descriptor, FOOTER, max(0, file_size - FOOTER))
    size = read(head, tail)
    footer = _footer(head)
    if footer is not None:
        return _used_dynamic(descriptor, footer)
    if file_size != size + FOOTER:
        raise disk_tables.FormatError(
            f'its footer tells of {size} bytes before it, there are'
            f' {file_size - FOOTER}'
        )
    return disk_tables.Used(size, size, file_size)


def _used_dynamic(descriptor: int, footer: _Footer) -> disk_tables.Used:
    size, offset = footer.size, footer.header_offset
    disk_tables.require(descriptor, 'header', offset, _HEADER_LENGTH)
    data = os.pread(descriptor, _HEADER_LENGTH, offset)
    header = _Header(*_HEADER.unpack_from(data))
    block = header.block_size
    if (
        header.magic != b'cxsparse'
        or header.checksum != _checksum(data, _HEADER_CHECKSUM_AT)
        or offset < FOOTER
    ):
        raise disk_tables.FormatError('its header is damaged')
    # Of smaller ones, QEMU reckons with no bitmap.
    if block < _MIN_BLOCK or block & (block - 1):
        raise disk_tables.FormatError(f'its blocks have {block} bytes')
    needed = -(-size // block)
    if not needed <= header.table_entries <= _MAX_ENTRIES:
        raise disk_tables.FormatError(
            f'its table has {header.table_entries} entries'
        )
    length = 4 * header.table_entries
    disk_tables.require(descriptor, 'table', header.table_offset, length)
    taken = [
        range(FOOTER),
        range(offset, offset + _HEADER_LENGTH),
        range(header.table_offset, header.table_offset + length),
    ]
    blocks = _blocks(descriptor, header, needed, taken)
    # The footer behind the blocks was there: read has seen it.
    return disk_tables.survey(descriptor, blocks, size, block, taken[2].stop)


def _blocks(
    descriptor: int, header: _Header, count: int, taken: list[range]
) -> Iterator[tuple[int, int]]:
    block = header.block_size
    # In front of each, whether its sectors were written; a bit each.
    sectors = block // disk_tables.SECTOR
    bitmap = -(-sectors // 8 // disk_tables.SECTOR) * disk_tables.SECTOR
    for number, entry in disk_tables.numbered(
        disk_tables.entries(descriptor, header.table_offset, count, 4, 'big')
    ):
        if entry == _HOLE:
            continue
        start = entry * disk_tables.SECTOR
        end = start + bitmap + block
        if any(end > at.start and start < at.stop for at in taken):
            raise disk_tables.FormatError('a block lies in its header')
        yield number, start + bitmap
