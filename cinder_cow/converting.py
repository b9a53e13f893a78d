# SPDX-License-Identifier: Apache-2.0
"""Convert an image that is not raw, straight into the sink where it can be.

qemu-img runs under limits and is told the format, which was inspected
before; what was cut short is looked for first.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import tempfile

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import intact
from cinder_cow import opts
from cinder_cow import qemu_img
from cinder_cow import sparse
from cinder_cow import streaming
from cinder_cow.drivers import base
from cinder_cow.refusal import Reason


def convert(
    sink: base.Sink,
    image: images.ImageInfo,
    source: image_source.ImageSource,
    settings: opts.Settings,
    report: streaming.Progress,
) -> streaming.Filled:
    """Write the disk that is in an image.

    :raises ImageError: IMAGE_CORRUPT, HASH_MISMATCH and its like
    :raises BackendError: NO_SPACE, CONVERSION_FAILED, TOOL_MISSING
    """
    inspection = formats.inspect_source(source, image.disk_format)
    formats.require_claim(image, inspection)
    size = inspection.virtual_size or 0
    limits = qemu_img.Limits(
        memory=settings.qemu_img_memory,
        cpu_seconds=settings.qemu_img_cpu_seconds,
        timeout=settings.qemu_img_timeout,
        file_size=size + units.Mi,
    )
    with _translated(image, settings), _local(source, settings) as node:
        digest = _hash(image, source)
        disk = qemu_img.Disk(node, image.disk_format)
        copied = int(intact.check(image, disk, limits) * size)
        with _target(sink, size, settings) as target:
            qemu_img.convert(
                disk,
                target,
                zeroed=sink.zeroed,
                limits=limits,
                progress=lambda part: report(
                    'converting', int(part * size), size
                ),
            )
    return streaming.Filled(copied, digest)


def _hash(image: images.ImageInfo, source: image_source.ImageSource) -> str:
    with hashing.hasher(image) as hasher:
        if hashing.expected(image):
            for piece in source.pieces():
                hasher.update(piece)
        return hasher.check()


@contextlib.contextmanager
def _local(
    source: image_source.ImageSource, settings: opts.Settings
) -> Iterator[qemu_img.QemuNode]:
    """Give qemu-img the source, from a scratch file if it must be."""
    if isinstance(source, image_source.QemuSource):
        yield source.qemu_source()
        return
    with tempfile.TemporaryFile(dir=settings.scratch_dir) as scratch:
        for piece in source.pieces():
            if isinstance(piece, int):
                scratch.seek(piece, os.SEEK_CUR)
                scratch.truncate()
            else:
                scratch.write(piece)
        scratch.flush()
        yield qemu_img.QemuNode.descriptor(scratch.fileno())


@contextlib.contextmanager
def _target(
    sink: base.Sink, size: int, settings: opts.Settings
) -> Iterator[qemu_img.Disk]:
    """Give qemu-img the sink, or a scratch file that is streamed into it."""
    if isinstance(sink, base.QemuTarget):
        yield qemu_img.Disk(sink.qemu_target(), 'raw')
        return
    with tempfile.TemporaryFile(dir=settings.scratch_dir) as scratch:
        scratch.truncate(size)
        node = qemu_img.QemuNode.descriptor(scratch.fileno())
        yield qemu_img.Disk(node, 'raw')
        for piece in sparse.file_pieces(scratch.fileno(), size):
            sparse.put(sink, piece)


@contextlib.contextmanager
def _translated(
    image: images.ImageInfo, settings: opts.Settings
) -> Iterator[None]:
    """Turn a failure of qemu-img into ours, by whose fault it is."""
    try:
        yield
    except OSError as error:  # of a scratch file
        raise exception.BackendError.because(
            Reason.NO_SPACE
            if error.errno == errno.ENOSPC
            else Reason.BACKEND_ERROR,
            backend=settings.backend,
            problem=str(error),
        ) from error
    except qemu_img.QemuImgError as error:
        facts = {'image': image.label, 'problem': error.problem}
        if error.no_space:
            raise exception.BackendError.because(
                Reason.NO_SPACE,
                backend=settings.backend,
                problem=error.problem,
            ) from error
        if error.in_use:
            raise exception.ImageError.because(
                Reason.BUSY,
                what=f'image {image.label}',
                owner='a process that writes to it',
                seconds=0,
            ) from error
        if error.unreadable:
            raise exception.ImageError.because(
                Reason.IMAGE_CORRUPT, **facts
            ) from error
        raise exception.BackendError.because(
            Reason.CONVERSION_FAILED, **facts
        ) from error
