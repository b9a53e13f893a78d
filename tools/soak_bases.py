# SPDX-License-Identifier: Apache-2.0
"""Kill or stop the maker of a base while others wait for it.

Each round eight processes want a volume of one new image at the same time.
The one that makes the base gets SIGKILL at a random moment, or SIGSTOP and
long after it SIGCONT. All others must end with right bytes or a clear error,
there must be one base, and soon nothing else.
"""

import argparse
import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any
import uuid

from oslo_utils import units
import reports

from cinder_cow import exception
from cinder_cow.cli import backend
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import file_makers
from cinder_cow.drivers import rbd_leases
from cinder_cow.tests import base_requests
from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import forks
from cinder_cow.tests import http_server
from cinder_cow.tests import rbd_place
from cinder_cow.tests import storage

PROCESSES = 8
SIZE = units.Gi
DATA = 32 * units.Mi
# The maker takes about a second, and is signalled in it.
PAUSE = 0.05
LATEST = 1.5
LEASE = 3
# Watches of killed clients are over after 5 s; see SHARED_SETTINGS.
CLEAN = 5 + 5
# Until the last of eight has its volume.
LONGEST = 60
POOL = 'soak'


class Place:
    """A back end, and what only its kind can tell."""

    name = ''
    # Who is stopped for longer than that loses what it does.
    has_leases = False

    def __init__(self, conf: pathlib.Path) -> None:
        self.conf = conf
        self.backend = backend.from_arguments(
            argparse.Namespace(config_file=[str(conf)], backend=self.name)
        )
        self.driver: Any = self.backend.driver

    def maker(self, key: bases.BaseKey) -> int:
        """Return the process that makes a base; 0 where nobody does."""
        raise NotImplementedError

    def left(self, expected: list[str]) -> list[str]:
        """Tell what is left beside these volumes and bases, and remove it."""
        raise NotImplementedError


class Rbd(Place):
    name = 'rbd'
    has_leases = True

    def __init__(
        self, top: pathlib.Path, cluster: ceph_cluster.Cluster
    ) -> None:
        self._cluster = cluster
        cluster.make_pool(POOL)
        conf = top / 'rbd.conf'
        conf.write_text(
            f'[rbd]\ncow_driver = rbd\nrbd_pool = {POOL}\n'
            f'rbd_ceph_conf = {cluster.conf}\nrbd_user = admin\n'
            f'cow_scratch_dir = {top}\n'
        )
        super().__init__(conf)

    def maker(self, key: bases.BaseKey) -> int:
        cluster = ceph.Cluster(conf=str(self._cluster.conf), user='admin')
        with (
            ceph.connected(cluster) as connection,
            connection.pool(POOL) as pool,
        ):
            lease = rbd_leases.of(pool, key.name)
        return lease.owner.pid if lease else 0

    def left(self, expected: list[str]) -> list[str]:
        return rbd_place.until(
            self._cluster, POOL, expected, CLEAN, self.driver.sweep
        )


class Files(Place):
    name = 'files'

    def __init__(self, top: pathlib.Path, mount: pathlib.Path) -> None:
        self._root = mount / 'volumes'
        conf = top / 'files.conf'
        conf.write_text(
            f'[files]\ncow_driver = file\ncow_file_dir = {self._root}\n'
            f'cow_scratch_dir = {top}\n'
        )
        super().__init__(conf)

    def maker(self, key: bases.BaseKey) -> int:
        lock = self._root / 'cow-partial' / key.name / 'lock'
        with contextlib.suppress(OSError):
            owner = file_makers.read(lock).owner
            found = re.match(r'process (\d+)', owner)
            return int(found[1]) if found else 0
        return 0

    def left(self, expected: list[str]) -> list[str]:
        self.driver.sweep()
        partials = os.listdir(self._root / 'cow-partial')
        names = {*os.listdir(self._root / 'cow-bases')} | {
            pathlib.Path(name).stem
            for name in os.listdir(self._root)
            if not name.startswith('cow-')
        }
        orphans = [one.what for one in self.driver.orphans()]
        return [*partials, *orphans, *(names - set(expected))]


@dataclasses.dataclass
class Round:
    """What happened in one.

    :ivar phase: what was done, where, and to what format
    :ivar was_maker: the signal was sent to the maker of the base
    :ivar errors: reasons that other processes were told
    :ivar waited: seconds from the signal until the last one had a volume
    """

    phase: str
    problems: list[str]
    waited: float = 0
    was_maker: bool = False
    errors: list[str] = dataclasses.field(default_factory=list)


class Soak:
    def __init__(
        self, server: http_server.Server, top: pathlib.Path, seed: int
    ) -> None:
        self._server = server
        self._top = top
        self._random = random.Random(seed)

    def round(self, children: forks.Forks, place: Place) -> Round:
        image, content = self._image()
        is_kill = self._random.random() < 0.6
        # Where nobody can tell by its process that a maker is dead.
        abroad = place.name == 'rbd' and self._random.random() < 0.5
        what = f'{"kill" if is_kill else "stop"}{", abroad" if abroad else ""}'
        done = Round(f'{place.name}, {image.disk_format}: {what}', [])
        requests = [
            dataclasses.replace(
                image,
                conf=str(place.conf),
                backend=place.name,
                volume=str(uuid.uuid4()),
                abroad=abroad,
            )
            for _number in range(PROCESSES)
        ]
        key = bases.BaseKey.of(image.info())
        assert key is not None
        begun = [children.order(request) for request in requests]
        time.sleep(self._random.uniform(0, LATEST))
        victim, done.was_maker = self._victim(begun, place.maker(key))
        with contextlib.suppress(ProcessLookupError):
            victim.send(signal.SIGKILL if is_kill else signal.SIGSTOP)
        struck = time.monotonic()
        if not is_kill and not place.has_leases:
            time.sleep(LEASE / 2)
            self._wake(victim)
        rest = [child for child in begun if child is not victim]
        done.problems += filter(None, map(self._waited, rest))
        done.waited = time.monotonic() - struck
        if not is_kill:
            self._wake(victim)
            done.problems += filter(None, [self._waited(victim)])
        if is_kill:
            begun.remove(victim)
            self._judge_killed(victim, done)
        for child in begun:
            self._judge(children, child, done)
        self._look(place, key, requests, content, done)
        return done

    def _victim(
        self, begun: list[forks.Child], maker: int
    ) -> tuple[forks.Child, bool]:
        for child in begun:
            if child.pid == maker:
                return child, True
        return self._random.choice(begun), False

    def _wake(self, child: forks.Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send(signal.SIGCONT)

    def _waited(self, child: forks.Child) -> str:
        try:
            child.wait(LONGEST)
        except TimeoutError as error:
            return str(error)
        return ''

    def _judge_killed(self, child: forks.Child, done: Round) -> None:
        """Look at what one said that was perhaps killed too late."""
        if child.told:
            self._judge_told(child.told, done)

    def _judge(
        self, children: forks.Forks, child: forks.Child, done: Round
    ) -> None:
        """Look at what a process said; it is read a moment after its end."""
        try:
            told = children.told(child)
        except TimeoutError as error:
            done.problems.append(str(error))
        else:
            self._judge_told(told, done)

    def _judge_told(self, told: dict[str, Any], done: Round) -> None:
        if told['reason'] == 'bug':
            done.problems.append(f'said {told}')
        elif told['error']:
            done.errors.append(told['reason'])
        elif told['method'] != 'base':
            done.problems.append(f'a full copy: {told}')

    def _look(
        self,
        place: Place,
        key: bases.BaseKey,
        requests: list[base_requests.Request],
        content: str,
        done: Round,
    ) -> None:
        """Look at what is there, and remove it."""
        names = sorted(one.name for one in place.driver.list())
        wanted = {request.volume for request in requests}
        if not wanted.issuperset(names):
            done.problems.append(f'volumes {names}')
        for name in names:
            if self._hash(place.driver, name) != content:
                done.problems.append(f'other bytes in {name}')
        found = [one.name for one in place.driver.list_bases()]
        if found != [key.name] and (found or names):
            done.problems.append(f'bases {found} of {len(names)} volumes')
        done.problems += place.left([*names, *found])
        for name in names:
            place.driver.delete(name)
        for name in found:
            place.driver.retire_base(name)
        done.problems += place.left([])

    def _hash(self, driver: Any, name: str) -> str:
        digest = hashlib.sha256()
        with driver.read(name) as reader:
            for extent in reader.extents():
                end = min(extent.offset + extent.length, DATA)
                for start in range(extent.offset, end, units.Mi):
                    length = min(units.Mi, end - start)
                    digest.update(
                        bytes(length)
                        if extent.hole
                        else reader.read(start, length)
                    )
        return digest.hexdigest()

    def _image(self) -> tuple[base_requests.Request, str]:
        """Make a new image; return it, and the hash of its data."""
        raw = self._top / 'image.raw'
        data = self._random.randbytes(DATA)
        raw.write_bytes(data)
        path, disk_format = raw, self._random.choice(('raw', 'qcow2'))
        if disk_format == 'qcow2':
            path = self._top / 'image.qcow2'
            subprocess.run(
                ['qemu-img', 'convert', '-O', 'qcow2', raw, path], check=True
            )
        content = path.read_bytes()
        name = f'/{uuid.uuid4()}'
        self._server.put(name, content)
        request = base_requests.Request(
            conf='',
            backend='',
            url=self._server.url(name),
            hash=f'sha256:{hashlib.sha256(content).hexdigest()}',
            disk_format=disk_format,
            volume='',
            size=SIZE,
            seconds=LEASE,
            pause=PAUSE,
        )
        return request, hashlib.sha256(data).hexdigest()


def main() -> int:
    parser = reports.arguments(__doc__)
    parser.add_argument('--rounds', type=int, default=200)
    parser.add_argument('--only', choices=('rbd', 'files'))
    arguments = parser.parse_args()
    logging.disable()
    wrong: list[str] = []
    reports.told(_report(arguments, wrong), arguments.output)
    return bool(wrong)


def _report(arguments: argparse.Namespace, wrong: list[str]) -> Iterator[str]:
    yield from reports.heading(
        f'tools/soak bases --rounds {arguments.rounds} --seed {arguments.seed}'
    )
    rounds: list[Round] = []
    with contextlib.ExitStack() as stack:
        top = pathlib.Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix='cow-soak-', dir='/var/tmp')
            )
        )
        server = stack.enter_context(http_server.Server({}))
        children = stack.enter_context(forks.Forks(base_requests.__name__))
        places: list[Place] = []
        if arguments.only in (None, 'rbd'):
            places.append(Rbd(top, ceph_cluster.shared()))
        if arguments.only in (None, 'files'):
            mount = stack.enter_context(storage.mounted('xfs'))
            places.append(Files(top, mount))
        soak = Soak(server, top, arguments.seed)
        for number in range(arguments.rounds):
            done = _tried(soak, children, places[number % len(places)])
            rounds.append(done)
            if done.problems:
                wrong.append(done.phase)
                yield f'WRONG: {done.phase}: {"; ".join(done.problems)}'
    yield from _table(rounds)
    yield (
        f'bases: {len(rounds)} rounds, {len(rounds) - len(wrong)} right,'
        f' {len(wrong)} wrong'
    )
    ceph.disconnect()


def _tried(soak: Soak, children: forks.Forks, place: Place) -> Round:
    try:
        return soak.round(children, place)
    except exception.CowError as error:
        return Round(place.name, [f'looking: {error}'])


def _table(rounds: list[Round]) -> Iterator[str]:
    yield (
        f'{"back end, format: signal":<32} {"rounds":<7} {"at the maker":<13}'
        ' longest wait, s  errors told'
    )
    by_phase: dict[str, list[Round]] = collections.defaultdict(list)
    for done in rounds:
        by_phase[done.phase].append(done)
    for phase, found in sorted(by_phase.items()):
        errors = collections.Counter(e for done in found for e in done.errors)
        told = ', '.join(f'{count} {name}' for name, count in errors.items())
        yield (
            f'{phase:<32} {len(found):<7}'
            f' {sum(done.was_maker for done in found):<13}'
            f' {max(done.waited for done in found):<16.1f} {told}'
        ).rstrip()
    yield ''


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        ceph_client.needed()
        sys.exit(main())
    sys.exit(130)
