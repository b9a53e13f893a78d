# SPDX-License-Identifier: Apache-2.0
"""The contract of image handlers: each turns an image into a base.

A base is one more location of its image, which the driver clones as it does
others. Handlers are found in the entry point group
``cinder_cow.image_handlers``; which of them a back end has, and in which
order they are tried, is told by its option ``cow_image_handlers``.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import cast, Protocol, TypeAlias

from stevedore import named

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import streaming
from cinder_cow import volume_records
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

NAMESPACE = 'cinder_cow.image_handlers'


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """The base of an image is there.

    :param made: by us, just now
    :param bytes_copied: that were written for it
    """

    base: bases.Base
    made: bool = False
    bytes_copied: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """What a handler works for.

    :param volumes: asks Cinder; None where there is none to ask
    """

    driver: bases.BaseKeeper
    settings: opts.Settings
    volumes: volume_records.VolumeRecords | None = None


class ImageHandler(Protocol):
    """Makes bases in one back end.

    :ivar name: as in ``cow_image_handlers``
    :ivar title: what it does, for people, as in "make a base by TITLE"
    """

    name: str
    title: str

    def concerns(self, image: images.ImageInfo) -> bool:
        """Whether it has anything to do with such an image."""

    def refuse(
        self, image: images.ImageInfo, source: image_source.ImageSource
    ) -> Sequence[refusal.Refusal]:
        """Tell why it cannot make a base of the image; cheap."""

    def init(self) -> None:
        """Bring in order what a restart left; may take its time.

        :raises BackendError: the back end does not answer
        """

    def fetch_image(
        self,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        size: int,
        report: streaming.Progress,
    ) -> Fetched:
        """Return the image's base, making it if nobody else does.

        :param size: bytes of the disk in the image
        :raises ImageError: the image is not what it claims
        :raises BackendError: BUSY, NO_SPACE and the like
        """

    def remove_image(self, image: images.ImageInfo) -> None:
        """Remove the image's base; one that is gone already is removed.

        :raises RequestError: BASE_IN_USE
        """


Make: TypeAlias = Callable[[Backend], ImageHandler]


def load(backend: Backend) -> tuple[ImageHandler, ...]:
    """Make the handlers of a back end, in their order.

    :raises RequestError: BACKEND_UNKNOWN: one of them is not installed
    """
    found = named.NamedExtensionManager[ImageHandler](
        NAMESPACE,
        backend.settings.image_handlers,
        name_order=True,
        on_missing_entrypoints_callback=_missing,
    )
    return tuple(cast(Make, one.plugin)(backend) for one in found)


def _missing(names: Iterable[str]) -> None:
    raise exception.RequestError.because(
        Reason.BACKEND_UNKNOWN,
        problem=f"there is no image handler '{', '.join(sorted(names))}'",
        remedy='Set cow_image_handlers to those that are installed.',
    )
