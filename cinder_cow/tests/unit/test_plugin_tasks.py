# SPDX-License-Identifier: Apache-2.0
"""What a volume service does beside its requests; no Cinder."""

import contextlib
import dataclasses
import threading
import time
from typing import Any
import uuid

import ddt
import fixtures
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import opts
from cinder_cow.drivers import bases
from cinder_cow.drivers import memory
from cinder_cow.handlers import keeping
from cinder_cow.plugin import tasks
from cinder_cow.refusal import Reason
from cinder_cow.tests.unit import test_manager

LIMIT = 60
BACKEND = 'm1'


class Client:
    """A Glance; what it does not have is gone."""

    def __init__(self):
        self.images = {}
        self.sources = []

    def exists(self, image_id):
        return image_id in self.images

    def image(self, image_id):
        if image_id not in self.images:
            raise exception.ImageError.because(
                Reason.IMAGE_NOT_FOUND, image=image_id, problem='it is gone'
            )
        return self.images[image_id]

    def source(self, image):
        self.sources.append(image.id)
        return contextlib.nullcontext(
            test_manager.Source(b'A' * test_manager.SIZE)
        )


@dataclasses.dataclass
class Glance:
    """One that is asked with the rights of Cinder.

    :param marked: ids, and what they are marked with
    """

    client: Client
    marked: dict[str, str]

    def public_images(self, most, name):
        assert name == 'cow_prepare'
        return list(self.marked.items())[:most]


class TasksTestCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger())
        self.driver: Any = memory.MemoryDriver(BACKEND)
        self.glance: Any = Glance(Client(), {})

    @contextlib.contextmanager
    def opened(self):
        yield self.glance

    def backend(self, **settings):
        backend: Any = test_manager.Manager(
            self.driver, backend=BACKEND, **settings
        )
        return backend


class TestRounds(TasksTestCase):
    def setUp(self):
        super().setUp()
        self.rounds = tasks.Rounds()
        self.seen = []

    def begun(self, work):
        if not self.rounds.begin('round', work):
            return None
        return self.rounds._running['round']

    def test_none_is_beside_itself(self):
        ends = threading.Event()
        self.addCleanup(ends.set)
        thread = self.begun(lambda: ends.wait(LIMIT))
        self.assertIsNone(self.begun(lambda: self.seen.append('early')))
        self.assertTrue(self.rounds.begin('another', lambda: None))
        ends.set()
        thread.join(LIMIT)
        self.begun(lambda: self.seen.append('after')).join(LIMIT)
        self.assertEqual(['after'], self.seen)

    def test_what_fails_is_logged_and_ends_no_others(self):
        def fail():
            raise ValueError('a bug')

        self.begun(fail).join(LIMIT)
        self.assertIn('a bug', self.log.output)
        self.begun(lambda: self.seen.append('after')).join(LIMIT)
        self.assertEqual(['after'], self.seen)


class TestTidy(TasksTestCase):
    def base(self, **changes):
        image_id = str(uuid.uuid4())
        key = bases.BaseKey(image_id, 'sha512:1')
        writer = self.driver.begin_base(key, memory.BLOCK)
        with writer:
            facts = bases.BaseFacts(key, 'i', 'raw', memory.BLOCK, '', 1)
            made = writer.publish(facts)
        self.driver.set_base_facts(made.name, **changes)
        return image_id

    def tidy(self, **limits):
        tasks.tidy(self.backend(**limits), self.opened)
        return {one.facts.key.image_id for one in self.driver.list_bases()}

    def test_images_that_are_gone(self):
        since = time.time() - keeping.GONE_SECONDS - 1
        self.base(missing_since=since)
        pinned = self.base(missing_since=since, pinned=True)
        noted = self.base()
        self.assertEqual({pinned, noted}, self.tidy())
        self.assertIn('its image is gone: it is pinned', self.log.output)

    def test_a_glance_that_is_down_keeps_no_limit_from_its_own(self):
        self.base()
        kept = self.base(last_used=2)

        def down():
            raise exception.RequestError.because(
                Reason.GLANCE_UNAVAILABLE, problem='it is down'
            )

        self.opened: Any = down
        self.assertEqual({kept}, self.tidy(max_bases=1))
        self.assertIn('it is down', self.log.output)

    def test_what_dead_makers_left(self):
        swept = []
        self.driver.sweep = lambda: swept.append(self.driver)
        self.driver.orphans = self.driver.remove_orphans = lambda: iter(())
        self.tidy()
        self.assertEqual([self.driver], swept)

    def test_what_keeps_no_bases(self):
        self.driver = object()
        tasks.tidy(self.backend(), self.opened)
        tasks.prepare(self.backend(), self.opened, 10)


@ddt.ddt
class TestPrepare(TasksTestCase):
    def mark(self, value, has_image=True):
        image_id = str(uuid.uuid4())
        self.glance.marked[image_id] = value
        if has_image:
            self.glance.client.images[image_id] = images.ImageInfo(
                image_id, 'an image', 'raw', content_id='glance:1'
            )
        return image_id

    def prepare(self, most=10, **settings):
        tasks.prepare(self.backend(**settings), self.opened, most)
        return {one.facts.key.image_id for one in self.driver.list_bases()}

    @ddt.data('true', ' True ', BACKEND, f'm0, {BACKEND} ,m2')
    def test_it_is_meant(self, value):
        image_id = self.mark(value)
        self.assertEqual({image_id}, self.prepare())

    @ddt.data('', 'false', 'm0', 'm11', 'true, m0', '1')
    def test_it_is_not_meant(self, value):
        self.mark(value)
        self.assertEqual(set(), self.prepare())

    def test_once(self):
        image_id = self.mark('true')
        self.prepare()
        self.assertEqual({image_id}, self.prepare())
        self.assertEqual([image_id], self.glance.client.sources)
        (made,) = self.driver.list_bases()
        self.assertTrue(self.driver.base_manifest(made.name))

    def test_one_that_fails_keeps_no_other_from_its_own(self):
        bad = self.mark('true', has_image=False)
        good = self.mark('true')
        self.assertEqual({good}, self.prepare())
        self.assertIn(f'Image {bad} was not prepared', self.log.output)

    def test_no_more_than_are_looked_at(self):
        first, _second = self.mark('true'), self.mark('true')
        self.assertEqual({first}, self.prepare(most=1))

    def test_a_back_end_without_clones(self):
        self.mark('true')
        self.assertEqual(set(), self.prepare(cow_enabled=False))


class TestOptions(test_base.BaseTestCase):
    def test_both_kinds_are_listed(self):
        ((group, found), (_backends, _found)) = opts.list_opts()
        self.assertEqual('DEFAULT', group)
        names = {option.name for option in found}
        self.assertIn('cow_tidy_interval', names)
        self.assertIn('cow_image_locality_ask_glance', names)
