# SPDX-License-Identifier: Apache-2.0
"""Whether all that an image refers to is there.

QEMU reads a file that was cut short as if zeros followed, and says nothing:
a volume would be made that lacks the end of its image.
"""

import dataclasses
import os

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import qcow2
from cinder_cow import qemu_img
from cinder_cow.refusal import Reason

# Of metadata alone; that of 16 TiB in clusters of 64 KiB is read in less.
_CHECK_CPU_SECONDS = 120


def check(
    image: images.ImageInfo, disk: qemu_img.Disk, limits: qemu_img.Limits
) -> float:
    """Make sure that all the image refers to is there.

    A cut that takes a cluster shows as damage; one that takes less is looked
    for in the tables and in the last data.

    :returns: the part of the disk that has data
    :raises ImageError: IMAGE_CORRUPT
    """
    # A hostile image may make checking last; converting may last rightly.
    limits = dataclasses.replace(
        limits,
        cpu_seconds=min(limits.cpu_seconds, _CHECK_CPU_SECONDS),
        file_size=None,
    )
    descriptor = disk.node.descriptors[0]
    size = os.fstat(descriptor).st_size
    try:
        check = qemu_img.check(disk, limits)
        cut = (
            not check.damaged
            and size < check.end
            and size < max(qcow2.used_end(descriptor), _data_end(disk, limits))
        )
    except qemu_img.QemuImgError as error:
        if error.in_use or error.limited:
            raise
        # It reads nothing but the image: the image is at fault.
        problem = error.problem
    else:
        if not check.damaged and not cut:
            return check.used
        problem = 'qemu-img check finds it corrupt'
        if cut:
            problem = f'it ends at byte {size} of {check.end}'
    raise exception.ImageError.because(
        Reason.IMAGE_CORRUPT, image=image.label, problem=problem
    )


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
