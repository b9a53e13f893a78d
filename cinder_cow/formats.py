# SPDX-License-Identifier: Apache-2.0
"""What the bytes of an image are, and whether they are what is claimed.

The inspectors are oslo.utils'; the comparison is ours, because their
``expected_format`` does not catch a qcow2 that claims to be raw. Of all
formats but qcow2 the header is read by us: theirs take the original size of
a VHD for its size, for instance, and look for no parents.
"""

from collections.abc import Callable
import dataclasses
import io
import logging
import re
from typing import Protocol

from oslo_utils import units
from oslo_utils.imageutils import format_inspector

from cinder_cow import disk_tables
from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import qcow2
from cinder_cow import vdi
from cinder_cow import vhd
from cinder_cow import vhdx
from cinder_cow import vmdk
from cinder_cow.refusal import Reason
from cinder_cow.refusal import Refusal
from cinder_cow.refusal import refuse

# The inspectors need the first 1 MiB (a VMDK descriptor) and decide on less;
# from two chunks on nothing more can match.
HEAD = 2 * units.Mi
# What tells a qcow2 image: its header, and where any other magic would be.
_QCOW2_HEAD = 128 * units.Ki
# The footers of a VHD (512 bytes) and of a streamOptimized VMDK.
TAIL = vmdk.TAIL

SECTOR = 512
_STEP = 64 * units.Ki

# Claims whose bytes become the volume as they are, and what those may be.
AS_THEY_ARE: dict[str, tuple[frozenset[str], ...]] = {
    'raw': (
        frozenset({'raw'}),
        frozenset({'gpt'}),
        frozenset({'iso'}),
        frozenset({'iso', 'gpt'}),
    ),
    'gpt': (frozenset({'gpt'}),),
    'iso': (frozenset({'iso'}), frozenset({'iso', 'gpt'})),
    'luks': (frozenset({'luks'}),),
}
# Claims whose bytes qemu-img converts, by the names that Glance has.
CONVERTED: dict[str, tuple[frozenset[str], ...]] = {
    name: (frozenset({name}),)
    for name in ('qcow2', 'vmdk', 'vhd', 'vhdx', 'vdi')
}
_TAKEN = AS_THEY_ARE | CONVERTED
# How the size of their disks is read, but for that of qcow2.
_SIZES: dict[str, Callable[[bytes, bytes], int]] = {
    'vmdk': vmdk.read,
    'vhd': vhd.read,
    'vhdx': vhdx.read,
    'vdi': vdi.read,
}
_SHOWN_BY_HEAD = frozenset({'qcow2', 'vdi', 'vhdx'})
# What a fixed VHD looks like in front: its disk begins there.
_RAW_LIKE = frozenset({'raw', 'gpt', 'iso', 'luks'})

# Their VMDK inspector fails on text that is no descriptor (AttributeError),
# and takes a disk with a parent.
_INSPECTED = [name for name in format_inspector.ALL_FORMATS if name != 'vmdk']

# As QEMU's own probes have it (block/*.c), which need fewer bytes.
_MAGIC = {
    # Version 1: another format, by another driver.
    'qcow': re.compile(rb'QFI\xfb\0\0\0\x01'),
    'qcow2': re.compile(rb'QFI\xfb'),
    # An extent of ESX; it has no descriptor.
    'cowd': re.compile(rb'COWD'),
    'vmdk': re.compile(
        rb'KDMV|(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n'
        rb'|# Disk DescriptorFile',
        re.IGNORECASE,
    ),
    'vhd': re.compile(rb'conectix'),
    'vhdx': re.compile(rb'vhdxfile'),
    'vdi': re.compile(rb'.{64}\x7f\x10\xda\xbe', re.DOTALL),
    'qed': re.compile(rb'QED\0'),
    'luks': re.compile(rb'LUKS\xba\xbe'),
    'parallels': re.compile(rb'WithoutFreeSpace|WithouFreSpacExt'),
    'bochs': re.compile(rb'Bochs Virtual HD Image'),
    'cloop': re.compile(rb'#!/bin/sh\n#V2\.0 Format\n'),
}

_UNSAFE = {
    'backing_file': Reason.BACKING_FILE,
    'data_file': Reason.DATA_FILE,
    'unknown_features': Reason.UNKNOWN_FEATURES,
}

# What people download, and forget to unpack: its magic and what unpacks it.
_COMPRESSED = {
    b'\x1f\x8b': 'gzip -d',
    b'\xfd7zXZ\0': 'xz -d',
    b'BZh': 'bzip2 -d',
    b'\x28\xb5\x2f\xfd': 'zstd -d',
    b'PK\x03\x04': 'unzip',
}

# It logs each failed check; the refusal says the same, to the right person.
logging.getLogger(format_inspector.__name__).setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """What the head of an image shows.

    :param content: names of all the formats it matches; {'raw'} if none
    :param virtual_size: bytes of the disk, by the header; None for formats
        whose bytes are the disk
    :param unsafe: why it must not be parsed further
    :param problem: what is wrong with it, where the reason needs it
    """

    content: frozenset[str]
    virtual_size: int | None = None
    unsafe: tuple[Reason, ...] = ()
    problem: str = ''

    @property
    def claim(self) -> str | None:
        """The claim that is right for this content; None if none is."""
        for claim in ('raw', 'iso', 'luks', *CONVERTED):
            if self.content in _TAKEN[claim]:
                return 'iso' if 'iso' in self.content else claim
        return None

    def __str__(self) -> str:
        return '+'.join(sorted(self.content))


class Ends(Protocol):
    """What can show its first and its last bytes."""

    @property
    def size(self) -> int: ...

    def head(self, length: int) -> bytes: ...

    def tail(self, length: int) -> bytes: ...


def inspect_source(source: Ends, claimed: str | None) -> Inspection:
    """Tell what an image is, by its first bytes and, if need be, its last.

    :param claimed: the format it is said to have; None: nothing is said
    """
    head = source.head(_QCOW2_HEAD)
    if claimed == 'qcow2' and _by_magic(head) == 'qcow2':
        return inspect(head)
    head = source.head(HEAD)
    if claimed in AS_THEY_ARE:
        return inspect(head)
    needed = vhdx.head_needed(head)
    if needed > len(head) == HEAD:
        head = source.head(needed)
    if _by_magic(head) in _SHOWN_BY_HEAD:
        # Of an image on a server the end is one more request.
        return inspect(head)
    tail = source.tail(TAIL)
    found = inspect(head, tail)
    if claimed == 'vhd' and not tail and found.content <= _RAW_LIKE:
        # Whether it is a fixed one, its tail will tell when it is here.
        return Inspection(frozenset({'vhd'}), max(0, source.size - vhd.FOOTER))
    return found


def inspect(head: bytes, tail: bytes = b'') -> Inspection:
    """Tell what the first and the last bytes of an image show.

    :param head: the first ``HEAD`` bytes, or all of a smaller image; of a
        VHDX, as many as ``vhdx.head_needed`` tells
    :param tail: the last ``TAIL`` bytes, or all of a smaller image; empty
        where they cannot be had, or are of no interest
    """
    # In steps, and only until all inspectors know: 2 MiB at once cost them
    # 2.5 ms, this 0.2 ms.
    wrapper = format_inspector.InspectWrapper(
        io.BytesIO(head[:HEAD]), allowed_formats=_INSPECTED
    )
    while wrapper.read(_STEP) and wrapper.formats is None:
        pass
    wrapper.close()
    found = wrapper.formats or []
    content = frozenset(str(inspector) for inspector in found)
    magic = _by_magic(head)
    if magic == 'qcow':
        content -= {'qcow2'}
    if magic and magic not in content:
        content = content - {'raw'} | {magic}
    elif content == {'qcow2'}:
        return _inspect_qcow2(found[0], head)
    if content <= _RAW_LIKE and vhd.has_footer(tail):
        content = frozenset({'vhd'})
    return _sized(content, head, tail)


def _inspect_qcow2(
    inspector: format_inspector.FileInspector, head: bytes
) -> Inspection:
    unsafe = _unsafe(inspector)
    if qcow2.is_encrypted(head):
        unsafe += (Reason.ENCRYPTED,)
    return Inspection(frozenset({'qcow2'}), inspector.virtual_size, unsafe)


def _sized(content: frozenset[str], head: bytes, tail: bytes) -> Inspection:
    for name, size_of in _SIZES.items():
        if content == {name}:
            try:
                return Inspection(content, size_of(head, tail))
            except disk_tables.FormatError as error:
                return Inspection(
                    content, None, (error.reason,), error.problem
                )
    return Inspection(content)


def _by_magic(head: bytes) -> str | None:
    """Tell what the inspectors pass over: VMDK, and all that is too short.

    What QEMU would probe to be another format must not be taken for raw.
    """
    for name, pattern in _MAGIC.items():
        if pattern.match(head):
            return name
    return None


def _unsafe(inspector: format_inspector.FileInspector) -> tuple[Reason, ...]:
    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        return tuple(_UNSAFE[name] for name in error.failures)
    except format_inspector.ImageFormatError:
        return (Reason.UNKNOWN_FEATURES,)
    return ()


def check_claim(
    image: images.ImageInfo, inspection: Inspection
) -> Refusal | None:
    """Compare the claimed format with the content, and the content's safety.

    :returns: None when the image may be used
    """
    label, claimed = image.label, image.disk_format
    right = inspection.claim
    if right is None or claimed not in _TAKEN:
        return refuse(
            Reason.FORMAT_UNSUPPORTED,
            image=label,
            format=str(inspection) if right is None else claimed,
        )
    if claimed == 'vhd' and inspection.content <= _RAW_LIKE:
        # Not a mismatch: raw is what a fixed one is when its end is cut.
        return refuse(
            Reason.IMAGE_CORRUPT,
            image=label,
            problem='it has no footer of a VHD (a raw disk has none:'
            ' --disk-format raw)',
        )
    if inspection.content not in _TAKEN[claimed]:
        return refuse(
            Reason.FORMAT_MISMATCH,
            image=label,
            claimed=claimed,
            content=str(inspection),
            right=right,
        )
    for reason in inspection.unsafe:
        problem = inspection.problem
        facts = {'problem': problem} if problem else {}
        return refuse(reason, image=label, **facts)
    if claimed in CONVERTED and inspection.virtual_size is None:
        return refuse(
            Reason.IMAGE_CORRUPT, image=label, problem='its header is cut'
        )
    if inspection.virtual_size == 0:
        return refuse(Reason.EMPTY_IMAGE, image=label)
    return None


def require_claim(image: images.ImageInfo, inspection: Inspection) -> None:
    """Make sure that an image is what it claims, and safe.

    :raises ImageError: what ``check_claim`` finds
    """
    if refusal := check_claim(image, inspection):
        raise exception.ImageError(refusal)


def check_unclaimed(
    label: str, size: int, head: bytes, inspection: Inspection
) -> None:
    """Refuse a file that is a disk only if somebody says so.

    Anything may be a raw disk, so this is about likely mistakes.

    :param size: bytes of the file
    :raises ImageError: NOT_AN_IMAGE, FORMAT_MISMATCH
    """
    if inspection.claim == 'luks':
        raise exception.ImageError.because(
            Reason.FORMAT_MISMATCH,
            image=label,
            claimed='nothing',
            content='luks',
            right='luks',
        )
    if inspection.claim != 'raw':
        return
    problem = remedy = ''
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            problem = 'it is a compressed file'
            remedy = f'Decompress it first: {command} FILE.'
    if not problem and size % SECTOR:
        problem = f'it has {size} bytes, a disk has sectors of {SECTOR}'
        remedy = 'If it is a raw disk all the same: --disk-format raw.'
    if problem:
        raise exception.ImageError.because(
            Reason.NOT_AN_IMAGE,
            image=label,
            problem=problem,
            remedy=remedy,
        )
