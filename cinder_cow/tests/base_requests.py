# SPDX-License-Identifier: Apache-2.0
"""Requests for volumes of one image, each in a process of its own.

For tests in which the one that makes the base is killed, or stopped for a
while. One process loads all that is needed, and forks one for each request.
"""

import argparse
import dataclasses
import time
import traceback
from typing import Any
import uuid

from cinder_cow import exception
from cinder_cow import http_source
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow.cli import backend
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_owner
from cinder_cow.tests import forks


@dataclasses.dataclass
class Request:
    """A volume of an image at a URL.

    :param conf: a cinder.conf
    :param abroad: it looks as if it ran on a host of its own
    :param seconds: of its leases
    :param pause: seconds that each report of progress takes
    """

    conf: str
    backend: str
    url: str
    hash: str
    disk_format: str
    volume: str
    size: int
    abroad: bool = False
    seconds: int = 3
    pause: float = 0
    number: int = -1

    def info(self) -> images.ImageInfo:
        """Describe the image, as its record would."""
        algorithm, _, value = self.hash.partition(':')
        return images.ImageInfo(
            id=self.url,
            name=self.url,
            disk_format=self.disk_format,
            os_hash_algo=algorithm,
            os_hash_value=value,
        )


def do(request: Request) -> dict[str, Any]:
    """Make the volume; tell how, or why not."""
    made = backend.from_arguments(
        argparse.Namespace(config_file=[request.conf], backend=request.backend)
    )
    location = image_location.parse(request.url)
    assert isinstance(location, image_location.HttpLocation)

    def report(phase: str, done: int, total: int) -> None:
        time.sleep(request.pause)

    begun = time.monotonic()
    with http_source.HttpSource(location, made.settings, True) as source:
        outcome = made.create_volume_from_image(
            request.volume, request.info(), source, request.size, report
        )
    return {
        'method': outcome.method.value,
        'made': outcome.base_made,
        'seconds': time.monotonic() - begun,
        'failures': [
            str(one.refusal) for one in outcome.failures if one.tried
        ],
    }


def _answer(request: Request) -> dict[str, Any]:
    rbd_leases.SECONDS = request.seconds
    if request.abroad:
        me = dataclasses.replace(
            rbd_owner.Owner.me(), boot=f'another-{uuid.uuid4()}'
        )
        setattr(rbd_owner.Owner, 'me', staticmethod(lambda: me))  # noqa: B010
    try:
        return {'error': '', 'reason': '', **do(request)}
    except exception.CowError as error:
        return {'error': str(error), 'reason': error.reason.value}
    except BaseException:  # noqa: BLE001
        return {'error': traceback.format_exc(), 'reason': 'bug'}


if __name__ == '__main__':
    forks.serve(Request, _answer)
