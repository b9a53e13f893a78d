# SPDX-License-Identifier: Apache-2.0
"""Images, good and bad, each with what is to become of it.

They are made when they are wanted, by qemu-img and by edits of single fields,
so that each one says what is particular about it. What a bad image refers to
lies beside it, as a pipe named after the image with ``.other``.
"""

import base64
from collections.abc import Callable
import dataclasses
import functools
import gzip
import json
import lzma
import os
import pathlib
import random
import signal
import struct
import subprocess
import tempfile
from typing import Any
import unittest

from cinder_cow.refusal import Reason

KI = 1024
MI = 1024 * KI
ISO = pathlib.Path('/usr/lib/grub-rescue/grub-rescue-cdrom.iso')

# Offsets of fields in a qcow2 header, and how they are packed.
VERSION = (4, '>I')
BACKING_OFFSET = (8, '>Q')
BACKING_SIZE = (16, '>I')
CLUSTER_BITS = (20, '>I')
SIZE = (24, '>Q')
CRYPT_METHOD = (32, '>I')
L1_SIZE = (36, '>I')
L1_OFFSET = (40, '>Q')
REFCOUNT_OFFSET = (48, '>Q')
REFCOUNT_CLUSTERS = (56, '>I')
SNAPSHOTS = (60, '>I')
SNAPSHOTS_OFFSET = (64, '>Q')
INCOMPATIBLE = (72, '>Q')
REFCOUNT_ORDER = (96, '>I')
HEADER_LENGTH = (100, '>I')
COMPRESSION_TYPE = (104, '>B')

COPIED = 1 << 63
COMPRESSED = 1 << 62
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00

Maker = Callable[[pathlib.Path], None]


@dataclasses.dataclass(frozen=True)
class Image:
    """An image to be made.

    :param make: makes it at a path
    :param claimed: the format somebody says it has; None: nobody does
    :param reason: why it is refused; None: it is good
    """

    name: str
    make: Maker
    claimed: str | None = None
    reason: Reason | None = None


# Tools


def qemu_img(*arguments: object) -> None:
    _run('qemu-img', *arguments)


def qemu_io(path: pathlib.Path, *commands: str) -> None:
    options = [part for c in commands for part in ('-c', c)]
    _run('qemu-io', '-f', 'qcow2', *options, path)


def _run(*command: object) -> None:
    found = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    # qemu-io tells some failures by a message alone.
    if found.returncode or 'failed:' in found.stdout:
        raise AssertionError(f'{command}: {found.stdout}{found.stderr}')


def put(path: pathlib.Path, field: tuple[int, str], *values: Any) -> None:
    """Overwrite a field, given by its offset and packing."""
    with path.open('r+b') as file:
        file.seek(field[0])
        file.write(struct.pack(field[1], *values))


def get(path: pathlib.Path, field: tuple[int, str]) -> int:
    with path.open('rb') as file:
        file.seek(field[0])
        (value,) = struct.unpack(
            field[1], file.read(struct.calcsize(field[1]))
        )
    return int(value)


def other(path: pathlib.Path) -> pathlib.Path:
    """Where the file is that an image refers to."""
    return path.with_name(path.name + '.other')


# Where the tables of a qcow2 are


def cluster_size(path: pathlib.Path) -> int:
    return 1 << get(path, CLUSTER_BITS)


def l1_entry(path: pathlib.Path) -> tuple[int, str]:
    """Find the first entry of the L1 table."""
    return get(path, L1_OFFSET), '>Q'


def l2_entry(path: pathlib.Path, wanted: int = COPIED) -> tuple[int, str]:
    """Find the first entry of the first L2 table that has a flag."""
    table = get(path, l1_entry(path)) & _OFFSET_MASK
    for number in range(cluster_size(path) // 8):
        field = (table + 8 * number, '>Q')
        if get(path, field) & wanted:
            return field
    raise AssertionError('there is no such entry')


def refcount_block(path: pathlib.Path) -> int:
    return get(path, (get(path, REFCOUNT_OFFSET), '>Q'))


def last_cluster(path: pathlib.Path) -> int:
    """Where the last cluster of a file begins, whole or not."""
    size = cluster_size(path)
    return (path.stat().st_size - 1) // size * size


# What is in the disks


@functools.cache
def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@functools.cache
def text(size: int, seed: int = 0) -> bytes:
    """Bytes that compress to three quarters, with hardly a repetition."""
    return base64.b64encode(noise(size, seed))[:size]


@functools.cache
def holey(size: int) -> bytes:
    """Noise with holes, also where they fill no whole cluster."""
    data = bytearray(noise(size))
    for start, end in ((64, 128), (200, 330), (400, 401), (700, 832)):
        data[start * KI : end * KI] = bytes((end - start) * KI)
    return bytes(data[:size])


def raw(data: bytes) -> Maker:
    def make(path: pathlib.Path) -> None:
        with path.open('wb') as file:
            for offset in range(0, len(data), 4 * KI):
                piece = data[offset : offset + 4 * KI]
                if any(piece):
                    os.pwrite(file.fileno(), piece, offset)
            file.truncate(len(data))

    return make


def converted(
    data: bytes, *options: object, to: str = 'qcow2', compress: bool = False
) -> Maker:
    """Make an image of that disk, by qemu-img convert with -o options."""

    def make(path: pathlib.Path) -> None:
        arguments: list[object] = ['-c'] if compress else []
        for option in options:
            arguments += ['-o', option]
        with tempfile.NamedTemporaryFile(dir=path.parent) as disk:
            disk.write(data)
            disk.flush()
            qemu_img(
                'convert', '-f', 'raw', '-O', to, *arguments, disk.name, path
            )

    return make


def created(
    size: object, *options: object, commands: tuple[str, ...] = ()
) -> Maker:
    """Make an empty qcow2, written to by qemu-io."""

    def make(path: pathlib.Path) -> None:
        arguments = [part for option in options for part in ('-o', option)]
        qemu_img('create', '-q', '-f', 'qcow2', *arguments, path, size)
        if commands:
            qemu_io(path, *commands)

    return make


def edited(maker: Maker, edit: Callable[[pathlib.Path], object]) -> Maker:
    """Make an image with something done to it."""

    def make(path: pathlib.Path) -> None:
        maker(path)
        edit(path)

    return make


def with_field(maker: Maker, field: tuple[int, str], *values: object) -> Maker:
    return edited(maker, lambda path: put(path, field, *values))


def with_entry(
    maker: Maker,
    find: Callable[[pathlib.Path], tuple[int, str]],
    value: int,
) -> Maker:
    """Make an image with one entry of a table replaced."""
    return edited(maker, lambda path: put(path, find(path), value))


PLAIN = converted(holey(MI))
ZLIB = converted(text(MI), compress=True)
ZSTD = converted(text(MI), 'compression_type=zstd', compress=True)


# Good images


def mbr(path: pathlib.Path) -> None:
    # One partition of type Linux, from sector 64 on.
    put(path, (446, '<8sII'), b'\x80\0\2\0\x83\0\0\0', 64, 1984)
    put(path, (510, '<H'), 0xAA55)


def _iso(path: pathlib.Path) -> None:
    try:
        path.write_bytes(ISO.read_bytes())
    except FileNotFoundError:
        raise unittest.SkipTest(
            f'machine: no {ISO} (grub-rescue-pc)'
        ) from None


@functools.cache
def _locked(to: str, options: str) -> bytes:
    """Return an image with a key."""
    # Two seconds, which go into measuring how slow the key shall be. The
    # clock for that is so coarse that it fails now and then.
    with tempfile.TemporaryDirectory() as top:
        path = pathlib.Path(top, 'image')
        for left in reversed(range(20)):
            try:
                qemu_img(
                    'create', '-q', '-f', to,
                    '--object', 'secret,id=key,data=open-sesame',
                    '-o', options, path, MI,
                )  # fmt: skip
                break
            except AssertionError as error:
                if 'accurate CPU usage' not in str(error) or not left:
                    raise
        return path.read_bytes()


def _luks(path: pathlib.Path) -> None:
    path.write_bytes(_locked('luks', 'key-secret=key,iter-time=10'))


def _snapshot(path: pathlib.Path) -> None:
    PLAIN(path)
    qemu_img('snapshot', '-c', 'before', path)
    qemu_io(path, 'write -q -P 7 100k 300k', 'discard -q 0 64k')


def _resized(path: pathlib.Path) -> None:
    # Small clusters: the L1 table is too small then and moves to the end.
    created(256 * KI, 'cluster_size=512', commands=_ODD_WRITES)(path)
    qemu_img('resize', '-q', '-f', 'qcow2', path, 8 * MI)


def _shrunk(path: pathlib.Path) -> None:
    PLAIN(path)
    qemu_img('resize', '-q', '--shrink', '-f', 'qcow2', path, 300 * KI)


def _bitmap(path: pathlib.Path) -> None:
    PLAIN(path)
    qemu_img('bitmap', '--add', path, 'changes')
    qemu_io(path, 'write -q -P 7 10k 1k')


def _killed(path: pathlib.Path) -> None:
    """Written to with lazy_refcounts, by one that was killed."""
    created(MI, 'lazy_refcounts=on', commands=_SMALL_WRITES)(path)
    found = subprocess.run(
        ['qemu-io', '-f', 'qcow2', '-c', 'write -q -P 5 300k 300k',
         '-c', 'flush', '-c', f'sigraise {signal.SIGKILL:d}', path],
        check=False,
    )  # fmt: skip
    assert found.returncode == -signal.SIGKILL
    assert get(path, INCOMPATIBLE) == 1  # dirty


def _leaking(maker: Maker, wide: bool = True) -> Maker:
    """Make an image with clusters counted that nothing uses.

    :param wide: the file is as long as if they had been written
    """

    def leak(path: pathlib.Path) -> None:
        number = last_cluster(path) // cluster_size(path)
        if wide:
            os.truncate(path, (number + 4) * cluster_size(path))
        first = number + 1 if wide else _unused(path)
        put(path, (refcount_block(path) + 2 * first, '>H'), 1)

    return edited(maker, leak)


def _unused(path: pathlib.Path) -> int:
    """Unlink a cluster of data and return its number."""
    field = l2_entry(path)
    number = (get(path, field) & _OFFSET_MASK) // cluster_size(path)
    put(path, field, 0)
    return number


def _longer(size: int) -> Maker:
    def lengthen(path: pathlib.Path) -> None:
        with path.open('ab') as file:
            file.write(noise(size, 5))

    return edited(PLAIN, lengthen)


def _stray_data_file(path: pathlib.Path) -> None:
    """Name a data file that no feature bit asks for."""
    PLAIN(path)
    os.mkfifo(other(path))
    name = os.fsencode(other(path))
    padded = name + bytes(-len(name) % 8)
    extension = struct.pack('>4sI', b'DATA', len(name)) + padded
    put(path, (get(path, HEADER_LENGTH), f'>{len(extension)}s8x'), extension)


_SMALL_WRITES = (
    'write -q -P 1 1k 512',
    'write -q -P 2 70k 3k',
    'write -q -P 3 127k 2k',
)
_ODD_WRITES = (
    *_SMALL_WRITES,
    'write -q -P 4 0 512',
    'write -q -P 5 1000 24',
    'write -q -z 71k 1k',
    'write -q -P 6 190k 40k',
    'write -q -z -u 192k 32k',
    'discard -q 127k 1k',
    'write -q -P 7 255k 1k',
)
_END_WRITES = (
    'write -q -P 1 960k 64k',
    'write -q -P 2 1023k 1k',
    'write -q -z 512k 128k',
    'discard -q 1000k 8k',
)

GOOD = [
    Image('raw', raw(holey(MI))),
    Image('raw_claimed', raw(holey(MI)), 'raw'),
    Image('raw_one_sector', raw(noise(512))),
    Image('raw_three_pages', raw(noise(12 * KI))),
    Image('raw_zeros', raw(bytes(MI))),
    Image('raw_odd_size', raw(holey(MI) + b'odd'), 'raw'),
    Image('raw_one_byte', raw(b'x'), 'raw'),
    Image('raw_mbr', edited(raw(holey(MI)), mbr)),
    Image('raw_mbr_claimed', edited(raw(holey(MI)), mbr), 'raw'),
    Image('gpt_claimed', edited(raw(holey(MI)), mbr), 'gpt'),
    Image('iso', _iso),
    Image('iso_claimed', _iso, 'iso'),
    Image('iso_claimed_raw', _iso, 'raw'),
    Image('luks_claimed', _luks, 'luks'),
    Image('plain', PLAIN),
    Image('plain_claimed', PLAIN, 'qcow2'),
    Image('zlib', ZLIB),
    Image('zlib_noise', converted(holey(MI), compress=True)),
    Image('zstd', ZSTD),
    Image('version_2', converted(holey(MI), 'compat=0.10')),
    Image('clusters_512', converted(holey(MI), 'cluster_size=512')),
    Image('clusters_2m', converted(holey(3 * MI), 'cluster_size=2M')),
    Image('preallocated', created(MI, 'preallocation=metadata')),
    Image(
        'preallocated_written',
        created(MI, 'preallocation=metadata', commands=_ODD_WRITES),
    ),
    Image('preallocated_full', created(MI, 'preallocation=full')),
    Image('snapshot', _snapshot),
    Image(
        'lazy_refcounts',
        created(MI, 'lazy_refcounts=on', commands=_SMALL_WRITES),
    ),
    Image('refcount_bits_1', converted(holey(MI), 'refcount_bits=1')),
    Image('refcount_bits_64', converted(holey(MI), 'refcount_bits=64')),
    Image('odd_size', converted(noise(MI - 24 * KI))),
    Image('odd_sectors', converted(noise(MI + 512))),
    Image('odd_size_zlib', converted(text(1_000_448), compress=True)),
    Image(
        'odd_size_preallocated', created(1_000_448, 'preallocation=metadata')
    ),
    Image(
        'odd_size_last_written',
        created(1_000_448, commands=('write -q -P 1 999936 512',)),
    ),
    Image('half_a_sector', with_field(PLAIN, SIZE, MI - 100)),
    Image('small_writes', created(MI, commands=_SMALL_WRITES)),
    Image('odd_writes', created(256 * KI, commands=_ODD_WRITES)),
    Image('end_writes', created(MI, commands=_END_WRITES)),
    Image(
        'compressed_writes',
        created(
            MI, commands=('write -q -c -P 1 64k 64k', 'write -q -P 2 70k 1k')
        ),
    ),
    Image('never_written', created(MI)),
    Image('zeros_written', created(MI, commands=('write -q -z 0 1M',))),
    Image('resized', _resized),
    Image('shrunk', _shrunk),
    Image('bitmap', _bitmap),
    Image('longer_than_needed', _longer(777)),
    Image('much_longer_than_needed', _longer(300 * KI)),
    Image('leak_at_end', _leaking(PLAIN)),
    Image('leak_inside', _leaking(PLAIN, wide=False)),
    Image(
        'last_write_compressed',
        created(MI, commands=('write -q -c -P 1 64k 64k',)),
    ),
    Image(
        'leak_inside_compressed',
        _leaking(
            created(
                MI, commands=('write -q 0 64k', 'write -q -c -P 1 64k 64k')
            ),
            wide=False,
        ),
    ),
    Image('data_file_named_only', _stray_data_file),
]


# Bad images: what they refer to


def _pipe_instead(path: pathlib.Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _backed(*options: str, by: str) -> Maker:
    def make(path: pathlib.Path) -> None:
        backing = other(path)
        qemu_img('create', '-q', '-f', by, backing, MI)
        arguments = [part for option in options for part in ('-o', option)]
        qemu_img(
            'create', '-q', '-f', 'qcow2', *arguments,
            '-b', backing, '-F', by, path,
        )  # fmt: skip
        _pipe_instead(backing)

    return make


def _backing_name(
    name: Callable[[pathlib.Path], str], maker: Maker = PLAIN
) -> Maker:
    """Write a backing file's name into the header, by hand."""

    def write(path: pathlib.Path) -> None:
        _pipe_instead(other(path))
        written = name(other(path)).encode()
        put(path, (0x400, f'{len(written)}s'), written)
        put(path, BACKING_OFFSET, 0x400)
        put(path, BACKING_SIZE, len(written))

    return edited(maker, write)


def _data_file(raw_too: str) -> Maker:
    def make(path: pathlib.Path) -> None:
        data = other(path)
        created(MI, f'data_file={data}', f'data_file_raw={raw_too}')(path)
        _pipe_instead(data)

    return make


DATA_FILE = _data_file('off')


# Bad images: encrypted, absurd, damaged


def _encrypted(kind: str, method: int) -> Maker:
    def make(path: pathlib.Path) -> None:
        options = f'encrypt.format={kind},encrypt.key-secret=key'
        if kind == 'luks':
            options += ',encrypt.iter-time=10'
        path.write_bytes(_locked('qcow2', options))
        assert get(path, CRYPT_METHOD) == method

    return make


def _damaged_cluster(path: pathlib.Path) -> None:
    entry = get(path, l2_entry(path, COMPRESSED))
    # 64 KiB clusters: the offset is the low 54 bits of the entry.
    put(path, (entry & (1 << 54) - 1, '100s'), b'\xff' * 100)


def noisy(path: pathlib.Path) -> None:
    """Make a small image of which qemu-img check has a lot to say."""
    created('8G')(path)
    table = last_cluster(path) + cluster_size(path)
    put(path, (table, '65536s'), noise(64 * KI))
    put(path, (get(path, L1_OFFSET), '>16Q'), *[table] * 16)


def shared_table(path: pathlib.Path) -> None:
    """Make a small image that refers to one empty table 32768 times."""
    created('16T')(path)
    table = last_cluster(path) + cluster_size(path)
    count = get(path, L1_SIZE)
    put(path, (get(path, L1_OFFSET), f'>{count}Q'), *[table] * count)
    os.truncate(path, table + cluster_size(path) - 512)


def shared_cluster(path: pathlib.Path) -> None:
    """Make a small image of 16 GiB that names one cluster everywhere."""
    created('16G', 'refcount_bits=64', commands=('write -q -c -P 1 0 64k',))(
        path
    )
    count = get(path, L1_SIZE)
    table = get(path, l1_entry(path)) & _OFFSET_MASK
    entry = get(path, (table, '>Q'))
    put(path, (table, '>8192Q'), *[entry] * 8192)
    put(path, (get(path, L1_OFFSET), f'>{count}Q'), *[table] * count)
    # 64 KiB clusters: the offset is the low 54 bits of the entry.
    for offset, times in ((table, 1), (entry & (1 << 54) - 1, 8192)):
        field = (refcount_block(path) + 8 * (offset // (64 * KI)), '>Q')
        put(path, field, times * count)


def _iso_descriptor(path: pathlib.Path) -> None:
    PLAIN(path)
    put(path, (32 * KI, '7s'), b'\x01CD001\x01')


# Bad images: cut short


def cut(maker: Maker, end: Callable[[pathlib.Path], int]) -> Maker:
    return edited(maker, lambda path: os.truncate(path, end(path)))


def _at(size: int) -> Callable[[pathlib.Path], int]:
    return lambda path: size


def short_of(size: int) -> Callable[[pathlib.Path], int]:
    return lambda path: path.stat().st_size - size


def _half(path: pathlib.Path) -> int:
    return path.stat().st_size // 2


def _behind_refcounts(path: pathlib.Path) -> int:
    """Inside the block, behind the entries in use; the L1 table is lost."""
    return refcount_block(path) + 1000


def _before_l1(path: pathlib.Path) -> int:
    return get(path, L1_OFFSET)


def _in_l1(path: pathlib.Path) -> int:
    return get(path, L1_OFFSET) + 5


def _in_l2(path: pathlib.Path) -> int:
    return (get(path, l1_entry(path)) & _OFFSET_MASK) + 20


def _in_refcounts(path: pathlib.Path) -> int:
    return refcount_block(path) + 5


def _before_last_entry(path: pathlib.Path) -> int:
    """Inside the L2 table, before the only entry that is not empty."""
    return l2_entry(path)[0] - 1


# One cluster is written, the last of the disk.
LATE = created(MI, commands=('write -q -P 7 960k 64k',))


# Bad images: no qcow2 at all


def _file(data: bytes) -> Maker:
    def make(path: pathlib.Path) -> None:
        path.write_bytes(data)

    return make


def _dangling(path: pathlib.Path) -> None:
    path.symlink_to(path.with_name('nothing'))


def _compressed_file(pack: Callable[[bytes], bytes]) -> Maker:
    # Whole sectors, so that the size gives nothing away.
    packed = pack(noise(64 * KI))
    return _file(packed + bytes(-len(packed) % 512))


def vmdk_flat(path: pathlib.Path) -> None:
    """Only the descriptor of a VMDK; the disk is in another file."""
    disk = path.with_name('disk.vmdk')
    converted(noise(64 * KI), 'subformat=monolithicFlat', to='vmdk')(disk)
    disk.rename(path)


def bad(
    reason: Reason, *images: tuple[str, Maker] | tuple[str, Maker, str]
) -> list[Image]:
    return [
        Image(name, make, claimed[0] if claimed else None, reason)
        for name, make, *claimed in images
    ]


_BEYOND = 1 << 40

BAD = [
    # Whole, and refused all the same: lazy refcounts that were not written
    # look like damage.
    *bad(Reason.IMAGE_CORRUPT, ('writer_killed', _killed)),
    *bad(
        Reason.FORMAT_MISMATCH,
        ('qcow2_as_raw', PLAIN, 'raw'),
        ('raw_as_qcow2', raw(holey(MI)), 'qcow2'),
        ('raw_as_iso', raw(holey(MI)), 'iso'),
        ('mbr_as_qcow2', edited(raw(holey(MI)), mbr), 'qcow2'),
        ('iso_as_qcow2', _iso, 'qcow2'),
        ('qcow2_as_iso', PLAIN, 'iso'),
        ('luks', _luks),
        ('luks_as_raw', _luks, 'raw'),
        ('gzip_as_qcow2', _compressed_file(gzip.compress), 'qcow2'),
        ('cut_at_511_as_raw', cut(PLAIN, _at(511)), 'raw'),
    ),
    *bad(
        Reason.BACKING_FILE,
        ('backed_by_raw', _backed(by='raw')),
        ('backed_by_raw_claimed', _backed(by='raw'), 'qcow2'),
        ('backed_by_qcow2', _backed(by='qcow2')),
        ('backed_version_2', _backed('compat=0.10', by='raw')),
        ('backed_by_passwd', _backing_name(lambda pipe: '/etc/passwd')),
        ('backed_by_pipe', _backing_name(str)),
        (
            'backed_by_json',
            _backing_name(
                lambda pipe: (
                    'json:{"driver": "raw", "file": '
                    f'{{"driver": "file", "filename": "{pipe}"}}}}'
                )
            ),
        ),
        (
            'backed_by_nbd',
            _backing_name(lambda pipe: f'nbd:unix:{pipe}:exportname=x'),
        ),
        (
            'backed_and_unknown_feature',
            with_field(_backing_name(str), INCOMPATIBLE, 1 << 5),
        ),
    ),
    *bad(
        Reason.DATA_FILE,
        ('data_file', DATA_FILE),
        ('data_file_raw', _data_file('on')),
        ('data_file_bit', with_field(PLAIN, INCOMPATIBLE, 1 << 2)),
    ),
    *bad(
        Reason.UNKNOWN_FEATURES,
        ('feature_bit_5', with_field(PLAIN, INCOMPATIBLE, 1 << 5)),
        ('feature_bit_63', with_field(PLAIN, INCOMPATIBLE, 1 << 63)),
        ('extended_l2', created(MI, 'extended_l2=on')),
        ('version_4', with_field(PLAIN, VERSION, 4)),
    ),
    *bad(
        Reason.ENCRYPTED,
        ('encrypted_aes', _encrypted('aes', 1)),
        ('encrypted_luks', _encrypted('luks', 2)),
        ('crypt_method_3', with_field(PLAIN, CRYPT_METHOD, 3)),
    ),
    *bad(
        Reason.IMAGE_TOO_LARGE,
        ('size_2_63', with_field(PLAIN, SIZE, 2**63 - 1)),
        ('size_2_64', with_field(PLAIN, SIZE, 2**64 - 1)),
        ('size_2_50', with_field(PLAIN, SIZE, 2**50)),
        ('size_2_50_allocated', created(2**50, 'cluster_size=2M')),
    ),
    *bad(
        Reason.EMPTY_IMAGE,
        ('size_0', created(0)),
        ('size_0_written', with_field(PLAIN, SIZE, 0)),
        ('no_bytes', _file(b'')),
        ('no_bytes_as_raw', _file(b''), 'raw'),
        ('no_bytes_as_qcow2', _file(b''), 'qcow2'),
    ),
    *bad(
        Reason.IMAGE_CORRUPT,
        ('header_length_max', with_field(PLAIN, HEADER_LENGTH, 2**32 - 1)),
        ('header_length_50', with_field(PLAIN, HEADER_LENGTH, 50)),
        ('header_length_2m', with_field(PLAIN, HEADER_LENGTH, 2 * MI)),
        ('cluster_bits_0', with_field(PLAIN, CLUSTER_BITS, 0)),
        ('cluster_bits_22', with_field(PLAIN, CLUSTER_BITS, 22)),
        ('cluster_bits_63', with_field(PLAIN, CLUSTER_BITS, 63)),
        ('cluster_bits_max', with_field(PLAIN, CLUSTER_BITS, 2**32 - 1)),
        ('size_1_tib', with_field(PLAIN, SIZE, 2**40)),
        ('l1_size_0', with_field(PLAIN, L1_SIZE, 0)),
        ('l1_size_max', with_field(PLAIN, L1_SIZE, 2**32 - 1)),
        ('l1_size_2_14', with_field(PLAIN, L1_SIZE, 2**14)),
        ('l1_offset_beyond', with_field(PLAIN, L1_OFFSET, _BEYOND)),
        ('l1_offset_max', with_field(PLAIN, L1_OFFSET, 2**64 - 512)),
        ('l1_offset_odd', with_field(PLAIN, L1_OFFSET, 0x30001)),
        ('refcounts_beyond', with_field(PLAIN, REFCOUNT_OFFSET, _BEYOND)),
        ('refcounts_odd', with_field(PLAIN, REFCOUNT_OFFSET, 0x10001)),
        ('refcounts_0', with_field(PLAIN, REFCOUNT_CLUSTERS, 0)),
        ('refcounts_max', with_field(PLAIN, REFCOUNT_CLUSTERS, 2**32 - 1)),
        ('refcount_order_7', with_field(PLAIN, REFCOUNT_ORDER, 7)),
        ('refcount_order_max', with_field(PLAIN, REFCOUNT_ORDER, 2**32 - 1)),
        ('snapshots_max', with_field(PLAIN, SNAPSHOTS, 2**32 - 1)),
        ('snapshots_beyond', with_field(_snapshot, SNAPSHOTS_OFFSET, _BEYOND)),
        ('compression_type_9', with_field(ZSTD, COMPRESSION_TYPE, 9)),
        ('l1_beyond', with_entry(PLAIN, l1_entry, COPIED | _BEYOND)),
        ('l1_at_itself', with_entry(PLAIN, l1_entry, 0x30000)),
        ('l1_at_refcounts', with_entry(PLAIN, l1_entry, 0x10000)),
        ('l1_odd', with_entry(PLAIN, l1_entry, COPIED | 0x40200)),
        ('l2_beyond', with_entry(PLAIN, l2_entry, COPIED | _BEYOND)),
        ('l2_odd', with_entry(PLAIN, l2_entry, COPIED | 0x50200)),
        ('l2_at_header', with_entry(PLAIN, l2_entry, COMPRESSED)),
        ('l2_at_refcounts', with_entry(PLAIN, l2_entry, 0x10000)),
        ('l2_at_l1', with_entry(PLAIN, l2_entry, COPIED | 0x30000)),
        ('l2_at_l2', with_entry(PLAIN, l2_entry, COPIED | 0x40000)),
        ('noisy', noisy),
        ('zlib_damaged', edited(ZLIB, _damaged_cluster)),
        ('zstd_damaged', edited(ZSTD, _damaged_cluster)),
    ),
    *bad(
        Reason.IMAGE_CORRUPT,
        ('cut_at_100', cut(PLAIN, _at(100))),
        ('cut_at_100_as_qcow2', cut(PLAIN, _at(100)), 'qcow2'),
        ('cut_at_511', cut(PLAIN, _at(511))),
        ('cut_at_511_as_qcow2', cut(PLAIN, _at(511)), 'qcow2'),
        ('cut_at_512', cut(PLAIN, _at(512))),
        ('cut_at_512_as_qcow2', cut(PLAIN, _at(512)), 'qcow2'),
        ('cut_in_header', cut(PLAIN, _at(5000))),
        ('cut_in_refcounts', cut(PLAIN, _in_refcounts)),
        ('cut_behind_refcounts', cut(PLAIN, _behind_refcounts)),
        ('cut_before_l1', cut(PLAIN, _before_l1)),
        ('cut_in_l1', cut(PLAIN, _in_l1)),
        ('cut_in_l2', cut(PLAIN, _in_l2)),
        ('cut_in_l2_before_entry', cut(LATE, _before_last_entry)),
        ('cut_by_cluster', cut(PLAIN, last_cluster)),
        ('cut_by_1', cut(PLAIN, short_of(1))),
        ('cut_by_512', cut(PLAIN, short_of(512))),
        ('cut_by_4k', cut(PLAIN, short_of(4 * KI))),
        ('cut_in_half', cut(PLAIN, _half)),
        ('zlib_cut_at_512', cut(ZLIB, _at(512))),
        ('zlib_cut_in_l2', cut(ZLIB, _in_l2)),
        ('zlib_cut_by_cluster', cut(ZLIB, short_of(64 * KI))),
        ('zlib_cut_by_4k', cut(ZLIB, short_of(4 * KI))),
        ('zlib_cut_by_513', cut(ZLIB, short_of(513))),
        ('zlib_cut_in_half', cut(ZLIB, _half)),
        ('zstd_cut_in_l2', cut(ZSTD, _in_l2)),
        ('zstd_cut_by_cluster', cut(ZSTD, short_of(64 * KI))),
        ('zstd_cut_by_4k', cut(ZSTD, short_of(4 * KI))),
        ('zstd_cut_by_513', cut(ZSTD, short_of(513))),
        ('zstd_cut_in_half', cut(ZSTD, _half)),
    ),
    *bad(
        Reason.FORMAT_UNSUPPORTED,
        ('mbr_in_qcow2', with_field(PLAIN, (510, '<H'), 0xAA55)),
        ('mbr_in_qcow2_as_raw', with_field(PLAIN, (510, '<H'), 0xAA55), 'raw'),
        ('iso_in_qcow2', _iso_descriptor),
        ('iso_in_qcow2_as_iso', _iso_descriptor, 'iso'),
        ('iso_in_qcow2_as_qcow2', _iso_descriptor, 'qcow2'),
        ('version_1', converted(noise(64 * KI), to='qcow')),
        ('qed', converted(noise(64 * KI), to='qed')),
        ('parallels', converted(noise(64 * KI), to='parallels')),
        ('unknown_claim', PLAIN, 'a\nb'),
    ),
    *bad(
        Reason.NOT_AN_IMAGE,
        ('text', _file(b'#!/bin/sh\necho this is no disk\n')),
        ('odd_size_unclaimed', raw(holey(MI) + b'odd')),
        ('gzip', _compressed_file(gzip.compress)),
        ('xz', _compressed_file(lzma.compress)),
    ),
]

# What a path may name instead of a file.
NO_FILES = [
    *bad(
        Reason.NOT_AN_IMAGE,
        ('directory', lambda path: path.mkdir()),
        ('directory_as_raw', lambda path: path.mkdir(), 'raw'),
        ('pipe', os.mkfifo),
        ('pipe_as_raw', os.mkfifo, 'raw'),
        ('device', lambda path: path.symlink_to('/dev/zero')),
    ),
    *bad(
        Reason.IMAGE_NOT_FOUND,
        ('nothing', lambda path: None),
        ('nothing_as_raw', lambda path: None, 'raw'),
        ('dangling_link', _dangling),
        ('link_to_itself', lambda path: path.symlink_to(path)),
    ),
]

# Small images with tables in many places, to be cut everywhere.
CUT = [
    Image('plain', converted(noise(640 * KI))),
    Image('small_clusters', converted(noise(96 * KI), 'cluster_size=4k')),
    Image('tiny_clusters', converted(noise(24 * KI), 'cluster_size=512')),
    Image('late', LATE),
    Image(
        'scattered',
        created(
            8 * MI,
            'cluster_size=4k',
            commands=(
                'write -q -P 1 7M 9k',
                'write -q -P 2 3M 5k',
                'write -q -P 3 100k 9k',
                'write -q -P 4 8188k 4k',
                'write -q -z 5M 9k',
            ),
        ),
    ),
    Image('snapshot', _snapshot),
    Image('resized', _resized),
    Image('version_2', converted(noise(160 * KI), 'compat=0.10')),
    Image(
        'preallocated',
        created(
            256 * KI,
            'preallocation=metadata',
            commands=('write -q -P 8 0 256k',),
        ),
    ),
    Image(
        'compressed_small_clusters',
        converted(text(96 * KI), 'cluster_size=4k', compress=True),
    ),
    Image('zlib', converted(text(192 * KI), compress=True)),
    Image(
        'zstd',
        converted(text(256 * KI), 'compression_type=zstd', compress=True),
    ),
]


def expected(path: pathlib.Path, claimed: str | None = None) -> bytes:
    """Tell what a guest sees of a good image, by qemu-img alone."""
    options: dict[str, object] = {'driver': _driver(path)}
    if claimed in ('raw', 'iso', 'gpt', 'luks') or not options['driver']:
        return path.read_bytes()
    if options['driver'] == 'vpc':
        options['force_size_calc'] = 'current_size'
    options['file'] = {'driver': 'file', 'filename': str(path)}
    disk = path.with_name(path.name + '.expected')
    qemu_img('convert', '-O', 'raw', f'json:{json.dumps(options)}', disk)
    try:
        return disk.read_bytes()
    finally:
        disk.unlink()


def _driver(path: pathlib.Path) -> str:
    """Tell what QEMU calls the format of a good image; '' for raw ones."""
    data = path.read_bytes()
    for magic, at, name in (
        (b'QFI\xfb', 0, 'qcow2'),
        (b'KDMV', 0, 'vmdk'),
        (b'vhdxfile', 0, 'vhdx'),
        (b'\x7f\x10\xda\xbe', 64, 'vdi'),
        (b'conectix', 0, 'vpc'),
        (b'conectix', max(0, len(data) - 512), 'vpc'),
    ):
        if data[at:].startswith(magic):
            return name
    return ''
