# SPDX-License-Identifier: Apache-2.0
"""Hashes: of all bytes and holes, compared, in a thread that ends."""

import hashlib
import threading
import time
from typing import Any

import ddt
import hypothesis
from hypothesis import strategies as st
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow.refusal import Reason
from cinder_cow.tests import green

# Of 1 GiB of zeros.
SHA256_OF_A_GIB = (
    '49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14'
)
MD5_OF_ABC = '900150983cd24fb0d6963f7d28e17f72'
PIECES = st.lists(
    st.binary(max_size=3000)
    | st.integers(0, 3000)
    | st.sampled_from([units.Mi - 1, units.Mi, units.Mi + 1, 3 * units.Mi]),
    max_size=12,
)


def image(**hashes):
    return images.ImageInfo(
        id='id', name='an image', disk_format='raw', **hashes
    )


def sha512_image(content):
    return image(
        os_hash_algo='sha512',
        os_hash_value=hashlib.sha512(content).hexdigest(),
    )


def check(image, pieces):
    with hashing.hasher(image) as hasher:
        for piece in pieces:
            hasher.update(piece)
        return hasher.check()


def failing(count, kind):
    """Give some pieces, and then an error."""
    for _turn in range(count):
        yield bytes(units.Mi)
    raise kind


def threads():
    return set(threading.enumerate())


class Case(test_base.BaseTestCase):
    def assert_refused(self, reason, call, *args):
        try:
            call(*args)
        except exception.ImageError as error:
            self.assertIs(reason, error.reason)
            return str(error)
        raise AssertionError(f'{reason} was not raised')


@ddt.ddt
class TestHash(Case):
    @hypothesis.settings(deadline=None, max_examples=60)
    @hypothesis.given(PIECES)
    def test_is_of_all_bytes_and_holes(self, pieces):
        content = b''.join(
            bytes(piece) if isinstance(piece, int) else piece
            for piece in pieces
        )
        digest = hashlib.sha512(content).hexdigest()
        self.assertEqual(
            f'sha512:{digest}', check(sha512_image(content), pieces)
        )
        self.assert_refused(
            Reason.HASH_MISMATCH,
            check,
            sha512_image(content),
            [*pieces, b'\1'],
        )

    def test_a_hole_is_zeros(self):
        image = sha512_image(b'a' + bytes(3 * units.Mi + 1) + b'b')
        self.assertTrue(check(image, [b'a', 3 * units.Mi + 1, b'b']))
        for pieces in (
            [b'a', b'b'],
            [b'a', 3 * units.Mi, b'b'],
            [b'a', 3 * units.Mi + 2, b'b'],
        ):
            self.assert_refused(Reason.HASH_MISMATCH, check, image, pieces)

    @ddt.data('md5', 'sha1', 'sha256', 'sha384', 'sha512', 'sha3_512')
    def test_algorithms(self, algorithm):
        value = hashlib.new(algorithm, b'abc').hexdigest()
        claimed = image(os_hash_algo=algorithm, os_hash_value=value)
        self.assertEqual(f'{algorithm}:{value}', check(claimed, [b'abc']))
        claimed = image(os_hash_algo=algorithm, os_hash_value=value.upper())
        self.assertEqual(f'{algorithm}:{value}', check(claimed, [b'abc']))

    def test_the_order_of_pieces_counts(self):
        pieces = [bytes([number]) * 70_000 for number in range(1, 40)]
        claimed = sha512_image(b''.join(pieces))
        self.assertTrue(check(claimed, pieces))
        self.assert_refused(Reason.HASH_MISMATCH, check, claimed, pieces[::-1])

    def test_check_can_be_asked_twice(self):
        with hashing.hasher(image(checksum=MD5_OF_ABC)) as hasher:
            hasher.update(b'abc')
            self.assertEqual(hasher.check(), hasher.check())


@ddt.ddt
class TestClaim(Case):
    def test_old_images_have_an_md5_checksum(self):
        claimed = image(checksum=MD5_OF_ABC)
        self.assertEqual(('md5', MD5_OF_ABC), hashing.expected(claimed))
        self.assertEqual(f'md5:{MD5_OF_ABC}', check(claimed, [b'abc']))

    def test_the_better_hash_is_taken(self):
        value = hashlib.sha512(b'abc').hexdigest()
        claimed = image(
            checksum='0' * 32, os_hash_algo='sha512', os_hash_value=value
        )
        self.assertEqual(f'sha512:{value}', check(claimed, [b'abc']))

    @ddt.data(
        {},
        {'os_hash_algo': 'sha512'},
        {'os_hash_value': '00'},
        {'os_hash_algo': 'nonsense', 'os_hash_value': ''},
        {'checksum': ''},
    )
    def test_nothing_is_claimed(self, hashes):
        before = threads()
        claimed = image(**hashes)
        self.assertIsNone(hashing.expected(claimed))
        with hashing.hasher(claimed) as hasher:
            hasher.update(b'abc')
            hasher.update(5)
            self.assertEqual(before, threads())
            self.assertEqual('', hasher.check())

    def test_half_a_hash_leaves_the_checksum(self):
        for half in ({'os_hash_algo': 'sha512'}, {'os_hash_value': '00'}):
            claimed = image(checksum=MD5_OF_ABC, **half)
            self.assertEqual(('md5', MD5_OF_ABC), hashing.expected(claimed))

    def test_a_mismatch_tells_both(self):
        expected = '0' * 32
        message = self.assert_refused(
            Reason.HASH_MISMATCH, check, image(checksum=expected), [b'abc']
        )
        self.assertIn(f'md5 {MD5_OF_ABC}', message)
        self.assertIn(expected, message)
        self.assertIn("'an image'", message)

    def test_a_hash_is_compared_to_its_end(self):
        right = hashlib.sha512(b'abc').hexdigest()
        for value in (right[:-1], right + '0', right[:32], right[:-1] + 'e'):
            claimed = image(os_hash_algo='sha512', os_hash_value=value)
            self.assert_refused(Reason.HASH_MISMATCH, check, claimed, [b'abc'])

    @ddt.data('00', 'ab' * 63, 'ab' * 65)
    def test_a_hash_of_another_length(self, value):
        claimed = image(os_hash_algo='sha512', os_hash_value=value)
        self.assert_refused(Reason.HASH_MISMATCH, check, claimed, [b'abc'])

    @ddt.data(
        'sha999',
        '../x',
        'SHA-512',
        'sha512\0',
        'sha512 ',
        'ü',
        '\ud800',
        'x' * 100_000,
        # Their digests have any length: these hashes prove nothing.
        'shake_128',
        'shake_256',
    )
    def test_an_unknown_algorithm(self, algorithm):
        before = threads()
        claimed = image(
            os_hash_algo=algorithm, os_hash_value='00', checksum=MD5_OF_ABC
        )
        self.assert_refused(Reason.HASH_UNKNOWN, hashing.expected, claimed)
        self.assert_refused(Reason.HASH_UNKNOWN, check, claimed, [b'abc'])
        self.assertEqual(before, threads())

    @ddt.data('a\x1b[2J', 'a\n', '\u202e', '\ud800')
    def test_a_hostile_algorithm_is_told_safely(self, algorithm):
        message = self.assert_refused(
            Reason.HASH_UNKNOWN,
            hashing.expected,
            image(os_hash_algo=algorithm, os_hash_value='00'),
        )
        self.assertTrue(message.isprintable(), ascii(message))

    def test_a_long_algorithm_is_cut(self):
        message = self.assert_refused(
            Reason.HASH_UNKNOWN,
            hashing.expected,
            image(os_hash_algo='x' * 100_000, os_hash_value='00'),
        )
        self.assertLess(len(message), 5000)


class TestThread(Case):
    """It has ended when the block is left, however that is."""

    def setUp(self):
        super().setUp()
        self.before = threads()
        self.addCleanup(lambda: self.assertEqual(self.before, threads()))

    def test_hashes_in_its_own(self):
        with hashing.hasher(image(checksum=MD5_OF_ABC)) as hasher:
            self.assertEqual(1, len(threads() - self.before))
            hasher.update(b'abc')
        self.assertEqual(self.before, threads())

    def test_after_check(self):
        check(image(checksum=MD5_OF_ABC), [b'abc'])
        self.assertEqual(self.before, threads())

    def test_after_a_mismatch(self):
        for pieces in ([], [b'x'], [bytes(units.Mi)] * 20, [64 * units.Mi]):
            self.assert_refused(
                Reason.HASH_MISMATCH, check, image(checksum='0'), pieces
            )
            self.assertEqual(self.before, threads())

    def test_after_an_error_in_the_block(self):
        for kind in (KeyError, KeyboardInterrupt, GeneratorExit):
            for count in (0, 1, 20):
                pieces = failing(count, kind)
                self.assertRaises(kind, check, image(checksum='0'), pieces)
                self.assertEqual(self.before, threads())

    def test_after_a_signal_in_the_middle_of_waking_it(self):
        ended = threading.Event()

        def work():
            with hashing.hasher(image(checksum=MD5_OF_ABC)) as given:
                hasher: Any = given
                waiters = hasher._queue.not_empty._waiters
                stale = wait_for(waiters, None)
                hasher.update(b'abc')
                wait_for(waiters, stale)
                # So notify() leaves it that could not finish.
                waiters.appendleft(stale)
            ended.set()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self.assertTrue(ended.wait(10))
        thread.join()

    def test_green_threads_go_on(self):
        # All of it is one piece: in their thread they had no turn before
        # its end.
        told = green.call(green.hashes, length=units.Gi)
        self.assertEqual([f'sha256:{SHA256_OF_A_GIB}'], told['answers'])
        self.assertGreater(told['ticks'], 10)


def wait_for(waiters, other):
    """Wait until a thread waits, by another lock; return that."""
    while not waiters or waiters[0] is other:
        time.sleep(0.001)
    return waiters[0]
