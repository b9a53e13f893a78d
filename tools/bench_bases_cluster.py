# SPDX-License-Identifier: Apache-2.0
"""Benchmark bases of images that a Glance keeps in the same Ceph as ours.

The same image is read where it is, and over HTTP, where Glance reads it from
there: its location is not told then. Every round has an image of its own.
"""

from collections.abc import Iterator
import functools
import pathlib
import subprocess
import time
import uuid

import bench_bases_process
import bench_common

from cinder_cow.tests import services

TARGET = bench_common.Target(0.5, at_most=True)
BACKEND = 'rbd1'


class Bench:
    """Rows of one image.

    :param conf: a cinder.conf
    :param path: of the qcow2
    :param glance: that keeps it in the cluster
    """

    def __init__(
        self, conf: pathlib.Path, path: pathlib.Path, glance: services.Glance
    ) -> None:
        self._path = path
        self._glance = glance
        self._worker = functools.partial(
            bench_bases_process.Worker,
            conf,
            BACKEND,
            conf.with_name('cluster.log'),
            glance.environment(),
        )

    def rows(self, rounds: int) -> Iterator[str]:
        with self._worker() as worker:
            found = bench_common.in_turn(
                {
                    'there': lambda: self._made(worker, located=True),
                    'hashed': lambda: self._made(
                        worker, located=True, compared=True
                    ),
                    'http': lambda: self._made(worker),
                    'unhashed': lambda: self._made(worker, hashed=False),
                    'bare': self._bare,
                },
                rounds,
                bench_common.settle,
            )
        there = found['there']
        for what, beside, target in (
            ('qcow2 in the cluster, over HTTP [s]', 'http', TARGET),
            ('the same, over HTTP without a hash', 'unhashed', None),
            ('the same, bare qemu-img convert', 'bare', None),
        ):
            yield bench_common.compared(what, there, found[beside], target)
        yield bench_common.compared(
            'its sha512 compared too, over HTTP', found['hashed'],
            found['http'],
        )  # fmt: skip

    def _made(
        self,
        worker: bench_bases_process.Worker,
        located: bool = False,
        hashed: bool = True,
        compared: bool = False,
    ) -> float:
        """Make the base of a new image, and a volume; return the seconds.

        :param located: it is read where it is
        :param hashed: its record has a hash
        :param compared: also of what is read where it is
        """
        image_id = self._glance.create('qcow2', path=self._path)
        taken = worker.made(
            {
                'glance': image_id,
                'located': located,
                'hashed': hashed,
                'compared': compared,
            }
        )
        downloads = len(self._glance.downloads(image_id))
        assert downloads == (0 if located else 1), f'{downloads} downloads'
        return taken

    def _bare(self) -> float:
        """Convert a new image, and no more; as one who may write to both."""
        image_id = self._glance.create('qcow2', path=self._path)
        base = f'volumes/{uuid.uuid4()}'
        conf = self._glance.ceph.conf
        begun = time.perf_counter()
        subprocess.run(
            ['rbd', '-c', conf, 'create', '--size', '2G', base], check=True
        )
        subprocess.run(
            ['qemu-img', 'convert', '-n', '-W', '-m', '16', '-f', 'qcow2',
             '-O', 'raw', f'rbd:images/{image_id}@snap:conf={conf}',
             f'rbd:{base}:conf={conf}'],
            check=True,
        )  # fmt: skip
        return time.perf_counter() - begun
