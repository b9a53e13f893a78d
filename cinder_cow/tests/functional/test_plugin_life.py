# SPDX-License-Identifier: Apache-2.0
"""The life of volumes of our driver in a real Cinder: nothing is left."""

import contextlib
import shutil
import tempfile
import time
from unittest import mock

from oslo_utils import units

from cinder_cow.drivers import rbd as cow_rbd
from cinder_cow.drivers import rbd_leaks
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import ceph_config
from cinder_cow.tests import cinder_service
from cinder_cow.tests import corpus
from cinder_cow.tests import pool_state
from cinder_cow.tests import rbd_place
from cinder_cow.tests import rbd_victim
from cinder_cow.tests import volume_api
from cinder_cow.tests.functional import test_plugin_rbd

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

POOL = test_plugin_rbd.POOL
UPSTREAM = 'cinder.volume.drivers.rbd.RBDDriver'


class Family:
    """A volume, a snapshot of it, a volume of that, and clones of both."""

    def __init__(self, test, image_id):
        self._test = test
        self.found = {'a': test.begun(image_id=image_id)}

    def grow(self):
        """Make the next of it, of what is there; each takes a call."""
        test, cinder, found = self._test, self._test.cinder, self.found
        cinder.wait(found['a'])
        found['d'] = test.begun(source_volid=found['a'])
        found['s'] = cinder.create_snapshot(found['a'])
        yield
        cinder.wait_snapshot(found['s'])
        found['b'] = test.begun(snapshot_id=found['s'])
        yield
        cinder.wait(found['b'])
        found['c'] = test.begun(source_volid=found['b'])
        yield
        cinder.wait(found['c'])
        cinder.wait(found['d'])
        found['e'] = test.begun(source_volid=found['c'])
        yield
        cinder.wait(found['e'])

    def begin_delete(self, name):
        kind = 'snapshots' if name == 's' else 'volumes'
        self._test.cinder.do('DELETE', f'/{kind}/{self.found[name]}')

    def wait_deleted(self, name):
        number = self.found.pop(name)
        if name == 's':
            self._test.cinder.wait_snapshot(number, 'deleted')
        else:
            self._test.cinder.wait(number, 'deleted')


class LifeTestCase(test_plugin_rbd.PluginTestCase):
    def begun(self, **options):
        volume = self.cinder.create_volume(1, **options)
        self.addCleanup(self.delete_if_there, volume)
        return volume

    def delete_if_there(self, volume):
        if volume in self.cinder.volumes():
            self.cinder.delete_volume(volume)

    def check_needed(self, volumes=None):
        self.assertEqual([], self.unneeded(volumes))

    def unneeded(self, volumes=None):
        """Name what is in the pool that Cinder does not know of."""
        if volumes is None:
            volumes = self.cinder.volumes()
        answer = self.cinder.do('GET', '/snapshots').json()['snapshots']
        snapshots = [one['id'] for one in answer]
        return pool_state.unneeded(self.cluster, POOL, volumes, snapshots)


class TestLife(LifeTestCase):
    """With clones of version 2, whose snapshots can be deleted before."""

    @classmethod
    def ceph(cls):
        place = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        cls.addClassCleanup(shutil.rmtree, place)
        return cls.enterClassContext(
            ceph_cluster.Cluster(f'{place}/ceph', min_compat='mimic')
        )

    def test_deleted_in_many_orders(self):
        # In each, a snapshot goes before its volume: Cinder wants it so.
        orders = ['sabcde', 'edcbsa', 'scebda', 'sadecb', 'bcdesa', 'dsbace']
        image_id = self.stored(data=corpus.noise(units.Mi))
        families = [Family(self, image_id) for _order in orders]
        for _step in zip(*(one.grow() for one in families), strict=True):
            pass
        self.check_needed()
        # One of each at a time, which are many at once.
        for names in zip(*orders, strict=True):
            pairs = list(zip(families, names, strict=True))
            for family, name in pairs:
                family.begin_delete(name)
            for family, name in pairs:
                family.wait_deleted(name)
            self.check_needed()

    def test_clones_deleted_at_once(self):
        parent = self.created()
        clones = [self.begun(source_volid=parent) for _ in range(6)]
        for clone in clones:
            self.cinder.wait(clone)
        self.cinder.delete_volume(parent)
        self.check_needed()
        for clone in clones:
            self.cinder.do('DELETE', f'/volumes/{clone}')
        for clone in clones:
            self.cinder.wait(clone, 'deleted')
        self.check_needed()

    def test_extended(self):
        parent = self.created()
        clone = self.created(source_volid=parent)
        self.cinder.act(clone, 'os-extend', new_size=2)
        self.cinder.wait(clone)
        self.cinder.delete_volume(parent)
        self.check_needed()
        self.cinder.delete_volume(clone)
        self.check_needed()


class TestLifeOfVersion1(TestLife):
    """With clones as a cluster makes them by default."""

    @classmethod
    def ceph(cls):
        return ceph_cluster.shared()

    def check_fails(self, kind, **options):
        before = self.cinder.process.pid
        volume = self.begun(volume_type=kind, **options)
        self.assertRaises(RuntimeError, self.cinder.wait, volume)
        self.assertEqual('error', self.cinder.show(volume)['status'])
        known = set(self.cinder.volumes()) - {volume}
        self.check_needed(known)
        self.assertEqual(before, self.cinder.process.pid)
        self.assertIsNone(self.cinder.process.poll())
        # The service goes on.
        self.created()

    def limit(self, kind):
        """Give a type a limit that cannot be set."""
        limits = {'consumer': 'back-end', 'total_iops_sec': 'many'}
        qos = self.made('/qos-specs', qos_specs={'name': kind, **limits})
        path = f'/qos-specs/{qos}/associate?vol_type_id={kind}'
        self.cinder.do('GET', path)

    def test_an_empty_volume_that_is_not_set_up(self):
        self.check_fails(self.type(replication_enabled='<is> True'))

    def test_a_volume_of_a_snapshot_that_is_not_set_up(self):
        kind = self.type()
        snapshot = self.cinder.create_snapshot(self.created(volume_type=kind))
        self.addCleanup(self.cinder.delete_snapshot, snapshot)
        self.cinder.wait_snapshot(snapshot)
        self.limit(kind)
        self.check_fails(kind, snapshot_id=snapshot)

    def test_a_clone_that_is_not_set_up(self):
        kind = self.type()
        source = self.created(volume_type=kind)
        self.limit(kind)
        self.check_fails(kind, source_volid=source)

    def test_a_deletion_that_was_broken_off(self):
        parent = self.created()
        clone = self.created(source_volid=parent)
        self.cinder.delete_volume(parent)
        with rbd_place.opened(self.cluster, POOL) as ioctx:
            rbd.RBD().remove(ioctx, f'volume-{clone}')
        self.cinder.delete_volume(clone)
        self.check_needed()

    def test_killed_while_deleting(self):
        parent = self.created()
        clones = [self.begun(source_volid=parent) for _number in range(6)]
        for clone in clones:
            self.cinder.wait(clone)
        for volume in (parent, *clones):
            self.cinder.do('DELETE', f'/volumes/{volume}')
        # Some are deleted, some half, some not at all.
        self.cinder.wait(clones[1], 'deleted')
        self.cinder.kill()
        self.cinder.restart()
        for volume in (parent, *clones):
            self.cinder.wait(volume, 'deleted')
        self.check_needed()
        self.assertEqual([], self.orphans())

    def test_killed_before_what_was_kept_is_removed(self):
        parent = self.created()
        clone = self.created(source_volid=parent)
        self.cinder.delete_volume(parent)
        self.cinder.kill()
        kept = f'volume-{parent}.deleted'
        with rbd_place.opened(self.cluster, POOL) as ioctx:
            rbd.RBD().remove(ioctx, f'volume-{clone}')
            with rbd.Image(ioctx, kept) as image:
                (snapshot,) = image.list_snaps()
                image.unprotect_snap(snapshot['name'])
                image.remove_snap(snapshot['name'])
        self.cinder.restart()
        # Nobody has asked for anything.
        deadline = time.monotonic() + volume_api.LIMIT
        while self.is_there(kept):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        self.cinder.delete_volume(clone)
        self.check_needed()

    def is_there(self, image):
        with rbd_place.opened(self.cluster, POOL) as ioctx:
            return image in rbd.RBD().list(ioctx)

    def orphans(self):
        """Name what a repair would remove, of whatever age.

        But verdicts: those of other tests stay when their images are gone.
        """
        settings = rbd_victim.settings(str(self.cluster.conf), POOL, 'cinder')
        with mock.patch.object(rbd_leaks, 'YOUNG_SECONDS', -5):
            found = list(cow_rbd.RbdDriver(settings, 'rbd1').orphans())
        return [one for one in found if not one.what.startswith('verdict')]

    def test_what_is_ours_is_no_volume(self):
        image_id = self.qcow2(corpus.holey(units.Mi))
        before = set(self.bases())
        volume = self.created(image_id=image_id)
        _pool, base, _snapshot = self.new_base(before)
        link = 'cow-link-1234'
        for name in (link, 'theirs'):
            with self.opened_to_write(volume) as image:
                image.create_snap(name)
            self.addCleanup(self.remove_snapshot, volume, name)
        found = self.manageable('volume')
        self.assertIn(f'volume-{volume}', found)
        self.assertNotIn(base, found)
        found = self.manageable('snapshot')
        self.assertIn('theirs', found)
        self.assertNotIn(link, found)
        self.assertNotIn('snap', found)
        self.check_not_managed(base)

    def manageable(self, kind):
        """Name what could be made a volume, or a snapshot, of Cinder's."""
        path = f'/os-{kind}-manage?host=cow@rbd1%23rbd1'
        found = self.cinder.do('GET', path).json()[f'manageable-{kind}s']
        return [one['reference']['source-name'] for one in found]

    def check_not_managed(self, name):
        claims = {'host': 'cow@rbd1#rbd1', 'ref': {'source-name': name}}
        volume = self.cinder.do(
            'POST', '/os-volume-manage', json={'volume': claims}
        ).json()['volume']['id']
        self.addCleanup(self.cinder.delete_volume, volume)
        error = self.assertRaises(RuntimeError, self.cinder.wait, volume)
        self.assertIn('error', str(error))
        self.assertIn('ManageExistingInvalidReference', self.cinder.log)
        self.assertIn('Create a volume from the image', self.cinder.log)
        self.assertIn(name, self.bases())

    def remove_snapshot(self, volume, name):
        with self.opened_to_write(volume) as image:
            image.remove_snap(name)

    @contextlib.contextmanager
    def opened_to_write(self, volume):
        with (
            rbd_place.opened(self.cluster, POOL) as ioctx,
            rbd.Image(ioctx, f'volume-{volume}') as image,
        ):
            yield image


class TestOtherDriver(LifeTestCase):
    """Begins with Cinder's own driver, whose place ours takes."""

    @classmethod
    def section(cls, top):
        return cinder_service.upstream_driver(cls.cluster, cow_scratch_dir=top)

    def switch(self, driver):
        """Start Cinder once more, with another driver."""
        settings = self.cinder.settings
        settings[cinder_service.BACKEND]['volume_driver'] = driver
        conf = self.cinder.directory / 'cinder.conf'
        ceph_config.write_sections(conf, settings)
        self.cinder.restart()

    def made_of(self, parent):
        """Make a clone, and a snapshot with a volume of it."""
        clone = self.begun(source_volid=parent)
        snapshot = self.cinder.create_snapshot(parent)
        self.addCleanup(self.delete_snapshot_if_there, snapshot)
        self.cinder.wait_snapshot(snapshot)
        volume = self.begun(snapshot_id=snapshot)
        for one in (clone, volume):
            self.cinder.wait(one)
        return clone, snapshot, volume

    def delete_snapshot_if_there(self, snapshot):
        answer = self.cinder.request('GET', f'/snapshots/{snapshot}')
        if answer.ok:
            self.cinder.delete_snapshot(snapshot)

    def test_volumes_of_one_are_used_by_the_other(self):
        for driver in (test_plugin_rbd.DRIVER, UPSTREAM):
            image_id = self.stored(data=corpus.noise(units.Mi))
            parent = self.created(image_id=image_id)
            clone, snapshot, volume = self.made_of(parent)
            self.switch(driver)
            others = self.made_of(clone)
            self.cinder.act(volume, 'os-extend', new_size=2)
            self.cinder.wait(volume)
            self.cinder.delete_snapshot(others[1])
            self.cinder.delete_snapshot(snapshot)
            for one in (parent, clone, volume, others[0], others[2]):
                self.cinder.delete_volume(one)
            self.assertEqual([], self.cinder.volumes())
            if driver == UPSTREAM:
                self.assertNotEqual([], self.unneeded())
                self.repair()
            self.assertEqual([], self.unneeded())

    def test_what_it_left_is_repaired(self):
        parent = self.created()
        clones = [self.begun(source_volid=parent) for _number in range(3)]
        for clone in clones:
            self.cinder.wait(clone)
        last = self.created(source_volid=clones[0])
        live = self.created()
        children = self.made_of(live)
        gone = self.created(source_volid=live)
        for one in (parent, *clones[:2], last, gone):
            self.cinder.delete_volume(one)
        left = self.unneeded()
        self.assertIn(f'volume-{live}@volume-{gone}.clone_snap', left)
        self.assertIn(
            f'volume-{clones[0]}.deleted@volume-{last}.clone_snap', left
        )
        self.repair()
        self.assertEqual([], self.unneeded())
        # What lives does so after it, too.
        self.cinder.delete_volume(clones[2])
        self.cinder.delete_snapshot(children[1])
        for one in (live, children[0], children[2]):
            self.cinder.delete_volume(one)
        self.repair()
        self.assertEqual([], self.unneeded())

    def repair(self):
        """Find and remove what is left; then there is nothing more."""
        driver = cow_rbd.RbdDriver(
            rbd_victim.settings(str(self.cluster.conf), POOL, 'cinder'),
            'rbd1',
        )
        with mock.patch.object(rbd_leaks, 'YOUNG_SECONDS', -5):
            found = list(driver.orphans())
            self.assertEqual(found, list(driver.remove_orphans()))
            self.assertEqual([], list(driver.orphans()))
