# SPDX-License-Identifier: Apache-2.0
"""The few fields of a VMDK that is one file: a sparse extent.

A header, a descriptor (text), and a directory of tables of grains: data of
64 KiB, as a rule. In a streamOptimized one the grains are compressed, and
what is in front may be overruled by a footer. Source: VMware's Virtual Disk
Format 5.0, and what QEMU makes of it.

A descriptor may name other files, which QEMU opens: a parent, and where the
header tells of no disk, the extents. Each is refused here.
"""

import collections
import os
import re
import struct
from typing import NamedTuple

from oslo_utils import units

from cinder_cow import disk_tables
from cinder_cow.refusal import Reason

MAGIC = b'KDMV'
# A marker, the footer, a marker.
TAIL = 3 * disk_tables.SECTOR
_FIELDS = struct.Struct('<4sIIQQQQIQQQB4sH')
_MARKER = struct.Struct('<QII496x')
_FOOTER, _END_OF_STREAM = 3, 0
_DEFLATE = 1
_AT_END = 2**64 - 1
_ZERO_GRAINS = 1 << 2
# Where QEMU looks for the descriptor, whatever the header says, and how far
# it looks for a parent.
_DESCRIPTOR_AT = 512
_PARENT_WITHIN = 20 * disk_tables.SECTOR
_MAX_DESCRIPTOR = units.Mi
# In a grain table, always.
_TABLE_ENTRIES = 512
_EMPTY_TABLE = bytes(4 * _TABLE_ENTRIES)
# 16 TiB in grains of 64 KiB; more would take us seconds.
_MAX_TABLES = 2**19
# In sectors; others are not known to be written.
_GRAINS = (8, 2**16)

_TYPE = re.compile(r'^\s*createtype\s*=\s*"([^"\n]*)"', re.MULTILINE)
_PARENT = re.compile(r'^\s*parentcid\s*=\s*(\w+)', re.MULTILINE)
_EXTENT = re.compile(
    r'^\s*(?:rw|rdonly|noaccess)\s+\d+\s+(\w+)(.*)$', re.MULTILINE
)
_NO_PARENT = 'ffffffff'
_WHOLE = ('monolithicsparse', 'streamoptimized')


class _Header(NamedTuple):
    magic: bytes
    version: int
    flags: int
    capacity: int
    grain: int
    descriptor_at: int
    descriptor_length: int
    table_entries: int
    spare_directory: int
    directory: int
    overhead: int
    unclean: int
    line_ends: bytes
    compression: int

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.capacity * disk_tables.SECTOR

    @property
    def grain_size(self) -> int:
        return self.grain * disk_tables.SECTOR

    @property
    def tables(self) -> int:
        """Entries of the directory."""
        return -(-self.capacity // (self.grain * self.table_entries))


def read(head: bytes, tail: bytes = b'') -> int:
    """Tell the bytes of the disk.

    :param tail: empty where it cannot be had; the footer goes unseen then
    :raises FormatError: it is not to be taken
    """
    if not head.startswith(MAGIC):
        # Text: nothing but a descriptor.
        raise disk_tables.FormatError('', Reason.DATA_FILE)
    header = _header(head, tail)
    _check_descriptor(header, head)
    return header.size


def _header(head: bytes, tail: bytes) -> _Header:
    """Read the header that counts."""
    if len(head) < disk_tables.SECTOR:
        raise disk_tables.FormatError('its header is cut')
    header = _Header(*_FIELDS.unpack_from(head))
    if header.directory != _AT_END or not tail:
        return header
    footer = _footer(tail)
    if (
        footer is None
        or footer._replace(
            directory=header.directory,
            spare_directory=header.spare_directory,
            overhead=header.overhead,
            unclean=header.unclean,
        )
        != header
    ):
        raise disk_tables.FormatError('its footer is cut or damaged')
    return footer


def _footer(tail: bytes) -> _Header | None:
    if len(tail) != TAIL:
        return None
    sector = disk_tables.SECTOR
    first = _MARKER.unpack_from(tail)
    last = _MARKER.unpack_from(tail, 2 * sector)
    footer = _Header(*_FIELDS.unpack_from(tail, sector))
    if first[1:] != (0, _FOOTER) or last != (0, 0, _END_OF_STREAM):
        return None
    return None if footer.directory == _AT_END else footer


def _check_descriptor(header: _Header, head: bytes) -> None:
    """Make sure that the descriptor tells of this one file.

    :raises FormatError: it does not
    """
    if header.descriptor_at * disk_tables.SECTOR != _DESCRIPTOR_AT:
        raise disk_tables.FormatError('its descriptor is not at sector 1')
    length = header.descriptor_length * disk_tables.SECTOR
    length = min(max(length, _PARENT_WITHIN), _MAX_DESCRIPTOR)
    data = head[_DESCRIPTOR_AT : _DESCRIPTOR_AT + length]
    text = data.split(b'\0', 1)[0].decode('latin-1').lower()
    parents = set(_PARENT.findall(text)) - {_NO_PARENT}
    if 'parentfilenamehint' in text or parents:
        raise disk_tables.FormatError('', Reason.BACKING_FILE)
    kinds = _TYPE.findall(text)
    if not kinds:
        raise disk_tables.FormatError('its descriptor is cut or damaged')
    extents = _EXTENT.findall(text)
    if (
        not set(kinds) <= set(_WHOLE)
        or not header.capacity
        or len(extents) > 1
        or any(kind != 'sparse' or _elsewhere(name) for kind, name in extents)
    ):
        raise disk_tables.FormatError('', Reason.DATA_FILE)


def _elsewhere(name: str) -> bool:
    return '/' in name or '\\' in name


def used(descriptor: int) -> disk_tables.Used:
    """Tell how much of the disk is in the file, and where that must end.

    What is cut of compressed grains, QEMU notices.

    :raises FormatError: its header or its tables are damaged
    """
    file_size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, disk_tables.SECTOR, 0)
    tail = os.pread(descriptor, TAIL, max(0, file_size - TAIL))
    header = _header(head, tail)
    least, most = _GRAINS
    if (
        header.table_entries != _TABLE_ENTRIES
        or header.grain & (header.grain - 1)
        or not least <= header.grain <= most
        or not 0 < header.tables <= _MAX_TABLES
    ):
        raise disk_tables.FormatError('its grains or tables are absurd')
    return _survey(descriptor, header)


def _survey(descriptor: int, header: _Header) -> disk_tables.Used:
    grain, data, end = header.grain_size, 0, 0
    # Behind the begin of a compressed one, QEMU notices what is cut.
    length = 1 if header.compression == _DEFLATE else grain
    *tables, last_table = _directory(descriptor, header)
    # Each table once, however many entries name it.
    counted = collections.Counter(tables)
    del counted[0]
    for sector, times in counted.items():
        grains = _grains(descriptor, header, sector, _TABLE_ENTRIES)
        if not grains:
            continue
        data += times * (len(grains) - grains.count(0)) * grain
        end = max(end, max(grains) * disk_tables.SECTOR + length)
    # The last grain need not be whole.
    count = -(-header.size // grain)
    rest = header.size - (count - 1) * grain
    if last_table:
        count -= len(tables) * _TABLE_ENTRIES
        *grains, last = _grains(descriptor, header, last_table, count) or [0]
        data += (len(grains) - grains.count(0)) * grain
        data += rest if last else 0
        end = max(
            end,
            max(grains, default=0) * disk_tables.SECTOR + length,
            last * disk_tables.SECTOR + min(rest, length),
        )
    return disk_tables.Used(header.size, data, end)


def _directory(descriptor: int, header: _Header) -> list[int]:
    offset = header.directory * disk_tables.SECTOR
    disk_tables.require(descriptor, 'directory', offset, 4 * header.tables)
    pieces = disk_tables.entries(descriptor, offset, header.tables, 4)
    return [entry for piece in pieces for entry in piece]


def _grains(
    descriptor: int, header: _Header, table: int, count: int
) -> list[int]:
    """Read where the grains of a table begin, in sectors; 0 for a hole.

    :returns: nothing for a table that is empty
    """
    least = header.descriptor_at + header.descriptor_length
    if table < least:
        raise disk_tables.FormatError('a grain table is in its header')
    offset, length = table * disk_tables.SECTOR, 4 * count
    data = os.pread(descriptor, length, offset)
    if len(data) < length:
        disk_tables.require(descriptor, 'grain table', offset, length)
    if data == _EMPTY_TABLE[:length]:
        # 16 TiB of such tables, in a sparse file, took 15 s else.
        return []
    holes = (0, 1) if header.flags & _ZERO_GRAINS else (0,)
    grains = struct.unpack(f'<{count}I', data)
    found = [0 if grain in holes else grain for grain in grains]
    if min(filter(None, found), default=least) < least:
        raise disk_tables.FormatError('a grain is in its header')
    return found
