# SPDX-License-Identifier: Apache-2.0
"""An image that is read where it is, by a driver that has it."""

from collections.abc import Iterator
import contextlib

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import handles
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import qemu_img
from cinder_cow import sparse
from cinder_cow.drivers import base
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)


class ReaderSource(handles.Closing):
    """An image source on top of a driver's reader; a context manager.

    :param label: the image, for messages
    :param image_id: what names it
    :param content_id: what changes when its content does
    """

    def __init__(
        self,
        reader: base.Reader,
        label: str,
        image_id: str = '',
        content_id: str = '',
    ) -> None:
        self._reader = reader
        self.label = label
        self.image_id = image_id
        self.content_id = content_id

    @property
    def size(self) -> int:
        return self._reader.size

    def head(self, length: int) -> bytes:
        return self.read(0, length)

    def tail(self, length: int) -> bytes:
        start = max(0, self.size - length)
        return self.read(start, length)

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return self._reader.read(offset, length) if length > 0 else b''

    def pieces(self) -> Iterator[bytes | int]:
        return self.pieces_from(0)

    def pieces_from(self, offset: int) -> Iterator[bytes | int]:
        extents = sparse.between(self._reader.extents(), offset, self.size)
        return sparse.pieces(extents, self._reader.read)

    def check_unchanged(self) -> None:
        try:
            self._reader.check_unchanged()
        except exception.BackendError as error:
            if error.reason is not Reason.BUSY:
                raise
            raise exception.ImageError.because(
                Reason.IMAGE_CHANGED, image=self.label
            ) from None

    def close(self) -> None:
        self._reader.close()


class QemuReaderSource(ReaderSource):
    """One that qemu-img can read where it is.

    :param reader: a QemuSource too
    """

    def qemu_source(self) -> qemu_img.QemuNode:
        assert isinstance(self._reader, base.QemuSource)
        return self._reader.qemu_source()


def of_reader(reader: base.Reader, label: str) -> ReaderSource:
    """Make a source of an image that is open, with all that it can."""
    if isinstance(reader, base.QemuSource):
        return QemuReaderSource(reader, label)
    return ReaderSource(reader, label)


@contextlib.contextmanager
def nearest(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    driver: base.Driver | None,
) -> Iterator[image_source.ImageSource]:
    """Give an image where it is, if the driver has it; else its source."""
    with contextlib.ExitStack() as opened:
        if isinstance(driver, base.ImageReader):
            for location in image.locations:
                try:
                    reader = driver.read_image(image.at(location))
                except exception.BackendError as error:
                    LOG.info('Not read at %s: %s', location, error)
                    continue
                source = of_reader(opened.enter_context(reader), image.label)
                break
        yield source
