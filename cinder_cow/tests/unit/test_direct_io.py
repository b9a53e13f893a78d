# SPDX-License-Identifier: Apache-2.0
"""The direct writer: what was written is there, and no error is forgotten."""

from concurrent import futures
import contextlib
import errno
import mmap
import os
import pathlib
import random
import resource
import threading

import ddt
import fixtures
import hypothesis
from hypothesis import strategies as st
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import direct_io

BUFFER = direct_io.BUFFER
PAGE = direct_io.ALIGNMENT
# Every place has bytes of its own: what is written elsewhere is found.
NOISE = random.Random(2).randbytes(12 * units.Mi)

LENGTH = (
    st.integers(0, 2 * PAGE)
    | st.sampled_from([512, PAGE, 3 * PAGE, 64 * units.Ki, BUFFER])
    | st.builds(
        int.__add__,
        st.sampled_from([PAGE, BUFFER, 2 * BUFFER]),
        st.sampled_from([-PAGE, -512, -1, 1, 512, PAGE]),
    )
)
STEPS = st.lists(
    st.tuples(st.sampled_from(['write', 'skip']), LENGTH)
    | st.just(('flush', 0)),
    max_size=10,
)


@contextlib.contextmanager
def no_file_beyond(size):
    """Let this process write no file beyond a size: EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def open_files():
    return len(os.listdir('/proc/self/fd'))


def cached_pages(descriptor, size):
    """Count the pages of a file that can be read without any I/O."""
    # Or looking at one page would read those behind it.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    count = 0
    for offset in range(0, size, PAGE):
        with contextlib.suppress(BlockingIOError):
            os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
            count += 1
    return count


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class Case(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)

    def descriptor(self, name='image'):
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        return os.open(self.path / name, flags, 0o600)

    def writer(self, size):
        writer = direct_io.DirectWriter(self.descriptor(), size)
        self.addCleanup(writer.close)
        return writer

    def content(self):
        return (self.path / 'image').read_bytes()

    def assert_same(self, expected, found):
        """Compare MiBs, and print none of them."""
        self.assertEqual(len(expected), len(found))
        if expected != found:
            pairs = enumerate(zip(expected, found, strict=True))
            place = next(place for place, (a, b) in pairs if a != b)
            raise AssertionError(f'byte {place} is another')


def carry_out(writer, steps):
    """Do steps with a writer; return what the file must hold."""
    model = bytearray()
    for kind, length in steps:
        if kind == 'write':
            data = NOISE[len(model) : len(model) + length]
            writer.write(data)
            model += data
        elif kind == 'skip':
            writer.skip(length)
            model += bytes(length)
        else:
            writer.flush()
    return bytes(model)


def fitting(steps):
    """Leave out what the noise is too short for."""
    room, kept = len(NOISE), []
    for kind, length in steps:
        if length <= room:
            room -= length
            kept.append((kind, length))
    return kept, len(NOISE) - room


class TestContent(Case):
    def check(self, steps, behind=0):
        steps, size = fitting(steps)
        size += behind
        writer = self.writer(size)
        expected = carry_out(writer, steps).ljust(size, b'\0')
        writer.flush()
        # What is flushed is there, whether or not it is closed.
        self.assert_same(expected, self.content())
        writer.close()
        self.assert_same(expected, self.content())

    @hypothesis.settings(deadline=None, max_examples=60)
    @hypothesis.given(STEPS, st.integers(0, 2 * PAGE))
    @hypothesis.example([('write', 5), ('skip', 5), ('write', 2 * BUFFER)], 0)
    @hypothesis.example([('write', 9 * BUFFER + 1)], 0)
    def test_is_what_was_written(self, steps, behind):
        self.check(steps, behind)

    def test_many_small_writes(self):
        self.check([('write', 777)] * 4000)

    def test_many_writes_and_skips_in_one_page(self):
        self.check([('write', 10), ('skip', 10)] * 500)

    def test_where_there_is_no_direct_writing(self):
        """A file in memory; older kernels do not write it directly."""
        descriptor = os.memfd_create('image')
        reading = os.dup(descriptor)
        self.addCleanup(os.close, reading)
        steps = [('write', 5), ('skip', PAGE), ('write', 3 * BUFFER + 1)]
        _steps, size = fitting(steps)
        writer = direct_io.DirectWriter(descriptor, size)
        self.addCleanup(writer.close)
        expected = carry_out(writer, steps)
        writer.flush()
        self.assert_same(expected, os.pread(reading, size + 1, 0))

    def test_a_writer_that_may_not_open_the_file_again(self):
        """Without a second descriptor all of it goes through the cache."""
        descriptor = self.descriptor()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 1, hard))
        try:
            writer = direct_io.DirectWriter(descriptor, 3 * BUFFER)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.addCleanup(writer.close)
        self.assertFalse(writer.direct)
        expected = carry_out(writer, [('write', 3 * BUFFER)])
        writer.flush()
        self.assert_same(expected, self.content())

    def test_buffers_may_change_after_write(self):
        writer = self.writer(3 * BUFFER)
        buffer = bytearray(b'A' * BUFFER)
        for letter in b'ABC':
            buffer[:] = bytes([letter]) * BUFFER
            writer.write(memoryview(buffer))
        buffer[:] = bytes(BUFFER)
        writer.flush()
        expected = b'A' * BUFFER + b'B' * BUFFER + b'C' * BUFFER
        self.assert_same(expected, self.content())

    def knows_direct_writing(self):
        """Tell whether the file system has it, and does not just say so."""
        plain = self.descriptor('probe')
        self.addCleanup(os.close, plain)
        with contextlib.suppress(OSError), mmap.mmap(-1, PAGE) as page:
            direct = os.open(self.path / 'probe', os.O_WRONLY | os.O_DIRECT)
            self.addCleanup(os.close, direct)
            os.pwrite(direct, page, 0)
            return not cached_pages(plain, PAGE)
        return False

    def test_goes_past_the_page_cache(self):
        """Also after an odd start, but for the buffer where it begins."""
        if not self.knows_direct_writing():
            self.skipTest('machine: no file is written past the page cache')
        for steps in (
            [('write', 8 * BUFFER)],
            [('write', 5), ('flush', 0), ('write', 8 * BUFFER)],
            [('skip', 5), ('write', 8 * BUFFER)],
            [('write', 512), ('skip', 512), ('write', 8 * BUFFER)],
        ):
            size = sum(length for kind, length in steps)
            writer = self.writer(size)
            carry_out(writer, steps)
            writer.flush()
            cached = cached_pages(writer.descriptor, size)
            self.assertLess(cached, BUFFER // PAGE + 9, steps)

    def test_skipped_takes_no_space(self):
        writer = self.writer(64 * units.Mi)
        writer.skip(32 * units.Mi)
        writer.write(b'A')
        writer.skip(16 * units.Mi)
        writer.flush()
        allocated = os.fstat(writer.descriptor).st_blocks * 512
        self.assertLess(allocated, units.Mi)
        self.assertEqual(64 * units.Mi, len(self.content()))

    def test_no_bytes(self):
        writer = self.writer(0)
        writer.write(b'')
        writer.skip(0)
        writer.flush()
        writer.close()
        self.assertEqual(b'', self.content())


@ddt.ddt
class TestStart(Case):
    """What is there already, and what is behind it."""

    @ddt.data(0, 5, PAGE, PAGE + 512, BUFFER, BUFFER + 1, 3 * BUFFER)
    def test_goes_on_behind_it_and_cuts_off_the_rest(self, start):
        size = 5 * BUFFER
        (self.path / 'image').write_bytes(
            NOISE[:start] + b'x' * (2 * size - start)
        )
        descriptor = os.open(self.path / 'image', os.O_RDWR)
        writer = direct_io.DirectWriter(descriptor, size, start)
        self.addCleanup(writer.close)
        self.assertEqual(start, writer.offset)
        end = start + BUFFER + 700
        writer.write(NOISE[start:end])
        self.assertRaises(ValueError, writer.skip, size)
        writer.flush()
        self.assertEqual(end, writer.offset)
        self.assert_same(NOISE[:end].ljust(size, b'\0'), self.content())


class TestSync(Case):
    def test_tells_what_is_on_storage(self):
        writer = self.writer(12 * BUFFER)
        self.assertEqual(0, writer.sync())
        writer.write(NOISE[: 2 * BUFFER + 10])
        self.assertEqual(2 * BUFFER, writer.sync())
        self.assert_same(NOISE[: 2 * BUFFER], self.content()[: 2 * BUFFER])
        # The rest still waits for its buffer to be full.
        writer.write(NOISE[2 * BUFFER + 10 : 3 * BUFFER])
        self.assertEqual(3 * BUFFER, writer.sync())
        writer.skip(5)
        self.assertEqual(3 * BUFFER + 5, writer.sync())
        self.assert_same(NOISE[: 3 * BUFFER], self.content()[: 3 * BUFFER])

    def test_tells_of_a_write_that_failed(self):
        writer = self.writer(12 * BUFFER)
        with no_file_beyond(0):
            writer.write(NOISE[:BUFFER])
            self.assertRaises(OSError, writer.sync)
        self.assertRaises(OSError, writer.sync)
        writer.close()
        self.assertRaises(ValueError, writer.sync)


class TestRestart(Case):
    def test_forgets_what_was_written(self):
        writer = self.writer(12 * BUFFER)
        writer.write(NOISE[: 7 * BUFFER + 5])
        writer.restart()
        self.assertEqual(0, writer.offset)
        writer.skip(BUFFER)
        writer.write(b'A' * 2 * BUFFER)
        writer.flush()
        expected = bytes(BUFFER) + b'A' * 2 * BUFFER
        self.assert_same(expected.ljust(12 * BUFFER, b'\0'), self.content())

    def test_forgets_an_error(self):
        writer = self.writer(12 * BUFFER)
        with no_file_beyond(0), contextlib.suppress(OSError):
            writer.write(NOISE[: 10 * BUFFER])
        writer.restart()
        writer.write(NOISE)
        writer.flush()
        self.assert_same(NOISE, self.content())

    def test_after_close(self):
        writer = self.writer(BUFFER)
        writer.close()
        self.assertRaises(ValueError, writer.restart)


@ddt.ddt
class TestBounds(Case):
    @ddt.data(0, 1, PAGE, BUFFER)
    def test_beyond_the_size(self, size):
        writer = self.writer(size)
        writer.write(NOISE[:size])
        self.assertRaises(ValueError, writer.write, b'x')
        self.assertRaises(ValueError, writer.skip, 1)
        writer.flush()
        self.assert_same(NOISE[:size], self.content())

    def test_a_write_that_does_not_fit_writes_nothing(self):
        writer = self.writer(10)
        writer.write(b'12345')
        self.assertRaises(ValueError, writer.write, b'x' * 6)
        self.assertRaises(ValueError, writer.skip, 6)
        writer.write(b'67890')
        writer.flush()
        self.assertEqual(b'1234567890', self.content())

    def test_after_close(self):
        writer = self.writer(2 * BUFFER)
        writer.write(b'A')
        writer.close()
        for data in (b'', b'A', bytes(BUFFER)):
            self.assertRaises(ValueError, writer.write, data)
        for length in (0, 1, BUFFER):
            self.assertRaises(ValueError, writer.skip, length)

    def test_flush_after_close(self):
        writer = self.writer(1)
        writer.close()
        self.assertRaises(ValueError, writer.flush)

    def test_flush_after_close_of_what_was_in_flight(self):
        for _turn in range(5):
            writer = self.writer(12 * BUFFER)
            writer.write(NOISE[: (direct_io.DEPTH + 1) * BUFFER])
            writer.close()
            self.assertRaises(ValueError, writer.flush)


class TestErrors(Case):
    def assert_fails(self, writer, number=errno.EFBIG):
        """Each call raises the error, although nothing hinders it now."""
        for call in (
            lambda: writer.write(b'A'),
            lambda: writer.write(NOISE[:BUFFER]),
            lambda: writer.skip(1),
            writer.flush,
            writer.flush,
        ):
            try:
                call()
            except OSError as error:
                self.assertEqual(number, error.errno)
            else:
                raise AssertionError('the error was forgotten')

    def test_of_a_write_is_told_by_flush_and_again(self):
        for limit, length in (
            (PAGE, 2 * BUFFER),
            (PAGE, PAGE + 100),
            (10, 100),
        ):
            writer = self.writer(12 * BUFFER)
            with no_file_beyond(limit):
                writer.write(NOISE[:length])
                self.assertRaises(OSError, writer.flush)
            self.assert_fails(writer)

    def test_of_a_write_is_told_by_a_later_write_and_again(self):
        writer = self.writer(12 * BUFFER)
        with no_file_beyond(BUFFER):
            # More than what may be in flight.
            self.assertRaises(OSError, writer.write, NOISE[: 10 * BUFFER])
        self.assert_fails(writer)
        self.assertTrue(
            self.content()[:BUFFER] in (NOISE[:BUFFER], bytes(BUFFER))
        )

    def test_of_one_write_among_others(self):
        """The first fails; what goes to holes behind it must not hide it."""
        writer = self.writer(12 * BUFFER)
        with no_file_beyond(0):
            writer.write(NOISE[:BUFFER])
            futures.wait(writer._pending)
        for _turn in range(3):
            writer.skip(1)
            writer.write(b'A' * 10)
        self.assertRaises(OSError, writer.flush)
        self.assert_fails(writer)

    def test_of_flush_is_told_again(self):
        writer = self.writer(12 * BUFFER)
        writer.write(b'A')
        writer.flush()
        kept = os.dup(writer.descriptor)
        reading, writing = os.pipe()
        for descriptor in (kept, reading, writing):
            self.addCleanup(os.close, descriptor)
        # There is no fsync of a pipe.
        os.dup2(writing, writer.descriptor)
        self.assertRaises(OSError, writer.flush)
        os.dup2(kept, writer.descriptor)
        self.assert_fails(writer, errno.EINVAL)

    def test_a_writer_that_failed_can_be_closed(self):
        before = open_files()
        writer = self.writer(12 * BUFFER)
        with no_file_beyond(0):
            with contextlib.suppress(OSError):
                writer.write(NOISE[: 10 * BUFFER])
            writer.close()
        writer.close()
        self.assertEqual(before, open_files())


class TestClose(Case):
    def test_twice(self):
        writer = self.writer(BUFFER)
        descriptors = [writer.descriptor, writer._direct]
        writer.write(b'A')
        writer.close()
        for descriptor in descriptors:
            self.assertFalse(is_open(descriptor))
        # Whoever opens a file now is given the same numbers.
        others = [self.descriptor('other'), self.descriptor('another')]
        writer.close()
        for descriptor in others:
            self.assertTrue(is_open(descriptor))
            os.close(descriptor)

    def test_waits_for_what_is_in_flight(self):
        before = threading.active_count()
        for _turn in range(5):
            writer = self.writer(12 * BUFFER)
            writer.write(NOISE)
            writer.close()
            self.assertEqual(before, threading.active_count())
            content = self.content()
            self.assertEqual(len(NOISE), len(content))
            # Each buffer is written whole, or not at all.
            for start in range(0, len(NOISE), BUFFER):
                end = start + BUFFER
                self.assertTrue(
                    content[start:end] in (NOISE[start:end], bytes(BUFFER))
                )

    def test_leaves_no_descriptor_open(self):
        before = open_files()
        for _turn in range(20):
            writer = self.writer(2 * BUFFER)
            writer.write(NOISE[:BUFFER])
            writer.flush()
            writer.close()
        self.assertEqual(before, open_files())

    def test_a_writer_that_cannot_be_made_leaves_none_open(self):
        (self.path / 'image').touch()
        descriptor = os.open(self.path / 'image', os.O_RDONLY)
        before = open_files()
        self.assertRaises(OSError, direct_io.DirectWriter, descriptor, 10)
        self.assertFalse(is_open(descriptor))
        self.assertEqual(before - 1, open_files())
        with no_file_beyond(9):
            self.assertRaises(
                OSError, direct_io.DirectWriter, self.descriptor(), 10
            )
        self.assertEqual(before - 1, open_files())
