# SPDX-License-Identifier: Apache-2.0
"""Put the disk of an image into a sink, the fastest way that is right.

Sharing the blocks of a local file, streaming raw bytes, or converting.
Whatever fails, the sink is left unpublished, for its owner to abort.
"""

from cinder_cow import converting
from cinder_cow import fetching
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import streaming
from cinder_cow.drivers import base


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
        filled = converting.convert(sink, image, source, settings, report)
    elif _share(sink, image, source):
        filled = streaming.Filled(bytes_copied=0)
    else:
        with fetching.turn(source, settings):
            filled = streaming.stream(sink, image, source, report)
    source.check_unchanged()
    return filled


def _share(
    sink: base.Sink, image: images.ImageInfo, source: image_source.ImageSource
) -> bool:
    """Share the blocks of a local file, where nothing is to be hashed."""
    if (
        not isinstance(sink, base.FileTarget)
        or not isinstance(source, image_source.LocalFile)
        or hashing.expected(image)
    ):
        return False
    streaming.check_head(image, source.head(formats.HEAD))
    return sink.share_file(source.fileno())
