# SPDX-License-Identifier: Apache-2.0
"""Signatures: compared with all bytes, once, before anything is cloned."""

import contextlib
import dataclasses
import hashlib
from typing import Any

import ddt

from cinder_cow import exception
from cinder_cow import hashing
from cinder_cow import image_location
from cinder_cow import outcome as outcomes
from cinder_cow import plan as plans
from cinder_cow import signing
from cinder_cow import sparse
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason
from cinder_cow.tests.unit import test_manager


class Signature:
    """Made of a hash: who has the bytes has the signature."""

    def __init__(self, content, algorithm='sha256', identity='mine'):
        self.algorithm = algorithm
        self.identity = identity
        self.expected = hashlib.new(algorithm, content).digest()
        self.checks = 0

    def check(self, digest):
        self.checks += 1
        if digest != self.expected:
            raise exception.ImageError.because(
                Reason.SIGNATURE_INVALID,
                image='an image',
                problem='its bytes are not those signed',
            )


class CountingSource(test_manager.Source):
    reads = 0

    def pieces(self):
        self.reads += 1
        return super().pieces()


class SigningTestCase(test_manager.ManagerTestCase):
    def setUp(self):
        super().setUp()
        self.source: CountingSource = CountingSource(self.source.content)
        digest = hashlib.sha512(self.source.content).hexdigest()
        self.image = dataclasses.replace(
            self.image, os_hash_algo='sha512', os_hash_value=digest
        )

    def signed(self, content=None, **options):
        """Give the image a signature, by default a good one."""
        content = self.source.content if content is None else content
        signature = Signature(content, **options)
        self.image = dataclasses.replace(self.image, signature=signature)
        return signature

    def refused(self, driver, **settings):
        """Create; it must be refused, and leave no volume."""
        error = self.assertRaises(
            exception.ImageError, self.create, driver, 'bad', **settings
        )
        self.assertIs(Reason.SIGNATURE_INVALID, error.reason)
        self.assertFalse(driver.exists('bad'))


@ddt.ddt
class TestHasher(SigningTestCase):
    def check(self):
        with hashing.hasher(self.image) as hasher:
            hasher.update(self.source.content[:1000])
            hasher.update(self.source.content[1000:])
            return hasher.check()

    @ddt.data('sha224', 'sha256', 'sha384', 'sha512')
    def test_beside_the_hash_that_is_claimed(self, algorithm):
        signature = self.signed(algorithm=algorithm)
        self.assertEqual(f'sha512:{self.image.os_hash_value}', self.check())
        self.assertEqual(1, signature.checks)
        self.signed(b'other bytes', algorithm=algorithm)
        error = self.assertRaises(exception.ImageError, self.check)
        self.assertIs(Reason.SIGNATURE_INVALID, error.reason)

    def test_without_one(self):
        self.image = dataclasses.replace(self.image, os_hash_algo=None)
        self.assertEqual('', self.check())
        signature = self.signed()
        digest = hashlib.sha256(self.source.content).hexdigest()
        self.assertEqual(f'sha256:{digest}', self.check())
        self.assertEqual(1, signature.checks)

    def test_what_is_claimed_comes_first(self):
        signature = self.signed()
        self.image = dataclasses.replace(self.image, os_hash_value='0' * 128)
        error = self.assertRaises(exception.ImageError, self.check)
        self.assertIs(Reason.HASH_MISMATCH, error.reason)
        self.assertEqual(0, signature.checks)


@ddt.ddt
class TestBases(SigningTestCase):
    def test_one_that_is_made(self):
        driver = memory.MemoryDriver()
        signature = self.signed()
        for name in ('v1', 'v2'):
            self.create(driver, name)
            self.assertEqual((1, 1), (self.source.reads, signature.checks))
        (made,) = driver.list_bases()
        self.assertEqual('mine', made.facts.signature)
        self.assertEqual('hash', made.facts.verified)

    def test_none_is_made_of_other_bytes(self):
        driver = memory.MemoryDriver()
        self.signed(b'other bytes')
        self.refused(driver)
        self.assertEqual([], list(driver.list_bases()))

    # Of sha512 it is known what the base was made of.
    @ddt.data(('sha256', 2), ('sha512', 1))
    @ddt.unpack
    def test_one_that_was_made_without(self, algorithm, reads):
        driver = memory.MemoryDriver()
        self.create(driver, 'v1')
        signature = self.signed(algorithm=algorithm)
        for name in ('v2', 'v3'):
            self.create(driver, name)
            self.assertEqual(reads, self.source.reads)
            self.assertEqual(1, signature.checks)
        (made,) = driver.list_bases()
        self.assertEqual('mine', made.facts.signature)
        self.signed(b'other', algorithm=algorithm, identity='another')
        self.refused(driver)

    def test_what_cannot_be_kept_is_verified_again(self):
        driver = memory.MemoryDriver()
        self.create(driver, 'v1')
        signature = self.signed()

        def set_base_facts(name, **changes):
            if 'signature' in changes:
                raise exception.BackendError.because(
                    Reason.BACKEND_ERROR, backend='memory', problem=name
                )

        broken: Any = driver
        broken.set_base_facts = set_base_facts
        for checks, name in enumerate(('v2', 'v3'), 1):
            self.create(driver, name)
            self.assertEqual(checks, signature.checks)

    def test_a_full_copy(self):
        driver = memory.MemoryDriver()
        self.signed()
        done = self.create(driver, cow_enabled=False)
        self.assertIs(plans.Method.STREAM, done.method)
        self.signed(b'other bytes')
        self.refused(driver, cow_enabled=False)


class Keeper(memory.MemoryDriver):
    """Has an image at a location, and remembers of it."""

    def __init__(self, content):
        super().__init__()
        self.content = content
        self.kept: set[str] = set()
        self.reads = 0

    def has_signature(self, image_info, identity):
        return identity in self.kept

    def keep_signature(self, image_info, identity):
        self.kept.add(identity)

    @contextlib.contextmanager
    def read_image(self, image_info):
        self.reads += 1
        yield Reader(self.content)


class Reader:
    def __init__(self, content):
        self.content = content
        self.size = len(content)

    def read(self, offset, length):
        return self.content[offset : offset + length]

    def extents(self):
        return iter([sparse.Extent(0, self.size, hole=False)])

    def close(self):
        pass


class TestLocations(SigningTestCase):
    location = image_location.from_record('rbd://f/p/i/s', {})

    def require(self, driver):
        signing.require_of_location(self.location, self.image, driver)

    def test_it_is_read_once(self):
        driver = Keeper(self.source.content)
        self.signed()
        self.require(driver)
        self.require(driver)
        self.assertEqual(1, driver.reads)

    def test_of_other_bytes_nothing_is_kept(self):
        driver = Keeper(self.source.content)
        self.signed(b'other bytes')
        error = self.assertRaises(exception.ImageError, self.require, driver)
        self.assertIs(Reason.SIGNATURE_INVALID, error.reason)
        self.assertEqual(set(), driver.kept)

    def test_a_driver_that_remembers_nothing(self):
        self.signed()
        error = self.assertRaises(
            exception.BackendError, self.require, memory.MemoryDriver()
        )
        self.assertIs(Reason.LOCATION_UNTRUSTED, error.reason)

    def test_nothing_is_asked_of_others(self):
        self.require(memory.MemoryDriver())


class TestCause(test_manager.ManagerTestCase):
    """What is told of many refusals: the one that a person can act on."""

    def test_of_a_copy(self):
        done = self.create(memory.MemoryDriver(), cow_enabled=False)
        self.assertIs(Reason.COW_DISABLED, done.refusal.reason)

    def test_of_a_base_that_is_the_first(self):
        self.assertIsNone(self.create(memory.MemoryDriver()).refusal)

    def test_of_a_refusal(self):
        error = self.assertRaises(
            outcomes.NoCandidateError,
            self.create,
            memory.MemoryDriver(),
            cow_enabled=False,
            cow_fallback='refuse',
        )
        self.assertIs(Reason.FALLBACK_REFUSED, error.reason)
        self.assertIs(Reason.COW_DISABLED, error.cause.reason)
