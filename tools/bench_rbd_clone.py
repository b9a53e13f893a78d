# SPDX-License-Identifier: Apache-2.0
"""Clones for tools/bench rbd: one by one, many at once, the first of all."""

import argparse
from collections.abc import Iterator
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import uuid

import bench_common
import rados  # noqa: TID251
import rbd  # noqa: TID251

from cinder_cow.tests import ceph_cluster

TOOLS = pathlib.Path(__file__).parent
UPSTREAM = TOOLS.parent / '.venv-upstream' / 'bin' / 'python'
# Half of what the volumes get; with the objects that Glance makes.
IMAGE_SIZE = 2**30
ORDER = 23
DATA = 8 * 2**20
AT_ONCE = 32

Rows = Iterator[str]
Found = dict[str, list[float]]
BARE = bench_common.Target(1.3, at_most=True)
ONE_BY_ONE = bench_common.Target(3)
AT_ONCE_TARGET = bench_common.Target(4)


class Worker:
    """A process of bench_rbd_worker.py; a context manager.

    :param like_cinder: patched by eventlet, as cinder-volume is
    """

    def __init__(
        self,
        cluster: ceph_cluster.Cluster,
        kind: str,
        *,
        like_cinder: bool = False,
    ) -> None:
        self.kind = kind
        elsewhere = like_cinder or kind == 'upstream'
        python = UPSTREAM if elsewhere else pathlib.Path(sys.executable)
        command = [python, TOOLS / 'bench_rbd_worker.py', kind,
                   cluster.directory, cluster.fsid]  # fmt: skip
        if like_cinder:
            command.append('--like-cinder')
        self._log = (cluster.directory / f'{kind}.log').open('w+')
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **os.environ,
                'PYTHONPATH': str(TOOLS.parent),
                'OS_CINDER_DISABLE_EVENTLET_PATCHING': str(not like_cinder),
            },
        )

    def __enter__(self) -> 'Worker':
        self._answer()
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def one(self, image: str) -> float:
        """Make a volume; return the seconds that it took."""
        return self._made(image, 1, 1)['each'][0]

    def at_once(self, image: str, volumes: int) -> float:
        """Make volumes, AT_ONCE together; return the seconds of all."""
        return self._made(image, volumes, AT_ONCE)['total']

    def several(self, image: str, volumes: int) -> list[float]:
        """Make volumes one by one; return the seconds of each."""
        return self._made(image, volumes, 1)['each']

    def _made(self, image: str, volumes: int, at_once: int) -> dict:
        wanted = {
            'image': image,
            'volumes': [str(uuid.uuid4()) for _ in range(volumes)],
            'at_once': at_once,
        }
        self._process.stdin.write(json.dumps(wanted) + '\n')
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {'problem': 'it ended'}
        if 'problem' in answer:
            self._log.seek(0)
            raise RuntimeError(
                f'{self.kind}: {answer["problem"]}\n{self._log.read()}'
            )
        return answer


@contextlib.contextmanager
def images_pool(cluster: ceph_cluster.Cluster) -> Iterator['rados.Ioctx']:
    with cluster.connect() as client, client.open_ioctx('images') as ioctx:
        yield ioctx


def make_image(ioctx: 'rados.Ioctx') -> str:
    """Make an image as Glance leaves it."""
    name = str(uuid.uuid4())
    rbd.RBD().create(ioctx, name, IMAGE_SIZE, ORDER, old_format=False)
    with rbd.Image(ioctx, name) as image:
        image.write(os.urandom(DATA), 0)
        image.create_snap('snap')
        image.protect_snap('snap')
    return name


def rows(
    cluster: ceph_cluster.Cluster,
    _top: pathlib.Path,
    arguments: argparse.Namespace,
) -> Rows:
    rounds = 3 if arguments.short else 60
    bursts = 1 if arguments.short else 7
    with contextlib.ExitStack() as stack:
        ioctx = stack.enter_context(images_pool(cluster))
        workers = {
            name: stack.enter_context(worker)
            for name, worker in _workers(cluster)
        }
        yield from _one_by_one(workers, make_image(ioctx), rounds)
        yield from _first(workers, ioctx, rounds)
        yield from _at_once(
            workers,
            make_image(ioctx),
            bursts,
            AT_ONCE if arguments.short else 3 * AT_ONCE,
        )
    yield (
        f'    volumes of {2 * IMAGE_SIZE >> 30} GiB of a raw image of'
        f' {IMAGE_SIZE >> 30} GiB; {rounds} in turn, {bursts} times many'
    )
    yield '    clone: cloneable and clone of the driver, verdict remembered'
    yield '    bare: clone, open, resize, close on an open connection'
    if UPSTREAM.exists():
        yield '    Cinder: RBDDriver.clone_image; by default it has eventlet,'
        yield '    with 20 native threads, and ours is in the same environment'


def _workers(
    cluster: ceph_cluster.Cluster,
) -> Iterator[tuple[str, Worker]]:
    yield 'ours', Worker(cluster, 'ours')
    yield 'bare', Worker(cluster, 'bare')
    yield 'managed', Worker(cluster, 'managed')
    if UPSTREAM.exists():
        yield 'upstream', Worker(cluster, 'upstream', like_cinder=True)
        yield 'threads', Worker(cluster, 'upstream')
        yield 'green', Worker(cluster, 'ours', like_cinder=True)


def _in_turn(workers: dict[str, Worker], rounds: int, call) -> Found:
    works = {
        name: functools.partial(call, worker)
        for name, worker in workers.items()
    }
    return bench_common.in_turn(works, rounds)


def _one_by_one(workers: dict[str, Worker], image: str, rounds: int) -> Rows:
    _in_turn(workers, 3, lambda worker: worker.one(image))
    found = _in_turn(workers, rounds, lambda worker: worker.one(image))
    ours, bare = found['ours'], found['bare']
    yield _row('clone: bare [ms]', ours, bare, BARE)
    yield _row('create_volume_from_image: bare', found['managed'], bare)
    yield from _beside_upstream('clone', found, ONE_BY_ONE)


def _first(
    workers: dict[str, Worker], ioctx: 'rados.Ioctx', rounds: int
) -> Rows:
    found = _in_turn(
        workers, rounds, lambda worker: worker.one(make_image(ioctx))
    )
    ours = found['ours']
    yield _row('first clone of an image: bare', ours, found['bare'])
    yield from _beside_upstream('first clone of an image', found, None)


def _at_once(
    workers: dict[str, Worker], image: str, rounds: int, volumes: int
) -> Rows:
    _in_turn(workers, 1, lambda worker: worker.at_once(image, AT_ONCE))
    found = _in_turn(
        workers, rounds, lambda worker: worker.at_once(image, volumes)
    )
    what = f'{volumes} clones, {AT_ONCE} at once'
    yield _row(f'{what}: bare', found['ours'], found['bare'])
    yield from _beside_upstream(what, found, AT_ONCE_TARGET)


def _beside_upstream(
    what: str,
    found: Found,
    target: bench_common.Target | None,
) -> Rows:
    if 'upstream' not in found:
        yield f'    {what}: Cinder 29 is not installed here'
        return
    ours, green = found['ours'], found['green']
    threads, upstream = found['threads'], found['upstream']
    yield _row(f'{what}: Cinder 29, threads', ours, threads, target)
    yield _row(f'{what}: Cinder 29, eventlet', green, upstream, target)


def _row(
    what: str, ours: list[float], beside: list[float], target=None
) -> str:
    return bench_common.compared(what, ours, beside, target, unit=1000)
