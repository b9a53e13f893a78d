# SPDX-License-Identifier: Apache-2.0
"""Make a base by fetching the image: once, whoever asks.

Raw bytes go straight into the back end, hashed and inspected on the way;
other formats are converted into it, from where they are in the back end or
from a scratch file.
"""

from collections.abc import Sequence
import functools

from cinder_cow import filling
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import refusal
from cinder_cow import streaming
from cinder_cow.drivers import bases
from cinder_cow.handlers import base
from cinder_cow.handlers import keeping
from cinder_cow.handlers import making


class Downloading:
    """The handler for any image; see the contract in :mod:`.base`."""

    name = 'downloading'
    title = 'fetching it'

    def __init__(self, backend: base.Backend) -> None:
        self._driver = backend.driver
        self._settings = backend.settings

    def concerns(self, image: images.ImageInfo) -> bool:
        return True

    def refuse(
        self, image: images.ImageInfo, source: image_source.ImageSource
    ) -> Sequence[refusal.Refusal]:
        return tuple(
            filling.refusals(image, source, self._driver, self._settings)
        )

    def init(self) -> None:
        keeping.bring_in_order(self._driver, self._settings)

    def fetch_image(
        self,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        size: int,
        report: streaming.Progress,
    ) -> base.Fetched:
        def fill(
            writer: bases.BaseWriter, report: streaming.Progress
        ) -> streaming.Filled:
            return filling.fill_from_nearest(
                writer, image, source, self._driver, self._settings, report
            )

        key = bases.BaseKey.of(image)
        assert key is not None
        maker = making.Maker(
            self._driver, self._settings, image, source, key, size, report
        )
        begin = functools.partial(self._driver.begin_base, key, size)
        return maker.make(begin, fill)

    def remove_image(self, image: images.ImageInfo) -> None:
        key = bases.BaseKey.of(image)
        if key is not None:
            self._driver.retire_base(key.name)
