# SPDX-License-Identifier: Apache-2.0
"""Put the disk of an image into a sink, the fastest way that is right.

Sharing the blocks of a local file, streaming raw bytes, or converting.
Whatever fails, the sink is left unpublished, for its owner to abort.
"""

from collections.abc import Iterator

from cinder_cow import converting
from cinder_cow import fetching
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import qemu_img
from cinder_cow import reader_source
from cinder_cow import refusal
from cinder_cow import scratch
from cinder_cow import streaming
from cinder_cow.drivers import base
from cinder_cow.drivers import bases


def fill(
    sink: base.Sink,
    image: images.ImageInfo,
    source: image_source.ImageSource,
    settings: opts.Settings,
    report: streaming.Progress,
) -> streaming.Filled:
    """Fill a sink, which is at least as large as the disk.

    :raises ImageError: the image is not what it claims, or changed
    :raises BackendError: reading, converting or writing failed
    """
    if image.disk_format in formats.CONVERTED:
        _begin_anew(sink)
        filled = converting.convert(sink, image, source, settings, report)
    elif _share(sink, image, source):
        filled = streaming.Filled(bytes_copied=0)
    else:
        with fetching.turn(source, settings):
            filled = streaming.stream(sink, image, source, report)
    source.check_unchanged()
    return filled


def fill_from_nearest(  # noqa: PLR0913 - those of fill, and the driver
    sink: base.Sink,
    image: images.ImageInfo,
    source: image_source.ImageSource,
    driver: base.Driver,
    settings: opts.Settings,
    report: streaming.Progress,
) -> streaming.Filled:
    """Fill a sink from where the image is in the back end, if it is there."""
    with reader_source.nearest(image, source, driver) as near:
        return fill(sink, image, near, settings, report)


def _share(
    sink: base.Sink, image: images.ImageInfo, source: image_source.ImageSource
) -> bool:
    """Share the blocks of a local file, where nothing is to be hashed."""
    if (
        not isinstance(sink, base.FileTarget)
        or not isinstance(source, image_source.LocalFile)
        or hashing.expected(image)
        or image.signature
    ):
        return False
    streaming.check_head(image, source.head(formats.HEAD))
    _begin_anew(sink)
    return sink.share_file(source.fileno())


def _begin_anew(sink: base.Sink) -> None:
    """Forget what an earlier maker wrote: what comes is not in order."""
    if isinstance(sink, bases.Resumable) and sink.kept:
        sink.restart()


def refusals(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    driver: base.Driver,
    settings: opts.Settings,
) -> Iterator[refusal.Refusal]:
    """Tell what is missing here to take the bytes of an image."""
    if image.disk_format not in formats.CONVERTED:
        return
    if missing := qemu_img.missing_tool():
        yield missing
    if not isinstance(source, image_source.Resumable):
        return
    room = scratch.Scratch(settings)
    # First: to open it in a cluster takes a tenth of all a clone's time.
    if image.size is not None and not room.refuse(image.size, image.label):
        return
    with reader_source.nearest(image, source, driver) as near:
        if not isinstance(near, image_source.Resumable):
            return
        size = near.size if image.size is None else image.size
        if refused := room.refuse(size, image.label):
            yield refused
