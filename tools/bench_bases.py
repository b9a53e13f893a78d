# SPDX-License-Identifier: Apache-2.0
"""Benchmark bases: one request beside the bare steps, and 64 at once.

The image is a qcow2 of 2 GiB on an HTTP server that counts. By hand it is
fetched with curl, converted with qemu-img into the back end, and cloned with
rbd or cp. Every round has an image that nobody has seen.

Of Ceph, there are also images that a Glance keeps in it; see
bench_bases_cluster.py.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import functools
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import uuid

import bench_bases_cluster
import bench_bases_process
import bench_common
import reports

from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import http_server
from cinder_cow.tests import services
from cinder_cow.tests import storage

MIB = 2**20
SIZE = 2 * 2**30
DATA = 500 * MIB
SHORT_DATA = 64 * MIB
PROCESSES = 8
REQUESTS = 8
# More than this of an image is a download; less, a look at its head.
LOOK = 16 * MIB
BY_HAND = bench_common.Target(1.2, at_most=True)
TOGETHER = bench_common.Target(1.3, at_most=True)


class Place:
    """A back end, and the same done by hand; see the two below."""

    name = ''

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.scratch = top / 'scratch'
        self.scratch.mkdir()
        self.conf = top / 'bench.conf'

    def by_hand(self, url: str, volume: str) -> None:
        raise NotImplementedError

    def run(self, *command: object) -> None:
        subprocess.run(
            [str(word) for word in command],
            check=True,
            capture_output=True,
        )


class Files(Place):
    name = 'files'

    def __init__(self, top: pathlib.Path) -> None:
        super().__init__(top)
        self._hand = top / 'hand'
        self._hand.mkdir()
        self.conf.write_text(
            f'[files]\ncow_driver = file\ncow_file_dir = {top}/volumes\n'
            f'cow_scratch_dir = {self.scratch}\n'
        )

    def by_hand(self, url: str, volume: str) -> None:
        fetched, base = self.scratch / volume, self._hand / f'{volume}.base'
        self.run('curl', '-sSf', '-o', fetched, url)
        self.run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', '-t',
                 'none', fetched, base)  # fmt: skip
        self.run('sync', base)
        self.run('cp', '--reflink=always', base, self._hand / volume)
        self.run('sync', self._hand / volume)
        fetched.unlink()


class Rbd(Place):
    name = 'rbd1'

    def __init__(
        self, top: pathlib.Path, cluster: ceph_cluster.Cluster
    ) -> None:
        super().__init__(top)
        self._cluster = cluster
        text = (cluster.directory / 'cinder.conf').read_text()
        self.conf.write_text(
            text.replace('[rbd1]', f'[rbd1]\ncow_scratch_dir = {self.scratch}')
        )
        self._rbd = functools.partial(
            self.run, 'rbd', '-c', cluster.directory / 'ceph.conf', '--id',
            'cinder',
        )  # fmt: skip

    def by_hand(self, url: str, volume: str) -> None:
        fetched, base = self.scratch / volume, f'volumes/{volume}.base'
        self.run('curl', '-sSf', '-o', fetched, url)
        self._rbd('create', '--size', '2G', base)
        conf = self._cluster.directory / 'ceph.conf'
        self.run('qemu-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw',
                 fetched, f'rbd:{base}:id=cinder:conf={conf}')  # fmt: skip
        self._rbd('snap', 'create', '--no-progress', f'{base}@snap')
        self._rbd('snap', 'protect', f'{base}@snap')
        self._rbd('clone', f'{base}@snap', f'volumes/{volume}')
        fetched.unlink()


class Image:
    """A new qcow2 of random data in each round, on the server."""

    def __init__(self, top: pathlib.Path, data: int) -> None:
        self.raw = top / 'image.raw'
        self.path = top / 'image.qcow2'
        with self.raw.open('wb') as file:
            # In four runs, as file systems are.
            for part in range(4):
                file.seek(part * SIZE // 4)
                file.write(os.urandom(data // 4))
            file.truncate(SIZE)
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', self.raw, self.path],
            check=True,
        )
        self.content = self.path.read_bytes()
        self.hash = f'sha512:{hashlib.sha512(self.content).hexdigest()}'


class Bench:
    def __init__(
        self, place: Place, image: Image, server: http_server.Server
    ) -> None:
        self.place = place
        self._image = image
        self._server = server
        self._worker = functools.partial(
            bench_bases_process.Worker,
            place.conf,
            place.name,
            place.top / 'worker.log',
        )

    def order(self, count: int, hashed: bool) -> dict:
        """Order volumes of an image that nobody has seen."""
        name = str(uuid.uuid4())
        self._server.put(f'/{name}', self._image.content)
        return {
            'image': name,
            'url': self._server.url(f'/{name}'),
            'hash': self._image.hash if hashed else None,
            'size': len(self._image.content),
            'volumes': [str(uuid.uuid4()) for _ in range(count)],
        }

    def one(
        self, worker: bench_bases_process.Worker, hashed: bool = True
    ) -> float:
        order = self.order(1, hashed)
        taken = worker.made(order)
        self._check_downloads(order, 1)
        return taken

    def by_hand(self) -> float:
        order = self.order(1, False)
        begun = time.perf_counter()
        self.place.by_hand(order['url'], order['volumes'][0])
        return time.perf_counter() - begun

    def together(self, workers: Sequence[bench_bases_process.Worker]) -> float:
        """Have all make volumes of one image; return the seconds of all."""
        order = self.order(REQUESTS, True)
        begun = time.perf_counter()
        for worker in workers:
            names = [str(uuid.uuid4()) for _ in range(REQUESTS)]
            worker.ask({**order, 'volumes': names})
        each = [one for worker in workers for one in worker.answer()['each']]
        taken = time.perf_counter() - begun
        assert len(each) == len(workers) * REQUESTS
        made = sum(made for _taken, _method, made in each)
        assert made == 1, f'{made} bases were made'
        self._check_downloads(order, 1)
        return taken

    def _check_downloads(self, order: dict, wanted: int) -> None:
        path = '/' + order['url'].rpartition('/')[2]
        found = self._server.requests_for(path)
        downloads = sum(one.sent > LOOK for one in found)
        assert downloads == wanted, f'{downloads} downloads'
        sent = self._server.bytes_sent(path) / len(self._image.content)
        self.sent = sent

    def rows(self, rounds: int) -> Iterator[str]:
        name = self.place.name
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(self._worker()) for _ in range(PROCESSES)
            ]
            first = workers[0]
            found = bench_common.in_turn(
                {
                    'one': lambda: self.one(first),
                    'unhashed': lambda: self.one(first, hashed=False),
                    'hand': self.by_hand,
                    'together': lambda: self.together(workers),
                },
                rounds,
                bench_common.settle,
            )
            yield bench_common.compared(
                f'{name}: one request, by hand [s]',
                found['unhashed'], found['hand'], BY_HAND,
            )  # fmt: skip
            yield bench_common.compared(
                f'{name}: the same, sha512 compared',
                found['one'], found['hand'],
            )  # fmt: skip
            yield bench_common.compared(
                f'{name}: {PROCESSES * REQUESTS} at once, one [s]',
                found['together'], found['one'], TOGETHER,
            )  # fmt: skip
            yield f'    the server sent {self.sent:.2f} of the image in all'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--short', action='store_true', help='one round')
    parser.add_argument('--only', choices=('files', 'rbd'), help='one part')
    parser.add_argument('--rounds', type=int, help='default: 5')
    parser.add_argument('--output', type=pathlib.Path, help='keep it there')
    arguments = parser.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 1 if arguments.short else 5
    reports.told(_report(arguments), arguments.output)
    return 0


def _report(arguments: argparse.Namespace) -> Iterator[str]:
    words = ' --short' if arguments.short else ''
    yield from reports.heading(
        f'tools/bench bases{words} --rounds {arguments.rounds}'
    )
    yield bench_common.HEADER
    data = SHORT_DATA if arguments.short else DATA
    with contextlib.ExitStack() as stack:
        top = pathlib.Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(dir='/var/tmp', prefix='bench-')
            )
        )
        image = Image(top, data)
        server = stack.enter_context(http_server.Server({}))
        yield f'    the image: {data // MIB} MiB of data in {SIZE // MIB} MiB'
        if arguments.only in (None, 'files'):
            with storage.mounted('xfs', 24 * 2**30, direct=True) as mount:
                yield from Bench(Files(mount), image, server).rows(
                    arguments.rounds
                )
        if arguments.only in (None, 'rbd'):
            yield from _rbd_rows(top, image, server, arguments.rounds)


def _rbd_rows(
    top: pathlib.Path, image: Image, server: http_server.Server, rounds: int
) -> Iterator[str]:
    (top / 'rbd').mkdir()
    with ceph_cluster.Cluster(top / 'ceph') as cluster:
        place = Rbd(top / 'rbd', cluster)
        yield from Bench(place, image, server).rows(rounds)
        with services.Glance(top / 'glance', ceph=cluster) as glance:
            bench = bench_bases_cluster.Bench(place.conf, image.path, glance)
            yield from bench.rows(rounds)


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
