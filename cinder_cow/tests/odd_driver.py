# SPDX-License-Identifier: Apache-2.0
"""Our driver in a Cinder that asks it in odd ways, or with a fault in it.

What Cinder gives to ``clone_image`` is up to its release and to Glance. The
metadata of a volume choose one of ``ODDITIES`` by its name, with the key
"odd".
"""

# mypy: disable-error-code="import-not-found"

import contextlib
from typing import Any
import uuid

from cinder_cow.plugin import rbd


def _dead(locations):
    """Make a location of an image that is not there, in the right pool."""
    url = locations[0]['url']
    fsid, pool, _image, snapshot = url.removeprefix('rbd://').split('/')
    return {'url': f'rbd://{fsid}/{pool}/{uuid.uuid4()}/{snapshot}'}


def _without(meta, *names):
    return {name: value for name, value in meta.items() if name not in names}


# Each takes the URL, the locations and the record, and gives what is asked.
ODDITIES: dict[str, Any] = {
    'no location': lambda _url, _all, meta: (None, meta),
    'nothing in it': lambda _url, _all, meta: ((None, None), meta),
    'url alone': lambda _url, all_, meta: ((all_[0]['url'], []), meta),
    'dead first': lambda _url, all_, meta: (
        (None, [_dead(all_), *all_]),
        meta,
    ),
    'bare record': lambda url, all_, meta: (
        (url, all_),
        _without(meta, 'size', 'os_hash_algo', 'os_hash_value', 'checksum'),
    ),
    'no url': lambda _url, _all, meta: ((None, [{'url': None}]), meta),
    'no list': lambda _url, _all, meta: ((None, 7), meta),
    'control characters': lambda _url, _all, meta: (
        ('rbd://\x1b[2J/\n/../x', [{'url': '\0', 'metadata': 'x'}]),
        meta,
    ),
    'hostile properties': lambda url, all_, meta: (
        (url, all_),
        {
            **meta,
            'properties': {
                'id': '../../etc/passwd',
                'size': '-1',
                'disk_format': 'qcow2',
                'direct_url': 'file:///etc/passwd',
                'locations': 'x',
            },
        },
    ),
    'no size': lambda url, all_, meta: ((url, all_), {**meta, 'size': 'x'}),
    'no id': lambda url, all_, meta: ((url, all_), _without(meta, 'id')),
    'properties': lambda url, all_, meta: (
        (url, all_),
        {**meta, 'properties': 7},
    ),
    'luks': lambda url, all_, meta: (
        (url, all_),
        {**meta, 'disk_format': 'luks'},
    ),
    'fault': lambda url, all_, meta: ((url, all_), meta),
}


class OddDriver(rbd.CowRBDDriver):
    """What ``volume_driver`` is set to."""

    def clone_image(self, context, volume, location, meta, service):
        odd = volume.metadata.get('odd')
        if odd is None:
            return super().clone_image(
                context, volume, location, meta, service
            )
        place, record = ODDITIES[odd](*location, dict(meta))
        with contextlib.ExitStack() as stack:
            if odd == 'fault':
                stack.callback(setattr, self._cow, 'driver', self._cow.driver)
                faulty: Any = _Faulty(self._cow.driver)
                self._cow.driver = faulty
            return super().clone_image(context, volume, place, record, service)


class _Faulty:
    """Our driver of a back end, with a fault after it has cloned."""

    def __init__(self, driver):
        self._driver = driver

    def __getattr__(self, name):
        return getattr(self._driver, name)

    def bound(self, request):
        return _Faulty(self._driver.bound(request))

    def clone(self, image_info, volume_name):
        self._driver.clone(image_info, volume_name)
        raise TypeError('a fault of ours')
