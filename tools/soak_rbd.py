# SPDX-License-Identifier: Apache-2.0
"""Kill makers of volumes in Ceph at random moments, and see what is left.

Each round a process makes or deletes a volume and gets SIGKILL at a random
moment of a step. The next command must leave nothing of it, and the same work
must then give the right bytes.
"""

import argparse
import collections
from collections.abc import Iterator
import contextlib
import logging
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from oslo_utils import units
import reports

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd
from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import forks
from cinder_cow.tests import rbd_place
from cinder_cow.tests import rbd_victim

# Works, their steps, and the longest moment in it, in seconds.
MOMENTS = (
    ('clone', 'put', 0.01),
    ('clone', 'clone', 0.03),
    ('stream', 'create', 0.012),
    ('stream', 'open', 0.012),
    ('stream', 'aio_write', 0.05),
    ('stream', 'rename', 0.012),
    ('qcow2', 'open', 0.4),
    ('qcow2', 'rename', 0.012),
    ('delete', 'put', 0.01),
    ('delete', 'remove', 0.04),
)
SIZE = 16 * units.Mi
POOL = 'soak'
# The watch of a client that was killed is over after 5 s here; see
# ceph_cluster.SHARED_SETTINGS.
CLEAN = 5 + 5


class Soak:
    """Rounds on one cluster."""

    def __init__(
        self, cluster: ceph_cluster.Cluster, top: pathlib.Path, seed: int
    ) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._qcow2 = top / 'image.qcow2'
        self._location = f'rbd://{cluster.fsid}/images/image/snap'
        self._content = b''.join(rbd_victim.content())
        cluster.make_pool(POOL)
        self._driver = rbd.RbdDriver(
            rbd_victim.settings(str(cluster.conf), POOL)
        )
        self._make_images(top / 'image.raw')

    def _make_images(self, raw: pathlib.Path) -> None:
        raw.write_bytes(self._content)
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', raw, self._qcow2],
            check=True,
        )
        subprocess.run(
            ['rbd', '-c', self._cluster.conf, 'import', '--no-progress', raw,
             'images/image'],
            check=True,
        )  # fmt: skip
        for word in ('create', 'protect'):
            subprocess.run(
                ['rbd', '-c', self._cluster.conf, 'snap', word,
                 'images/image@snap'],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def round(self, victims: forks.Forks) -> tuple[str, str]:
        """Kill one; tell the phase, and what is wrong."""
        work, during, most = self._random.choice(MOMENTS)
        delay = self._random.uniform(0, most)
        if work == 'delete':
            self._do('clone')
        order = self._order(work)
        order.during, order.delay = during, delay
        victims.order(order).wait()
        try:
            problems = self._problems(work)
        except exception.CowError as error:
            problems = [str(error)]
        return f'{work}, {during}', '; '.join(problems)

    def _problems(self, work: str) -> list[str]:
        names = self._names()
        # A watch of qemu-img may be left, for its time.
        problems = rbd_place.until(
            self._cluster, POOL, names, CLEAN, self._driver.sweep
        )
        if names:
            self._driver.delete('victim')
        again = 'clone' if work == 'delete' else work
        self._do(again)
        with self._driver.read('victim') as reader:
            if reader.read(0, len(self._content)) != self._content:
                problems.append('other bytes')
        self._driver.delete('victim')
        return problems + rbd_place.left(self._cluster, POOL)

    def _names(self) -> list[str]:
        return [volume.name for volume in self._driver.list()]

    def _do(self, work: str) -> None:
        rbd_victim.do(self._order(work), self._driver)

    def _order(self, work: str) -> rbd_victim.Order:
        return rbd_victim.Order(
            str(self._cluster.conf),
            POOL,
            work,
            'victim',
            self._location,
            str(self._qcow2),
            SIZE,
        )


def main() -> int:
    parser = reports.arguments(__doc__)
    parser.add_argument('--rounds', type=int, default=50)
    arguments = parser.parse_args()
    # That something was removed is what we are here for.
    logging.getLogger('cinder_cow').setLevel(logging.ERROR)
    wrong: list[str] = []
    reports.told(report(arguments, wrong), arguments.output)
    return 1 if wrong else 0


def report(arguments: argparse.Namespace, wrong: list[str]) -> Iterator[str]:
    yield from reports.heading(
        f'tools/soak rbd --rounds {arguments.rounds} --seed {arguments.seed}'
    )
    kills: collections.Counter[str] = collections.Counter()
    longest: collections.Counter[str] = collections.Counter()
    with (
        tempfile.TemporaryDirectory(prefix='cow-soak-', dir='/var/tmp') as top,
        rbd_victim.victims() as victims,
    ):
        cluster = ceph_cluster.shared()
        soak = Soak(cluster, pathlib.Path(top), arguments.seed)
        for _round in range(arguments.rounds):
            begun = time.monotonic()
            phase, problem = soak.round(victims)
            kills[phase] += 1
            longest[phase] = max(
                longest[phase], round(1000 * (time.monotonic() - begun))
            )
            if problem:
                wrong.append(problem)
                yield f'WRONG: {phase}: {problem}'
    yield f'{"work, step":<20} {"kills":<7} longest round, ms'
    for phase in sorted(kills):
        yield f'{phase:<20} {kills[phase]:<7} {longest[phase]}'
    yield ''
    yield (
        f'kills: {arguments.rounds} rounds, '
        f'{arguments.rounds - len(wrong)} right, {len(wrong)} wrong'
    )
    ceph.disconnect()


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        ceph_client.needed()
        sys.exit(main())
    sys.exit(130)
