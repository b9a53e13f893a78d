# SPDX-License-Identifier: Apache-2.0
"""The mixin: candidates in order, failures kept, nothing left half-made."""

import contextlib
import dataclasses
from typing import Any

import fixtures
import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import outcome as outcomes
from cinder_cow import plan as plans
from cinder_cow.drivers import bases
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason

SIZE = 1024 * 1024


class Source:
    """An image in memory."""

    label = 'an image'

    def __init__(self, content):
        self.content = content
        self.size = len(content)

    def head(self, length):
        return self.content[:length]

    def tail(self, length):
        return self.content[-length:]

    def pieces(self):
        yield self.content

    def check_unchanged(self):
        pass


class FailingDriver(memory.MemoryDriver):
    """Fails at chosen calls, and tells all that were made."""

    def __init__(self, failing=(), **options):
        super().__init__(**options)
        self.failing = failing
        self.calls = []

    def step(self, name):
        self.calls.append(name)
        if name in self.failing or len(self.calls) in self.failing:
            raise exception.BackendError.because(
                Reason.BACKEND_ERROR, backend='memory', problem=name
            )

    def begin_base(self, key, size):
        self.step('begin_base')
        begun = super().begin_base(key, size)
        return begun if isinstance(begun, bases.Base) else Sink(self, begun)

    def open(self, volume_name, size):
        self.step('open')
        return Sink(self, super().open(volume_name, size))

    def clone(self, image_info, volume_name):
        self.step('clone')
        return super().clone(image_info, volume_name)


class Sink:
    """A sink of a FailingDriver."""

    zeroed = True
    kept = 0

    def __init__(self, driver, sink):
        self.driver = driver
        self.sink = sink

    def __getattr__(self, name):
        call = getattr(self.sink, name)

        def step(*args):
            if name != 'abort':
                self.driver.step(name)
            return call(*args)

        return step

    def __enter__(self):
        return self

    def __exit__(self, *why):
        self.sink.__exit__(*why)


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver, **settings):
        self.driver = driver
        self.settings = opts.Settings(**settings)


def content_of(driver, source):
    with driver.read(source) as reader:
        return reader.read(0, reader.size)


class ManagerTestCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.source = Source(b'A' * (SIZE // 2) + bytes(SIZE // 2))
        self.image = images.ImageInfo(
            id='image-1',
            name='an image',
            disk_format='raw',
            content_id='file:1',
        )

    def create(self, driver, name='v1', size=SIZE, **settings):
        return Manager(driver, **settings).create_volume_from_image(
            name, self.image, self.source, size
        )


class TestInit(ManagerTestCase):
    def init(self, error=None):
        seen: list[str] = []
        driver: Any = FailingDriver()

        def sweep():
            seen.append('swept')
            if error:
                raise error

        driver.sweep = sweep
        driver.orphans = driver.remove_orphans = lambda: iter(())
        thread = Manager(driver).init_handlers()
        thread.join(10)
        self.assertFalse(thread.is_alive())
        return seen

    def test_is_done_in_the_background(self):
        self.assertEqual(['swept'], self.init())

    def test_what_fails_is_logged(self):
        log = self.useFixture(fixtures.FakeLogger())
        error = exception.BackendError.because(
            Reason.BACKEND_ERROR, backend='memory', problem='no answer'
        )
        self.assertEqual(['swept'], self.init(error))
        self.assertIn('downloading', log.output)
        self.assertIn('no answer', log.output)


class TestManager(ManagerTestCase):
    def test_the_first_makes_the_base_and_the_second_clones_it(self):
        driver = FailingDriver()
        first, second = self.create(driver), self.create(driver, 'v2')
        self.assertIs(plans.Method.BASE, first.method)
        self.assertIs(plans.Method.BASE, second.method)
        self.assertTrue(first.base_made)
        self.assertFalse(second.base_made)
        self.assertEqual(SIZE // 2, first.bytes_copied)
        self.assertEqual(0, second.bytes_copied)
        self.assertEqual(['base', 'clone'], [p.name for p in first.phases])
        self.assertEqual(['clone'], [p.name for p in second.phases])
        self.assertEqual(first.location, second.location)
        for name in ('v1', 'v2'):
            self.assertEqual(self.source.content, content_of(driver, name))

    def test_a_clone_of_a_location_comes_first(self):
        driver = FailingDriver()
        self.create(driver)
        (made,) = driver.list_bases()
        self.image = self.image.at(made.location)
        outcome = self.create(driver, 'v2')
        self.assertIs(plans.Method.CLONE, outcome.method)
        self.assertEqual(str(made.location), outcome.location)

    def test_a_clone_that_fails_is_followed_by_a_copy_that_says_so(self):
        driver = FailingDriver(failing=['clone'])
        outcome = self.create(driver)
        self.assertIs(plans.Method.STREAM, outcome.method)
        self.assertEqual('', outcome.location)
        tried = [f for f in outcome.failures if f.tried]
        self.assertEqual(
            ['clone'], [f.refusal.facts['problem'] for f in tried]
        )
        self.assertIs(plans.Kind.PREPARE_BASE, tried[0].candidate.kind)
        # The base was made, and serves the next.
        driver.failing = []
        self.assertFalse(self.create(driver, 'v2').base_made)

    def test_refuse_never_copies(self):
        driver = FailingDriver(failing=['clone'])
        error = self.assertRaises(
            outcomes.NoCandidateError,
            self.create,
            driver,
            cow_fallback='refuse',
        )
        self.assertIn('clone', str(error))
        self.assertIn('cow_fallback = stream', str(error))
        self.assertNotIn('open', driver.calls)
        self.assertFalse(driver.exists('v1'))

    def test_the_switch_makes_full_copies(self):
        driver = FailingDriver()
        outcome = self.create(driver, cow_enabled=False)
        self.assertIs(plans.Method.STREAM, outcome.method)
        self.assertEqual([], list(driver.list_bases()))
        self.assertLessEqual(
            {Reason.COW_DISABLED},
            {f.refusal.reason for f in outcome.failures},
        )

    def test_an_image_at_fault_is_not_tried_again(self):
        driver = FailingDriver()
        self.image = dataclasses.replace(
            self.image, os_hash_algo='sha512', os_hash_value='00' * 64
        )
        error = self.assertRaises(exception.ImageError, self.create, driver)
        self.assertIs(Reason.HASH_MISMATCH, error.reason)
        self.assertEqual([], list(driver.list_bases()))
        self.assertNotIn('open', driver.calls)

    def test_a_name_in_use_makes_no_base(self):
        driver = FailingDriver()
        with driver.open('v1', SIZE) as writer:
            writer.close()
        error = self.assertRaises(exception.RequestError, self.create, driver)
        self.assertIs(Reason.VOLUME_EXISTS, error.reason)
        self.assertEqual([], list(driver.list_bases()))

    def test_what_stands_in_every_way_is_told_once(self):
        driver = FailingDriver()
        error = self.assertRaises(
            outcomes.NoCandidateError, self.create, driver, size=SIZE - 1
        )
        self.assertIs(Reason.VOLUME_TOO_SMALL, error.reason)
        self.assertEqual(1, str(error).count('needs'))
        self.assertNotIn('no base', str(error))
        self.assertEqual([], driver.calls)

    def test_undo_that_fails_is_kept(self):
        class Leaking(FailingDriver):
            def open(self, volume_name, size):
                sink = super().open(volume_name, size)
                sink.sink.abort = self.fail_to_abort
                return sink

            def fail_to_abort(self):
                raise RuntimeError('it is stuck')

        driver = Leaking(failing=['close', 'clone'])
        error = self.assertRaises(
            outcomes.NoCandidateError, self.create, driver
        )
        self.assertEqual(('it is stuck',), error.failures[-1].undo)

    def test_min_disk_counts(self):
        self.image = dataclasses.replace(self.image, min_disk=2 * 2**30)
        driver = FailingDriver()
        outcome = self.create(driver, size=None)
        self.assertEqual(2 * 2**30, outcome.volume.size)
        self.assertRaises(
            outcomes.NoCandidateError, self.create, driver, 'v2', 2**30
        )

    @hypothesis.settings(deadline=None)
    @hypothesis.given(failing=st.sets(st.integers(1, 12), max_size=3))
    def test_a_fault_at_any_step_leaves_a_whole_volume_or_none(self, failing):
        driver = FailingDriver(failing=failing)
        with contextlib.suppress(outcomes.NoCandidateError):
            self.create(driver)
        for name in [volume.name for volume in driver.list()]:
            self.assertEqual(self.source.content, content_of(driver, name))
        for made in driver.list_bases():
            self.assertEqual(
                self.source.content, content_of(driver, made.location)
            )
        self.assertEqual({}, driver._making)
        # And whatever happened, it can be tried again.
        driver.failing = ()
        if not driver.exists('v1'):
            self.create(driver)


class Model(stateful.RuleBasedStateMachine):
    """A driver and a dictionary of what its volumes must hold."""

    names = st.sampled_from(['a', 'b', 'c'])
    letters = st.sampled_from([b'A', b'B'])

    def __init__(self):
        super().__init__()
        self.driver = self.make_driver()
        self.model = {}

    def make_driver(self):
        return memory.MemoryDriver()

    def overwrite(self, name, data):
        self.driver._volumes[name].write(0, data)

    @stateful.rule(name=names, letter=letters, cow=st.booleans())
    def create(self, name, letter, cow):
        source = Source(letter * 3000 + bytes(200_000) + letter * 512)
        image = images.ImageInfo(
            id=letter.decode(),
            name='',
            disk_format='raw',
            content_id='1',
        )
        create = Manager(self.driver, cow_enabled=cow).create_volume_from_image
        size = 512 * 1024
        if name in self.model:
            with contextlib.suppress(exception.RequestError):
                create(name, image, source, size)
                raise AssertionError('the name was taken twice')
            return
        create(name, image, source, size)
        self.model[name] = source.content.ljust(size, b'\0')

    @stateful.rule(name=names)
    def delete(self, name):
        self.driver.delete(name)
        self.model.pop(name, None)

    @stateful.rule(name=names)
    def write(self, name):
        if name in self.model:
            data = b'x' * 4096
            self.overwrite(name, data)
            self.model[name] = data + self.model[name][len(data) :]

    @stateful.rule(name=names)
    def extend(self, name):
        if name in self.model:
            size = len(self.model[name]) + 65536
            self.driver.extend(name, size)
            self.model[name] = self.model[name].ljust(size, b'\0')

    @stateful.rule()
    def retire(self):
        for made in list(self.driver.list_bases()):
            with contextlib.suppress(exception.RequestError):
                self.driver.retire_base(made.name)

    @stateful.invariant()
    def volumes_hold_what_they_must(self):
        names = [volume.name for volume in self.driver.list()]
        assert names == sorted(self.model), names
        for name, content in self.model.items():
            assert content_of(self.driver, name) == content, name


TestModel = Model.TestCase
TestModel.settings = hypothesis.settings(
    deadline=None, max_examples=40, stateful_step_count=20
)
