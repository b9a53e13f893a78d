# SPDX-License-Identifier: Apache-2.0
"""Holes: what is cut out is zeros, and put together it is what it was."""

import itertools
import os
import pathlib

import ddt
import fixtures
import hypothesis
from hypothesis import strategies as st
from oslotest import base as test_base

from cinder_cow import sparse

GRANULE = sparse.GRANULE
PROPERTY = hypothesis.settings(deadline=None)

# Blocks: all zeros, all others, and zeros but for one byte somewhere.
KINDS = {
    '.': lambda length: bytes(length),
    'A': lambda length: b'A' * length,
    '^': lambda length: (b'\1' + bytes(length))[:length],
    '$': lambda length: bytes(length - 1) + b'\1',
    '|': lambda length: (bytes(length // 2) + b'\1' + bytes(length))[:length],
}
BLOCK = st.builds(
    lambda kind, length: KINDS[kind](length),
    st.sampled_from('..A^$|'),
    st.sampled_from([1, 511, 4096, GRANULE - 1, GRANULE, GRANULE + 1])
    | st.sampled_from([GRANULE, 3 * GRANULE]),
)
DATA = st.lists(BLOCK, max_size=8).map(b''.join)


def is_zeros(data):
    return not data.strip(b'\0')


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.content = b''
        self.calls = []

    def write(self, data):
        self.content += data
        self.calls.append(('write', len(data)))

    def skip(self, length):
        self.content += bytes(length)
        self.calls.append(('skip', length))


@ddt.ddt
class TestRuns(test_base.BaseTestCase):
    @PROPERTY
    @hypothesis.given(DATA)
    def test_cut_the_data_into_holes_and_others(self, data):
        runs = list(sparse.runs(data))
        ends = [0, *(end for start, end, hole in runs)]
        self.assertEqual(ends[:-1], [start for start, end, hole in runs])
        self.assertEqual(len(data), ends[-1])
        for start, end, hole in runs:
            self.assertLess(start, end)
            if hole:
                self.assertTrue(is_zeros(data[start:end]))
                continue
            # Nothing in it could have been left out.
            for offset in range(start, end, GRANULE):
                granule = data[offset : min(offset + GRANULE, end)]
                self.assertFalse(is_zeros(granule), (start, end, offset))
        for before, after in itertools.pairwise(runs):
            self.assertNotEqual(before[2], after[2])

    @ddt.data(
        (b'', []),
        (b'\0', [(0, 1, True)]),
        (b'\0\1', [(0, 2, False)]),
        (bytes(3 * GRANULE), [(0, 3 * GRANULE, True)]),
        (b'A' * 2 * GRANULE, [(0, 2 * GRANULE, False)]),
        (
            bytes(GRANULE) + b'A',
            [(0, GRANULE, True), (GRANULE, GRANULE + 1, False)],
        ),
        (
            b'A' * GRANULE + b'\0',
            [(0, GRANULE, False), (GRANULE, GRANULE + 1, True)],
        ),
        # Not a whole granule of zeros: written.
        (b'A' + bytes(2 * GRANULE - 2) + b'A', [(0, 2 * GRANULE, False)]),
    )
    @ddt.unpack
    def test_are(self, data, expected):
        self.assertEqual(expected, list(sparse.runs(data)))


class TestPut(test_base.BaseTestCase):
    @PROPERTY
    @hypothesis.given(st.lists(DATA | st.integers(0, 3 * GRANULE), max_size=4))
    def test_puts_all_of_it_and_counts_what_is_written(self, pieces):
        sink = Recorder()
        counted = [sparse.put(sink, piece) for piece in pieces]
        self.assertEqual(
            b''.join(bytes(p) if isinstance(p, int) else p for p in pieces),
            sink.content,
        )
        written = [length for kind, length in sink.calls if kind == 'write']
        self.assertEqual(sum(written), sum(counted))
        for piece, count in zip(pieces, counted, strict=True):
            if isinstance(piece, int) or is_zeros(piece):
                self.assertEqual(0, count)

    def test_zeros_are_skipped(self):
        sink = Recorder()
        written = sparse.put(sink, bytes(GRANULE) + b'A' * 10)
        self.assertEqual(10, written)
        self.assertEqual([('skip', GRANULE), ('write', 10)], sink.calls)
        self.assertEqual(0, sparse.put(sink, bytes(GRANULE)))
        self.assertEqual(0, sparse.put(sink, 5))
        self.assertEqual([('skip', GRANULE), ('skip', 5)], sink.calls[2:])


class TestFiles(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)

    def open(self, blocks):
        """Make a file of blocks, zeros as holes; return it open.

        :returns: the descriptor and the content
        """
        path = self.path / 'image'
        with path.open('wb') as file:
            for block in blocks:
                if is_zeros(block):
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate()
        descriptor = os.open(path, os.O_RDWR)
        self.addCleanup(os.close, descriptor)
        return descriptor, b''.join(blocks)

    def check(self, descriptor, content):
        """The extents and the pieces of a file tell its content."""
        offset = 0
        for extent in sparse.file_extents(descriptor, len(content)):
            self.assertEqual(offset, extent.offset)
            self.assertGreater(extent.length, 0)
            offset += extent.length
            if extent.hole:
                self.assertTrue(is_zeros(content[extent.offset : offset]))
        self.assertEqual(len(content), offset)
        sink = Recorder()
        for piece in sparse.file_pieces(descriptor, len(content)):
            if not isinstance(piece, int):
                self.assertLessEqual(len(piece), sparse.CHUNK)
            sparse.put(sink, piece)
        self.assertEqual(content, sink.content)

    @hypothesis.settings(deadline=None, max_examples=50)
    @hypothesis.given(st.lists(BLOCK, max_size=8))
    def test_tell_the_content(self, blocks):
        self.check(*self.open(blocks))

    def test_more_than_a_chunk(self):
        data = os.urandom(2 * sparse.CHUNK + 1)
        self.check(*self.open([bytes(5 * sparse.CHUNK), data, bytes(9)]))
        self.check(*self.open([data, bytes(3 * sparse.CHUNK), data]))

    def test_one_hole(self):
        descriptor, content = self.open([bytes(5 * sparse.CHUNK)])
        if os.fstat(descriptor).st_blocks:
            self.skipTest('machine: the file system has no holes')
        self.assertEqual(
            [len(content)],
            list(sparse.file_pieces(descriptor, len(content))),
        )

    def test_holes_are_found(self):
        hole = bytes(5 * sparse.CHUNK)
        descriptor, content = self.open([b'A' * 9, hole, b'B' * 9, hole])
        if os.fstat(descriptor).st_blocks * 512 > len(content) // 2:
            self.skipTest('machine: the file system has no holes')
        extents = list(sparse.file_extents(descriptor, len(content)))
        self.assertEqual(
            [False, True, False, True], [extent.hole for extent in extents]
        )
        holes = sum(extent.length for extent in extents if extent.hole)
        self.assertGreater(holes, 9 * sparse.CHUNK)

    def test_no_bytes(self):
        descriptor, _content = self.open([])
        self.assertEqual([], list(sparse.file_extents(descriptor, 0)))
        self.assertEqual([], list(sparse.file_pieces(descriptor, 0)))

    def test_no_more_than_the_size(self):
        blocks = [b'A' * GRANULE, bytes(GRANULE), b'B' * GRANULE]
        descriptor, content = self.open(blocks)
        for size in (1, GRANULE, GRANULE + 1, 2 * GRANULE, 3 * GRANULE - 1):
            self.check(descriptor, content[:size])

    def test_a_file_that_was_cut_short_is_an_error(self):
        size = 4 * sparse.CHUNK
        for left in (0, 1, sparse.CHUNK, size - 1):
            descriptor, _content = self.open([b'A' * size])
            pieces = sparse.file_pieces(descriptor, size)
            next(pieces)
            os.ftruncate(descriptor, left)
            self.assertRaises(OSError, list, pieces)

    def test_a_file_that_ends_before_its_size_is_an_error(self):
        for blocks in ([], [b'A' * 1000], [bytes(9), b'A' * GRANULE]):
            descriptor, content = self.open(blocks)
            pieces = sparse.file_pieces(descriptor, len(content) + 1000)
            self.assertRaises(OSError, list, pieces)

    def test_what_cannot_be_sought_is_an_error(self):
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        self.assertRaises(OSError, list, sparse.file_pieces(reading, 1))
