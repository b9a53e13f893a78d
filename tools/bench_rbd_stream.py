# SPDX-License-Identifier: Apache-2.0
"""Raw images streamed into Ceph, for tools/bench rbd."""

import argparse
from collections.abc import Iterator
import dataclasses
import hashlib
import os
import pathlib
import statistics
import subprocess
import sys
import time
import uuid

import bench_common
import bench_files

from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import streaming
from cinder_cow.drivers import rbd
from cinder_cow.tests import ceph_cluster

TOOLS = pathlib.Path(__file__).parent
MIB = 2**20
SIZE = 1024 * MIB
PLAIN = bench_common.Target(1.0)
HASHED = bench_common.Target(0.9)
MEMORY = bench_common.Target(200, at_most=True)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a stream took, in a process of its own.

    :param memory: its peak, in bytes (VmHWM of proc(5))
    :param written: bytes it had written to storage itself, not over the net
    """

    seconds: float
    memory: int
    written: int


def rows(
    cluster: ceph_cluster.Cluster,
    top: pathlib.Path,
    arguments: argparse.Namespace,
) -> Iterator[str]:
    rounds = 2 if arguments.short else 50
    path = top / 'image.raw'
    bench_files.half_empty(path, SIZE)
    with path.open('rb') as image:
        claimed = hashlib.file_digest(image, 'sha512').hexdigest()
    works = {
        'import': lambda: _rbd_import(cluster, path),
        'plain': lambda: _streamed(cluster, path, ''),
        'hash': lambda: bench_files.hash_alone(path),
        'hashed': lambda: _streamed(cluster, path, claimed),
    }
    # The first round finds nothing in any cache.
    bench_common.in_turn(works, 1)
    found = bench_common.in_turn(works, rounds)
    plain, hashed = found['plain'], found['hashed']
    yield bench_common.compared(
        f'stream {SIZE // MIB} MiB, half empty: import [s]',
        [one.seconds for one in plain],
        found['import'],
        PLAIN,
    )
    slower = max(
        ('import', 'hash'), key=lambda name: statistics.median(found[name])
    )
    yield bench_common.compared(
        f'with a sha512: {slower} alone [s]',
        [one.seconds for one in hashed],
        found[slower],
        HASHED,
    )
    yield f'    import: rbd import of the same file; {rounds} in turn'
    memory = max(one.memory for one in plain + hashed) / MIB
    yield bench_common.row(
        'peak memory of a stream [MiB]',
        f'{memory:.0f}',
        '',
        '',
        MEMORY.verdict(memory),
    )
    written = max(one.written for one in plain + hashed)
    yield f'    written to local storage: {written} bytes'


def _rbd_import(cluster: ceph_cluster.Cluster, path: pathlib.Path) -> float:
    name = str(uuid.uuid4())
    words = ['rbd', '-c', cluster.conf, '--id', 'cinder', '--no-progress']
    image = f'volumes/{name}'
    begun = time.perf_counter()
    subprocess.run([*words, 'import', path, image], check=True)
    seconds = time.perf_counter() - begun
    subprocess.run([*words, 'rm', image], check=True)
    return seconds


def _streamed(
    cluster: ceph_cluster.Cluster, path: pathlib.Path, claimed: str
) -> Measured:
    # Nothing of an earlier work is left to be written.
    os.sync()
    done = subprocess.run(
        [sys.executable, __file__, cluster.directory, path, claimed],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(TOOLS.parent)},
    )
    seconds, memory, written = done.stdout.split()
    return Measured(float(seconds), int(memory), int(written))


def stream(directory: str, path: str, claimed: str) -> None:
    """Stream an image; print seconds, peak memory and bytes written."""
    from oslo_config import cfg

    conf = cfg.ConfigOpts()
    conf([], default_config_files=[os.path.join(directory, 'cinder.conf')])
    options = opts.BackendOptions(conf, 'rbd1')
    name = str(uuid.uuid4())
    before = _number('io', 'write_bytes')
    begun = time.perf_counter()
    driver = rbd.RbdDriver.from_options(options)
    with image_source.FileSource(path) as source:
        hash_ = f'sha512:{claimed}' if claimed else None
        image = image_source.describe(source, 'raw', hash_)
        with driver.open(name, source.size) as writer:
            streaming.stream(writer, image, source, lambda *told: None)
            writer.close()
    seconds = time.perf_counter() - begun
    memory = _number('status', 'VmHWM') * 1024
    print(seconds, memory, _number('io', 'write_bytes') - before)
    driver.delete(name)


def _number(name: str, field: str) -> int:
    """Read a number of this process; see proc(5)."""
    lines = pathlib.Path('/proc/self', name).read_text().splitlines()
    found = next(line for line in lines if line.startswith(f'{field}:'))
    return int(found.split()[1])


if __name__ == '__main__':
    stream(*sys.argv[1:])
