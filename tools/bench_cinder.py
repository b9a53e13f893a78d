# SPDX-License-Identifier: Apache-2.0
"""Benchmark volumes from images through Cinder's API: ours, and Cinder's own.

Three back ends of one Cinder take turns: its own driver, the same with its
cache of images, and ours. A time is that from the request until the volume is
available. Every first volume is of an image that nobody has seen.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import bench_cinder_stack
from bench_cinder_stack import CACHED
from bench_cinder_stack import OURS
from bench_cinder_stack import PLAIN
import bench_common
import reports

MIB = 2**20
NAMES = {PLAIN: 'upstream', CACHED: 'its cache'}
# A download by curl.
GET = 'curl'
CASES = ('raw', 'first', 'next', 'burst')


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is done.

    :param size: of volumes and the image, in GiB
    :param data: of the image, in MiB
    :param volumes: that are made in turn, or asked for together
    :param rounds: of what takes long
    """

    size: int = 2
    data: int = 500
    volumes: int = 20
    rounds: int = 3
    settle: bool = True


SHORT = Scale(size=1, data=16, volumes=3, rounds=1, settle=False)


def at_most(limit: float) -> bench_common.Target:
    return bench_common.Target(limit, at_most=True)


class Images:
    """The files that are uploaded: raw and qcow2 of the same disk."""

    def __init__(self, top: pathlib.Path, scale: Scale) -> None:
        self.raw = top / 'image.raw'
        self.qcow2 = top / 'image.qcow2'
        size = scale.size * 1024 * MIB
        with self.raw.open('wb') as file:
            for part in range(scale.data):
                # Spread evenly, in whole clusters of a qcow2.
                at = part * size // scale.data
                file.seek(at - at % (64 * 1024))
                file.write(os.urandom(MIB))
            file.truncate(size)
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', self.raw, self.qcow2],
            check=True,
        )


class Bench:
    def __init__(
        self, stack: bench_cinder_stack.Stack, images: Images, scale: Scale
    ) -> None:
        self._stack = stack
        self._images = images
        self._scale = scale

    def raw(self) -> Iterator[str]:
        """Make volumes of a raw image in the cluster, in turn and at once."""
        count = self._scale.volumes
        image_id = self._stack.image('raw', self._images.raw)
        found = _in_turn(lambda name: self._stack.one(name, image_id), count)
        self._stack.clear()
        for name, told in NAMES.items():
            yield bench_common.compared(
                f'raw, {count} in turn: {told} [s]',
                found[OURS], found[name], at_most(1),
            )  # fmt: skip
        yield from self._bursts('raw', self._images.raw, [at_most(1)] * 2)

    def first(self) -> Iterator[str]:
        """Make the first volume of a qcow2, from Glance and in the cluster."""
        found, sent = self._firsts('file1')
        for name, told in NAMES.items():
            yield bench_common.compared(
                f'first qcow2, in a file: {told} [s]', found[OURS], found[name]
            )
            yield bench_common.compared(
                '    beyond a download by curl', _less(found[OURS], sent[GET]),
                _less(found[name], sent[GET]), at_most(0.4),
            )  # fmt: skip
            yield bench_common.compared(
                '    beyond its own', _less(found[OURS], sent[OURS]),
                _less(found[name], sent[name]), at_most(0.4),
            )  # fmt: skip
        medians = {
            name: statistics.median(each) for name, each in sent.items()
        }
        told = ', '.join(f'{name} {s:.2f}' for name, s in medians.items())
        yield f'    Glance sent it in [s]: {told}'
        found, _sent = self._firsts('rbd1')
        for name, told in NAMES.items():
            yield bench_common.compared(
                f'first qcow2, in the cluster: {told} [s]',
                found[OURS], found[name], at_most(0.6),
            )  # fmt: skip

    def next(self) -> Iterator[str]:
        """Make further volumes of a qcow2, beside those of a raw image."""
        qcow2 = self._stack.image('qcow2', self._images.qcow2)
        raw = self._stack.image('raw', self._images.raw)
        for name in (OURS, CACHED):
            self._stack.one(name, qcow2)
        found = bench_common.in_turn(
            {
                'ours': lambda: self._stack.one(OURS, qcow2),
                'cached': lambda: self._stack.one(CACHED, qcow2),
                'raw': lambda: self._stack.one(OURS, raw),
            },
            self._scale.volumes,
        )
        self._stack.clear()
        yield bench_common.compared(
            'next qcow2: its cache, filled [s]', found['ours'],
            found['cached'], at_most(1),
        )  # fmt: skip
        yield bench_common.compared(
            'next qcow2: our raw [s]', found['ours'], found['raw'],
            at_most(1.1),
        )  # fmt: skip

    def burst(self) -> Iterator[str]:
        """Ask at once for volumes of a qcow2 that nobody has seen."""
        targets = [bench_common.Target(10), bench_common.Target(1.5)]
        yield from self._bursts('qcow2', self._images.qcow2, targets)

    def _bursts(
        self,
        disk_format: str,
        path: pathlib.Path,
        targets: Sequence[bench_common.Target],
    ) -> Iterator[str]:
        count = self._scale.volumes
        downloads: dict[str, int] = {}

        def one(name: str) -> bench_cinder_stack.Burst:
            image_id = self._stack.image(disk_format, path)
            self._settle()
            found = self._stack.burst(name, image_id, count)
            downloads[name] = len(self._stack.downloads(image_id))
            self._stack.clear()
            return found

        found = _in_turn(one, self._scale.rounds)
        last = {name: [b.last for b in each] for name, each in found.items()}
        for name, target in zip(NAMES, targets, strict=True):
            yield bench_common.compared(
                f'{disk_format}, {count} at once: {NAMES[name]} [s]',
                last[OURS], last[name], target,
            )  # fmt: skip
        asked = statistics.median(burst.asked for burst in found[OURS])
        yield f'    of ours, until the API had answered [s]: {asked:.2f}'
        told = ', '.join(
            f'{name} {n}' for name, n in sorted(downloads.items())
        )
        yield f'    downloads of the image: {told}'

    def _firsts(
        self, store: str
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Time first volumes of new images, and downloads of such.

        :returns: seconds until they were there, and those of the downloads
        """
        sent: dict[str, list[float]] = {}
        path = self._images.qcow2

        def one(name: str) -> float:
            image_id = self._stack.image('qcow2', path, store)
            self._settle()
            if name == GET:
                taken = self._downloaded(image_id)
            else:
                taken = self._stack.one(name, image_id)
            downloads = self._stack.downloads(image_id)
            sent.setdefault(name, []).append(sum(downloads))
            self._stack.clear()
            return taken

        # More than of bursts: they take 5 s, and vary.
        rounds = self._scale.rounds * 2 - 1
        names = [*bench_cinder_stack.DRIVERS, GET]
        return _in_turn(one, rounds, names), sent

    def _downloaded(self, image_id: str) -> float:
        url = f'{self._stack.glance.url}/v2/images/{image_id}/file'
        begun = time.perf_counter()
        subprocess.run(['curl', '-sSf', '-o', os.devnull, url], check=True)
        return time.perf_counter() - begun

    def _settle(self) -> None:
        if self._scale.settle:
            bench_common.settle()


def _in_turn(
    work: Callable[[str], Any],
    rounds: int,
    names: Iterable[str] = bench_cinder_stack.DRIVERS,
) -> dict[str, list[Any]]:
    works = {name: functools.partial(work, name) for name in names}
    return bench_common.in_turn(works, rounds)


def _less(times: Sequence[float], downloads: Sequence[float]) -> list[float]:
    """Take what a download took off each; at least 1 ms is left."""
    pairs = zip(times, downloads, strict=True)
    return [max(taken - download, 0.001) for taken, download in pairs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--short', action='store_true', help='one round, small, one process'
    )
    parser.add_argument('--only', choices=CASES, help='one part')
    parser.add_argument('--rounds', type=int, help='default: 3')
    parser.add_argument(
        '--processes', type=int, choices=(1, 3), help='of Cinder; default: 3'
    )
    parser.add_argument('--output', type=pathlib.Path, help='keep it there')
    arguments = parser.parse_args()
    # Else workers of Cinder outlive us: the end of their parent is no signal
    # to them.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reports.told(_report(arguments), arguments.output)
    return 0


def _report(arguments: argparse.Namespace) -> Iterator[str]:
    scale = SHORT if arguments.short else Scale()
    processes = arguments.processes or (1 if arguments.short else 3)
    if arguments.rounds:
        scale = dataclasses.replace(scale, rounds=arguments.rounds)
    words = ' --short' if arguments.short else ''
    yield from reports.heading(
        f'tools/bench cinder{words} --rounds {scale.rounds}'
        f' --processes {processes}'
    )
    yield bench_common.HEADER
    yield (
        f'    the image: {scale.data} MiB of data in {scale.size} GiB;'
        f' load of the machine {os.getloadavg()[1]:.1f}'
    )
    with contextlib.ExitStack() as stack:
        top = pathlib.Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(dir='/var/tmp', prefix='bench-')
            )
        )
        images = Images(top, scale)
        started = stack.enter_context(
            bench_cinder_stack.Stack(top, processes, scale.size)
        )
        bench = Bench(started, images, scale)
        for case in CASES:
            if arguments.only in (None, case):
                yield from getattr(bench, case)()


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
