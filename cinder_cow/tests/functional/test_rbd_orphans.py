# SPDX-License-Identifier: Apache-2.0
"""What is left in a pool is found and removed, and nothing else is."""

import contextlib
import dataclasses
import time

import ddt

from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_owner
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.tests import rbd_victim
from cinder_cow.tests.functional import test_rbd_base_kills

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd as librbd  # noqa: TID251

WORKS = ('clone', 'stream', 'delete', *test_rbd_base_kills.WORKS)


@ddt.ddt
class TestOrphans(test_rbd_base_kills.BaseKillCase):
    def test_is_a_checker(self):
        self.assertIsInstance(self.driver, bases.Checker)

    def orphans(self):
        return list(self.driver.orphans())

    def remove(self, *expected):
        """Check that these orphans are found, and can be removed."""
        found = self.orphans()
        self.assertEqual(len(expected), len(found), found)
        for one in expected:
            self.assertIn(one, ' '.join(orphan.what for orphan in found))
        # Looking changed nothing.
        self.assertEqual(found, self.orphans())
        self.assertEqual(found, list(self.driver.remove_orphans()))
        self.assertEqual([], self.orphans())

    def begun(self, work, name='victim', **options):
        if work == 'delete':
            self.driver.delete(name)
            self.make(name=name)
        return super().begun(work, name, **options)

    def steps(self, work):
        # The first one writes down that the image is good.
        for _twice in range(2):
            told = self.victims.told(self.killed(work))
            self.assertEqual('', told['error'])
            self.clear()
        return told['steps'][1:-1]

    def clear(self):
        if self.driver.find_base(self.key()):
            self.retire()
        self.driver.delete('victim')

    @ddt.data(*WORKS)
    def test_after_every_step(self, work):
        for step, name in enumerate(self.steps(work), 1):
            self.killed(work, step=step)
            (found,) = self.orphans()
            self.assertIn('work on ', found.what)
            self.assertEqual([found], list(self.driver.remove_orphans()))
            self.assertEqual([], self.orphans())
            there = [base.name for base in self.driver.list_bases()]
            with self.ioctx() as ioctx:
                names = librbd.RBD().list(ioctx)
            names = [one for one in names if not one.startswith('cow-')]
            self.assert_left(*there, *names, step=name)
            self.clear()

    def test_where_the_row_is_gone(self):
        for work in ('stream', 'base'):
            for step, name in enumerate(self.steps(work), 1):
                self.killed(work, step=step)
                self.forget_rows()
                for _orphan in self.driver.remove_orphans():
                    self.assertIs(True, _orphan.removable, _orphan)
                self.assertEqual([], self.orphans(), name)
                self.assert_nothing_of_ours(name)
                self.clear()

    def forget_rows(self):
        with self.pool_opened() as pool:
            rows = pool.rows(rbd_leases.OBJECT)
            for key, row in rows.all().items():
                rows.delete(key)
                # It would end at any time, and be found only then.
                rows.forget_lock(Lease.unpacked(row).id)

    @contextlib.contextmanager
    def pool_opened(self):
        settings = self.driver._settings
        with (
            ceph.connected(settings.cluster) as connection,
            connection.pool(self.pool) as pool,
        ):
            yield pool

    def assert_nothing_of_ours(self, step):
        published = {base.name for base in self.driver.list_bases()}
        with self.pool_opened() as pool:
            found = set(pool.listed('cow-'))
            dead = {
                one
                for one in pool.object_names()
                if one.startswith('rbd_id.cow-')
            }
        self.assertEqual(published, found, step)
        self.assertEqual({f'rbd_id.{name}' for name in published}, dead, step)

    def test_what_is_alive_is_none(self):
        self.make('clone', 'v')
        self.make('base')
        with (
            self.driver.open('w', 4096) as volume,
            self.driver.begin_base(self.key('other'), 4096) as writer,
        ):
            writer.write(b'A')
            self.assertEqual([], self.orphans())
            self.assertEqual([], list(self.driver.remove_orphans()))
            volume.close()
            writer.publish(rbd_victim.facts_of(self.order('base', 'other')))
        self.assertEqual([], self.orphans())

    def test_looking_ends_no_lease(self):
        with self.driver.begin_base(self.key(), 4096) as writer:
            holding = writer._stream._holding
            # As another process sees it whose host is another.
            rbd_leases._held.discard(holding.lease.id)
            me = rbd_owner.Owner.me()
            other = dataclasses.replace(me, boot='another')
            holding.write_down(dataclasses.replace(holding.lease, owner=other))
            self.assertEqual([], self.orphans())
            holding.renew()

    def test_a_dead_name(self):
        self.make('base')
        with self.ioctx() as ioctx:
            for name in ('cow-partial.v', 'cow-base-' + 'a' * 40):
                ioctx.write_full(f'rbd_id.{name}', b'\x02\0\0\0ab')
        self.remove('cow-partial.v', 'cow-base-aaa')

    def test_an_image_of_an_unknown_name_stays(self):
        with self.ioctx() as ioctx:
            librbd.RBD().create(ioctx, 'cow-of-another-release', 4096)
        for find in (self.driver.orphans, self.driver.remove_orphans):
            (found,) = find()
            self.assertIs(False, found.removable)
        with self.ioctx() as ioctx:
            self.assertEqual(
                ['cow-of-another-release'], librbd.RBD().list(ioctx)
            )

    def test_a_manifest_without_its_base(self):
        self.make('base')
        self.driver.set_base_manifest(self.key().name, b'hashes')
        with self.ioctx() as ioctx:
            ioctx.write_full('cow_manifest.1234', b'hashes')
        self.remove('cow_manifest.1234')
        self.assertEqual(b'hashes', self.driver.base_manifest(self.key().name))

    def test_a_lock_without_a_row(self):
        with self.pool_opened() as pool:
            rows = pool.rows(rbd_leases.OBJECT)
            rows.put('x', b'x', lock=ceph.Lock('f' * 32, 'c', 1))
            rows.delete('x')
            rows.lock(ceph.Lock('e' * 32, 'c', 60))
            self.assertEqual([], [o for o in self.orphans() if 'e' in o.what])
            rows.forget_lock('e' * 32)
        while not self.orphans():
            pass
        self.remove('f' * 32)

    def test_a_verdict_on_an_image_that_is_gone(self):
        self.make('clone')
        self.assertEqual([], self.orphans())
        self.driver.delete('victim')
        self.delete_image()
        self.remove('verdict ')
        self.assertEqual([], self.left())

    def test_a_base_that_is_damaged(self):
        self.make('base')
        found = self.driver.find_base(self.key())
        with self.ioctx() as ioctx, librbd.Image(ioctx, found.name) as image:
            image.metadata_set('cow.facts', 'x')
        self.remove(f'base {found.name}')
        self.assertEqual([], self.left())

    def test_a_row_of_another_release_stays(self):
        with self.pool_opened() as pool:
            rows = pool.rows(rbd_leases.OBJECT)
            rows.put('v', b'{"id": "1"}')
            # Its lock has ended, and is none that was left without a row.
            self.assertTrue(rows.lock(ceph.Lock('1', 'a test', 1)))
            time.sleep(1.1)
            (found,) = self.driver.remove_orphans()
            self.assertIs(False, found.removable)
            self.assertEqual(b'{"id": "1"}', rows.get('v'))
