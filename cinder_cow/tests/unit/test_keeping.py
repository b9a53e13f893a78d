# SPDX-License-Identifier: Apache-2.0
"""Which bases stay, and which are removed."""

import time
from typing import Any
from unittest import mock

import fixtures
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import opts
from cinder_cow.drivers import bases
from cinder_cow.drivers import memory
from cinder_cow.handlers import base
from cinder_cow.handlers import downloading
from cinder_cow.handlers import keeping
from cinder_cow.refusal import Reason

DAY = 86400
BLOCK = memory.BLOCK


class Driver(memory.MemoryDriver):
    """One whose bases may have children."""

    def __init__(self):
        super().__init__()
        self.parents = set()

    def retire_base(self, name):
        if name in self.parents:
            raise exception.RequestError.because(
                Reason.BASE_IN_USE, base=name, children='v1'
            )
        super().retire_base(name)


class KeepingCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.driver: Any = Driver()
        self.now = time.time()

    def make(self, image, days_ago=1.0, blocks=1, **changes):
        """Make a base that was made, and not used, so long ago."""
        key = bases.BaseKey(image, 'sha256:ab')
        with self.driver.begin_base(key, blocks * BLOCK) as writer:
            writer.write(b'x' * blocks * BLOCK)
            made = writer.publish(
                bases.BaseFacts(
                    key,
                    image,
                    'raw',
                    blocks * BLOCK,
                    '',
                    self.now - days_ago * DAY,
                )
            )
        if changes:
            self.driver.set_base_facts(made.name, **changes)
        return self.driver.find_base(key)

    def left(self):
        return [one.facts.image_name for one in self.driver.list_bases()]

    def keep(self, **limits):
        settings = opts.Settings(backend='memory', **limits)
        return self.told(keeping.keep_within_limits(self.driver, settings))

    def told(self, tidied):
        """Tell of each base why it should go, and what keeps it."""
        return {
            one.base.facts.image_name: (one.why, one.stays) for one in tidied
        }


class TestLimits(KeepingCase):
    def test_none(self):
        self.make('old', 10000)
        self.keep()
        self.assertEqual(['old'], self.left())

    def test_of_their_number(self):
        for days_ago in (1, 5, 3, 2):
            self.make(f'{days_ago} days', days_ago)
        self.assertEqual(
            {
                '5 days': ('there are 4 bases', ''),
                '3 days': ('there are 3 bases', ''),
            },
            self.keep(max_bases=2),
        )
        self.assertEqual(['1 days', '2 days'], self.left())

    def test_of_their_size(self):
        self.make('large', 2, blocks=8)
        self.make('older', 3, blocks=2)
        self.make('newer', 1, blocks=2)
        told = self.keep(max_bases_size=4 * BLOCK)
        self.assertEqual(
            ('all bases take 786432 bytes', ''), told.pop('older')
        )
        self.assertEqual(['large'], list(told))
        self.assertEqual(['newer'], self.left())

    def test_of_the_time_since_they_were_used(self):
        self.make('unused', 40)
        self.make('used', 40, last_used=self.now - 20 * DAY)
        self.make('new', 20)
        self.assertEqual(
            {'unused': ('it was not used for 40 days', '')},
            self.keep(max_base_idle=30 * DAY),
        )
        self.assertEqual(['used', 'new'], self.left())

    def test_what_is_pinned_stays(self):
        self.make('pinned', 40, pinned=True)
        self.make('other', 30)
        told = self.keep(max_bases=1, max_base_idle=DAY)
        self.assertEqual('it is pinned', told['pinned'][1])
        self.assertEqual(['pinned'], self.left())

    def test_what_has_children_stays(self):
        self.driver.parents.add(self.make('parent', 40).name)
        self.make('other', 30)
        told = self.keep(max_bases=1)
        self.assertIn('is the parent of v1', told['parent'][1])
        self.assertEqual(['parent'], self.left())

    def test_what_was_just_made_stays(self):
        # Whoever made it is about to clone it.
        self.driver.parents.add(self.make('parent', 40).name)
        self.make('new', 0)
        told = self.keep(max_bases=1)
        self.assertIn('used in the last 10 minutes', told['new'][1])
        self.assertEqual(['parent', 'new'], self.left())

    def test_what_cannot_be_removed_hinders_nothing(self):
        self.make('first', 2)
        self.make('second', 1)
        fails = mock.Mock(side_effect=[self.error(), None])
        with mock.patch.object(self.driver, 'retire_base', fails):
            told = self.keep(max_base_idle=3600)
        self.assertEqual(2, fails.call_count)
        self.assertIn('gone', told['first'][1])
        self.assertEqual('', told['second'][1])

    def test_a_back_end_that_does_not_answer(self):
        with mock.patch.object(
            self.driver,
            'list_bases',
            autospec=True,
            side_effect=self.error(),
        ):
            self.assertEqual({}, self.keep(max_bases=1))
            settings = opts.Settings(backend='memory', max_bases=1)
            self.assertRaises(
                exception.BackendError,
                keeping.remove_beyond_limits,
                self.driver,
                settings,
            )

    def error(self):
        return exception.BackendError.because(
            Reason.BACKEND_ERROR, backend='memory', problem='gone'
        )

    def test_are_kept_when_a_base_is_made(self):
        self.make('old', 2)
        settings = opts.Settings(backend='memory', max_bases=1)
        handler = downloading.Downloading(base.Backend(self.driver, settings))
        info = images.ImageInfo('new', 'new', 'raw', content_id='x')
        handler.fetch_image(info, Source(), BLOCK, lambda *told: None)
        self.assertEqual(['new'], self.left())


class Source:
    label = 'new'
    size = BLOCK

    def head(self, length):
        return bytes(BLOCK)

    def tail(self, length):
        return bytes(length)

    def pieces(self):
        yield bytes(BLOCK)

    def check_unchanged(self):
        pass


class TestUse(KeepingCase):
    def test_is_noted(self):
        made = self.make('image')
        keeping.note_use(self.driver, made)
        found = self.driver.find_base(made.facts.key)
        self.assertAlmostEqual(time.time(), found.facts.last_used, delta=60)

    def test_is_noted_once_an_hour(self):
        made = self.make('image', last_used=self.now - 60)
        keeping.note_use(self.driver, made)
        found = self.driver.find_base(made.facts.key)
        self.assertEqual(self.now - 60, found.facts.last_used)

    def test_of_a_base_that_went(self):
        made = self.make('image')
        self.driver.retire_base(made.name)
        keeping.note_use(self.driver, made)


class TestMissing(KeepingCase):
    def setUp(self):
        super().setUp()
        self.key = self.make('image').facts.key

    def note(self, is_missing=True, hours=0.0):
        """Note what Glance says so many hours from now."""
        found = self.driver.find_base(self.key)
        with mock.patch.object(
            time, 'time', autospec=True, return_value=self.now + hours * 3600
        ):
            return keeping.note_missing(self.driver, found, is_missing)

    def test_once_is_not_enough(self):
        self.assertIn('first 0 minutes ago', self.note().stays)
        self.assertEqual(['image'], self.left())

    def test_twice_within_an_hour_is_not_enough(self):
        self.note()
        self.assertIn('first 54 minutes ago', self.note(hours=0.9).stays)
        self.assertEqual(['image'], self.left())

    def test_twice_an_hour_apart(self):
        self.note()
        self.assertTrue(self.note(hours=1.1).removed)
        self.assertEqual([], self.left())

    def test_an_image_that_is_there_again(self):
        self.note()
        self.assertIsNone(self.note(is_missing=False, hours=0.5))
        self.assertFalse(self.note(hours=1.1).removed)
        self.assertEqual(['image'], self.left())

    def test_a_base_with_children_goes_after_the_last_of_them(self):
        (made,) = self.driver.list_bases()
        self.driver.parents.add(made.name)
        self.note()
        self.assertIn('parent of v1', self.note(hours=2).stays)
        self.driver.parents.clear()
        self.assertTrue(self.note(hours=3).removed)

    def test_a_pinned_base_stays(self):
        (made,) = self.driver.list_bases()
        self.driver.set_base_facts(made.name, pinned=True)
        self.note()
        self.assertEqual('it is pinned', self.note(hours=2).stays)
        self.assertEqual(['image'], self.left())

    def test_a_base_that_was_just_used_stays(self):
        (made,) = self.driver.list_bases()
        self.note()
        used = self.now + 2 * 3600 - 60
        self.driver.set_base_facts(made.name, last_used=used)
        self.assertIn('last 10 minutes', self.note(hours=2).stays)
        self.assertTrue(self.note(hours=3).removed)


class TestForgetMissing(KeepingCase):
    GONE = '00000000-0000-4000-8000-000000000001'
    THERE = '00000000-0000-4000-8000-000000000002'
    HIDDEN = '00000000-0000-4000-8000-000000000003'

    def test_only_those_that_glance_knows_to_be_gone(self):
        names = (self.GONE, self.THERE, self.HIDDEN, '/a/file')
        for name in names:
            self.make(name, missing_since=self.now - 2 * 3600)
        asked = []

        def exists(image_id):
            asked.append(image_id)
            return {self.GONE: False, self.THERE: True}.get(image_id)

        tidied = keeping.forget_missing(self.driver, exists)
        self.assertEqual(
            {self.GONE: ('its image is gone', '')}, self.told(tidied)
        )
        self.assertEqual([self.GONE, self.THERE, self.HIDDEN], asked)
        self.assertEqual([*names[1:]], self.left())
        since = [
            one.facts.missing_since > 0 for one in self.driver.list_bases()
        ]
        # What is there was never gone; of the others nothing is known.
        self.assertEqual([False, True, True], since)


class TestInit(KeepingCase):
    def test_sweeps_and_looks_at_each_base(self):
        made = self.make('image')
        seen = []

        class Swept(Driver):
            def sweep(self):
                seen.append('swept')

            def orphans(self):
                return iter(())

            def remove_orphans(self):
                return iter(())

            def cloneable(self, image_info):
                seen.append(image_info.locations[0].name)
                return super().cloneable(image_info)

        swept = Swept()
        swept._bases = self.driver._bases
        settings = opts.Settings(backend='memory')
        downloading.Downloading(base.Backend(swept, settings)).init()
        self.assertEqual(['swept', made.name], seen)

    def test_tells_of_a_base_that_cannot_be_read(self):
        made = self.make('image')
        log = self.useFixture(fixtures.FakeLogger())
        error = exception.BackendError.because(
            Reason.BACKEND_ERROR, backend='memory', problem='a bad disk'
        )
        settings = opts.Settings(backend='memory')
        handler = downloading.Downloading(base.Backend(self.driver, settings))
        handler.init()
        self.assertNotIn(made.name, log.output)
        with mock.patch.object(
            self.driver, 'read', autospec=True, side_effect=error
        ):
            handler.init()
        self.assertIn(f'Base {made.name}: ', log.output)
        self.assertIn('a bad disk', log.output)

    def test_is_done_within_limits(self):
        self.make('old', 40)
        settings = opts.Settings(backend='memory', max_base_idle=DAY)
        downloading.Downloading(base.Backend(self.driver, settings)).init()
        self.assertEqual([], self.left())
