# SPDX-License-Identifier: Apache-2.0
"""Kill the program at every moment of its life, and see what is left.

Each round starts ``volume create``, waits for a phase, kills with SIGKILL at
a random moment of it, and runs the same command again: that must work, give
the right bytes, and leave nothing of the killed one. The numbers of the seed
decide what is done; the moments depend on the machine too.
"""

import argparse
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from oslo_utils import units
import reports
import soak_backend

from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_server
from cinder_cow.tests import storage

# "stream" is the fetch of a raw image, straight into its volume or base.
PHASES = ('start', 'fetch', 'stream', 'convert', 'publish', 'clone', 'end')
WEIGHTS = {'fetch': 3, 'stream': 2, 'convert': 3, 'publish': 2, 'clone': 2}
VOLUME = 'victim'
OTHER = 'other'
# Phases are found by looking so often, in seconds; the shortest take 2 ms.
LOOK = 0.0003
# A qemu-img of this age in seconds may not have got its death signal yet: the
# program can die between fork and prctl. One that is older must die with it.
YOUNG = 0.1
# 16 KiB at once make the fetch of 80 MiB last for 0.3 s.
CHUNK = 16 * units.Ki

row = functools.partial(reports.row, (22, 7, 13, 7, 11, 9, 10, 5))


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to make a volume.

    :param image: the argument of the program
    :param filling: the phase in which the bytes come
    :param has_base: it is made by way of a base
    """

    name: str
    image: str
    filling: str
    has_base: bool = True

    @property
    def is_fetched(self) -> bool:
        return self.filling == 'fetch'


def main() -> int:
    parser = reports.arguments(__doc__)
    parser.add_argument(
        '--rounds', type=int, default=50, help='on each file system'
    )
    parser.add_argument(
        '--mib', type=int, default=80, help='size of the images'
    )
    arguments = parser.parse_args()
    rounds: list[Round] = []
    reports.told(report(arguments, rounds), arguments.output)
    return 0 if rounds and not any(one.problems for one in rounds) else 1


def report(
    arguments: argparse.Namespace, rounds: list['Round']
) -> Iterator[str]:
    yield from reports.heading(
        f'tools/soak kills --rounds {arguments.rounds} --mib {arguments.mib}'
        f' --seed {arguments.seed}'
    )
    yield row('phase', 'kills', 'of it alone', 'again', 'was there',
              'went on', 'outlived', 'wrong')  # fmt: skip
    with tempfile.TemporaryDirectory(dir='/var/tmp') as top:
        images = Images(pathlib.Path(top), arguments.mib * units.Mi)
        with http_server.Server(images.served()) as server:
            for kind in ('ext4', 'xfs'):
                with storage.mounted(kind) as mount:
                    numbers = random.Random(f'{arguments.seed} {kind}')
                    soak = Soak(mount, images, server, numbers)
                    done = []
                    for one in soak.rounds(arguments.rounds):
                        done.append(one)
                        yield from one.complaints(kind)
                    yield from table(kind, done)
                    rounds += done
    wrong = sum(1 for one in rounds if one.problems)
    yield ''
    yield 'again: the same command made the volume; was there: it had been'
    yield (
        'published, and that was told; went on: with the part fetched before;'
    )
    yield 'outlived: a qemu-img that was being started lived on for a moment'
    yield (
        f'kills: {len(rounds)} rounds, {len(rounds) - wrong} right, '
        f'{wrong} wrong'
    )


def table(file_system: str, rounds: list['Round']) -> Iterator[str]:
    """Count the rounds of each phase, then those of each kind of image."""
    names = (*PHASES, 'ended before', *dict.fromkeys(r.kind for r in rounds))
    for name in names:
        of_it = [one for one in rounds if name in (one.phase, one.kind)]
        if of_it:
            yield row(
                f'{file_system}, {name}',
                len(of_it),
                sum(one.alone for one in of_it),
                sum(one.again for one in of_it),
                sum(not one.again for one in of_it),
                sum(one.went_on for one in of_it),
                sum(one.outlived for one in of_it),
                sum(bool(one.problems) for one in of_it),
            )


@dataclasses.dataclass
class Round:
    """What was done in a round, and what was wrong with it.

    :param alone: the program was killed, and not what it had started
    :param other_first: another volume was made before it was tried again
    :param phase: the one that it was killed in
    :param again: the same command made the volume
    :param went_on: it fetched what was missing, not all
    :param outlived: what it was just starting did not die with it
    """

    kind: str
    aim: str
    alone: bool
    other_first: bool
    phase: str = ''
    again: bool = True
    went_on: bool = False
    outlived: bool = False
    problems: list[str] = dataclasses.field(default_factory=list)

    def complaints(self, file_system: str) -> Iterator[str]:
        for problem in self.problems:
            yield (
                f'WRONG: {file_system}, {self.kind}, killed in {self.phase}, '
                f'alone: {self.alone}, other first: {self.other_first}: '
                f'{problem}'
            )


class Images:
    """One disk, in all the ways in which it is given."""

    def __init__(self, top: pathlib.Path, size: int) -> None:
        self.raw, self.qcow2 = top / 'image.raw', top / 'image.qcow2'
        self.other = top / 'other.raw'
        hole = size // 8 // units.Ki * units.Ki
        with self.raw.open('wb') as file:
            file.write(os.urandom(size // 2))
            file.seek(hole, os.SEEK_CUR)
            file.write(os.urandom(size // 2 - hole))
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', self.raw, self.qcow2],
            check=True,
        )
        self.other.write_bytes(os.urandom(units.Mi))

    def served(self) -> http_server.Files:
        return {
            '/image.qcow2': http_behaviour.Behaviour(self.qcow2, chunk=CHUNK),
            '/image.raw': http_behaviour.Behaviour(self.raw, chunk=CHUNK),
            # Nothing tells its state: no base, and a scratch file that has
            # no name.
            '/nameless.qcow2': http_behaviour.Behaviour(
                self.qcow2, chunk=CHUNK, etag=None, last_modified=None
            ),
        }


class Soak:
    """Rounds on one file system: back end, scratch directory and all."""

    def __init__(
        self,
        mount: pathlib.Path,
        images: Images,
        server: http_server.Server,
        numbers: random.Random,
    ) -> None:
        self._backend = soak_backend.Backend(mount)
        self._images = images
        self._server = server
        self._random = numbers
        self._kinds = [
            Kind('fetched qcow2', server.url('/image.qcow2'), 'fetch'),
            Kind('fetched raw', server.url('/image.raw'), 'stream'),
            Kind('local qcow2', str(images.qcow2), 'convert'),
            Kind('local raw', str(images.raw), 'stream'),
            Kind(
                'nameless qcow2',
                server.url('/nameless.qcow2'),
                'fetch',
                has_base=False,
            ),
        ]

    def rounds(self, count: int) -> Iterator[Round]:
        lives = {
            kind: self._life(kind) for kind in self._kinds[: count // 2 + 1]
        }
        # Every phase of every kind in turn, in any order; those in which
        # most can go wrong more often.
        aims = [
            (kind, phase)
            for kind in lives
            for phase in lives[kind]
            for _turn in range(WEIGHTS.get(phase, 1))
        ]
        self._random.shuffle(aims)
        for kind, aim in itertools.islice(itertools.cycle(aims), count):
            one = Round(
                kind.name,
                aim,
                alone=self._random.random() < 0.5,
                other_first=self._random.random() < 0.3,
            )
            self._carry_out(one, kind, lives[kind][aim])
            yield one

    def _life(self, kind: Kind) -> dict[str, float]:
        """Let it live, once; tell how long each phase takes, in seconds."""
        seen: dict[str, float] = {}
        process = self._backend.start('volume', 'create', VOLUME, '--image',
                                      kind.image)  # fmt: skip
        watch = Watch(self._backend, kind, process.pid)
        while process.poll() is None:
            seen.setdefault(watch.look(), time.monotonic())
            time.sleep(LOOK)
        if process.returncode:
            raise RuntimeError(f'{kind.name} cannot be made at all')
        ends = [*list(seen.values())[1:], time.monotonic()]
        self._backend.clear()
        return {
            phase: end - seen[phase]
            for phase, end in zip(seen, ends, strict=True)
        }

    def _carry_out(self, one: Round, kind: Kind, seconds: float) -> None:
        backend = self._backend
        before = backend.used()
        # A third of them as soon as the phase is seen: it is then that
        # processes are started and names are taken.
        wait = max(0.0, self._random.uniform(-0.5, 0.9)) * seconds
        one.phase = self._killed(one, kind, wait)
        expected = {VOLUME: self._images.raw}
        if one.other_first:
            expected[OTHER] = self._images.other
            one.problems += backend.made(OTHER, self._images.other)[1]
        asked = len(self._server.requests)
        one.again, problems = backend.made(VOLUME, kind.image)
        one.problems += problems
        if one.phase in ('fetch', 'convert') and kind.is_fetched:
            sent = sum(r.sent for r in self._server.requests[asked:])
            one.went_on = sent < self._images.qcow2.stat().st_size
        if not one.again and one.phase not in ('end', 'ended before'):
            one.problems.append('the volume was there too early')
        one.problems += backend.differences(expected)
        backend.clear()
        one.problems += backend.left(before)

    def _killed(self, one: Round, kind: Kind, wait: float) -> str:
        """Start and kill it; return the phase that it had reached."""
        process = self._backend.start('volume', 'create', VOLUME, '--image',
                                      kind.image)  # fmt: skip
        watch = Watch(self._backend, kind, process.pid)
        while process.poll() is None and not watch.has_reached(one.aim):
            time.sleep(LOOK)
        # Looking on, as in the life that was measured: it slows the server,
        # which is in this process, to a quarter.
        moment = time.monotonic() + wait
        while process.poll() is None and time.monotonic() < moment:
            watch.look()
            time.sleep(LOOK)
        watch.look()
        if one.alone:
            process.kill()
        else:
            # The group may have ended just now.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return 'ended before'
        for words, age in self._backend.outliving():
            if age < YOUNG:
                one.outlived = True
            else:
                one.problems.append(f'outlives it, {age:.3f} s old: {words}')
        # Between the last look and its death it may have got on.
        return watch.look()


class Watch:
    """Tells how far a program has got, by its files and processes."""

    def __init__(
        self, backend: soak_backend.Backend, kind: Kind, pid: int
    ) -> None:
        self._backend = backend
        self._kind = kind
        self._children = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
        self._furthest = 'start'

    def has_reached(self, phase: str) -> bool:
        return PHASES.index(self.look()) >= PHASES.index(phase)

    def look(self) -> str:
        now = self._now()
        if PHASES.index(now) > PHASES.index(self._furthest):
            self._furthest = now
        return self._furthest

    def _now(self) -> str:
        backend, kind = self._backend, self._kind
        if backend.volumes(VOLUME):
            return 'end'
        if kind.has_base and (backend.partial / VOLUME).exists():
            return 'clone'
        if backend.has(backend.partial, '*/base/facts.json') or backend.has(
            backend.bases, '*'
        ):
            return 'publish'
        if self._has_child():
            return 'convert'
        if self._furthest == 'convert' and kind.is_fetched and kind.has_base:
            # With its scratch file gone, the conversion has ended.
            return 'convert' if backend.parts() else 'publish'
        if backend.has(backend.partial, '*/**/image.raw'):
            return kind.filling
        return 'start'

    def _has_child(self) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return bool(self._children.read_text())
        return False


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
