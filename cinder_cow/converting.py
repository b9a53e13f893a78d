# SPDX-License-Identifier: Apache-2.0
"""Convert an image that is not raw, straight into the sink where it can be.

qemu-img runs under limits and is told the format, which was inspected
before; what was cut short is looked for first.
"""

from collections.abc import Iterator
import contextlib
import errno
import tempfile

from oslo_log import log as logging
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import fetching
from cinder_cow import formats
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import intact
from cinder_cow import opts
from cinder_cow import qemu_img
from cinder_cow import sparse
from cinder_cow import streaming
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

# What any image may expand to, however small it is.
_MAY_EXPAND_TO = units.Gi
# What qemu-img says of a target alone: the image was opened to be checked.
_UNOPENED = 'Could not open'


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
    if there := _readable_there(image, source):
        digest = ''
        if settings.verify_linked or image.signature:
            digest = fetching.hashed(image, source)
        copied = _convert(sink, image, there, settings, report)
        if digest:
            return streaming.Filled.of(image, copied, digest)
        return streaming.Filled(copied, verified=bases.Verified.LOCATION)
    with fetching.local(image, source, settings, report) as (file, digest):
        copied = _convert(sink, image, file, settings, report)
    return streaming.Filled.of(image, copied, digest)


def _readable_there(
    image: images.ImageInfo, source: image_source.ImageSource
) -> image_source.QemuReadable | None:
    """Return an image that qemu-img can read in the back end that has it.

    The tables of other formats are read from a file, see :mod:`.intact`.
    """
    if image.disk_format != 'qcow2':
        return None
    if isinstance(source, image_source.LocalFile):
        return None
    if not isinstance(source, image_source.QemuReadable):
        return None
    try:
        source.qemu_source()
    except exception.BackendError as error:
        LOG.info('Image %s is fetched from there: %s', image.label, error)
        return None
    return source


def _convert(
    sink: base.Sink,
    image: images.ImageInfo,
    source: image_source.QemuReadable,
    settings: opts.Settings,
    report: streaming.Progress,
) -> int:
    """Convert a local file; return the bytes that were written."""
    inspection = formats.inspect_source(source, image.disk_format)
    formats.require_claim(image, inspection)
    size = inspection.virtual_size or 0
    limits = qemu_img.Limits(
        memory=settings.qemu_img_memory,
        cpu_seconds=settings.qemu_img_cpu_seconds,
        timeout=settings.qemu_img_timeout,
        file_size=size + units.Mi,
    )
    with _translated(image, settings):
        disk = qemu_img.Disk(source.qemu_source(), image.disk_format)
        copied = int(intact.check(image, disk, source, limits) * size)
        _check_expansion(image, copied, source.size, settings)
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
    return copied


def _check_expansion(
    image: images.ImageInfo, data: int, size: int, settings: opts.Settings
) -> None:
    """Refuse an image that would become a multiple of what it is.

    :param data: bytes that would be written
    :param size: bytes of the image
    :raises ImageError: EXPANDS_TOO_FAR
    """
    limit = settings.max_expansion
    if data > max(_MAY_EXPAND_TO, limit * size):
        raise exception.ImageError.because(
            Reason.EXPANDS_TOO_FAR,
            image=image.label,
            size=size,
            data=data,
            limit=limit,
            ratio=-(-data // size),
        )


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
        if error.unreachable or error.problem.startswith(_UNOPENED):
            raise exception.BackendError.because(
                Reason.BACKEND_ERROR,
                backend=settings.backend,
                problem=error.problem,
            ) from error
        if error.unreadable:
            raise exception.ImageError.because(
                Reason.IMAGE_CORRUPT, **facts
            ) from error
        raise exception.BackendError.because(
            Reason.CONVERSION_FAILED, **facts
        ) from error
