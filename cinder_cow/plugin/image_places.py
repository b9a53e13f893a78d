# SPDX-License-Identifier: Apache-2.0
"""Where an image is, as Glance tells the scheduler; remembered for a moment.

A scheduler must not wait for a Glance that is slow, nor fail where it is
down. So a thread asks, one for each image and few at a time; who asks waits
for it as long as is allowed, and does without where that is over.
"""

from collections.abc import Callable
import dataclasses
import threading
import time
from typing import TypeAlias

from oslo_log import log as logging

from cinder_cow import formats
from cinder_cow import image_info

LOG = logging.getLogger(__name__)

# Seconds for which an answer counts, and that there was none.
_KEPT, _FAILURE_KEPT = 60.0, 10.0
_MOST_KEPT = 1000
_THREADS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class ImagePlace:
    """Where an image is.

    :param urls: of its locations
    :param converted: a clone needs a base of it first
    """

    urls: tuple[str, ...]
    converted: bool

    @classmethod
    def of(cls, image: image_info.ImageInfo) -> 'ImagePlace':
        urls = [getattr(location, 'url', '') for location in image.locations]
        return cls(tuple(urls), image.disk_format in formats.CONVERTED)


Ask: TypeAlias = Callable[[], image_info.ImageInfo]


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    place: ImagePlace | None
    until: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Asking:
    thread: threading.Thread
    deadline: float


class ImagePlaces:
    """Asks Glance about images, and remembers what it told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._asking: dict[str, _Asking] = {}

    def find(
        self, image_id: str, ask: Ask, patience: float
    ) -> ImagePlace | None:
        """Tell where an image is; None: that is not known, or not in time.

        :param patience: seconds
        """
        with self._lock:
            kept = self._kept.get(image_id)
            if kept and time.monotonic() < kept.until:
                return kept.place
            asking = self._begun(image_id, ask, patience)
        if asking is None:
            return None
        # Those who come later do not wait longer than the first one.
        asking.thread.join(max(0.0, asking.deadline - time.monotonic()))
        with self._lock:
            kept = self._kept.get(image_id)
        return kept.place if kept else None

    def _begun(
        self, image_id: str, ask: Ask, patience: float
    ) -> _Asking | None:
        asking = self._asking.get(image_id)
        if asking or len(self._asking) >= _THREADS:
            return asking
        thread = threading.Thread(
            target=self._ask,
            args=[image_id, ask],
            name='cow-image-place',
            daemon=True,
        )
        asking = _Asking(thread, time.monotonic() + patience)
        self._asking[image_id] = asking
        thread.start()
        return asking

    def _ask(self, image_id: str, ask: Ask) -> None:
        place, keep = None, _FAILURE_KEPT
        try:
            place, keep = ImagePlace.of(ask()), _KEPT
        except Exception as error:  # noqa: BLE001 - whatever a client raises
            LOG.info('Where image %s is was not told: %s', image_id, error)
        finally:
            now = time.monotonic()
            with self._lock:
                if len(self._kept) >= _MOST_KEPT:
                    self._kept = {
                        known: kept
                        for known, kept in self._kept.items()
                        if kept.until > now
                    }
                if len(self._kept) < _MOST_KEPT:
                    self._kept[image_id] = _Kept(place, now + keep)
                del self._asking[image_id]
