# SPDX-License-Identifier: Apache-2.0
"""What Cinder promises holds with our driver; what was done is told."""

import contextlib
import pathlib
import shutil
import sqlite3
import tempfile
from typing import ClassVar

import ddt
from oslo_utils import units

from cinder_cow.tests import cinder_service
from cinder_cow.tests import corpus
from cinder_cow.tests import rbd_place
from cinder_cow.tests.functional import test_plugin_rbd

MEMBER = 'alice:a1:member'
BY_CINDER = 'cinder'
# The only one that Cinder's own key manager has.
KEY = '00000000-0000-0000-0000-000000000000'


def sql(path, statement, *values):
    """Do with a database what no API does."""
    database = sqlite3.connect(path)
    with contextlib.closing(database), database:
        database.execute(statement, values)


class TellingCase(test_plugin_rbd.PluginTestCase):
    settings: ClassVar = {'oslo_messaging_notifications': {'driver': 'log'}}

    def assert_told(self, volume, method, reason='', remedy=''):
        told = self.cinder.told(volume)
        self.assertEqual(method, told['cow:method'])
        for key, words in (('cow:reason', reason), ('cow:remedy', remedy)):
            self.assertIn(words, told[key])
            self.assertLessEqual(len(told[key]), 255)
            self.assertEqual(bool(reason), bool(told[key]), told)

    def assert_message(self, volume, words, level, token=None):
        told = self.cinder.messages(volume, token)
        levels = [message['message_level'] for message in told]
        texts = ' '.join(message['user_message'] for message in told)
        self.assertIn(level, levels)
        self.assertIn(words, texts)

    def assert_failed(self, volume):
        """Check that a volume has an error, and that nothing is left of it."""
        self.assertRaises(RuntimeError, self.cinder.wait, volume)
        left = rbd_place.left(self.cluster, test_plugin_rbd.POOL)
        self.assertNotIn(volume, str(left))

    def directory(self):
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, top)
        return pathlib.Path(top)

    def notified(self, volume):
        """Tell what was notified of a volume's making."""
        events = ('volume.create.start', 'volume.create.end')
        return [
            event
            for line in self.cinder.log.splitlines()
            for event in events
            if event in line and volume in line
        ]


class TestTelling(TellingCase):
    def test_a_clone(self):
        image_id = self.stored(data=corpus.noise(units.Mi))
        volume = self.created(image_id=image_id)
        self.assert_told(volume, 'clone')
        self.assertEqual([], self.cinder.messages(volume))

    def test_a_base_and_why(self):
        image_id = self.qcow2(corpus.noise(units.Mi))
        for _which in ('its base is made', 'it is there'):
            volume = self.created(image_id=image_id)
            self.assert_told(volume, 'base', 'not_raw', 'qemu-img convert')
            self.assertEqual([], self.cinder.messages(volume))

    def test_left_to_cinder(self):
        # With as long a reason as there can be.
        image_id = self.qcow2(
            corpus.noise(units.Mi), name='n' * 255, visibility='public'
        )
        self.glance.set_hash(
            image_id, os_hash_algo='x' * 64, os_hash_value='0' * 128
        )
        volume = self.begun(image_id=image_id, token=MEMBER)
        self.assertRaises(RuntimeError, self.cinder.wait, volume)
        self.assert_told(volume, BY_CINDER, 'hash_unknown', 'hashed')
        told = self.cinder.told(volume)
        self.assertEqual(255, len(told['cow:reason']))
        self.assert_message(volume, 'Driver failed', 'WARNING', MEMBER)

    def test_what_others_wrote_stays(self):
        image_id = self.stored(data=corpus.noise(units.Mi))
        volume = self.created(image_id=image_id)
        told = self.cinder.told(volume)
        self.cinder.act(volume, 'os-update_readonly_flag', readonly=True)
        self.assertEqual(
            {**told, 'readonly': 'True'}, self.cinder.told(volume)
        )

    def test_a_database_that_takes_nothing(self):
        # As it may be for a moment; a volume that is there must not fail.
        image_id = self.stored(data=corpus.noise(units.Mi))
        path = self.cinder.directory / 'cinder.sqlite'
        sql(
            path,
            'CREATE TRIGGER full BEFORE INSERT ON volume_admin_metadata'
            " BEGIN SELECT RAISE(ABORT, 'it is full'); END",
        )
        self.addCleanup(sql, path, 'DROP TRIGGER IF EXISTS full')
        volume = self.created(image_id=image_id)
        self.assertEqual({}, self.cinder.told(volume))
        self.assertIn(
            f'How volume volume-{volume} was made is not told', self.cinder.log
        )


class TestKeys(TellingCase):
    """An image that is encrypted never becomes a base."""

    settings: ClassVar = {
        'key_manager': {
            'backend': 'cinder.keymgr.conf_key_mgr.ConfKeyManager',
            'fixed_key': '5a' * 32,
        }
    }

    def setUp(self):
        super().setUp()
        self.before = set(self.bases())

    def assert_left_to_cinder(self, image_id, content):
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content)
        self.assert_told(volume, BY_CINDER, 'own_key', 'encrypted volume type')
        self.assert_message(volume, 'disk format', 'WARNING')
        self.assertEqual(self.before, set(self.bases()))

    def test_own_key(self):
        content = corpus.noise(units.Mi)
        image_id = self.stored(data=content, cinder_encryption_key_id=KEY)
        self.assert_left_to_cinder(image_id, content)
        # The remedy.
        kind = self.type()
        encryption = {
            'provider': 'luks',
            'cipher': 'aes-xts-plain64',
            'key_size': 256,
            'control_location': 'front-end',
        }
        path = f'/types/{kind}/encryption'
        self.cinder.do('POST', path, json={'encryption': encryption})
        volume = self.created(image_id=image_id, volume_type=kind)
        self.assertTrue(self.cinder.show(volume)['encrypted'])
        self.assertEqual({}, self.cinder.told(volume))
        with self.opened(volume) as image:
            self.assertEqual(content, image.read(0, len(content)))

    def test_a_qcow2_with_a_key(self):
        content = corpus.noise(units.Mi)
        image_id = self.qcow2(content, cinder_encryption_key_id=KEY)
        self.assert_left_to_cinder(image_id, content)


class TestSizes(TellingCase):
    """Cinder's own errors come, and nothing is left of what they concern."""

    def setUp(self):
        super().setUp()
        self.usage = self.cinder.usage()
        self.before = set(self.bases())

    def test_the_disk_is_larger_than_the_volume(self):
        # Glance has not looked into it: of a small file, 2 GiB.
        image_id = self.stored('qcow2', path=self.empty_qcow2('2G'))
        sql(
            self.glance.directory / 'glance.sqlite',
            'UPDATE images SET virtual_size = NULL WHERE id = ?',
            image_id,
        )
        volume = self.begun(image_id=image_id)
        self.assert_failed(volume)
        self.assertIn("doesn't fit in a volume of size 1GB", self.cinder.log)
        self.assert_told(volume, BY_CINDER, 'volume_too_small', '2 GiB')
        self.assertEqual(self.before, set(self.bases()))
        self.delete(volume)
        self.assertEqual(self.usage, self.cinder.usage())
        self.assertEqual(['volume.create.start'], self.notified(volume))

    def begun(self, **options):
        volume = self.cinder.create_volume(1, **options)
        self.addCleanup(self.delete, volume)
        return volume

    def delete(self, volume):
        answer = self.cinder.request('GET', f'/volumes/{volume}')
        if answer.status_code != 404:
            self.cinder.delete_volume(volume)

    def empty_qcow2(self, size):
        path = self.directory() / 'image'
        corpus.qemu_img('create', '-q', '-f', 'qcow2', path, size)
        return path

    def test_min_disk(self):
        image_id = self.stored(data=corpus.noise(units.Mi), min_disk=2)
        error = self.assertRaises(
            RuntimeError, self.cinder.create_volume, 1, image_id=image_id
        )
        self.assertIn('minDisk size 2', str(error))
        self.assertEqual(self.usage, self.cinder.usage())

    def test_usage_and_notifications_of_a_volume(self):
        image_id = self.stored(data=corpus.noise(units.Mi))
        volume = self.created(image_id=image_id)
        volumes, reserved = self.usage['volumes']
        usage = self.cinder.usage()
        self.assertEqual((volumes + 1, reserved), usage['volumes'])
        self.assertEqual(self.usage['gigabytes'][0] + 1, usage['gigabytes'][0])
        self.assertEqual(
            ['volume.create.start', 'volume.create.end'], self.notified(volume)
        )
        self.delete(volume)
        self.assertEqual(self.usage, self.cinder.usage())


@ddt.ddt
class TestOddities(TellingCase):
    """A volume is made, whatever is asked for in whichever way."""

    @classmethod
    def section(cls, top):
        return cinder_service.upstream_driver(
            cls.cluster,
            volume_driver='cinder_cow.tests.odd_driver.OddDriver',
            cow_scratch_dir=top,
        )

    def made_of(self, odd):
        """Create a volume, asked for in an odd way; tell its parent."""
        content = corpus.noise(units.Mi)
        image_id = self.stored(data=content)
        before = set(self.bases())
        volume = self.created(image_id=image_id, metadata={'odd': odd})
        new = set(self.bases()) - before
        parents = {
            'clone': ('images', image_id, 'snap'),
            'base': (test_plugin_rbd.POOL, *new, 'snap'),
            BY_CINDER: None,
        }
        method = self.cinder.told(volume)['cow:method']
        self.assert_content(volume, content, parents[method])
        self.assertEqual(method == 'base', bool(new))
        return method, volume

    @ddt.data(
        ('url alone', 'clone'),
        ('dead first', 'clone'),
        ('bare record', 'clone'),
        ('hostile properties', 'clone'),
        ('control characters', BY_CINDER),
        ('luks', BY_CINDER),
        ('no location', 'base'),
        ('nothing in it', 'base'),
        ('no url', BY_CINDER),
        ('no size', BY_CINDER),
        ('no id', BY_CINDER),
        ('no list', BY_CINDER),
        ('properties', BY_CINDER),
    )
    @ddt.unpack
    def test_it_is_made(self, odd, method):
        self.assertEqual(method, self.made_of(odd)[0])

    def test_unexpected(self):
        method, volume = self.made_of('fault')
        self.assertEqual(BY_CINDER, method)
        self.assert_told(volume, BY_CINDER, 'unexpected: ', 'traceback')
        self.assertIn('TypeError: a fault of ours', self.cinder.log)


class TestRefusing(TellingCase):
    options: ClassVar = {'cow_enabled': 'false', 'cow_fallback': 'refuse'}

    def test_it_is_told(self):
        volume = self.begun(image_id=self.stored(data=corpus.noise(units.Mi)))
        self.assert_failed(volume)
        self.assert_told(volume, 'refused', 'cow_disabled', 'cow_enabled')
        self.assert_message(volume, 'Driver failed', 'ERROR')


class TestCopying(TellingCase):
    options: ClassVar = {'cow_enabled': 'false'}

    def test_it_is_told(self):
        content = corpus.noise(units.Mi)
        volume = self.created(image_id=self.stored(data=content))
        self.assert_content(volume, content)
        self.assert_told(volume, 'stream', 'cow_disabled', 'cow_enabled')
        self.assert_message(volume, 'Driver failed', 'WARNING')
