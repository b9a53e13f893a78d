# SPDX-License-Identifier: Apache-2.0
"""Streams: the bytes arrive as they are, or nothing does."""

import hashlib
import random
import struct
import sys
import threading
import time
from typing import Any

import ddt
import hypothesis
from hypothesis import strategies as st
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import formats
from cinder_cow import image_info as images
from cinder_cow import sparse
from cinder_cow import streaming
from cinder_cow.drivers import bases
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason

GRANULE = sparse.GRANULE
HEAD = formats.HEAD


def noise(length, seed=3):
    data = bytearray(random.Random(seed).randbytes(length))
    data[510:512] = b'\1\2'[: max(0, length - 510)]
    return bytes(data)


NOISE = noise(HEAD)
QCOW2 = struct.pack('>4sIQIIQ', b'QFI\xfb', 3, 0, 0, 16, units.Gi)
# Holes, zeros in pages, data before and behind the end of the head.
CONTENT = (
    NOISE[: 5 * GRANULE]
    + bytes(7 * GRANULE + 5)
    + NOISE[:GRANULE]
    + bytes(HEAD)
    + NOISE[:-3]
    + bytes(2 * GRANULE)
    + b'end'
)
CUTS = st.lists(
    st.integers(0, len(CONTENT))
    | st.sampled_from([1, 511, 512, GRANULE, HEAD - 1, HEAD, HEAD + 1]),
    max_size=12,
)


def is_zeros(data):
    return not data.strip(b'\0')


def cut(content, places, holes):
    """Cut content into pieces at some places; zeros may become holes."""
    ends = [*sorted(places), len(content)]
    start = 0
    for end in ends:
        piece = content[start:end]
        yield len(piece) if holes and is_zeros(piece) else piece
        start = end


class Source:
    """An image in pieces; some may be errors."""

    label = 'a source'

    def __init__(self, pieces, size=None):
        self._pieces = list(pieces)
        self.size = sum(map(self._length, self._pieces))
        self.size = self.size if size is None else size
        self.read = 0

    @staticmethod
    def _length(piece):
        if isinstance(piece, BaseException):
            return 0
        return piece if isinstance(piece, int) else len(piece)

    def pieces(self):
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            self.read += self._length(piece)
            yield piece

    def head(self, length):
        whole = (
            bytes(piece) if isinstance(piece, int) else piece
            for piece in self._pieces
        )
        return b''.join(whole)[:length]

    def tail(self, length):
        return self.head(sys.maxsize)[-length:]

    def check_unchanged(self):
        pass


class Recorder:
    """A sink of any size that keeps what it was told."""

    zeroed = True

    def __init__(self):
        self.calls = []

    def write(self, data):
        self.calls.append(('write', bytes(data)))

    def skip(self, length):
        self.calls.append(('skip', length))

    def flush(self):
        pass

    def abort(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        pass


def image(disk_format='raw', content=None, **facts):
    if content is not None:
        facts['size'] = len(content)
        facts['os_hash_algo'] = 'sha512'
        facts['os_hash_value'] = hashlib.sha512(content).hexdigest()
    return images.ImageInfo(
        id='id', name='an image', disk_format=disk_format, **facts
    )


def ignore(phase, done, total):
    pass


class Case(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.driver: Any = memory.MemoryDriver()
        threads = set(threading.enumerate())
        # Whatever happened, no thread is left.
        self.addCleanup(
            lambda: self.assertEqual(threads, set(threading.enumerate()))
        )

    def stream(self, image, source, size=None, report=ignore):
        """Make the volume "v" of an image."""
        size = source.size if size is None else size
        with self.driver.open('v', size) as writer:
            filled = streaming.stream(writer, image, source, report)
            writer.close()
        return filled

    def content(self):
        with self.driver.read('v') as reader:
            return reader.read(0, reader.size)

    def assert_content(self, expected):
        """Compare MiBs, and print none of them."""
        found = self.content()
        self.assertEqual(len(expected), len(found))
        if expected != found:
            raise AssertionError('the volume has other bytes')

    def assert_refused(self, reasons, call, *args):
        try:
            call(*args)
        except exception.CowError as error:
            self.assertIn(error.reason, reasons)
            return error
        raise AssertionError(f'{reasons} was not raised')

    def assert_nothing_is_left(self):
        self.assertFalse(self.driver.exists('v'))
        self.assertEqual([], list(self.driver.list()))
        # Not even the name.
        with self.driver.open('v', 1) as writer:
            writer.close()
        self.driver.delete('v')


class TestStream(Case):
    @hypothesis.settings(deadline=None, max_examples=40)
    @hypothesis.given(CUTS, st.booleans())
    @hypothesis.example([1, 2, 3], False)
    @hypothesis.example(list(range(0, len(CONTENT), 50_001)), True)
    def test_how_it_is_cut_changes_no_bytes(self, places, holes):
        source = Source(cut(CONTENT, places, holes))
        filled = self.stream(image(content=CONTENT), source)
        self.assert_content(CONTENT)
        self.assertEqual(
            'sha512:' + hashlib.sha512(CONTENT).hexdigest(), filled.hash
        )
        self.assertEqual(len(CONTENT), source.read)
        # Of the zeros, what is not in a granule of zeros may be written.
        self.assertGreaterEqual(filled.bytes_copied, 6 * GRANULE + HEAD - 3)
        self.assertLessEqual(filled.bytes_copied, len(CONTENT))
        self.driver.delete('v')

    def test_small_images(self):
        for length in (1, 2, 511, 512, 513, 4096, GRANULE + 1):
            content = noise(length)
            filled = self.stream(image(content=content), Source([content]))
            self.assert_content(content)
            self.assertEqual(length, filled.bytes_copied)
            self.driver.delete('v')

    def test_a_volume_larger_than_the_image_ends_in_zeros(self):
        self.stream(image(), Source([NOISE]), size=HEAD + 12_345)
        self.assert_content(NOISE + bytes(12_345))

    def test_zeros_and_holes_are_skipped(self):
        sink = Recorder()
        data = NOISE[:GRANULE]
        source = Source(
            [5 * GRANULE, bytes(3 * GRANULE), data + bytes(GRANULE) + data]
        )
        filled = streaming.stream(sink, image(), source, ignore)
        self.assertEqual(
            [
                ('skip', 5 * GRANULE),
                ('skip', 3 * GRANULE),
                ('write', data),
                ('skip', GRANULE),
                ('write', data),
            ],
            sink.calls,
        )
        self.assertEqual(2 * GRANULE, filled.bytes_copied)

    def test_an_image_of_zeros_writes_nothing(self):
        for pieces in ([64 * units.Mi], [bytes(units.Mi)] * 5):
            sink = Recorder()
            filled = streaming.stream(sink, image(), Source(pieces), ignore)
            self.assertEqual(0, filled.bytes_copied)
            self.assertEqual({'skip'}, {kind for kind, _what in sink.calls})

    def test_progress_is_told(self):
        told = []
        source = Source(cut(CONTENT, range(0, len(CONTENT), 300_000), False))
        self.stream(
            image(), source, report=lambda *report: told.append(report)
        )
        done = [report[1] for report in told]
        self.assertEqual(sorted(done), done)
        self.assertGreater(len(set(done)), 5)
        self.assertEqual(len(CONTENT), done[-1])
        self.assertEqual({len(CONTENT)}, {report[2] for report in told})

    def test_nothing_claimed_is_no_hash(self):
        filled = self.stream(image(), Source([NOISE]))
        self.assertEqual('', filled.hash)


@ddt.ddt
class TestRefusal(Case):
    def check(self, reasons, image, source, size=None):
        """Stream into a volume, and into a base: nothing may be left."""
        self.assert_refused(reasons, self.stream, image, source, size)
        self.assert_nothing_is_left()
        key = bases.BaseKey('id', 'sha512:1')
        size = source.size if size is None else size
        with self.driver.begin_base(key, size) as writer:
            error = self.assert_refused(
                reasons, streaming.stream, writer, image, source, ignore
            )
        self.assertIsNone(self.driver.find_base(key))
        self.assertEqual([], list(self.driver.list_bases()))
        return error

    @ddt.named_data(
        ['one_piece', []],
        ['many_pieces', range(0, HEAD, 100_000)],
        ['one_byte_first', [1]],
        ['in_the_magic', [1, 2, 3, 4]],
        ['in_the_header', [511]],
        ['cut_at_the_head', [HEAD]],
    )
    def test_a_qcow2_that_claims_to_be_raw(self, places):
        content = QCOW2 + NOISE + NOISE
        sink = Recorder()
        source = Source(cut(content, places, False))
        self.assert_refused(
            {Reason.FORMAT_MISMATCH},
            streaming.stream,
            sink,
            image(content=content),
            source,
            ignore,
        )
        self.assertEqual([], sink.calls)
        self.check(
            {Reason.FORMAT_MISMATCH},
            image(),
            Source(cut(content, places, False)),
        )

    def test_no_more_than_the_head_is_read_before_it_is_refused(self):
        source = Source([QCOW2] + [NOISE[:100_000]] * 100)
        sink = Recorder()
        self.assert_refused(
            {Reason.FORMAT_MISMATCH},
            streaming.stream,
            sink,
            image(),
            source,
            ignore,
        )
        self.assertLess(source.read, HEAD + 100_000)

    def test_a_qcow2_behind_a_hole_is_raw(self):
        content = bytes(512) + QCOW2 + NOISE
        self.stream(image(), Source([512, QCOW2 + NOISE]))
        self.assert_content(content)

    @ddt.data('qcow2', 'iso', 'luks', 'gpt', 'vmdk', '')
    def test_another_claim(self, claimed):
        sink = Recorder()
        try:
            streaming.stream(sink, image(claimed), Source([NOISE]), ignore)
        except exception.ImageError as error:
            self.assertIn(
                error.reason,
                (Reason.FORMAT_MISMATCH, Reason.FORMAT_UNSUPPORTED),
            )
        else:
            raise AssertionError('it was streamed')
        self.assertEqual([], sink.calls)

    def test_no_bytes(self):
        for pieces in ([], [b''], [0], [b'', 0, b'']):
            self.check({Reason.EMPTY_IMAGE}, image(), Source(pieces), 10)

    @ddt.named_data(
        ['last_byte', CONTENT[:-1] + b'D'],
        ['first_byte', b'?' + CONTENT[1:]],
        ['cut', CONTENT[:-1]],
        ['longer', CONTENT + b'\0'],
        ['zeros', bytes(len(CONTENT))],
    )
    def test_a_hash_mismatch(self, found):
        size = len(CONTENT) + 10
        for facts in (
            {'content': CONTENT},
            {'checksum': hashlib.md5(CONTENT).hexdigest()},
        ):
            source = Source(cut(found, range(0, len(found), 500_000), True))
            self.check({Reason.HASH_MISMATCH}, image(**facts), source, size)

    def test_an_unknown_hash_stops_it_first(self):
        source = Source([NOISE])
        facts = {'os_hash_algo': 'sha999', 'os_hash_value': '00'}
        self.check({Reason.HASH_UNKNOWN}, image(**facts), source)
        self.assertEqual(0, source.read)

    @ddt.data(1, 511, GRANULE, HEAD - 1)
    def test_a_source_that_is_shorter(self, missing):
        source = Source([NOISE[missing:]])
        error = self.check(
            {Reason.IMAGE_CORRUPT}, image(size=HEAD), source, size=HEAD
        )
        self.assertIn(str(HEAD), str(error))
        self.assertIn(str(HEAD - missing), str(error))

    @ddt.data(1, 511, GRANULE, HEAD)
    def test_a_source_that_is_longer(self, more):
        for piece in (bytes([1]) * more, more):
            self.check(
                {Reason.IMAGE_CORRUPT},
                image(size=HEAD),
                Source([NOISE, piece]),
                size=4 * HEAD,
            )

    @ddt.data(1, 511, GRANULE, HEAD)
    def test_a_source_that_is_longer_than_the_volume(self, more):
        """A server may send more than the record says."""
        for pieces in (
            [NOISE, bytes([1]) * more],
            [NOISE, more],
            [NOISE + bytes([1]) * more],
        ):
            self.check(
                {Reason.IMAGE_CORRUPT, Reason.IMAGE_CHANGED},
                image(size=HEAD),
                Source(pieces, size=HEAD),
                size=HEAD,
            )


@ddt.ddt
class TestFailure(Case):
    """What fails half way leaves nothing, and comes through as it is."""

    def error(self):
        return exception.BackendError.because(
            Reason.BACKEND_ERROR, backend='x', problem='reading failed'
        )

    @ddt.data(0, 1, HEAD, HEAD + GRANULE)
    def test_of_the_source(self, before):
        for error in (self.error(), OSError('bad'), KeyboardInterrupt()):
            content = CONTENT[:before]
            source = Source([content, error, CONTENT], size=len(CONTENT))
            try:
                self.stream(image(content=CONTENT), source)
            except BaseException as found:  # noqa: BLE001 - compared
                self.assertIs(error, found)
            else:
                raise AssertionError('the error was lost')
            self.assert_nothing_is_left()

    def test_of_the_sink(self):
        self.driver = memory.MemoryDriver(capacity=2 * units.Mi)
        source = Source(cut(CONTENT, range(0, len(CONTENT), 300_000), True))
        self.assert_refused(
            {Reason.NO_SPACE}, self.stream, image(content=CONTENT), source
        )
        self.assert_nothing_is_left()

    def test_of_progress(self):
        def fail(phase, done, total):
            raise KeyError(phase)

        self.assertRaises(
            KeyError, self.stream, image(), Source([NOISE]), None, fail
        )
        self.assert_nothing_is_left()

    def test_a_finished_one_is_kept(self):
        self.stream(image(content=CONTENT), Source([CONTENT]))
        self.assertRaises(
            exception.RequestError,
            self.stream,
            image(),
            Source([NOISE]),
        )
        self.assert_content(CONTENT)


class TestBase(Case):
    def test_has_the_same_bytes(self):
        key = bases.BaseKey('id', 'sha512:1')
        with self.driver.begin_base(key, len(CONTENT)) as writer:
            filled = streaming.stream(
                writer, image(content=CONTENT), Source([CONTENT]), ignore
            )
            made = writer.publish(
                bases.BaseFacts(
                    key=key,
                    image_name='an image',
                    source_format='raw',
                    content_size=len(CONTENT),
                    hash=filled.hash,
                    made_at=time.time(),
                )
            )
        with self.driver.read(made.location) as reader:
            self.assertEqual(len(CONTENT), reader.size)
            found = reader.read(0, reader.size)
        self.assertEqual(
            filled.hash, 'sha512:' + hashlib.sha512(found).hexdigest()
        )


@ddt.ddt
class TestCheckHead(test_base.BaseTestCase):
    @ddt.named_data(
        ['raw', 'raw', NOISE, None],
        ['one_byte', 'raw', b'x', None],
        ['qcow2', 'qcow2', QCOW2.ljust(512, b'\0'), None],
        ['empty', 'raw', b'', Reason.EMPTY_IMAGE],
        ['mismatch', 'qcow2', NOISE, Reason.FORMAT_MISMATCH],
        ['unsupported', 'qed', NOISE, Reason.FORMAT_UNSUPPORTED],
        [
            'unsafe',
            'qcow2',
            (QCOW2[:8] + b'\1' * 8 + QCOW2[16:]).ljust(512, b'\0'),
            Reason.BACKING_FILE,
        ],
    )
    def test_answers(self, claimed, head, expected):
        found = None
        try:
            streaming.check_head(image(claimed), head)
        except exception.ImageError as error:
            found = error.reason
        self.assertEqual(expected, found)
