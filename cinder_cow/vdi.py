# SPDX-License-Identifier: Apache-2.0
"""The few fields of a VDI file: the images of VirtualBox.

A header, a map of blocks of 1 MiB, and the blocks. QEMU reads what the map
lacks as zeros, also where another image should be read; so that is refused.
"""

from collections.abc import Iterator
import os
import struct
from typing import NamedTuple

from oslo_utils import units

from cinder_cow import disk_tables
from cinder_cow.refusal import Reason

_AT = 0x4C
_FIELDS = struct.Struct('<I260xII20xQIII36x16s16s')
_LENGTH = 512
_DYNAMIC, _STATIC, _UNDO, _DIFFERENCE = 1, 2, 3, 4
# From here on an entry of the map stands for a hole.
_HOLE = 0xFFFF_FFFE
# 64 TiB; QEMU takes 4 bytes for each, wanted or not.
_MAX_BLOCKS = 2**26


class _Header(NamedTuple):
    kind: int
    map_offset: int
    data_offset: int
    disk_size: int
    block_size: int
    block_extra: int
    blocks: int
    link: bytes
    parent: bytes

    @property
    def size(self) -> int:
        """Bytes of the disk; VBoxManage made odd ones, QEMU rounds up."""
        sector = disk_tables.SECTOR
        return -(-self.disk_size // sector) * sector


def read(head: bytes, tail: bytes = b'') -> int:
    """Tell the bytes of the disk.

    :raises FormatError: it is not to be taken
    """
    return _header(head).size


def _header(head: bytes) -> _Header:
    if len(head) < _LENGTH:
        raise disk_tables.FormatError('its header is cut')
    header = _Header(*_FIELDS.unpack_from(head, _AT))
    if header.kind in (_UNDO, _DIFFERENCE) or any(header.link + header.parent):
        raise disk_tables.FormatError('', Reason.BACKING_FILE)
    if header.kind not in (_DYNAMIC, _STATIC):
        raise disk_tables.FormatError(f'it is a VDI of kind {header.kind}')
    return header


def used(descriptor: int) -> disk_tables.Used:
    """Tell how much of the disk is in the file, and where that must end.

    :raises FormatError: its header or its map is damaged
    """
    header = _header(os.pread(descriptor, _LENGTH, 0))
    map_end = header.map_offset + 4 * header.blocks
    needed = -(-header.size // units.Mi)
    if header.block_size != units.Mi or header.block_extra:
        raise disk_tables.FormatError('its blocks are not of 1 MiB')
    if not needed <= header.blocks <= _MAX_BLOCKS:
        raise disk_tables.FormatError(f'it claims {header.blocks} blocks')
    if not _LENGTH <= header.map_offset <= map_end <= header.data_offset:
        raise disk_tables.FormatError('its header, map and data overlap')
    disk_tables.require(descriptor, 'map', header.map_offset, 4 * needed)
    blocks = _blocks(descriptor, header, needed)
    return disk_tables.survey(
        descriptor, blocks, header.size, units.Mi, map_end
    )


def _blocks(
    descriptor: int, header: _Header, count: int
) -> Iterator[tuple[int, int]]:
    for number, entry in disk_tables.numbered(
        disk_tables.entries(descriptor, header.map_offset, count, 4)
    ):
        if entry < _HOLE:
            yield number, header.data_offset + entry * units.Mi
