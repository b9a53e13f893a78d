# SPDX-License-Identifier: Apache-2.0
"""Images in the formats of other hypervisors, good and bad.

As ``corpus.py``, which has the tools. A field that a checksum covers is
edited together with its checksum.
"""

from collections.abc import Callable, Iterable
import functools
import os
import pathlib
import struct
import uuid

from cinder_cow.refusal import Reason
from cinder_cow.tests import corpus
from cinder_cow.tests.corpus import converted
from cinder_cow.tests.corpus import cut
from cinder_cow.tests.corpus import edited
from cinder_cow.tests.corpus import get
from cinder_cow.tests.corpus import holey
from cinder_cow.tests.corpus import Image
from cinder_cow.tests.corpus import KI
from cinder_cow.tests.corpus import Maker
from cinder_cow.tests.corpus import MI
from cinder_cow.tests.corpus import noise
from cinder_cow.tests.corpus import other
from cinder_cow.tests.corpus import put
from cinder_cow.tests.corpus import text
from cinder_cow.tests.corpus import with_field

ODD = MI + 5 * 512
BIG = 3 * MI + 7 * 512

# VMDK: offsets of fields of the header, and how they are packed.
VMDK_VERSION = (4, '<I')
VMDK_CAPACITY = (12, '<Q')
VMDK_GRAIN = (20, '<Q')
VMDK_DESCRIPTOR = (28, '<Q')
VMDK_TABLE_ENTRIES = (44, '<I')
VMDK_DIRECTORY = (56, '<Q')
# VHD: of the footer, and of the header of a dynamic one.
VHD_HEADER = (16, '>Q')
VHD_CREATOR = (28, '4s')
VHD_ORIGINAL_SIZE = (40, '>Q')
VHD_SIZE = (48, '>Q')
VHD_GEOMETRY = (56, '>HBB')
VHD_KIND = (60, '>I')
VHD_TABLE = (16, '>Q')
VHD_ENTRIES = (28, '>I')
VHD_BLOCK = (32, '>I')
# VDI
VDI_VERSION = (0x44, '<I')
VDI_KIND = (0x4C, '<I')
VDI_MAP = (0x154, '<I')
VDI_DATA = (0x158, '<I')
VDI_SIZE = (0x170, '<Q')
VDI_BLOCK = (0x178, '<I')
VDI_EXTRA = (0x17C, '<I')
VDI_BLOCKS = (0x180, '<I')
VDI_PARENT = (0x1B8, '<Q')
# VHDX: its region table, and the two items of one.
VHDX_REGIONS = 192 * KI
VHDX_REGION_COUNT = (VHDX_REGIONS + 8, '<I')
_VHDX_META = uuid.UUID('8b7ca206-4790-4b9a-b8fe-575f050f886e').bytes_le
_VHDX_BAT = uuid.UUID('2dc27766-f623-4200-9d64-115e9bfd4a08').bytes_le
_VHDX_PARAMETERS = uuid.UUID('caa16737-fa36-4d43-b3b6-33f0aa44e76b').bytes_le
_VHDX_SIZE = uuid.UUID('2fa54224-cd1b-4876-b211-5dbed83bf4b8').bytes_le
_VHDX_SECTOR = uuid.UUID('8141bf1d-a96f-4709-ba47-f233a8faab5f').bytes_le
_VHDX_PAGE_83 = uuid.UUID('beca12ab-b2e6-4523-93ef-c309e000c746').bytes_le
_VHDX_PARENT = uuid.UUID('a8d35f2d-b30b-454d-abf7-d3d84834ab0c').bytes_le

SPARSE = 'subformat=monolithicSparse'
STREAM = 'subformat=streamOptimized'
DYNAMIC = 'subformat=dynamic'
FIXED = 'subformat=fixed'
FORCE = 'force_size=on'
BLOCK_1M = 'block_size=1M'

VMDK = converted(holey(MI), SPARSE, to='vmdk')
VMDK_STREAM = converted(text(MI), STREAM, to='vmdk')
VDI = converted(holey(BIG), to='vdi')
VHD = converted(holey(BIG), DYNAMIC, FORCE, to='vpc')
VHD_FIXED = converted(holey(BIG), FIXED, FORCE, to='vpc')
VHDX = converted(holey(BIG), DYNAMIC, BLOCK_1M, to='vhdx')
VHDX_FIXED = converted(holey(BIG), FIXED, BLOCK_1M, to='vhdx')


# VMDK


def _footed(path: pathlib.Path) -> None:
    """Put the directory and a footer at the end, as VMware's tools do."""
    VMDK_STREAM(path)
    header = path.read_bytes()[:512]
    directory = path.read_bytes()[get(path, VMDK_DIRECTORY) * 512 :][:512]
    sectors = -(-path.stat().st_size // 512)
    os.truncate(path, sectors * 512)
    put(path, VMDK_DIRECTORY, 2**64 - 1)
    footer = bytearray(header)
    struct.pack_into(VMDK_DIRECTORY[1], footer, VMDK_DIRECTORY[0], sectors + 1)
    with path.open('ab') as file:
        file.write(struct.pack('<QII496x', 1, 0, 2) + directory)
        file.write(struct.pack('<QII496x', 1, 0, 3) + footer + bytes(512))


def _described(
    edit: Callable[[str, pathlib.Path], str], maker: Maker = VMDK
) -> Maker:
    """Make a VMDK with another descriptor."""

    def rewrite(path: pathlib.Path) -> None:
        os.mkfifo(other(path))
        length = 20 * 512
        # Behind a NUL is what qemu-img had there before, where its CID was
        # longer; QEMU does not read it, and neither do we.
        found = path.read_bytes()[512 : 512 + length].split(b'\0')[0].decode()
        data = edit(found, other(path)).encode().ljust(length, b'\0')
        put(path, (512, f'{length}s'), data)

    return edited(maker, rewrite)


def _added(line: str) -> Maker:
    """Make a VMDK with a line more in its descriptor; %s is a pipe."""
    return _described(
        lambda found, pipe: f'{found}{line.replace("%s", str(pipe))}\n'
    )


def _replaced(old: str, new: str, maker: Maker = VMDK) -> Maker:
    def edit(found: str, pipe: pathlib.Path) -> str:
        assert old in found
        return found.replace(old, new.replace('%s', str(pipe)))

    return _described(edit, maker)


def _no_disk(line: str) -> Maker:
    """Make a VMDK whose header tells of no disk: QEMU takes the extents."""

    def edit(found: str, pipe: pathlib.Path) -> str:
        found = found.replace('monolithicSparse', 'monolithicFlat')
        named = line.replace('%s', str(pipe)).replace('%n', pipe.name)
        return f'{found}{named}\n'

    return with_field(_described(edit), VMDK_CAPACITY, 0)


def _text_alone(path: pathlib.Path) -> None:
    os.mkfifo(other(path))
    path.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n'
        f'createType="monolithicFlat"\nRW 2048 FLAT "{other(path)}" 0\n'
    )


def _cowd(path: pathlib.Path) -> None:
    header = struct.pack('<4s9I', b'COWD', 1, 3, 2048, 1, 4, 1, 2048, 0, 0)
    path.write_bytes(header.ljust(MI, b'\0'))


def _vmdk_parent(path: pathlib.Path) -> None:
    VMDK(other(path))
    corpus.qemu_img(
        'create', '-q', '-f', 'vmdk', '-b', other(path), '-F', 'vmdk', path
    )
    other(path).unlink()
    os.mkfifo(other(path))


def _grain_table(path: pathlib.Path) -> tuple[int, str]:
    """Find the entry of the directory."""
    return get(path, VMDK_DIRECTORY) * 512, '<I'


def _grain(path: pathlib.Path) -> tuple[int, str]:
    """Find the first entry of the first grain table."""
    return get(path, _grain_table(path)) * 512, '<I'


def large(entry: int, grain: int) -> Maker:
    """Make a VMDK of 16 TiB with tables in 1 GiB, or all in one place.

    :param entry: sectors from a table to the next
    :param grain: what the first entry of each table is
    """

    def make(path: pathlib.Path) -> None:
        VMDK(path)
        count = 2**19
        start = -(-path.stat().st_size // 512)
        tables = [start + count * 4 // 512 + entry * n for n in range(count)]
        put(path, VMDK_CAPACITY, count * 512 * 128)
        put(path, VMDK_DIRECTORY, start)
        put(path, (start * 512, f'<{count}I'), *tables)
        put(path, (tables[0] * 512, '<512I'), *[grain] * 512)
        os.truncate(path, (tables[-1] + 4) * 512)

    return make


def _footer_field(field: tuple[int, str], value: int) -> Maker:
    def edit(path: pathlib.Path) -> None:
        at = path.stat().st_size - 1024
        put(path, (at + field[0], field[1]), value)

    return edited(_footed, edit)


# VHD


def _sum(data: bytes, at: int) -> int:
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFF_FFFF


def _footers(path: pathlib.Path) -> list[int]:
    last = path.stat().st_size - 512
    with path.open('rb') as file:
        return [0, last] if file.read(8) == b'conectix' else [last]


def _vhd(maker: Maker, field: tuple[int, str], *values: object) -> Maker:
    """Make a VHD with a field of its footer, or footers, changed."""

    def edit(path: pathlib.Path) -> None:
        for at in _footers(path):
            put(path, (at + field[0], field[1]), *values)
            data = path.read_bytes()[at : at + 512]
            put(path, (at + 64, '>I'), _sum(data, 64))

    return edited(maker, edit)


def _vhd_header(field: tuple[int, str], value: int) -> Maker:
    def edit(path: pathlib.Path) -> None:
        put(path, (512 + field[0], field[1]), value)
        data = path.read_bytes()[512:1536]
        put(path, (512 + 36, '>I'), _sum(data, 36))

    return edited(VHD, edit)


def _vhd_entry(path: pathlib.Path) -> tuple[int, str]:
    return get(path, (512 + VHD_TABLE[0], VHD_TABLE[1])), '>I'


def vhd_of(creator: bytes, maker: Maker, cylinders: int) -> Maker:
    """Make a VHD whose geometry is not its size, by that creator."""
    return _vhd(
        _vhd(maker, VHD_CREATOR, creator), VHD_GEOMETRY, cylinders, 4, 17
    )


def _behind(maker: Maker, data: bytes) -> Maker:
    def append(path: pathlib.Path) -> None:
        with path.open('ab') as file:
            file.write(data)

    return edited(maker, append)


def _front_lost(path: pathlib.Path) -> None:
    put(path, (0, '512s'), noise(512, 3))


# VHDX


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


def _crc32c(data: bytes) -> int:
    table, crc = _crc_table(), 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFF_FFFF


def _region(path: pathlib.Path, name: bytes) -> int:
    """Find the entry of a region."""
    table = path.read_bytes()[VHDX_REGIONS : VHDX_REGIONS + 64 * KI]
    return VHDX_REGIONS + table.index(name)


def _sum_regions(path: pathlib.Path) -> None:
    put(path, (VHDX_REGIONS + 4, '<I'), 0)
    table = path.read_bytes()[VHDX_REGIONS : VHDX_REGIONS + 64 * KI]
    put(path, (VHDX_REGIONS + 4, '<I'), _crc32c(table))


def _with_region(name: bytes, at: int, packing: str, value: object) -> Maker:
    def edit(path: pathlib.Path) -> None:
        put(path, (_region(path, name) + at, packing), value)
        _sum_regions(path)

    return edited(VHDX, edit)


def _with_regions(field: tuple[int, str], value: int) -> Maker:
    def edit(path: pathlib.Path) -> None:
        put(path, field, value)
        _sum_regions(path)

    return edited(VHDX, edit)


def bat(path: pathlib.Path) -> int:
    return get(path, (_region(path, _VHDX_BAT) + 16, '<Q'))


def metadata(path: pathlib.Path) -> int:
    return get(path, (_region(path, _VHDX_META) + 16, '<Q'))


def _item(path: pathlib.Path, name: bytes) -> int:
    """Find the entry of an item of the metadata."""
    at = metadata(path)
    return at + path.read_bytes()[at : at + 64 * KI].index(name)


def _with_item(name: bytes, packing: str, value: object, at: int = 0) -> Maker:
    """Make a VHDX with another value of an item."""

    def edit(path: pathlib.Path) -> None:
        offset = get(path, (_item(path, name) + 16, '<I'))
        put(path, (metadata(path) + offset + at, packing), value)

    return edited(VHDX, edit)


def _vhdx_parent(path: pathlib.Path) -> None:
    """Have a locator of a parent, in place of an item QEMU wants."""
    VHDX(path)
    put(path, (_item(path, _VHDX_PAGE_83), '16s'), _VHDX_PARENT)


def _vhdx_logged(path: pathlib.Path) -> None:
    """Have something in the log that was not done: zeros, for 4 KiB."""
    VHDX(path)
    name = noise(16, 4)
    for number in (0, 1):
        at = 64 * KI * (1 + number)
        put(path, (at + 48, '16s'), name)
        put(path, (at + 4, '<I'), 0)
        put(path, (at + 4, '<I'), _crc32c(path.read_bytes()[at:][: 4 * KI]))
    size = path.stat().st_size
    entry = struct.pack(
        '<4sIIIQI4x16sQQ', b'loge', 0, 4 * KI, 0, 1, 1, name, size, size
    ) + struct.pack('<4s4xQQQ', b'zero', 4 * KI, 3 * MI, 1)
    entry = entry.ljust(4 * KI, b'\0')
    put(path, (MI, '4096s'), entry)
    put(path, (MI + 4, '<I'), _crc32c(entry))


def _with_bat(entry: int) -> Maker:
    return edited(VHDX, lambda path: put(path, (bat(path), '<Q'), entry))


# What is refused


def _empty(to: str, *options: str) -> Maker:
    def make(path: pathlib.Path) -> None:
        arguments = [part for option in options for part in ('-o', option)]
        corpus.qemu_img('create', '-q', '-f', to, *arguments, path, 8 * MI)

    return make


def _formats(
    size: int, names: Iterable[str], data: Callable[[int], bytes] = holey
) -> list[Image]:
    """Make an image in each format."""
    all_of_them = {
        'vmdk': ('vmdk', SPARSE),
        'vmdk_stream': ('vmdk', STREAM),
        'vdi': ('vdi',),
        'vdi_static': ('vdi', 'static=on'),
        'vhd': ('vpc', DYNAMIC, FORCE),
        'vhd_geometry': ('vpc', DYNAMIC),
        'vhd_fixed': ('vpc', FIXED, FORCE),
        'vhd_fixed_geometry': ('vpc', FIXED),
        'vhdx': ('vhdx', DYNAMIC, BLOCK_1M),
        'vhdx_fixed': ('vhdx', FIXED, BLOCK_1M),
    }
    return [
        Image(
            f'{name}_{size}',
            converted(
                data(size), *all_of_them[name][1:], to=all_of_them[name][0]
            ),
        )
        for name in names or all_of_them
    ]


GOOD = [
    *_formats(ODD, ()),
    *_formats(BIG, ('vmdk', 'vdi', 'vhd', 'vhd_fixed', 'vhdx')),
    *_formats(512, ('vmdk', 'vmdk_stream', 'vdi', 'vhd_fixed', 'vhdx')),
    *(
        Image(f'{to}_{number}_empty', _empty(to, *options))
        for number, (to, *options) in enumerate(
            [
                ('vmdk', SPARSE),
                ('vmdk', STREAM),
                ('vdi',),
                ('vdi', 'static=on'),
                ('vpc', DYNAMIC),
                ('vpc', FIXED),
                ('vhdx',),
                ('vhdx', FIXED),
            ]
        )
    ),
    Image('vmdk_claimed', VMDK, 'vmdk'),
    Image('vmdk_stream_claimed', VMDK_STREAM, 'vmdk'),
    Image(
        'vmdk_zeroed_grain',
        converted(holey(MI), SPARSE, 'zeroed_grain=on', to='vmdk'),
    ),
    Image('vmdk_footed', _footed),
    Image('vmdk_renamed', _replaced('image', 'moved')),
    Image('vmdk_longer', _behind(VMDK, noise(777, 5))),
    Image('vdi_claimed', VDI, 'vdi'),
    Image('vdi_odd', with_field(VDI, VDI_SIZE, BIG - 100)),
    Image('vhd_claimed', VHD, 'vhd'),
    Image('vhd_fixed_claimed', VHD_FIXED, 'vhd'),
    Image('vhd_fixed_as_raw', VHD_FIXED, 'raw'),
    Image('vhd_fixed_mbr', edited(VHD_FIXED, corpus.mbr), 'vhd'),
    *(
        Image(f'{name}_{number}', vhd_of(creator, maker, cylinders))
        for name, maker in (('vhd', VHD), ('vhd_fixed', VHD_FIXED))
        for number, (creator, cylinders) in enumerate(
            [
                (b'vpc ', 5),
                (b'win ', 5),
                (b'vbox', 5),
                (b'qemu', 5),
                (b'qem2', 5),
                (b'd2v ', 5),
                (b'vpc ', 700),
                (b'vbox', 700),
            ]
        )
    ),
    Image('vhd_original_size', _vhd(VHD, VHD_ORIGINAL_SIZE, BIG - 512), 'vhd'),
    Image('vhdx_claimed', VHDX, 'vhdx'),
    Image('vhdx_fixed_claimed', VHDX_FIXED, 'vhdx'),
    Image(
        'vhdx_large_blocks', converted(holey(BIG), 'block_size=8M', to='vhdx')
    ),
    Image(
        'vhdx_zero_blocks',
        converted(holey(BIG), BLOCK_1M, 'block_state_zero=on', to='vhdx'),
    ),
    Image('vhdx_large_log', converted(holey(BIG), 'log_size=3M', to='vhdx')),
]

BAD = [
    *corpus.bad(
        Reason.BACKING_FILE,
        ('vmdk_parent', _vmdk_parent),
        ('vmdk_parent_hint', _added('parentFileNameHint="%s"')),
        ('vmdk_parent_hint_in_comment', _added('# parentFileNameHint="%s"')),
        ('vmdk_parent_passwd', _added('parentFileNameHint="/etc/passwd"')),
        (
            'vmdk_parent_json',
            _added(
                'parentFileNameHint="json:{\'driver\':\'raw\',\'file\':'
                '{\'driver\':\'file\',\'filename\':\'%s\'}}"'
            ),
        ),
        ('vmdk_parent_id', _replaced('parentCID=ffffffff', 'parentCID=1')),
        ('vhd_differencing', _vhd(VHD, VHD_KIND, 4)),
        ('vhd_differencing_at_end', _vhd(VHD_FIXED, VHD_KIND, 4)),
        ('vdi_undo', with_field(VDI, VDI_KIND, 3)),
        ('vdi_difference', with_field(VDI, VDI_KIND, 4)),
        ('vdi_parent', with_field(VDI, VDI_PARENT, 1)),
        ('vhdx_parent', _vhdx_parent),
        ('vhdx_parent_bit', _with_item(_VHDX_PARAMETERS, '<I', 2, 4)),
    ),
    *corpus.bad(
        Reason.DATA_FILE,
        ('vmdk_text', _text_alone),
        ('vmdk_text_as_vmdk', _text_alone, 'vmdk'),
        ('vmdk_flat', corpus.vmdk_flat),
        ('vmdk_extent_elsewhere', _replaced('"image"', '"%s"')),
        ('vmdk_extent_above', _replaced('"image"', r'"..\other"')),
        ('vmdk_two_extents', _added('RW 2048 SPARSE "other"')),
        ('vmdk_flat_extent', _replaced('SPARSE', 'FLAT')),
        ('vmdk_no_disk', _no_disk('RW 2048 FLAT "%s" 0')),
        ('vmdk_no_disk_near', _no_disk('RW 2048 FLAT "%n" 0')),
        ('vmdk_no_disk_vmfs', _no_disk('RW 2048 VMFS "%s"')),
        ('vmdk_capacity_0', with_field(VMDK, VMDK_CAPACITY, 0)),
        (
            'vmdk_of_many',
            _replaced('monolithicSparse', 'twoGbMaxExtentSparse'),
        ),
    ),
    *corpus.bad(
        Reason.FORMAT_UNSUPPORTED,
        ('cowd', _cowd),
        ('cowd_as_vmdk', _cowd, 'vmdk'),
        ('cowd_as_raw', _cowd, 'raw'),
        ('qcow_as_qcow2', converted(noise(64 * KI), to='qcow'), 'qcow2'),
        ('qed_as_raw', converted(noise(64 * KI), to='qed'), 'raw'),
        ('vmdk_and_mbr', edited(VMDK, corpus.mbr)),
    ),
    *corpus.bad(
        Reason.FORMAT_MISMATCH,
        ('vmdk_as_raw', VMDK, 'raw'),
        ('vmdk_text_as_raw', _text_alone, 'raw'),
        ('vmdk_as_vdi', VMDK, 'vdi'),
        ('raw_as_vmdk', corpus.raw(holey(MI)), 'vmdk'),
        ('raw_as_vdi', corpus.raw(holey(MI)), 'vdi'),
        ('vhd_as_raw', VHD, 'raw'),
        ('vhd_as_vhdx', VHD, 'vhdx'),
        ('vhd_fixed_as_qcow2', VHD_FIXED, 'qcow2'),
        ('vdi_as_qcow2', VDI, 'qcow2'),
        ('vhdx_as_vhd', VHDX, 'vhd'),
        ('vhdx_as_raw', VHDX, 'raw'),
        ('qcow2_as_vmdk', corpus.PLAIN, 'vmdk'),
    ),
    *corpus.bad(
        Reason.IMAGE_TOO_LARGE,
        ('vmdk_2_63', with_field(VMDK, VMDK_CAPACITY, 2**54)),
        ('vmdk_2_73', with_field(VMDK, VMDK_CAPACITY, 2**64 - 1)),
        ('vhd_2_63', _vhd(VHD, VHD_SIZE, 2**63)),
        ('vdi_2_63', with_field(VDI, VDI_SIZE, 2**63)),
        ('vhdx_2_63', _with_item(_VHDX_SIZE, '<Q', 2**63)),
    ),
    *corpus.bad(
        Reason.EMPTY_IMAGE,
        ('vhd_size_0', _vhd(VHD, VHD_SIZE, 0)),
        ('vhd_fixed_size_0', _vhd(VHD_FIXED, VHD_SIZE, 0)),
        ('vdi_size_0', with_field(VDI, VDI_SIZE, 0)),
        ('vhdx_size_0', _with_item(_VHDX_SIZE, '<Q', 0)),
    ),
    *corpus.bad(
        Reason.IMAGE_CORRUPT,
        ('vmdk_version_4', with_field(VMDK, VMDK_VERSION, 4)),
        ('vmdk_descriptor_at_0', with_field(VMDK, VMDK_DESCRIPTOR, 0)),
        ('vmdk_descriptor_at_9', with_field(VMDK, VMDK_DESCRIPTOR, 9)),
        ('vmdk_no_type', _replaced('createType', 'madeType')),
        ('vmdk_no_descriptor', _described(lambda found, pipe: '')),
        ('vmdk_no_id', _replaced('CID', 'DIC')),
        ('vmdk_larger', with_field(VMDK, VMDK_CAPACITY, 2**32)),
        ('vmdk_grain_0', with_field(VMDK, VMDK_GRAIN, 0)),
        ('vmdk_grain_3', with_field(VMDK, VMDK_GRAIN, 3)),
        ('vmdk_grain_2_63', with_field(VMDK, VMDK_GRAIN, 2**63)),
        ('vmdk_tables_of_0', with_field(VMDK, VMDK_TABLE_ENTRIES, 0)),
        ('vmdk_tables_of_1', with_field(VMDK, VMDK_TABLE_ENTRIES, 1)),
        ('vmdk_directory_beyond', with_field(VMDK, VMDK_DIRECTORY, 2**50)),
        ('vmdk_directory_max', with_field(VMDK, VMDK_DIRECTORY, 2**64 - 2)),
        ('vmdk_table_beyond', corpus.with_entry(VMDK, _grain_table, 2**31)),
        ('vmdk_table_in_header', corpus.with_entry(VMDK, _grain_table, 2)),
        ('vmdk_grain_beyond', corpus.with_entry(VMDK, _grain, 2**32 - 1)),
        ('vmdk_grain_in_header', corpus.with_entry(VMDK, _grain, 1)),
        (
            'vmdk_stream_grain_elsewhere',
            corpus.with_entry(VMDK_STREAM, _grain, 2500),
        ),
        ('vmdk_no_footer', cut(_footed, corpus.short_of(1536))),
        ('vmdk_footer_size', _footer_field(VMDK_CAPACITY, 2**20)),
        ('vmdk_footer_descriptor', _footer_field(VMDK_DESCRIPTOR, 9)),
        ('vmdk_footer_twice', _footer_field(VMDK_DIRECTORY, 2**64 - 1)),
        ('vmdk_footer_no_marker', _footer_field((-512 + 12, '<I'), 1)),
    ),
    *corpus.bad(
        Reason.IMAGE_CORRUPT,
        ('raw_as_vhd', corpus.raw(holey(MI)), 'vhd'),
        ('vhd_wrong_sum', with_field(VHD, (64, '>I'), 7)),
        ('vhd_header_sum', with_field(VHD, (512 + 36, '>I'), 7)),
        ('vhd_kind_7', _vhd(VHD, VHD_KIND, 7)),
        ('vhd_fixed_in_front', _vhd(VHD, VHD_KIND, 2)),
        ('vhd_dynamic_at_end', _vhd(VHD_FIXED, VHD_KIND, 3)),
        ('vhd_front_lost', edited(VHD, _front_lost)),
        ('vhd_no_end', cut(VHD, corpus.short_of(512))),
        ('vhd_odd_size', _vhd(VHD, VHD_SIZE, BIG - 1)),
        ('vhd_larger', _vhd(VHD, VHD_SIZE, 2**40)),
        ('vhd_fixed_larger', _vhd(VHD_FIXED, VHD_SIZE, BIG + 512)),
        ('vhd_fixed_smaller', _vhd(VHD_FIXED, VHD_SIZE, BIG - 512)),
        ('vhd_header_beyond', _vhd(VHD, VHD_HEADER, 2**62)),
        ('vhd_header_in_footer', _vhd(VHD, VHD_HEADER, 0)),
        ('vhd_table_beyond', _vhd_header(VHD_TABLE, 2**63)),
        ('vhd_entries_0', _vhd_header(VHD_ENTRIES, 0)),
        ('vhd_entries_max', _vhd_header(VHD_ENTRIES, 2**32 - 1)),
        ('vhd_block_0', _vhd_header(VHD_BLOCK, 0)),
        ('vhd_block_3', _vhd_header(VHD_BLOCK, 3 * 2**20)),
        ('vhd_block_in_header', corpus.with_entry(VHD, _vhd_entry, 0)),
        ('vhd_block_in_table', corpus.with_entry(VHD, _vhd_entry, 3)),
        ('vhd_block_beyond', corpus.with_entry(VHD, _vhd_entry, 2**31)),
    ),
    *corpus.bad(
        Reason.IMAGE_CORRUPT,
        ('vdi_version_0', with_field(VDI, VDI_VERSION, 1)),
        ('vdi_kind_9', with_field(VDI, VDI_KIND, 9)),
        ('vdi_blocks_max', with_field(VDI, VDI_BLOCKS, 2**32 - 1)),
        ('vdi_blocks_0', with_field(VDI, VDI_BLOCKS, 0)),
        ('vdi_larger', with_field(VDI, VDI_SIZE, 2**40)),
        ('vdi_map_beyond', with_field(VDI, VDI_MAP, 2**32 - 512)),
        ('vdi_map_in_header', with_field(VDI, VDI_MAP, 0)),
        ('vdi_map_odd', with_field(VDI, VDI_MAP, 513)),
        ('vdi_data_in_map', with_field(VDI, VDI_DATA, 512)),
        ('vdi_data_beyond', with_field(VDI, VDI_DATA, 2**32 - 512)),
        ('vdi_block_size', with_field(VDI, VDI_BLOCK, 4096)),
        ('vdi_block_extra', with_field(VDI, VDI_EXTRA, 512)),
        ('vdi_block_beyond', with_field(VDI, (512, '<I'), 2**20)),
    ),
    *corpus.bad(
        Reason.IMAGE_CORRUPT,
        ('vhdx_logged', _vhdx_logged),
        ('vhdx_no_headers', with_field(VHDX, (64 * KI, '131072x'))),
        ('vhdx_regions_sum', with_field(VHDX, (VHDX_REGIONS + 4, '<I'), 7)),
        (
            'vhdx_regions_noise',
            with_field(VHDX, (VHDX_REGIONS, '65536s'), noise(64 * KI)),
        ),
        ('vhdx_regions_max', _with_regions(VHDX_REGION_COUNT, 2**32 - 1)),
        ('vhdx_regions_0', _with_regions(VHDX_REGION_COUNT, 0)),
        ('vhdx_bat_beyond', _with_region(_VHDX_BAT, 16, '<Q', 2**62)),
        ('vhdx_bat_max', _with_region(_VHDX_BAT, 24, '<I', 2**32 - 2**20)),
        ('vhdx_bat_small', _with_region(_VHDX_BAT, 24, '<I', 8)),
        ('vhdx_metadata_beyond', _with_region(_VHDX_META, 16, '<Q', 2**62)),
        ('vhdx_metadata_at_bat', _with_region(_VHDX_META, 16, '<Q', 2**21)),
        ('vhdx_larger', _with_item(_VHDX_SIZE, '<Q', 2**40)),
        ('vhdx_odd_size', _with_item(_VHDX_SIZE, '<Q', BIG - 1)),
        ('vhdx_sector_4096', _with_item(_VHDX_SECTOR, '<I', 4096)),
        ('vhdx_sector_0', _with_item(_VHDX_SECTOR, '<I', 0)),
        ('vhdx_block_0', _with_item(_VHDX_PARAMETERS, '<I', 0)),
        ('vhdx_block_3m', _with_item(_VHDX_PARAMETERS, '<I', 3 * 2**20)),
        ('vhdx_entry_beyond', _with_bat(2**50 | 6)),
        ('vhdx_entry_in_header', _with_bat(6)),
        ('vhdx_entry_in_log', _with_bat(2**20 | 6)),
        ('vhdx_entry_partial', _with_bat(8 * MI | 7)),
    ),
]

# To be cut everywhere; each with its claim.
CUT = [
    Image('vmdk', converted(holey(832 * KI), SPARSE, to='vmdk'), 'vmdk'),
    Image('vmdk_stream', converted(text(832 * KI), STREAM, to='vmdk'), 'vmdk'),
    Image('vmdk_footed', _footed, 'vmdk'),
    Image('vdi', converted(holey(ODD), to='vdi'), 'vdi'),
    Image('vdi_static', converted(holey(ODD), 'static=on', to='vdi'), 'vdi'),
    Image('vhd', converted(holey(ODD), DYNAMIC, FORCE, to='vpc'), 'vhd'),
    Image('vhd_fixed', converted(holey(ODD), FIXED, FORCE, to='vpc'), 'vhd'),
    Image('vhdx', converted(holey(ODD), DYNAMIC, BLOCK_1M, to='vhdx'), 'vhdx'),
    Image(
        'vhdx_fixed', converted(holey(ODD), FIXED, BLOCK_1M, to='vhdx'), 'vhdx'
    ),
]


def tables(path: pathlib.Path) -> set[int]:
    """Tell where the tables of an image begin."""
    head = path.read_bytes()[:512]
    if head.startswith(b'KDMV'):
        at = _grain_table(path)[0]
        if at >= path.stat().st_size:  # by its footer
            return {path.stat().st_size - 512 * n for n in range(1, 6)}
        return {512, at, get(path, _grain_table(path)) * 512}
    if head.startswith(b'vhdxfile'):
        return {64 * KI, VHDX_REGIONS, MI, bat(path), metadata(path)}
    if head.startswith(b'conectix'):
        return {512, 1536, 2048}
    return {512, 1024}
