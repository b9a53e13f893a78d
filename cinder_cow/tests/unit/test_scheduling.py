# SPDX-License-Identifier: Apache-2.0
"""What back ends tell a scheduler, and what it asks Glance; no Cinder."""

import threading
import uuid

from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info
from cinder_cow import opts
from cinder_cow.drivers import memory
from cinder_cow.plugin import base_digest
from cinder_cow.plugin import capabilities
from cinder_cow.plugin import image_places
from cinder_cow.refusal import Reason
from cinder_cow.tests import aged_bases

FSID = '6ad5d1f0-0d2c-4f43-9a6c-0b3f3c3a3b6e'
LIMIT = 60


def image_ids(count):
    return [str(uuid.uuid4()) for _ in range(count)]


class TestDigest(test_base.BaseTestCase):
    def test_it_holds_those_and_no_others(self):
        held, others = image_ids(768), image_ids(768)
        digest = base_digest.of(held)
        self.assertLessEqual(len(digest), 4 * units.Ki)
        self.assertTrue(
            all(base_digest.holds(digest, image_id) for image_id in held)
        )
        # One of them may be mistaken, once in ten thousand runs.
        found = [base_digest.holds(digest, image_id) for image_id in others]
        self.assertLess(sum(found), 2)

    def test_of_too_many_the_first(self):
        held = image_ids(2000)
        digest = base_digest.of(held)
        self.assertEqual(4 * units.Ki, len(digest))
        self.assertTrue(base_digest.holds(digest, held[767]))
        self.assertFalse(base_digest.holds(digest, held[768]))

    def test_what_is_none(self):
        (image_id,) = image_ids(1)
        digest = base_digest.of([image_id])
        for text in (None, '', 7, ['x'], '!', digest[:-3], 'ab', 'é' * 8):
            self.assertFalse(base_digest.holds(text, image_id), text)


class Driver(memory.MemoryDriver):
    """Does something before it lists its bases."""

    def __init__(self, backend):
        super().__init__(backend)
        self.before_list = lambda: None

    def list_bases(self):
        self.before_list()
        return super().list_bases()


class TestCapabilities(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.driver = Driver('m1')
        self.settings = opts.Settings()
        self.capabilities = capabilities.Capabilities()

    def told(self):
        return self.capabilities.told(self.driver, self.settings)

    def base(self, image_id, **changes):
        aged_bases.make(self.driver, image_id, **changes)

    def test_bases_that_can_be_cloned(self):
        good, bad = image_ids(2)
        self.base(good)
        self.base(bad, damaged=True)
        told = self.told()
        self.assertIs(True, told['cow_clone'])
        self.assertTrue(base_digest.holds(told['cow_bases'], good))
        self.assertFalse(base_digest.holds(told['cow_bases'], bad))

    def test_those_used_last_first(self):
        old, new = image_ids(2)
        self.base(old, last_used=100)
        self.base(new, last_used=200)
        self.assertEqual(base_digest.of([new, old]), self.told()['cow_bases'])

    def test_what_makes_no_clones(self):
        self.base(*image_ids(1))
        self.settings = opts.Settings(cow_enabled=False)
        self.assertEqual({'cow_clone': False}, self.told())

    def test_a_back_end_that_is_slow(self):
        (image_id,) = image_ids(1)
        self.base(image_id)
        answers, calls = threading.Event(), []
        self.addCleanup(answers.set)

        def slowly():
            calls.append(threading.current_thread())
            self.assertTrue(answers.wait(LIMIT))

        self.driver.before_list = slowly
        self.assertEqual('', self.told()['cow_bases'])
        self.assertEqual('', self.told()['cow_bases'])
        self.assertEqual(1, len(calls))
        answers.set()
        calls[0].join(LIMIT)
        self.assertEqual(base_digest.of([image_id]), self.told()['cow_bases'])

    def test_a_back_end_that_fails_is_told_as_it_was(self):
        (image_id,) = image_ids(1)
        self.base(image_id)
        before = self.told()

        def fail():
            raise exception.BackendError.because(
                Reason.BACKEND_ERROR, backend='m1', problem='it is down'
            )

        self.driver.before_list = fail
        self.assertEqual(before, self.told())


class TestImagePlaces(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.places = image_places.ImagePlaces()
        (self.image_id,) = image_ids(1)
        self.asked = 0

    def image(self):
        self.asked += 1
        url = f'rbd://{FSID}/images/{self.image_id}/snap'
        record = {
            'id': self.image_id,
            'disk_format': 'qcow2',
            'locations': [{'url': url}, {'url': 'no location'}],
        }
        return image_info.ImageInfo.from_glance(record)

    def failed(self):
        self.asked += 1
        raise OSError('no route to host')

    def find(self, ask, patience=LIMIT):
        return self.places.find(self.image_id, ask, patience)

    def test_it_is_asked_once(self):
        found = self.find(self.image)
        self.assertTrue(found.converted)
        self.assertIn(f'rbd://{FSID}/images/{self.image_id}/snap', found.urls)
        self.assertEqual(found, self.find(self.failed))
        self.assertEqual(1, self.asked)

    def test_that_it_failed_is_remembered_too(self):
        self.assertIsNone(self.find(self.failed))
        self.assertIsNone(self.find(self.image))
        self.assertEqual(1, self.asked)

    def slow(self):
        """Give a question that is answered when an event is set."""
        answers = threading.Event()
        self.addCleanup(answers.set)

        def slowly():
            self.assertTrue(answers.wait(LIMIT))
            return self.image()

        return slowly, answers

    def test_it_is_not_waited_for_longer_than_allowed(self):
        slowly, answers = self.slow()
        self.assertIsNone(self.find(slowly, patience=0.1))
        self.assertIsNone(self.find(slowly))
        (asking,) = self.places._asking.values()
        answers.set()
        asking.thread.join(LIMIT)
        self.assertTrue(self.find(self.failed).converted)
        self.assertEqual(1, self.asked)

    def test_few_at_a_time(self):
        slowly, _answers = self.slow()
        for image_id in image_ids(20):
            self.places.find(image_id, slowly, 0)
        self.assertEqual(8, len(self.places._asking))
        self.assertIsNone(self.find(self.image))
