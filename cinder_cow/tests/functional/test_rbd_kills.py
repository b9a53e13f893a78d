# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed or stopped at every step of a work in Ceph."""

import contextlib
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import ddt
from testtools import content

from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_undo
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import rbd_case
from cinder_cow.tests import rbd_victim

WORKS = ('clone', 'stream', 'delete')
# Calls that librbd does in many steps, and how long they take, in seconds.
LONG = (
    ('clone', 'clone', 0.03),
    ('stream', 'create', 0.01),
    ('stream', 'open', 0.01),
    ('stream', 'rename', 0.012),
    ('delete', 'remove', 0.04),
)
RANDOM_KILLS = 20
# Seconds of a watch, of a client that is stopped.
WATCH = 60


class KillCase(rbd_case.FaultCase):
    def setUp(self):
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.victims = stack.enter_context(rbd_victim.victims())

    def killed(self, work, **options):
        """Have a victim begin a work and be killed."""
        if work == 'delete':
            self.make(name=options.get('name', 'victim'))
        victim = self.victims.order(self.order(work, **options))
        victim.wait()
        return victim

    def steps(self, work):
        """Let a work be done; return its steps but for its end."""
        # The first one writes down that the image is good.
        for _twice in range(2):
            told = self.victims.told(self.killed(work))
            self.assertEqual('', told['error'])
            self.driver.delete('victim')
        self.assertEqual('end', told['steps'].pop())
        return told['steps']

    def assert_right(self, work, name='victim'):
        """Do what was broken off, and look whether it is right."""
        if work == 'stream':
            self.make('stream', name)
            self.assert_stream(name)
        else:
            self.make('clone', name)
            self.assert_clone(name)
        self.driver.delete(name)


@ddt.ddt
class TestKills(KillCase):
    @ddt.data(*WORKS)
    def test_at_every_step_here(self, work):
        # On its own host everybody sees at once that it is dead.
        for step, name in enumerate(self.steps(work)):
            # Longer than anybody would wait for the end of its lease.
            self.killed(work, step=step, seconds=300)
            names = self.names()
            # Before the first step it was not begun.
            there = work == 'delete' and step == 0
            self.assertEqual(['victim'] * there, names, name)
            self.assertEqual([], self.left(*names), name)
            if there:
                self.driver.delete('victim')
            self.assert_right(work)
        self.assert_clean()

    @ddt.data(*WORKS)
    def test_at_every_step_on_another_host(self, work):
        names = {}
        for step, _name in enumerate(self.steps(work)):
            names[step] = f'victim{step}'
            self.killed(work, name=names[step], step=step, abroad=True)
        begun = time.monotonic()
        # Nobody sees what is half-made, and nobody can take its name.
        there = {names[0]} if work == 'delete' else set()
        self.assertEqual(there, set(self.names()))
        if work == 'delete':
            self.driver.delete(names[0])
        self.assert_clean_soon(seconds=rbd_case.CLEAN)
        # Not earlier than its lease: it may only be slow.
        self.assertGreater(time.monotonic() - begun, rbd_case.LEASE - 1)
        self.assert_right(work, names[1])

    def test_at_any_moment_of_the_long_calls(self):
        seed = random.SystemRandom().randrange(10**6)
        self.addDetail('seed', content.text_content(str(seed)))
        numbers = random.Random(seed)
        for _round in range(RANDOM_KILLS):
            work, during, seconds = numbers.choice(LONG)
            delay = numbers.uniform(0, seconds)
            self.killed(work, during=during, delay=delay)
            names = self.names()
            self.assertEqual([], self.left(*names), (work, during, delay))
            self.assert_right(work) if not names else None
            self.driver.delete('victim')
        self.assert_clean()

    @ddt.data(*WORKS)
    def test_one_that_was_only_stopped_does_no_harm(self, work):
        count = len(self.steps(work))
        # One that had not begun to delete may begin.
        stopped = {}
        for step in range(work == 'delete', count):
            name = f'victim{step}'
            if work == 'delete':
                self.make(name=name)
            stopped[name] = self.victims.order(
                self.order(
                    work, name, step=step, signal=signal.SIGSTOP, abroad=True
                )
            )
            self.assertIs(True, stopped[name].wait_stopped())
        self.assert_clean_soon()
        for name in stopped:
            self.make(name=name)
        for victim in stopped.values():
            victim.send(signal.SIGCONT)
        for victim in stopped.values():
            told = self.victims.told(victim)
            # The volume that it was to delete is deleted.
            reasons = {'backend_error', 'volume_exists', 'ceph_timed_out'}
            if work == 'delete':
                reasons = {''}
            self.assertIn(told['reason'], reasons, told)
        for name in stopped:
            self.assert_clone(name)
        self.assert_clean(*sorted(stopped))

    @ddt.data('clone', 'stream')
    def test_an_image_that_a_ghost_watches(self, work):
        # A client that is killed just as it opens an image is its watcher
        # for good; we cannot bring that about, only what is done then.
        for name in ('there', 'victim'):
            self.make(work, name)
        settings = self.driver._settings
        with (
            ceph.connected(settings.cluster) as connection,
            connection.pool(self.pool) as pool,
        ):
            rbd_undo._remove_by_hand(pool, pool.find('victim').id)
            rbd_undo.remove(pool, 'victim')
        self.assert_clean('there')

    def test_a_user_of_few_rights_cleans_up_too(self):
        caps = {
            'mon': 'profile rbd',
            'osd': f'profile rbd pool={self.pool},'
            ' profile rbd-read-only pool=images',
        }
        self.cluster.add_user('few', caps)
        self.addCleanup(self.cluster.remove_user, 'few')
        self.driver = self.new_driver('few')
        for work, during, seconds in LONG:
            self.killed(work, during=during, delay=seconds / 2, user='few')
            names = self.names()
            self.assertEqual([], self.left(*names), (work, during))
            self.driver.delete('victim')


class TestDefaults(KillCase):
    """Watches and leases of 30 s, as they are without our tests' settings."""

    def setUp(self):
        place = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, place)
        own = ceph_cluster.Cluster(pathlib.Path(place) / 'ceph')
        self.addCleanup(own.down)
        with mock.patch.object(ceph_cluster, 'shared', lambda: own):
            own.__enter__()
            super().setUp()

    def order(self, *args, **options):
        order = super().order(*args, **options)
        order.seconds = 30
        return order

    def test_all_is_clean_after_35_s(self):
        with mock.patch.object(rbd_leases, 'SECONDS', 30):
            for number, (work, during, seconds) in enumerate(LONG):
                self.killed(
                    work,
                    name=f'victim{number}',
                    during=during,
                    delay=seconds / 2,
                    abroad=True,
                )
            self.assertNotEqual([], self.left())
            self.assert_clean_soon(seconds=35)
        ceph.disconnect()


# Writes to an image, and has it open until it is killed.
OPENER = """
import sys, time
import rados, rbd
conf, pool, name = sys.argv[1:]
client = rados.Rados(conffile=conf)
client.connect()
ioctx = client.open_ioctx(pool)
rbd.RBD().create(ioctx, name, 8 * 2**20)
image = rbd.Image(ioctx, name)
image.write(b'x', 0)
print('written', flush=True)
time.sleep(600)
"""


class TestOthers(KillCase):
    """What is half-made, and open to a client that is not known."""

    def test_is_removed_at_once(self):
        # As a qemu-img that was killed with its maker: it has the lock, and
        # its watch.
        option = 'osd_client_watch_timeout'
        before = ceph_cluster.SHARED_SETTINGS[option]
        self.cluster.set_config('osd', option, WATCH)
        self.addCleanup(self.cluster.set_config, 'osd', option, before)
        name = rbd_undo.partial_name('v1')
        with subprocess.Popen(
            [sys.executable, '-c', OPENER, self.cluster.conf, self.pool, name],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout
                self.assertEqual('written\n', process.stdout.readline())
                process.send_signal(signal.SIGSTOP)
                begun = time.monotonic()
                self.remove(name)
                self.assertLess(time.monotonic() - begun, WATCH / 2)
            finally:
                process.kill()
        self.assert_clean()

    def remove(self, name):
        settings = self.driver._settings
        with (
            ceph.connected(settings.cluster) as connection,
            connection.pool(self.pool) as pool,
        ):
            rbd_undo.remove(pool, name)
            self.assertFalse(pool.find(name))
