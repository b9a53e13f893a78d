# SPDX-License-Identifier: Apache-2.0
"""What fails beside our driver in a real Cinder, and what becomes of it."""

import contextlib
import time
from typing import ClassVar

import ddt
from oslo_utils import units

from cinder_cow.tests import corpus
from cinder_cow.tests import glance_proxy
from cinder_cow.tests import rbd_place
from cinder_cow.tests import volume_api
from cinder_cow.tests.functional import test_plugin_rbd
from cinder_cow.tests.functional import test_plugin_telling

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

POOL = test_plugin_rbd.POOL
Fault = glance_proxy.Fault
UNDER_WAY = {'creating', 'downloading', 'deleting'}
# Seconds that Glance and the OSD are waited for.
TIMEOUT = 3
ATTEMPTS = 2
SIZE = 4 * units.Mi
# What takes long enough, made within the cluster, to be killed meanwhile.
LARGE = 64 * units.Mi
BORROWED = 'cow-partial.cow-source-'


class FaultCase(test_plugin_rbd.PluginTestCase):
    """Has something between Cinder and Glance; each test leaves nothing."""

    options: ClassVar = {
        'cow_fetch_timeout': str(TIMEOUT),
        'cow_fetch_attempts': str(ATTEMPTS),
        'cow_rbd_op_timeout': str(TIMEOUT),
        'rados_connect_timeout': str(TIMEOUT),
        'rados_connection_retries': '2',
        'rados_connection_interval': '1',
    }
    settings: ClassVar = {
        'DEFAULT': {
            'glance_request_timeout': str(TIMEOUT),
            'glance_num_retries': '0',
        }
    }

    @classmethod
    def asked(cls):
        cls.proxy = glance_proxy.Proxy(cls.glance)
        cls.enterClassContext(cls.proxy)
        return cls.proxy

    def setUp(self):
        super().setUp()
        self.addCleanup(self.assert_left)
        self.addCleanup(self.proxy.clear)

    def assert_left(self):
        """Check that of a test there is nothing but whole bases."""
        self.until(self.is_clean)

    def is_clean(self):
        # A base may just be made, or undone.
        with contextlib.suppress(rbd.ImageNotFound):
            return not rbd_place.left(self.cluster, POOL, self.bases())

    def until(self, reached):
        deadline = time.monotonic() + volume_api.LIMIT
        while not reached():
            self.assertLess(
                time.monotonic(), deadline, self.cinder.end_of_log()
            )
            time.sleep(0.1)

    def image(self, content=None, **options):
        """Store an image that must be downloaded."""
        content = content or corpus.noise(SIZE)
        return self.qcow2(content, store='file1', **options)

    def data_of(self, image_id):
        return f'GET /v2/images/{image_id}/file'

    def ended(self, volume):
        """Wait until something has become of a volume; tell its status."""

        def status():
            return self.cinder.show(volume)['status']

        self.until(lambda: status() not in UNDER_WAY)
        return status()

    def assert_made(self, image_id, content):
        """Check that the next one who asks gets a copy-on-write volume."""
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content, self.parent(volume))

    def parent(self, volume):
        """Tell what a volume was cloned from.

        :raises rbd.ImageNotFound: it is no clone
        """
        with self.opened(volume) as image:
            return tuple(image.parent_info())


@ddt.ddt
class TestGlance(FaultCase):
    @ddt.data(401, 403, 404, 500, 503)
    def test_it_gives_no_data(self, status):
        image_id = self.image()
        self.proxy.put(self.data_of(image_id), Fault(status))
        volume = self.begun(image_id=image_id)
        self.assertEqual('error', self.ended(volume))
        self.told(volume, 'is left to Cinder')

    def test_its_answer_always_breaks_off(self):
        image_id = self.image()
        self.proxy.put(self.data_of(image_id), Fault(cut_after=0))
        volume = self.begun(image_id=image_id)
        self.assertEqual('error', self.ended(volume))
        self.told(volume, 'is left to Cinder')

    def test_its_answer_stands_still(self):
        # As often as we ask. Cinder would wait for 600 s.
        content = corpus.noise(SIZE)
        image_id = self.image(content)
        fault = Fault(stall_after=0, times=ATTEMPTS)
        self.proxy.put(self.data_of(image_id), fault)
        volume = self.begun(image_id=image_id)
        self.assertEqual('available', self.ended(volume))
        self.told(volume, 'is left to Cinder')
        self.assert_content(volume, content)

    @ddt.data(
        ('breaks off', Fault(cut_after=units.Mi)),
        ('stands still', Fault(stall_after=units.Mi)),
    )
    @ddt.unpack
    def test_every_answer_after_a_mebibyte(self, _what, fault):
        content = corpus.noise(SIZE)
        image_id = self.image(content)
        self.proxy.put(self.data_of(image_id), fault)
        self.assert_made(image_id, content)
        # It was gone on with, not begun again.
        first, *others = self.glance.downloads(image_id)
        self.assertIsNone(first.range)
        self.assertEqual(4, len({other.range for other in others}))

    def test_it_tells_no_locations(self):
        # Nobody can know that it could be cloned; it is copied, once.
        content = corpus.noise(SIZE)
        image_id = self.stored(data=content)
        path = f'GET /v2/images/{image_id}/locations'
        self.proxy.put(path, Fault(403))
        for _twice in range(2):
            self.assert_made(image_id, content)
        first, second = self.glance.downloads(image_id)
        self.assertIsNone(first.range)
        # Of the second one, only whether it may be read is asked.
        self.assertIn('bytes=', second.range)

    @ddt.data(401, 500, 503)
    def test_it_fails_when_asked_for_locations(self, status):
        # It is Cinder that asks, and gives up.
        image_id = self.stored(data=corpus.noise(SIZE))
        path = f'GET /v2/images/{image_id}/locations'
        self.proxy.put(path, Fault(status))
        volume = self.begun(image_id=image_id)
        self.assertEqual('error', self.ended(volume))


class DeathCase(FaultCase):
    # Has Cinder take images for encrypted ones, of which we make nothing.
    settings: ClassVar = {
        **FaultCase.settings,
        **test_plugin_telling.TestKeys.settings,
    }

    def died(self):
        self.cinder.kill()
        self.proxy.clear()
        self.cinder.restart()

    def restarted(self, volume):
        self.died()
        self.assertEqual('error', self.ended(volume))
        self.cinder.delete_volume(volume)

    def reset(self, volume, status):
        """Have an administrator give a volume a status that it had.

        Cinder does so itself only after it was killed while it made one.
        """
        self.assertEqual(status, self.cinder.show(volume)['status'])
        self.cinder.act(volume, 'os-reset_status', status='available')


class TestDeaths(DeathCase):
    def test_while_a_base_is_made(self):
        content = corpus.noise(SIZE)
        image_id = self.image(content)
        self.proxy.put(self.data_of(image_id), Fault(stall_after=units.Mi))
        volume = self.begun(image_id=image_id)
        self.proxy.wait_stalled()
        self.restarted(volume)
        self.assert_made(image_id, content)

    def test_while_a_clone_is_made(self):
        content = corpus.noise(SIZE)
        image_id = self.stored(data=content)
        self.addCleanup(self.cluster.resume, 'osd')
        self.cluster.pause('osd')
        volume = self.begun(image_id=image_id)
        time.sleep(TIMEOUT / 3)
        self.cinder.kill()
        self.cluster.resume('osd')
        self.restarted(volume)
        self.assert_made(image_id, content)

    def test_while_a_base_is_made_of_an_image_in_the_cluster(self):
        content = corpus.noise(LARGE)
        image_id = self.qcow2(content)
        volume = self.begun(image_id=image_id)
        self.wait_borrowed()
        self.restarted(volume)
        self.assertNotIn(f'Volume volume-{volume} was made', self.cinder.log)
        self.assert_made(image_id, content)

    def wait_borrowed(self):
        """Wait until QEMU is about to read an image in the cluster."""
        deadline = time.monotonic() + volume_api.LIMIT
        with rbd_place.opened(self.cluster, POOL) as ioctx:
            while BORROWED not in str(rbd.RBD().list(ioctx)):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.005)

    def test_while_cinder_copies(self):
        content = corpus.noise(SIZE)
        key = test_plugin_telling.KEY
        image_id = self.image(content, cinder_encryption_key_id=key)
        self.proxy.put(self.data_of(image_id), Fault(stall_after=units.Mi))
        volume = self.begun(image_id=image_id)
        self.proxy.wait_stalled()
        self.told(volume, 'is left to Cinder')
        self.restarted(volume)
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content)

    def test_while_a_volume_is_reimaged(self):
        content = corpus.noise(SIZE)
        volume = self.created(image_id=self.image())
        image_id = self.image(content)
        self.proxy.put(self.data_of(image_id), Fault(stall_after=units.Mi))
        self.cinder.act(volume, 'os-reimage', image_id=image_id)
        self.proxy.wait_stalled()
        self.died()
        self.reset(volume, 'downloading')
        self.cinder.act(volume, 'os-reimage', image_id=image_id)
        self.assertEqual('available', self.ended(volume))
        self.assert_content(volume, content, self.parent(volume))


class TestDeathOfUpload(DeathCase):
    """Without anything between, which would not pass on what is uploaded."""

    attaches = True

    @classmethod
    def asked(cls):
        super().asked()
        return cls.glance

    def test_while_a_volume_is_made_an_image(self):
        volume = self.created(image_id=self.stored(data=corpus.noise(SIZE)))
        image_id = self.uploaded(volume)
        self.until(lambda: self.status(image_id) == 'saving')
        self.died()
        # Nobody takes half an image for one.
        self.until(lambda: self.status(image_id) == 'queued')
        self.reset(volume, 'uploading')
        self.cinder.delete_volume(volume)

    def status(self, image_id):
        return self.glance.record(image_id)['status']


class TestDeleted(FaultCase):
    def test_while_it_is_made(self):
        image_id = self.image()
        self.proxy.put(self.data_of(image_id), Fault(stall_after=units.Mi))
        volume = self.begun(image_id=image_id)
        self.proxy.wait_stalled()
        self.cinder.act(volume, 'os-reset_status', status='error')
        self.cinder.delete_volume(volume)
        self.proxy.clear()
        self.until(
            lambda: f'Volume {volume}: create failed' in self.cinder.log
        )


class TestNoOsd(FaultCase):
    def test_it_comes_back(self):
        # Glance can still give this one, to Cinder too.
        content = corpus.noise(SIZE)
        image_id = self.image(content)
        self.addCleanup(self.cluster.resume, 'osd')
        self.cluster.pause('osd')
        volume = self.begun(image_id=image_id)
        status = self.ended(volume)
        self.cluster.resume('osd')
        self.assertEqual('error', status)
        self.cinder.delete_volume(volume)
        self.assert_made(image_id, content)


class TestBusy(FaultCase):
    """One volume that waits holds up no other."""

    options: ClassVar = {**FaultCase.options, 'cow_fetch_timeout': '60'}

    def test_others_are_served(self):
        content = corpus.noise(SIZE)
        slow, quick = self.image(content), self.stored(data=content)
        self.proxy.put(self.data_of(slow), Fault(stall_after=units.Mi))
        waiting = self.begun(image_id=slow)
        self.proxy.wait_stalled()
        for options in ({}, {'image_id': quick}):
            volume = self.begun(**options)
            self.assertEqual('available', self.ended(volume))
            self.cinder.delete_volume(volume)
        self.assertIn(self.cinder.show(waiting)['status'], UNDER_WAY)
        self.proxy.clear()
        self.assertEqual('available', self.ended(waiting))
        self.assert_content(waiting, content, self.parent(waiting))


class TestBusyNative(TestBusy):
    native = True

    def test_it_is_native(self):
        self.assertIn('with native threading', self.cinder.log)
