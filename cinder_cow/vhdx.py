# SPDX-License-Identifier: Apache-2.0
"""The few fields of a VHDX file: the images of Hyper-V.

A region table tells where the metadata and the table of blocks (BAT) are.
Source: Microsoft's MS-VHDX. QEMU checks the checksums, the regions and the
log; a log with something to replay is an error to it.
"""

from collections.abc import Iterator
import os
import struct
from typing import NamedTuple
import uuid

from oslo_utils import units

from cinder_cow import disk_tables
from cinder_cow.refusal import Reason

# Of the two copies, QEMU reads the first.
_REGIONS_AT = 192 * units.Ki
_TABLE_LENGTH = 64 * units.Ki
_REGIONS = struct.Struct('<4s4xI4x')
_REGION = struct.Struct('<16sQII')
_METADATA = struct.Struct('<8s2xH20x')
_ITEM = struct.Struct('<16sIII4x')
_MAX_ENTRIES = 2047
# What is read of the metadata, and where they must end: behind a BAT for 64
# TiB in blocks of 32 MiB.
_MAX_METADATA = units.Mi
_MAX_HEAD = 32 * units.Mi
# QEMU keeps it in memory, all of it: 16 TiB in blocks of 1 MiB take 128 MiB.
_MAX_BAT = units.Gi

_BAT = uuid.UUID('2dc27766-f623-4200-9d64-115e9bfd4a08').bytes_le
_META = uuid.UUID('8b7ca206-4790-4b9a-b8fe-575f050f886e').bytes_le
_PARAMETERS = uuid.UUID('caa16737-fa36-4d43-b3b6-33f0aa44e76b').bytes_le
_SIZE = uuid.UUID('2fa54224-cd1b-4876-b211-5dbed83bf4b8').bytes_le
_SECTOR = uuid.UUID('8141bf1d-a96f-4709-ba47-f233a8faab5f').bytes_le
_PARENT = uuid.UUID('a8d35f2d-b30b-454d-abf7-d3d84834ab0c').bytes_le
_HAS_PARENT = 2

# What tells the state of a block, and where it is, in an entry of the BAT.
_STATE, _PLACE = 7, -units.Mi
_PRESENT, _PARTIAL = 6, 7
# So many sectors share one entry for a bitmap, behind those of their blocks.
_CHUNK = 2**23


class _Header(NamedTuple):
    size: int
    block: int
    sector: int
    bat_offset: int
    bat_length: int

    @property
    def ratio(self) -> int:
        """Blocks in a chunk."""
        return _CHUNK * self.sector // self.block

    @property
    def entries(self) -> int:
        """Entries of the BAT, with those for bitmaps."""
        blocks = -(-self.size // self.block)
        return blocks + (blocks - 1) // self.ratio if blocks else 0


def head_needed(head: bytes) -> int:
    """Tell how many bytes of the image ``read`` needs.

    The metadata may lie behind the BAT: from 3 MiB on, as qemu-img has it.

    :param head: some first bytes of a VHDX
    """
    try:
        offset, length = _regions(head)[_META]
    except (KeyError, disk_tables.FormatError):
        return 0
    return min(offset + min(length, _MAX_METADATA), _MAX_HEAD)


def read(head: bytes, tail: bytes = b'') -> int:
    """Tell the bytes of the disk.

    :raises FormatError: it is not to be taken
    """
    return _header(head).size


def _regions(head: bytes) -> dict[bytes, tuple[int, int]]:
    """Read where the regions are: their offset and length."""
    table = head[_REGIONS_AT : _REGIONS_AT + _TABLE_LENGTH]
    if len(table) < _TABLE_LENGTH:
        raise disk_tables.FormatError('its header is cut')
    magic, count = _REGIONS.unpack_from(table)
    if magic != b'regi' or count > _MAX_ENTRIES:
        raise disk_tables.FormatError('its region table is damaged')
    found = {}
    for number in range(count):
        name, offset, length, _required = _REGION.unpack_from(
            table, _REGIONS.size + number * _REGION.size
        )
        found[name] = offset, length
    return found


def _header(head: bytes) -> _Header:
    regions = _regions(head)
    if not {_META, _BAT} <= regions.keys():
        raise disk_tables.FormatError('its region table lacks a region')
    at, length = regions[_META]
    items = _items(head[at : at + length])
    if _PARENT in items:
        raise disk_tables.FormatError('', Reason.BACKING_FILE)
    try:
        block, flags = struct.unpack_from('<II', items[_PARAMETERS])
        (size,) = struct.unpack_from('<Q', items[_SIZE])
        (sector,) = struct.unpack_from('<I', items[_SECTOR])
    except (KeyError, struct.error):
        raise disk_tables.FormatError('its metadata are cut') from None
    if flags & _HAS_PARENT:
        raise disk_tables.FormatError('', Reason.BACKING_FILE)
    return _Header(size, block, sector, *regions[_BAT])


def _items(data: bytes) -> dict[bytes, bytes]:
    """Read the items of the metadata, whatever they are."""
    if len(data) < _TABLE_LENGTH:
        raise disk_tables.FormatError('its metadata are cut')
    magic, count = _METADATA.unpack_from(data)
    if magic != b'metadata' or count > _MAX_ENTRIES:
        raise disk_tables.FormatError('its metadata are damaged')
    found = {}
    for number in range(count):
        name, offset, _length, _flags = _ITEM.unpack_from(
            data, _METADATA.size + number * _ITEM.size
        )
        # Some bytes are enough: 8 of the largest are read.
        found[name] = data[offset : offset + 64]
    return found


def used(descriptor: int) -> disk_tables.Used:
    """Tell how much of the disk is in the file, and where that must end.

    :raises FormatError: its header or its BAT is damaged
    """
    head = os.pread(descriptor, _REGIONS_AT + _TABLE_LENGTH, 0)
    header = _header(os.pread(descriptor, head_needed(head), 0))
    size, block = header.size, header.block
    if header.sector != disk_tables.SECTOR or size % disk_tables.SECTOR:
        raise disk_tables.FormatError('its sectors are not of 512 bytes')
    if not units.Mi <= block <= 256 * units.Mi or block & (block - 1):
        raise disk_tables.FormatError(f'its blocks have {block} bytes')
    if not 8 * header.entries <= header.bat_length <= _MAX_BAT:
        raise disk_tables.FormatError(f'its BAT has {header.bat_length} bytes')
    disk_tables.require(
        descriptor, 'BAT', header.bat_offset, 8 * header.entries
    )
    blocks = _blocks(descriptor, header)
    return disk_tables.survey(descriptor, blocks, size, block, units.Mi)


def _blocks(descriptor: int, header: _Header) -> Iterator[tuple[int, int]]:
    step = header.ratio + 1
    for number, entry in disk_tables.numbered(
        disk_tables.entries(descriptor, header.bat_offset, header.entries, 8)
    ):
        if entry & _STATE < _PRESENT or number % step == header.ratio:
            continue
        offset = entry & _PLACE
        if entry & _STATE == _PARTIAL or offset < units.Mi:
            raise disk_tables.FormatError('its BAT is damaged')
        yield number - number // step, offset
