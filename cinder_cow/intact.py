# SPDX-License-Identifier: Apache-2.0
"""Whether all that an image refers to is there.

QEMU reads a file that was cut short as if zeros followed, and says nothing:
a volume would be made that lacks the end of its image.
"""

from collections.abc import Callable
import dataclasses
import os

from cinder_cow import disk_tables
from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import qcow2
from cinder_cow import qemu_img
from cinder_cow import vdi
from cinder_cow import vhd
from cinder_cow import vhdx
from cinder_cow import vmdk
from cinder_cow.refusal import Reason

# Of metadata alone; that of 16 TiB in clusters of 64 KiB is read in less.
_CHECK_CPU_SECONDS = 120

# How the tables of a format are read: qemu-img check looks at no table of a
# VHD or VHDX, and at no end of the last data of any but qcow2.
_USED: dict[str, Callable[[int], disk_tables.Used]] = {
    'vmdk': vmdk.used,
    'vhd': vhd.used,
    'vdi': vdi.used,
    'vhdx': vhdx.used,
}


def check(
    image: images.ImageInfo,
    disk: qemu_img.Disk,
    source: image_source.QemuReadable,
    limits: qemu_img.Limits,
) -> float:
    """Make sure that all the image refers to is there.

    :param disk: of the source
    :returns: the part of the disk that has data; data that several parts of
        the disk share count each time, so it tells what will be written
    :raises ImageError: IMAGE_CORRUPT
    """
    # A hostile image may make checking last; converting may last rightly.
    limits = dataclasses.replace(
        limits,
        cpu_seconds=min(limits.cpu_seconds, _CHECK_CPU_SECONDS),
        file_size=None,
    )
    try:
        if disk.format == 'qcow2':
            return _check_qcow2(disk, source, limits)
        return _check_tables(disk, limits)
    except disk_tables.FormatError as error:
        problem = error.problem or error.reason.value
    except qemu_img.QemuImgError as error:
        if error.in_use or error.limited or error.unreachable:
            raise
        # Else it reads nothing but the image: the image is at fault.
        problem = error.problem
    raise exception.ImageError.because(
        Reason.IMAGE_CORRUPT, image=image.label, problem=problem
    )


def _check_qcow2(
    disk: qemu_img.Disk,
    source: image_source.QemuReadable,
    limits: qemu_img.Limits,
) -> float:
    """Check an image that qemu-img knows how to check.

    A cut that takes a cluster shows as damage; one that takes less is looked
    for in the tables and in the last data.
    """
    size = source.size
    check = qemu_img.check(disk, limits)
    if check.damaged:
        raise disk_tables.FormatError('qemu-img check finds it corrupt')
    if size < check.end and size < max(
        qcow2.used_end(source.read, size), _data_end(disk, limits)
    ):
        raise disk_tables.FormatError(f'it ends at byte {size} of {check.end}')
    return check.used


def _check_tables(disk: qemu_img.Disk, limits: qemu_img.Limits) -> float:
    """Check an image by its tables, and that QEMU opens it as we do."""
    descriptor = disk.node.descriptors[0]
    size = os.fstat(descriptor).st_size
    # First: QEMU would take memory for tables as large as the header says.
    used = _USED[disk.format](descriptor)
    if size < used.end:
        raise disk_tables.FormatError(f'it ends at byte {size} of {used.end}')
    seen = qemu_img.virtual_size(disk, limits)
    if seen != used.size:
        raise disk_tables.FormatError(
            f'its disk has {used.size} bytes, to QEMU {seen}'
        )
    return used.data / (used.size or 1)


def _data_end(disk: qemu_img.Disk, limits: qemu_img.Limits) -> int:
    """Return where the last data that are not compressed must end."""
    return max(
        (
            run['offset'] + run['length']
            for run in qemu_img.mapping(disk, limits)
            if run['data'] and 'offset' in run
        ),
        default=0,
    )
