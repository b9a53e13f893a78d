# SPDX-License-Identifier: Apache-2.0
"""Scrubs find what changed, read no holes, and take any manifest."""

import dataclasses
import hashlib
import os
from typing import Any
import zlib

import ddt
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import scrubbing
from cinder_cow.drivers import bases
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason

MIB = 2**20
PIECE = 4 * MIB


def quiet(phase, done, total):
    pass


def merged(extents):
    """Join neighbours of a kind, as most drivers tell them."""
    last = None
    for extent in extents:
        if last and last.hole is extent.hole:
            length = last.length + extent.length
            last = dataclasses.replace(last, length=length)
            continue
        if last:
            yield last
        last = extent
    if last:
        yield last


class Counting(memory.MemoryDriver):
    """Tells how many bytes of bases were read."""

    count = 0

    def read(self, source):
        reader = super().read(source)
        read = reader.read

        def counted(offset, length):
            self.count += length
            return read(offset, length)

        extents = merged(list(reader.extents()))
        reader.read = counted  # type: ignore[method-assign]
        reader.extents = lambda: extents  # type: ignore[method-assign]
        return reader


@ddt.ddt
class TestScrubbing(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.driver = Counting()

    def base(self, content, digest='', source_format='raw'):
        """Publish a base; zeros of its content are holes."""
        key = bases.BaseKey('image', f'x:{os.urandom(8).hex()}')
        facts = bases.BaseFacts(
            key, 'image', source_format, len(content), digest, 1.0
        )
        begun: Any = self.driver.begin_base(key, len(content))
        with begun as writer:
            for start in range(0, len(content), memory.BLOCK):
                block = content[start : start + memory.BLOCK]
                if any(block):
                    writer.write(block)
                else:
                    writer.skip(len(block))
            published: bases.Base = writer.publish(facts)
            return published

    def damage(self, base, offset):
        disk = self.driver._bases[base.name].disk
        byte = disk.read(offset, 1)[0]
        disk.write(offset, bytes([byte ^ 1]))

    def scrub(self, base):
        return scrubbing.scrub(self.driver, base, quiet)

    @ddt.data(
        1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + memory.BLOCK
    )
    def test_recorded_then_ok_then_damaged(self, size):
        base = self.base(os.urandom(size - 1) + b'x')
        self.assertEqual('recorded', self.scrub(base).state)
        found = self.scrub(base)
        self.assertEqual(('ok', ()), (found.state, found.damaged))
        self.assertEqual(size, found.bytes_read)
        self.damage(base, size - 1)
        found = self.scrub(base)
        last = (size - 1) // PIECE * PIECE
        self.assertEqual(('damaged', (last,)), (found.state, found.damaged))
        assert found.error is not None
        self.assertIs(Reason.BASE_CHANGED, found.error.reason)
        self.assertIn(str(last), str(found.error))

    def test_every_damaged_piece_is_named(self):
        base = self.base(os.urandom(12 * PIECE))
        self.scrub(base)
        for number in range(10):
            self.damage(base, number * PIECE + 17)
        found = self.scrub(base)
        self.assertEqual(tuple(n * PIECE for n in range(10)), found.damaged)
        self.assertIn('and 2 more', str(found.error))

    def test_holes_are_zeros_and_not_read(self):
        content = bytes(PIECE) + os.urandom(memory.BLOCK) + bytes(2 * PIECE)
        sparse = self.base(content)
        self.scrub(sparse)
        self.assertEqual(memory.BLOCK, self.driver.count)
        manifest = self.driver.base_manifest(sparse.name)
        expected = b''.join(
            hashlib.blake2b(
                content[start : start + PIECE], digest_size=16
            ).digest()
            for start in range(0, len(content), PIECE)
        )
        self.assertEqual(expected, zlib.decompress(manifest[26:]))

    def test_data_where_a_hole_was(self):
        base = self.base(os.urandom(PIECE) + bytes(2 * PIECE))
        self.scrub(base)
        self.damage(base, 2 * PIECE + 5)
        self.assertEqual((2 * PIECE,), self.scrub(base).damaged)

    def test_a_manifest_of_nothing_is_small(self):
        base = self.base(bytes(1024 * MIB))
        self.scrub(base)
        self.assertLess(len(self.driver.base_manifest(base.name)), 100)

    def test_the_hash_of_a_raw_image_is_compared_when_recording(self):
        content = os.urandom(PIECE) + bytes(PIECE)
        digest = 'sha256:' + hashlib.sha256(content).hexdigest()
        self.assertEqual(
            'recorded', self.scrub(self.base(content, digest)).state
        )
        base = self.base(content, digest)
        self.damage(base, PIECE + 1)
        found = self.scrub(base)
        self.assertEqual(('damaged', ()), (found.state, found.damaged))
        self.assertIn('sha256', str(found.error))
        # What is wrong is not recorded as right.
        self.assertEqual(b'', self.driver.base_manifest(base.name))

    def test_the_hash_of_what_was_converted_is_that_of_other_bytes(self):
        base = self.base(os.urandom(MIB), 'sha256:' + '0' * 64, 'qcow2')
        self.assertEqual('recorded', self.scrub(base).state)

    def flagged(self, base):
        """Return the base with its facts as they are now."""
        found = self.driver.find_base(base.facts.key)
        assert found is not None
        return found, found.facts.damaged

    def test_a_damaged_base_is_not_cloned_until_it_is_whole(self):
        base = self.base(os.urandom(PIECE))
        self.scrub(base)
        self.assertTrue(bases.check_state(self.driver, base))
        self.damage(base, 5)
        self.scrub(base)
        base, is_damaged = self.flagged(base)
        self.assertTrue(is_damaged)
        refused = bases.check_state(self.driver, base).refusal
        assert refused is not None
        self.assertIs(Reason.BASE_CHANGED, refused.reason)
        self.damage(base, 5)  # as it was
        self.assertEqual('ok', self.scrub(base).state)
        base, is_damaged = self.flagged(base)
        self.assertFalse(is_damaged)
        self.assertTrue(bases.check_state(self.driver, base))

    def test_a_person_may_say_that_it_is_right(self):
        base = self.base(os.urandom(PIECE))
        self.scrub(base)
        self.damage(base, 5)
        self.scrub(base)
        base, _ = self.flagged(base)
        scrubbing.record(self.driver, base, quiet)
        self.assertFalse(self.flagged(base)[1])

    def test_a_manifest_that_went_does_not_make_it_whole(self):
        content = os.urandom(PIECE)
        digest = 'sha256:' + hashlib.sha256(content).hexdigest()
        for known in ('', digest):
            base = self.base(content, known)
            self.scrub(base)
            self.damage(base, 5)
            self.scrub(base)
            self.driver.set_base_manifest(base.name, b'')
            base, _ = self.flagged(base)
            self.assertEqual('damaged', self.scrub(base).state)
            self.assertTrue(self.flagged(base)[1])
            self.assertEqual(b'', self.driver.base_manifest(base.name))
            self.damage(base, 5)  # as it was, which the hash can tell
            self.scrub(base)
            self.assertIs(not known, self.flagged(base)[1])

    @ddt.data('', 'sha256', 'whirlpool:12', 'sha256:')
    def test_a_hash_that_is_not_known(self, digest):
        self.assertEqual(
            'recorded', self.scrub(self.base(os.urandom(MIB), digest)).state
        )

    def manifests(self, good):
        """Tell manifests that are not right, by name."""
        header, digests = good[:26], zlib.decompress(good[26:])
        return {
            'text': b'hello',
            'cut': good[:-1],
            'only a header': header,
            'longer': good + b'x',
            'flipped': good[:-1] + bytes([good[-1] ^ 1]),
            'version': good[:13] + b'\x09' + good[14:],
            'no zlib': header + b'x' * 32,
            'fewer': header + zlib.compress(digests[16:]),
            'a bomb': header + zlib.compress(bytes(64 * MIB)),
        }

    def test_a_manifest_that_is_damaged_or_foreign(self):
        base = self.base(os.urandom(2 * PIECE))
        self.scrub(base)
        good = self.driver.base_manifest(base.name)
        for name, manifest in self.manifests(good).items():
            self.driver.set_base_manifest(base.name, manifest)
            error = self.assertRaises(exception.BackendError, self.scrub, base)
            self.assertIs(Reason.MANIFEST_DAMAGED, error.reason, name)
            self.assertIn(f'--record {base.name}', error.refusal.remedy)
        recorded = scrubbing.record(self.driver, base, quiet)
        self.assertEqual('recorded', recorded.state)
        self.assertEqual(good, self.driver.base_manifest(base.name))

    def test_a_manifest_of_another_size(self):
        base = self.base(os.urandom(PIECE))
        self.scrub(base)
        facts = dataclasses.replace(base.facts, content_size=PIECE - 1)
        other = dataclasses.replace(base, facts=facts)
        error = self.assertRaises(exception.BackendError, self.scrub, other)
        self.assertIs(Reason.MANIFEST_DAMAGED, error.reason)

    def test_a_base_that_is_shorter_than_its_content(self):
        base = self.base(os.urandom(PIECE))
        self.scrub(base)
        self.driver._bases[base.name].disk.size = PIECE - 512
        error = self.assertRaises(exception.BackendError, self.scrub, base)
        self.assertIs(Reason.BASE_CHANGED, error.reason)

    def test_what_lies_behind_the_content_does_not_count(self):
        base = self.base(os.urandom(PIECE))
        self.scrub(base)
        self.driver._bases[base.name].disk.size += PIECE
        self.assertEqual('ok', self.scrub(base).state)

    def test_progress_reaches_its_end(self):
        base = self.base(os.urandom(PIECE) + bytes(PIECE + 512))
        told = []
        scrubbing.scrub(self.driver, base, lambda *args: told.append(args))
        size = 2 * PIECE + 512
        self.assertEqual(('scrubbing', size, size), told[-1])
