# SPDX-License-Identifier: Apache-2.0
"""What the bytes of an image are, and whether they are what is claimed.

The inspectors are oslo.utils'; the comparison is ours, because their
``expected_format`` does not catch a qcow2 that claims to be raw.
"""

import dataclasses
import io
import logging
import re
from typing import Protocol

from oslo_utils import units
from oslo_utils.imageutils import format_inspector

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import qcow2
from cinder_cow.refusal import Reason
from cinder_cow.refusal import Refusal
from cinder_cow.refusal import refuse

# The inspectors need the first 1 MiB (a VMDK descriptor) and decide on less;
# from two chunks on nothing more can match.
HEAD = 2 * units.Mi
# The footers of a VHD (512 bytes) and of a streamOptimized VMDK.
TAIL = 1536

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
# Claims whose bytes qemu-img converts.
CONVERTED: dict[str, tuple[frozenset[str], ...]] = {
    'qcow2': (frozenset({'qcow2'}),),
}
_TAKEN = AS_THEY_ARE | CONVERTED

# Their VMDK inspector fails on text that is no descriptor (AttributeError),
# and the format is not taken anyway.
_INSPECTED = [name for name in format_inspector.ALL_FORMATS if name != 'vmdk']

# As QEMU's own probes have it (block/*.c), which need fewer bytes.
_MAGIC = {
    'qcow2': re.compile(rb'QFI\xfb'),
    'vmdk': re.compile(
        rb'KDMV|COWD|(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n'
        rb'|# Disk DescriptorFile',
        re.IGNORECASE,
    ),
    'vhd': re.compile(rb'conectix'),
    'vhdx': re.compile(rb'vhdxfile'),
    'vdi': re.compile(rb'.{64}\x7f\x10\xda\xbe', re.DOTALL),
    'qed': re.compile(rb'QED\0'),
    'luks': re.compile(rb'LUKS\xba\xbe'),
    'parallels': re.compile(rb'WithoutFreeSpace|WithouFreSpacExt'),
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
    """

    content: frozenset[str]
    virtual_size: int | None = None
    unsafe: tuple[Reason, ...] = ()

    @property
    def claim(self) -> str | None:
        """The claim that is right for this content; None if none is."""
        for claim in ('raw', 'iso', 'qcow2', 'luks'):
            if self.content in _TAKEN[claim]:
                return 'iso' if 'iso' in self.content else claim
        return None

    def __str__(self) -> str:
        return '+'.join(sorted(self.content))


class Ends(Protocol):
    """What can show its first and its last bytes."""

    def head(self, length: int) -> bytes: ...

    def tail(self, length: int) -> bytes: ...


def inspect_source(source: Ends, claimed: str | None) -> Inspection:
    """Tell what an image is, by its first bytes and, if need be, its last.

    :param claimed: the format it is said to have; None: nothing is said
    """
    head = source.head(HEAD)
    if claimed in AS_THEY_ARE:
        return inspect(head)
    return inspect(head, source.tail(TAIL))


def inspect(head: bytes, tail: bytes = b'') -> Inspection:
    """Tell what the first and the last bytes of an image show.

    :param head: the first ``HEAD`` bytes, or all of a smaller image
    :param tail: the last ``TAIL`` bytes, or all of a smaller image; empty
        where they cannot be had, or are of no interest
    """
    # In steps, and only until all inspectors know: 2 MiB at once cost them
    # 2.5 ms, this 0.2 ms.
    wrapper = format_inspector.InspectWrapper(
        io.BytesIO(head), allowed_formats=_INSPECTED
    )
    while wrapper.read(_STEP) and wrapper.formats is None:
        pass
    wrapper.close()
    found = wrapper.formats or []
    content = frozenset(str(inspector) for inspector in found)
    magic = _by_magic(head)
    if magic and magic not in content:
        return Inspection(content - {'raw'} | {magic})
    if content != {'qcow2'}:
        return Inspection(content)
    (inspector,) = found
    unsafe = _unsafe(inspector)
    if qcow2.is_encrypted(head):
        unsafe += (Reason.ENCRYPTED,)
    return Inspection(content, inspector.virtual_size, unsafe)


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
    if inspection.content not in _TAKEN[claimed]:
        return refuse(
            Reason.FORMAT_MISMATCH,
            image=label,
            claimed=claimed,
            content=str(inspection),
            right=right,
        )
    for reason in inspection.unsafe:
        return refuse(reason, image=label)
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
            Reason.NOT_AN_IMAGE, image=label, problem=problem, remedy=remedy
        )
