# SPDX-License-Identifier: Apache-2.0
"""What else is done to volumes of our driver in a real Cinder."""

import time
from typing import ClassVar

from oslo_utils import units

from cinder_cow.tests import corpus
from cinder_cow.tests import rbd_place
from cinder_cow.tests import storage
from cinder_cow.tests import volume_api
from cinder_cow.tests.functional import test_plugin_rbd

POOL = test_plugin_rbd.POOL
HOST = 'cow@rbd1#rbd1'
SIZE = units.Mi
# RBD_OPERATION_FEATURE_CLONE_CHILD: a clone of version 2.
CLONE_CHILD = 2


class TestOthers(test_plugin_rbd.PluginTestCase):
    """Each leaves nothing but bases."""

    clone_version = 1
    attaches = True
    settings: ClassVar = {
        'DEFAULT': {
            'backup_driver': 'cinder.backup.drivers.posix.PosixBackupDriver',
            # It would take 3 s for zeros.
            'backup_compression_algorithm': 'none',
        }
    }

    def setUp(self):
        super().setUp()
        self.content = corpus.noise(SIZE)
        self.addCleanup(self.assert_left)

    def assert_left(self):
        expected = self.bases()
        self.assertEqual([], rbd_place.until(self.cluster, POOL, expected))

    def volume(self, content=None):
        """Make a volume that is cloned from a base."""
        image_id = self.qcow2(content or self.content, store='file1')
        volume = self.created(image_id=image_id)
        with self.opened(volume) as image:
            self.assertTrue(image.parent_info())
            is_v2 = bool(image.op_features() & CLONE_CHILD)
        self.assertEqual(self.clone_version == 2, is_v2)
        return volume

    def snapshot(self, volume):
        """Make a snapshot of a volume; it goes before the volume does."""
        snapshot = self.cinder.create_snapshot(volume)
        self.addCleanup(self.cinder.delete_snapshot, snapshot)
        self.cinder.wait_snapshot(snapshot)

    def settled(self, volume, status='available'):
        self.cinder.wait(volume, status)

    def read(self, volume, size=SIZE):
        with self.opened(volume) as image:
            return image.read(0, size)

    def assert_same(self, volume, content=None):
        found = self.read(volume)
        self.assertTrue(storage.same(content or self.content, found))

    def test_retyped(self):
        # Made first: a type cannot go before its volumes.
        kind = self.type(multiattach='<is> True')
        volume = self.volume()
        clone = self.created(source_volid=volume)
        self.snapshot(volume)
        claims = {'new_type': kind, 'migration_policy': 'never'}
        self.cinder.act(volume, 'os-retype', **claims)
        self.settled(volume)
        self.assertTrue(self.cinder.show(volume)['multiattach'])
        for one in (volume, clone):
            self.assert_same(one)

    def test_reimaged(self):
        before = corpus.noise(SIZE)
        volume = self.volume(before)
        clone = self.created(source_volid=volume)
        image_id = self.qcow2(self.content, store='file1')
        self.cinder.act(volume, 'os-reimage', image_id=image_id)
        self.settled(volume)
        self.assert_same(volume)
        self.assert_same(clone, before)

    def test_made_an_image(self):
        volume = self.volume()
        image_id = self.uploaded(volume)
        self.settled(volume)
        # What it was made of is in the cluster, and is cloned.
        again = self.created(image_id=image_id)
        self.assert_content(again, self.content, ('images', image_id, 'snap'))

    def test_unmanaged_and_managed(self):
        volume = self.volume()
        self.cinder.act(volume, 'os-unmanage')
        self.cinder.wait(volume, 'deleted')
        claims = {'host': HOST, 'ref': {'source-name': f'volume-{volume}'}}
        answer = self.cinder.do(
            'POST',
            '/manageable_volumes',
            json={'volume': claims},
            headers=volume_api.NEW,
        )
        managed = answer.json()['volume']['id']
        self.addCleanup(self.cinder.delete_volume, managed)
        self.settled(managed)
        self.assert_same(managed)

    def test_backed_up_and_restored(self):
        volume = self.volume()
        backup = self.backup(volume)
        self.cinder.delete_volume(volume)
        claims = {'name': 'restored'}
        answer = self.cinder.do(
            'POST', f'/backups/{backup}/restore', json={'restore': claims}
        )
        restored = answer.json()['restore']['volume_id']
        self.addCleanup(self.cinder.delete_volume, restored)
        self.wait_backup(backup)
        self.settled(restored)
        self.assert_same(restored)

    def backup(self, volume):
        claims = {'backup': {'volume_id': volume, 'name': 'kept'}}
        answer = self.cinder.do('POST', '/backups', json=claims)
        backup = answer.json()['backup']['id']
        self.addCleanup(self.remove_backup, backup)
        self.wait_backup(backup)
        return backup

    def wait_backup(self, backup):
        deadline = time.monotonic() + volume_api.LIMIT
        while True:
            answer = self.cinder.do('GET', f'/backups/{backup}')
            status = answer.json()['backup']['status']
            if status == 'available':
                return
            self.assertNotEqual('error', status, self.cinder.end_of_log())
            self.assertLess(time.monotonic(), deadline, status)
            time.sleep(0.1)

    def remove_backup(self, backup):
        self.cinder.do('DELETE', f'/backups/{backup}')
        deadline = time.monotonic() + volume_api.LIMIT
        while self.cinder.request('GET', f'/backups/{backup}').ok:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)


class TestOthersOfVersion2(TestOthers):
    """With clones of version 2, of the images in the same cluster too."""

    clone_version = 2

    @classmethod
    def ceph(cls):
        cluster = super().ceph()
        option = {'who': 'client', 'name': 'rbd_default_clone_format'}
        cluster.set_config(**option, value=2)
        cls.addClassCleanup(cluster.mon, prefix='config rm', **option)
        return cluster
