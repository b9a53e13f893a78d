# SPDX-License-Identifier: Apache-2.0
"""A Cinder with three back ends for tools/bench cinder, and its clients.

The back ends are Cinder's own driver, the same with its cache of images, and
ours; each has a pool of its own in one Ceph.
"""

import argparse
from collections.abc import Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import pathlib
import time
from typing import Any, Self

from cinder_cow.cli import backend
from cinder_cow.drivers import bases
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import ceph_config
from cinder_cow.tests import cinder_processes
from cinder_cow.tests import cinder_service
from cinder_cow.tests import services
from cinder_cow.tests import volume_api

OURS, PLAIN, CACHED = 'ours', 'plain', 'cached'
DRIVERS: Mapping[str, Mapping[str, object]] = {
    OURS: {'volume_driver': 'cinder_cow.plugin.rbd.CowRBDDriver'},
    PLAIN: {},
    CACHED: {'image_volume_cache_enabled': True},
}
_USER = 'bench'
_TENANT = 'os-vol-tenant-attr:tenant_id'
# Whose cached images are; see cinder_service.
_CACHE_TENANT = 'internal'
_OSD_SIZE = 48 * 2**30
# A download keeps a thread of Glance busy, and Cinder asks it meanwhile.
_THREADS = 32
# Between two looks at a volume; at all volumes.
_POLL_SECONDS = 0.02
_POLL_ALL_SECONDS = 0.1
# A burst of downloads takes 2 minutes when nothing else is done.
_LIMIT_SECONDS = 1800


@dataclasses.dataclass(frozen=True)
class Burst:
    """Volumes that were asked for together.

    :param asked: seconds until the API had answered all requests
    :param last: seconds until the last volume was available
    """

    asked: float
    last: float


class Stack:
    """A Ceph, a Glance and a Cinder; a context manager.

    :param top: where all files are
    :param processes: of Cinder: 1, or 3 with RabbitMQ and MariaDB
    :param size: of volumes, in GiB
    """

    def __init__(self, top: pathlib.Path, processes: int, size: int) -> None:
        self._top = top
        self._processes = processes
        self._size = size
        self._images: list[str] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            ceph = ceph_cluster.Cluster(self._top / 'ceph', osd_size=_OSD_SIZE)
            stack.enter_context(ceph)
            for name in DRIVERS:
                ceph.make_pool(name, pg_num=8)
            ceph.add_user(_USER, ceph_config.caps(DRIVERS, ['images']))
            self.glance = services.Glance(
                self._top / 'glance', ceph=ceph, threads=_THREADS
            )
            stack.enter_context(self.glance)
            kinds = {1: cinder_service.Cinder, 3: cinder_processes.Cinder}
            self.cinder = kinds[self._processes](
                self._top / 'cinder', self.glance, drivers=self._drivers(ceph)
            )
            stack.enter_context(self.cinder)
            for name in DRIVERS:
                self._make_type(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def _drivers(self, ceph: ceph_cluster.Cluster) -> dict[str, Any]:
        (section,) = cinder_service.upstream_driver(ceph).values()
        return {
            name: {
                **section,
                'volume_backend_name': name,
                'rbd_pool': name,
                'rbd_user': _USER,
                'cow_scratch_dir': self._top,
                **options,
            }
            for name, options in DRIVERS.items()
        }

    def _make_type(self, name: str) -> None:
        claims = {'name': name, 'extra_specs': {'volume_backend_name': name}}
        self.cinder.do('POST', '/types', json={'volume_type': claims})

    # Images

    def image(
        self, disk_format: str, path: pathlib.Path, store: str | None = None
    ) -> str:
        """Upload an image that no back end has seen, by default to Ceph."""
        image_id = self.glance.create(disk_format, path=path, store=store)
        self._images.append(image_id)
        return str(image_id)

    def downloads(self, image_id: str) -> list[float]:
        """Tell the seconds that Glance took to send an image, each time."""
        # Others ask only whether they may have it.
        return [
            request.seconds
            for request in self.glance.downloads(image_id)
            if request.status == 200
        ]

    # Volumes

    def one(self, name: str, image_id: str) -> float:
        """Make a volume; return the seconds until it is available."""
        begun = time.perf_counter()
        volume = self._ask(name, image_id)
        while not self._is_there(self.cinder.show(volume), begun):
            time.sleep(_POLL_SECONDS)
        return time.perf_counter() - begun

    def burst(self, name: str, image_id: str, count: int) -> Burst:
        """Ask for volumes from as many threads, each with a connection."""
        with futures.ThreadPoolExecutor(count) as pool:
            begun = time.perf_counter()
            asked = [
                pool.submit(self._ask, name, image_id) for _ in range(count)
            ]
            missing = {future.result() for future in asked}
            answered = time.perf_counter() - begun
        while missing:
            for record in self._volumes():
                if self._is_there(record, begun):
                    missing.discard(record['id'])
            time.sleep(_POLL_ALL_SECONDS)
        return Burst(answered, time.perf_counter() - begun)

    def _ask(self, name: str, image_id: str) -> str:
        # Requests of one session wait for each other.
        client = volume_api.Client(self.cinder.url)
        return str(
            client.create_volume(
                self._size, image_id=image_id, volume_type=name
            )
        )

    def _is_there(self, record: Mapping[str, Any], begun: float) -> bool:
        """Tell whether a volume is made.

        :raises RuntimeError: it never will be, and the end of Cinder's log
        """
        late = time.perf_counter() - begun > _LIMIT_SECONDS
        if late or record['status'].startswith('error'):
            raise RuntimeError(
                f'{record["volume_type"]}: {record["status"]}\n'
                + self.cinder.end_of_log()
            )
        return record['status'] == 'available'

    def _volumes(self) -> list[dict[str, Any]]:
        answer = self.cinder.do('GET', '/volumes/detail?all_tenants=1')
        return list(answer.json()['volumes'])

    # The end of a measurement

    def clear(self) -> None:
        """Delete all volumes, images, cached images and bases.

        :raises RuntimeError: one of ours was made by Cinder's own way
        """
        for line in self.cinder.log.splitlines():
            if 'is left to Cinder' in line:
                raise RuntimeError(line)
        for kept in (False, True):
            # A cached image goes when its clones are gone.
            self._delete(
                record['id']
                for record in self._volumes()
                if kept or record[_TENANT] != _CACHE_TENANT
            )
        while self._images:
            self.glance.delete(self._images.pop())
        for base in list(self._keeper().list_bases()):
            self._keeper().retire_base(base.name)

    def _delete(self, volumes: Iterator[str]) -> None:
        found = list(volumes)
        for volume in found:
            self.cinder.do('DELETE', f'/volumes/{volume}')
        for volume in found:
            self.cinder._wait('volume', volume, 'deleted', _LIMIT_SECONDS)

    def _keeper(self) -> bases.BaseKeeper:
        conf = str(self.cinder.directory / 'cinder.conf')
        found = backend.from_arguments(
            argparse.Namespace(config_file=[conf], backend=OURS), sweep=False
        )
        assert isinstance(found.driver, bases.BaseKeeper)
        return found.driver
