# SPDX-License-Identifier: Apache-2.0
"""Makers of bases that are killed or stopped at every step."""

import contextlib
import dataclasses
import signal
import time

import ddt
from oslo_utils import units

from cinder_cow.drivers import bases
from cinder_cow.drivers import rbd
from cinder_cow.tests import rbd_case
from cinder_cow.tests import rbd_victim
from cinder_cow.tests.functional import test_rbd_kills

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd as librbd  # noqa: TID251

WORKS = ('base', 'link', 'retire')
# How long another host's maker may be waited for: its lease, and a probe.
TAKEN = rbd_case.LEASE + 2


class BaseKillCase(test_rbd_kills.KillCase):
    def order(self, work, name='victim', **options):
        order = super().order(work, name, **options)
        if work == 'link':
            order.location = f'linked-{name}'
        return order

    def begun(self, work, name='victim', **options):
        """Have a victim begin a work."""
        if work == 'retire':
            self.make('base', name)
        if work == 'link':
            self.driver.delete(f'linked-{name}')
            self.make('stream', f'linked-{name}')
        return self.victims.order(self.order(work, name, **options))

    def killed(self, work, **options):
        victim = self.begun(work, **options)
        victim.wait()
        return victim

    def steps(self, work):
        told = self.victims.told(self.killed(work))
        self.assertEqual('', told['error'])
        self.retire()
        self.assertEqual('end', told['steps'].pop())
        return told['steps']

    def key(self, name='victim'):
        return rbd_victim.key_of(name)

    def retire(self, name='victim'):
        self.driver.retire_base(self.key(name).name)

    def made(self, name='victim', seconds=0.0):
        """Make a base, when its maker is found dead; tell what was kept."""
        deadline = time.monotonic() + seconds
        order = self.order('base', name)
        while True:
            begun = self.driver.begin_base(self.key(name), order.size)
            if not isinstance(begun, bases.Making):
                break
            self.assertLess(time.monotonic(), deadline, begun)
            time.sleep(0.1)
        if isinstance(begun, bases.Base):
            return None
        return rbd_victim.write_base(begun, order)

    def assert_base(self, name='victim'):
        """Check that a base is whole, that it can be cloned and retired."""
        found = self.driver.find_base(self.key(name))
        self.assertEqual(self.key(name), found.facts.key)
        image = rbd_victim.image_at(self.location).at(found.location)
        self.driver.clone(image, f'of-{name}')
        self.assert_stream(f'of-{name}')
        self.driver.delete(f'of-{name}')

    def assert_left(self, *names, step=''):
        """Check that there are these bases alone, and volumes."""
        deadline = time.monotonic() + rbd_case.CLEAN
        while True:
            # A dead client watches what it has opened for a while.
            found = self.left(*names, *self.volumes())
            if not found or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        self.assertEqual([], found, step)

    def volumes(self):
        with self.ioctx() as ioctx:
            names = librbd.RBD().list(ioctx)
        return [name for name in names if name.startswith('linked')]


@ddt.ddt
class TestBaseKills(BaseKillCase):
    @ddt.data('base', 'link')
    def test_at_every_step_of_making_here(self, work):
        kept = set()
        for step, name in enumerate(self.steps(work)):
            self.killed(work, step=step)
            # The next maker makes it, at once.
            kept.add(self.made())
            self.names()
            self.assert_left(self.key().name, step=name)
            self.assert_base()
            self.retire()
            self.assert_left(step=name)
        self.assertIn(0, kept)
        self.assertIn(None, kept)

    @ddt.data('made', 'sweep')
    def test_inside_of_creating(self, then):
        # librbd makes the names of an image first. A kill between its steps
        # is a matter of luck, so what it leaves is made here.
        steps = self.steps('base')
        self.killed('base', step=steps.index('create') + 1)
        name = self.key().name
        with self.ioctx() as ioctx:
            image_id = ioctx.read(f'rbd_id.{name}')[4:].decode()
            for kind in ('rbd_object_map', 'rbd_header'):
                ioctx.remove_object(f'{kind}.{image_id}')
        if then == 'sweep':
            self.driver.sweep()
            self.assert_left()
        self.assertEqual(0, self.made())
        self.assert_base()
        self.retire()
        self.assert_left()

    def test_the_next_maker_goes_on(self):
        kept = set()
        for step, name in enumerate(self.steps('base')):
            if name in {'aio_write', 'flush'}:
                self.killed('base', step=step, slow=True)
                kept.add(self.made())
                self.assert_base()
                self.retire()
                self.assert_left(step=name)
        self.assertIn(4 * units.Mi, kept)

    @ddt.data(*WORKS)
    def test_a_sweep_after_every_step(self, work):
        # It keeps nothing for the next maker.
        settings = dataclasses.replace(self.driver._settings, keep=0)
        self.driver = rbd.RbdDriver(settings, 'rbd1')
        for step, name in enumerate(self.steps(work)):
            self.killed(work, step=step)
            self.driver.sweep()
            there = [base.name for base in self.driver.list_bases()]
            self.assert_left(*there, step=name)
            if there:
                self.assert_base()
                self.retire()
            self.assert_left(step=name)

    @ddt.data(*WORKS)
    def test_at_every_step_on_another_host(self, work):
        names = [f'victim{step}' for step, _ in enumerate(self.steps(work))]
        for step, name in enumerate(names):
            self.killed(work, name=name, step=step, abroad=True)
        for name in names:
            self.made(name, TAKEN)
        self.assert_all(names)

    @ddt.data('base', 'link')
    def test_one_that_was_only_stopped_does_no_harm(self, work):
        stopped = {}
        # Before the first step it was not begun.
        for step, _name in list(enumerate(self.steps(work)))[1:]:
            name = f'victim{step}'
            stopped[name] = self.begun(
                work, name, step=step, signal=signal.SIGSTOP, abroad=True
            )
            self.assertIs(True, stopped[name].wait_stopped())
        for name in stopped:
            self.made(name, TAKEN)
        for victim in stopped.values():
            victim.send(signal.SIGCONT)
        for victim in stopped.values():
            told = self.victims.told(victim)
            # The snapshot of the volume may have been let go meanwhile.
            reasons = {'', 'base_lost', 'backend_error', 'ceph_timed_out',
                       'not_linkable'}  # fmt: skip
            self.assertIn(told['reason'], reasons, told)
        self.assert_all(stopped)

    def assert_all(self, names):
        self.names()
        self.assert_left(*[self.key(name).name for name in names])
        for name in names:
            self.assert_base(name)
            self.retire(name)
        self.assert_left()
