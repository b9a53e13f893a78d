# SPDX-License-Identifier: Apache-2.0
"""Thousands of volumes of one image, for tools/bench rbd."""

import argparse
from collections.abc import Iterator
import pathlib
import statistics
import time

import bench_common
import bench_rbd_clone as clones
import rados  # noqa: TID251
import rbd  # noqa: TID251

from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_cluster

MIB = 2**20
# What is written to prove that it is seen.
PROOF = 100 * MIB
# Of a volume; one object of its data alone has 8 MiB.
METADATA = bench_common.Target(64, at_most=True)
# With fewer, the database's fixed part is more than theirs.
ENOUGH = 1000
GROWTH = bench_common.Target(1.3, at_most=True)


def rows(
    cluster: ceph_cluster.Cluster,
    _top: pathlib.Path,
    arguments: argparse.Namespace,
) -> Iterator[str]:
    volumes: int = arguments.volumes
    part = max(1, volumes // 10)
    with (
        clones.images_pool(cluster) as images,
        clones.Worker(cluster, 'ours') as ours,
        clones.Worker(cluster, 'bare') as bare,
    ):
        yield f'    {_proof(cluster, images)}'
        image = clones.make_image(images)
        ours.several(image, 5)
        before = _used(cluster)
        first_bare = bare.several(image, 50)
        taken: list[float] = []
        while len(taken) < volumes:
            taken += ours.several(image, min(part, volumes - len(taken)))
        last_bare = bare.several(image, 50)
        used = [
            now - then
            for now, then in zip(_used(cluster), before, strict=True)
        ]
    first, last = sum(taken[:part]), sum(taken[-part:])
    yield bench_common.row(
        f'last {part} of {volumes} volumes: first [s]',
        f'{last:.2f}',
        f'{first:.2f}',
        f'{last / first:.2f}',
        GROWTH.verdict(last / first),
    )
    one, other = map(statistics.median, (first_bare, last_bare))
    yield bench_common.row(
        '    the same, 50 bare ones [ms]',
        f'{other * 1000:.2f}',
        f'{one * 1000:.2f}',
        f'{other / one:.2f}',
    )
    yield from _space(cluster, volumes, used)


def _space(
    cluster: ceph_cluster.Cluster, volumes: int, used: list[int]
) -> Iterator[str]:
    data, database = (each / (volumes + 100) / 1024 for each in used)
    yield bench_common.row(
        'used by a volume [KiB], objects + database',
        f'{data:.1f} + {database:.1f}',
        '',
        f'{data + database:.1f}',
        METADATA.verdict(data + database) if volumes >= ENOUGH else '',
    )
    with cluster.connect() as client, client.open_ioctx('volumes') as ioctx:
        objects = [found.key for found in ioctx.list_objects()]
    copied = sum(name.startswith('rbd_data.') for name in objects)
    yield (
        f'    of {len(objects)} objects in the pool of the volumes, {copied}'
        ' hold data of volumes'
    )


def _proof(cluster: ceph_cluster.Cluster, images: 'rados.Ioctx') -> str:
    """See what is written, by the same figures."""
    before = _used(cluster)
    rbd.RBD().create(images, 'proof', PROOF, old_format=False)
    with rbd.Image(images, 'proof') as image:
        for offset in range(0, PROOF, 4 * MIB):
            image.write(bytes([1 + offset // MIB]) * 4 * MIB, offset)
        image.flush()
    grown = _used(cluster)[0] - before[0]
    if not PROOF <= grown < 1.1 * PROOF:
        raise RuntimeError(f'{PROOF} bytes were written, {grown} are seen')
    rbd.RBD().remove(images, 'proof')
    return f'the OSD sees {grown / MIB:.1f} MiB of {PROOF // MIB} MiB written'


def _used(cluster: ceph_cluster.Cluster) -> tuple[int, int]:
    """Return what the OSD uses for objects, and for its database, once still.

    What was deleted is freed some seconds later. The database has a log of up
    to 1 GiB of what has just been written; that is not what volumes use.
    """
    found = [_counted(cluster)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(1)
        found.append(_counted(cluster))
        if len({data for data, _database in found[-4:]}) == 1:
            break
    return found[-1]


def _counted(cluster: ceph_cluster.Cluster) -> tuple[int, int]:
    with cluster.connect() as client:

        def ask(*words: object) -> tuple:
            return client.osd_command(0, *words)

        ceph_client.run_command(ask, prefix='compact')
        counters = ceph_client.run_command(ask, prefix='perf dump')
    return cluster.osd_used(), int(counters['bluefs']['db_used_bytes'])
