# SPDX-License-Identifier: Apache-2.0
"""Makes volumes of an image for tools/bench bases, in a process of its own.

It reads lines of JSON: {"url": URL, "hash": HASH or null, "image": ID,
"size": BYTES, "volumes": [NAME, ...]}, or of an image in Glance {"glance": ID,
"located": whether its location is told, "hashed": whether its hash is,
"compared": whether that is compared at its location, too, "volumes": [NAME,
...]}. It makes them all at once, and answers with {"each": [[SECONDS, METHOD,
BASE MADE], ...]} or {"problem": TEXT}.
"""

import argparse
from collections.abc import Callable
from concurrent import futures
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
import time

from oslo_utils import units

from cinder_cow import glance
from cinder_cow import http_source
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow.cli import backend

SIZE = 2 * units.Gi


class Maker:
    """The back end of a configuration, connected."""

    def __init__(self, conf: pathlib.Path, name: str) -> None:
        self._backend = backend.from_arguments(
            argparse.Namespace(config_file=[str(conf)], backend=name)
        )
        list(self._backend.driver.list())

    def make(self, order: dict, volume: str) -> tuple[float, str, bool]:
        """Make a volume of an image whose record is known."""
        if 'glance' in order:
            return self._make_of_glance(order, volume)
        algorithm, _, value = (order['hash'] or '').partition(':')
        image = images.ImageInfo(
            id=order['image'],
            name='bench',
            disk_format='qcow2',
            size=order['size'],
            os_hash_algo=algorithm or None,
            os_hash_value=value or None,
            content_id=order['url'],
        )
        url = image_location.parse(order['url'])
        source = functools.partial(
            http_source.HttpSource, url, self._backend.settings, bool(value)
        )
        return self._make(volume, image, source)

    def _make_of_glance(
        self, order: dict, volume: str
    ) -> tuple[float, str, bool]:
        settings = dataclasses.replace(
            self._backend.settings, verify_linked=order['compared']
        )
        self._backend.settings = settings
        with glance.Glance.of_cloud(None, settings) as client:
            image = client.image(order['glance'])
            if not order['located']:
                image = dataclasses.replace(image, locations=())
            if not order['hashed']:
                image = dataclasses.replace(
                    image,
                    os_hash_algo=None,
                    os_hash_value=None,
                    checksum=None,
                )
            source = functools.partial(client.source, image)
            return self._make(volume, image, source)

    def _make(
        self,
        volume: str,
        image: images.ImageInfo,
        source: Callable[[], contextlib.AbstractContextManager],
    ) -> tuple[float, str, bool]:
        begun = time.perf_counter()
        with source() as opened:
            outcome = self._backend.create_volume_from_image(
                volume, image, opened, SIZE
            )
        taken = time.perf_counter() - begun
        if outcome.method.value == 'stream':
            raise RuntimeError(f'{volume}: {outcome.failures}')
        return taken, outcome.method.value, outcome.base_made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('conf', type=pathlib.Path, help='a cinder.conf')
    parser.add_argument('backend')
    arguments = parser.parse_args()
    maker = Maker(arguments.conf, arguments.backend)
    answered({'ready': True})
    for line in sys.stdin:
        order = json.loads(line)
        volumes = order['volumes']
        try:
            with futures.ThreadPoolExecutor(len(volumes)) as pool:
                make = functools.partial(maker.make, order)
                each = list(pool.map(make, volumes))
        except Exception as error:  # noqa: BLE001 - is told
            answered({'problem': repr(error)})
        else:
            answered({'each': each})


def answered(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
