# SPDX-License-Identifier: Apache-2.0
"""One suite that every driver must pass; drivers elsewhere may join it too.

A driver joins by mixing one of three classes into a test case:
:class:`DriverConformance`, :class:`BaseKeeperConformance` for one that keeps
bases, :class:`BaseLinkerConformance` for one that links them too. It gives
four things::

    class TestMine(conformance.DriverConformance, testtools.TestCase):
        def make_driver(self):
            return MyDriver(...)

        def overwrite(
            self, volume_name, offset, data
        ): ...  # what a guest does: write into an existing volume

Data are pictures: ``'AA.B'`` is two blocks of "A", a hole and a block of
"B".
"""

import contextlib
import dataclasses
import functools
import threading
import time
from typing import Any, TYPE_CHECKING
import unittest

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

# The unit of the pictures: more than the block of any driver here, and not
# a multiple of 4096, so that blocks and pictures do not line up.
BLOCK = 70 * 1024 + 512
# What another thread is given; a sound driver needs a fraction of it.
LIMIT_SECONDS = 30
POLL_SECONDS = 0.1

BAD_NAMES = (
    '',
    'a/b',
    '..',
    '.',
    '.a',
    'a..b',
    'a\nb',
    'a\0b',
    'a b',
    'cow-x',
    '-rf',
    'x' * 201,
    'ü',
    '/etc/passwd',
    'a,b',
    'a:b',
)


def picture(text: str) -> bytes:
    """Draw the bytes of a picture."""
    return b''.join((b'\0' if c == '.' else c.encode()) * BLOCK for c in text)


# The mixins are no test cases themselves, or they would be run alone.
_Case: Any = unittest.TestCase if TYPE_CHECKING else object


class DriverConformance(_Case):
    """The cases; each is about one promise of the contract."""

    driver: Any

    def make_driver(self) -> base.Driver:
        """Return a driver on an empty back end of its own."""
        raise NotImplementedError

    def overwrite(self, volume_name: str, offset: int, data: bytes) -> None:
        """Write into an existing volume as a guest does."""
        raise NotImplementedError

    def failing_writes(self) -> contextlib.AbstractContextManager[None]:
        """Return what makes the back end's writes fail while it is entered."""
        raise NotImplementedError

    def space_used(self) -> int:
        """Return the bytes of storage that all of the back end takes."""
        raise NotImplementedError

    def setUp(self):
        super().setUp()
        self.driver = self.make_driver()

    # What the cases are told in

    def write_volume(self, name, text, size=None):
        content = picture(text)
        size = len(content) if size is None else size
        with self.driver.open(name, size) as writer:
            self.draw(writer, text)
            writer.close()
        return content.ljust(size, b'\0')

    def draw(self, sink, text):
        for block in text:
            if block == '.':
                sink.skip(BLOCK)
            else:
                sink.write(picture(block))

    def content(self, source):
        """Read all of a volume or base, in pieces of an odd size."""
        with self.driver.read(source) as reader:
            step = 100_003
            return b''.join(
                reader.read(offset, min(step, reader.size - offset))
                for offset in range(0, reader.size, step)
            )

    def key(self, image_id='image-1', content_id='sha512:1'):
        return bases.BaseKey(image_id, content_id)

    def facts(self, key, text):
        return bases.BaseFacts(
            key=key,
            image_name='an image',
            source_format='raw',
            content_size=len(picture(text)),
            hash='',
            made_at=time.time(),
        )

    def make_base(self, text, image_id='image-1'):
        key = self.key(image_id)
        with self.begin(len(picture(text)), key) as writer:
            writer.restart()
            self.draw(writer, text)
            return writer.publish(self.facts(key, text))

    def begin(self, size, key=None):
        """Begin a base that nobody else makes, and is not there."""
        begun = self.driver.begin_base(key or self.key(), size)
        self.assertNotIsInstance(begun, (bases.Base, bases.Making))
        return begun

    def leave(self, text, size=None):
        """Write so much of a base, and leave it."""
        with self.begin(size or len(picture(text))) as writer:
            writer.restart()
            self.draw(writer, text)
            writer.leave()

    def kept(self, writer):
        """Read what a writer of a base tells that is kept."""
        return b''.join(
            bytes(piece) if isinstance(piece, int) else piece
            for piece in writer.kept_pieces()
        )

    def go_on(self, text):
        """Make a base with what is kept of it; return how much that was."""
        content = picture(text)
        with self.begin(len(content)) as writer:
            kept = writer.kept
            self.assertTrue(content.startswith(self.kept(writer)))
            self.assertEqual(kept, len(self.kept(writer)))
            writer.write(content[kept:])
            made = writer.publish(self.facts(self.key(), text))
        self.assertEqual(content, self.content(made.location))
        return kept

    def beside(self):
        """Begin the base in another thread, which must not wait for it."""
        answers = []

        def work():
            answers.append(self.driver.begin_base(self.key(), BLOCK))

        self.join(self.start(work))
        return answers.pop()

    def image_at(self, location):
        return images.ImageInfo(
            id='image-1', name='an image', disk_format='raw'
        ).at(location)

    def clone(self, made, name, size=None):
        driver = self.driver.bound(base.VolumeRequest(size=size))
        return driver.clone(self.image_at(made.location), name)

    def names(self):
        return [volume.name for volume in self.driver.list()]

    def assert_refused(self, reason, call, *args):
        """Call; it must raise one of our errors with that reason."""
        try:
            call(*args)
        except exception.CowError as error:
            self.assertEqual(reason, error.reason)
            return str(error)
        raise AssertionError(f'{reason} was not raised')

    def assert_extents_are_true(self, source, content):
        """Extents are in order, cover all, and call no data a hole."""
        with self.driver.read(source) as reader:
            end = 0
            for extent in reader.extents():
                self.assertEqual(end, extent.offset)
                end += extent.length
                if extent.hole:
                    self.assertEqual(
                        b'\0' * extent.length, content[extent.offset : end]
                    )
            self.assertEqual(len(content), end)

    def assert_a_failed_write_is_told(self, writer, finish):
        """After a failed write, finishing fails too; nothing is left."""
        writer.write(picture('A'))
        with self.failing_writes():
            # Told at once, or by what comes later. More than any buffer.
            with contextlib.suppress(exception.BackendError):
                for _ in range(99):
                    writer.write(picture('B'))
            self.assertRaises(exception.BackendError, finish)
        writer.abort()

    def start(self, *works):
        """Start each in a thread that cannot keep the tests from ending."""
        threads = [threading.Thread(target=w, daemon=True) for w in works]
        for thread in threads:
            thread.start()
        return threads

    def join(self, threads):
        for thread in threads:
            thread.join(LIMIT_SECONDS)
            self.assertFalse(thread.is_alive(), 'it waits for ever')

    # A volume by open, write and close

    def test_is_a_driver(self):
        self.assertIsInstance(self.driver, base.Driver)
        self.assertEqual([], self.names())

    def test_written_bytes_are_read(self):
        content = self.write_volume('v1', 'AB.C')
        self.assertEqual(content, self.content('v1'))

    def test_last_block_is_kept(self):
        with self.driver.open('v1', 3 * 4096 + 512) as writer:
            writer.write(b'A' * 3 * 4096)
            writer.write(b'B' * 512)
            writer.close()
        self.assertEqual(b'B' * 512, self.content('v1')[-512:])

    def test_many_small_writes_are_one_stream(self):
        content = bytes(range(256)) * 512
        with self.driver.open('v1', len(content)) as writer:
            for offset in range(0, len(content), 777):
                writer.write(content[offset : offset + 777])
            writer.close()
        self.assertEqual(content, self.content('v1'))

    def test_buffer_may_change_after_write(self):
        buffer = bytearray(b'A' * 1_000_000)
        with self.driver.open('v1', 2_000_000) as writer:
            writer.write(buffer)
            buffer[:] = b'B' * 1_000_000
            writer.write(memoryview(buffer))
            buffer[:] = b'C' * 1_000_000
            writer.close()
        expected = b'A' * 1_000_000 + b'B' * 1_000_000
        self.assertEqual(expected, self.content('v1'))

    def test_what_is_not_written_is_zeros(self):
        content = self.write_volume('v1', 'A', size=8 * BLOCK)
        self.assertEqual(content, self.content('v1'))

    def test_size_is_what_was_asked(self):
        self.write_volume('v1', 'A', size=5 * BLOCK)
        self.assertEqual(5 * BLOCK, self.driver.show('v1').size)
        with self.driver.read('v1') as reader:
            self.assertEqual(5 * BLOCK, reader.size)

    def test_odd_sizes(self):
        for size in (1, 511, 513, 4095, 4097, 1024 * 1024 + 1):
            name = f'v{size}'
            content = (b'0123456789abcdef' * (size // 16 + 1))[:size]
            with self.driver.open(name, size) as writer:
                writer.write(content)
                writer.close()
            self.assertEqual(size, self.driver.show(name).size)
            self.assertEqual(content, self.content(name))

    def test_nothing_is_seen_before_close(self):
        with self.driver.open('v1', BLOCK) as writer:
            writer.write(picture('A'))
            writer.flush()
            self.assertFalse(self.driver.exists('v1'))
            self.assertEqual([], self.names())
            writer.close()
        self.assertTrue(self.driver.exists('v1'))

    def test_close_twice(self):
        with self.driver.open('v1', BLOCK) as writer:
            writer.write(picture('A'))
            writer.close()
            writer.close()
            writer.abort()
        self.assertEqual(picture('A'), self.content('v1'))

    def test_abort_leaves_nothing(self):
        writer = self.driver.open('v1', BLOCK)
        writer.write(picture('A'))
        writer.abort()
        writer.abort()
        self.assertFalse(self.driver.exists('v1'))
        self.assertEqual([], self.names())
        self.write_volume('v1', 'B')
        self.assertEqual(picture('B'), self.content('v1'))

    def test_leaving_the_block_unfinished_aborts(self):
        with self.driver.open('v1', BLOCK) as writer:
            writer.write(picture('A'))
        self.assertFalse(self.driver.exists('v1'))

    def test_an_error_in_the_block_comes_through(self):
        def fail():
            with self.driver.open('v1', BLOCK) as writer:
                writer.write(picture('A'))
                raise KeyError('first')

        self.assertRaises(KeyError, fail)
        self.assertFalse(self.driver.exists('v1'))

    def test_close_tells_of_a_write_that_failed(self):
        writer = self.driver.open('v1', 100 * BLOCK)
        self.assert_a_failed_write_is_told(writer, writer.close)
        self.assertFalse(self.driver.exists('v1'))
        self.assertEqual([], self.names())
        self.write_volume('v1', 'C')
        self.assertEqual(picture('C'), self.content('v1'))

    def test_a_late_write_changes_nothing(self):
        with self.driver.open('v1', 2 * BLOCK) as writer:
            writer.write(picture('A'))
            writer.close()
            self.assertRaises(ValueError, writer.write, picture('B'))
        self.assertEqual(picture('A.'), self.content('v1'))

    def test_writing_beyond_the_size_is_an_error(self):
        with self.driver.open('v1', BLOCK) as writer:
            writer.write(picture('A'))
            self.assertRaises(ValueError, writer.write, b'x')
            self.assertRaises(ValueError, writer.skip, 1)

    def test_a_name_in_use_is_refused_and_kept(self):
        self.write_volume('v1', 'A')
        self.assert_refused(Reason.VOLUME_EXISTS, self.write_volume, 'v1', 'B')
        self.assertEqual(picture('A'), self.content('v1'))

    def test_a_name_being_made_is_refused(self):
        with self.driver.open('v1', BLOCK) as writer:
            self.assert_refused(
                Reason.VOLUME_EXISTS, self.driver.open, 'v1', BLOCK
            )
            writer.write(picture('A'))
            writer.close()
        self.assertEqual(picture('A'), self.content('v1'))

    def test_bad_names_are_refused(self):
        for name in BAD_NAMES:
            for call in (
                lambda name: self.driver.open(name, BLOCK),
                self.driver.exists,
                self.driver.delete,
            ):
                self.assert_refused(Reason.INVALID_NAME, call, name)

    def test_bad_names_reach_nothing(self):
        for name in BAD_NAMES:
            for call in (
                self.driver.read,
                self.driver.show,
                lambda name: self.driver.extend(name, BLOCK),
            ):
                # Invalid or not found: nothing can have such a name.
                self.assertRaises(exception.RequestError, call, name)

    def test_names_that_look_alike(self):
        names = ['v', 'v.raw', 'v.qcow2', 'v.lock', 'V', 'v.raw.raw', '0']
        for name in names:
            self.write_volume(name, 'A', size=BLOCK + len(name))
        self.assertEqual(sorted(names), sorted(self.names()))
        for name in names:
            self.assertEqual(BLOCK + len(name), self.driver.show(name).size)
        self.driver.delete('v')
        self.assertEqual(sorted(names[1:]), sorted(self.names()))

    # Reading

    def test_extents_cover_the_volume_and_tell_the_truth(self):
        content = self.write_volume('v1', 'A..B', size=10 * BLOCK)
        self.assert_extents_are_true('v1', content)

    def test_reading_beyond_the_end_is_an_error(self):
        self.write_volume('v1', 'A')
        with self.driver.read('v1') as reader:
            self.assertRaises(ValueError, reader.read, BLOCK - 1, 2)

    def test_reading_what_is_not_there(self):
        self.assert_refused(
            Reason.VOLUME_NOT_FOUND, self.driver.read, 'nothing'
        )
        self.assert_refused(
            Reason.VOLUME_NOT_FOUND, self.driver.show, 'nothing'
        )

    # Extend, delete, list

    def test_extend_keeps_content_and_adds_zeros(self):
        content = self.write_volume('v1', 'AB')
        self.driver.extend('v1', 7 * BLOCK)
        self.assertEqual(7 * BLOCK, self.driver.show('v1').size)
        self.assertEqual(content.ljust(7 * BLOCK, b'\0'), self.content('v1'))

    def test_extend_never_shrinks(self):
        self.write_volume('v1', 'AB')
        self.assert_refused(Reason.SHRINK, self.driver.extend, 'v1', BLOCK)
        self.driver.extend('v1', 2 * BLOCK)
        self.assertEqual(picture('AB'), self.content('v1'))

    def test_extend_what_is_not_there(self):
        self.assert_refused(
            Reason.VOLUME_NOT_FOUND, self.driver.extend, 'nothing', BLOCK
        )

    def test_delete(self):
        self.write_volume('v1', 'A')
        self.write_volume('v2', 'B')
        self.driver.delete('v1')
        self.assertFalse(self.driver.exists('v1'))
        self.assertEqual(['v2'], self.names())
        self.assertEqual(picture('B'), self.content('v2'))

    def test_delete_what_is_gone_succeeds(self):
        self.write_volume('v1', 'A')
        self.driver.delete('v1')
        self.driver.delete('v1')
        self.driver.delete('never-was')

    def test_a_name_is_free_after_delete(self):
        self.write_volume('v1', 'AB')
        self.driver.delete('v1')
        self.write_volume('v1', 'C')
        self.assertEqual(picture('C'), self.content('v1'))

    def test_what_was_deleted_shows_in_no_other(self):
        self.write_volume('v1', 'X' * 12)
        self.driver.delete('v1')
        content = self.write_volume('v2', 'A..B', size=8 * BLOCK)
        self.assertEqual(content, self.content('v2'))
        self.driver.extend('v2', 12 * BLOCK)
        self.assertEqual(content.ljust(12 * BLOCK, b'\0'), self.content('v2'))

    def test_list_tells_what_show_tells(self):
        for name in ('b', 'a', 'c'):
            self.write_volume(name, 'A')
        listed = list(self.driver.list())
        self.assertEqual(['a', 'b', 'c'], [v.name for v in listed])
        self.assertEqual([self.driver.show(v.name) for v in listed], listed)


class BaseKeeperConformance(DriverConformance):
    """The cases of a driver that clones and keeps bases as well."""

    def test_is_a_base_keeper(self):
        self.assertIsInstance(self.driver, bases.BaseKeeper)

    def test_a_base_is_found_by_its_whole_key(self):
        made = self.make_base('AB')
        self.assertEqual(made, self.driver.find_base(self.key()))
        for other in (
            self.key(image_id='image-2'),
            self.key(content_id='sha512:2'),
        ):
            self.assertIsNone(self.driver.find_base(other))

    def test_a_hash_gives_nobody_the_bytes_of_another_image(self):
        first = self.make_base('A')
        second = self.make_base('B', image_id='image-2')
        self.assertEqual(picture('A'), self.content(first.location))
        self.assertEqual(picture('B'), self.content(second.location))
        self.assertCountEqual([first, second], self.driver.list_bases())

    def test_the_facts_of_a_base_are_kept(self):
        facts = bases.BaseFacts(
            key=self.key(),
            image_name='\u00e4 "b"\n',
            source_format='qcow2',
            content_size=BLOCK - 512,
            hash='sha512:ab',
            made_at=1234567890.125,
        )
        with self.driver.begin_base(self.key(), BLOCK) as writer:
            made = writer.publish(facts)
        self.assertEqual(facts, made.facts)
        found = self.driver.find_base(self.key())
        self.assertEqual(facts, found.facts)

    def test_a_base_is_no_volume(self):
        made = self.make_base('AB')
        self.assert_refused(Reason.INVALID_NAME, self.driver.exists, made.name)
        self.assertEqual([], self.names())
        self.assertEqual([made], list(self.driver.list_bases()))
        self.assertEqual(picture('AB'), self.content(made.location))

    def test_an_unfinished_base_is_not_found(self):
        with self.driver.begin_base(self.key(), BLOCK) as writer:
            writer.write(picture('A'))
            self.assertIsNone(self.driver.find_base(self.key()))
        self.assertIsNone(self.driver.find_base(self.key()))
        self.assertEqual([], list(self.driver.list_bases()))
        self.make_base('B')
        self.assertIsNotNone(self.driver.find_base(self.key()))

    def test_a_second_maker_is_told_of_the_first(self):
        before = time.time()
        with self.begin(BLOCK) as writer:
            writer.write(picture('A'))
            making = self.beside()
            self.assertIsInstance(making, bases.Making)
            self.assertTrue(making.owner)
            self.assertIsInstance(making.owner, str)
            # 0: not known. Clocks of other machines may differ somewhat.
            if making.since:
                self.assertLess(abs(making.since - before), 3600)

    def test_progress_is_told_to_those_who_wait(self):
        told = bases.Progress('streaming', 1, 2)
        with self.begin(BLOCK) as writer:
            deadline = time.monotonic() + LIMIT_SECONDS
            while self.beside().progress != told:
                self.assertLess(time.monotonic(), deadline)
                writer.tell(told)
                time.sleep(POLL_SECONDS)

    def test_a_second_maker_is_given_the_first_ones_base(self):
        with self.begin(BLOCK) as writer:
            self.assertIsInstance(self.beside(), bases.Making)
            writer.write(picture('A'))
            made = writer.publish(self.facts(self.key(), 'A'))
            self.assertEqual(made, self.beside())
        self.assertEqual(made, self.beside())

    def test_a_second_maker_begins_where_the_first_gave_up(self):
        with self.begin(BLOCK) as writer:
            self.assertIsInstance(self.beside(), bases.Making)
            writer.write(picture('A'))
        with self.begin(BLOCK) as writer:
            self.assertEqual(0, writer.kept)
            self.assertEqual(b'', self.kept(writer))
        made = self.make_base('B')
        self.assertEqual(made, self.driver.find_base(self.key()))
        self.assertEqual(picture('B'), self.content(made.location))

    # What was left, to go on with; a driver may keep nothing of it

    def test_what_was_left_can_be_gone_on_with(self):
        self.leave('AB..C', 7 * BLOCK)
        self.assertLessEqual(self.go_on('AB..CD.'), 5 * BLOCK)

    def test_what_was_left_whole_can_be_gone_on_with(self):
        self.leave('AB.')
        self.assertLessEqual(self.go_on('AB.'), 3 * BLOCK)

    def test_what_was_left_twice_can_be_gone_on_with(self):
        self.leave('AB', 9 * BLOCK)
        content = picture('AB.CD')
        with self.begin(9 * BLOCK) as writer:
            writer.write(content[writer.kept :])
            writer.leave()
        self.assertLessEqual(self.go_on('AB.CD.E..'), 5 * BLOCK)

    def test_what_was_left_is_no_base(self):
        with self.begin(BLOCK) as writer:
            writer.write(picture('A'))
            writer.leave()
            self.assertRaises(ValueError, writer.write, b'')
            self.assertRaises(
                ValueError, writer.publish, self.facts(self.key(), 'A')
            )
            writer.leave()
            writer.abort()
        self.assertIsNone(self.driver.find_base(self.key()))
        self.assertEqual([], list(self.driver.list_bases()))
        self.go_on('A')

    def test_leaving_a_published_base_does_nothing(self):
        with self.begin(BLOCK) as writer:
            writer.write(picture('A'))
            made = writer.publish(self.facts(self.key(), 'A'))
            writer.leave()
        self.assertEqual(made, self.driver.find_base(self.key()))
        self.assertEqual(picture('A'), self.content(made.location))

    def test_what_was_gone_on_with_and_aborted_is_gone(self):
        self.leave('AB', 3 * BLOCK)
        with self.begin(3 * BLOCK):
            pass
        with self.begin(3 * BLOCK) as writer:
            self.assertEqual(0, writer.kept)

    def test_restart_forgets_what_was_kept(self):
        self.leave('AAA', 4 * BLOCK)
        with self.begin(4 * BLOCK) as writer:
            writer.restart()
            self.assertEqual(0, writer.kept)
            self.assertEqual(b'', self.kept(writer))
            self.draw(writer, '.B')
            made = writer.publish(self.facts(self.key(), '.B..'))
        self.assertEqual(picture('.B..'), self.content(made.location))

    def test_restart_forgets_what_was_written(self):
        with self.begin(6 * BLOCK) as writer:
            self.draw(writer, 'AAA')
            writer.restart()
            self.draw(writer, '.B')
            made = writer.publish(self.facts(self.key(), '.B....'))
        self.assertEqual(picture('.B....'), self.content(made.location))

    def test_what_was_left_after_a_restart_is_what_came_after_it(self):
        self.leave('AAA', 4 * BLOCK)
        with self.begin(4 * BLOCK) as writer:
            writer.restart()
            self.draw(writer, '.B')
            writer.leave()
        self.assertLessEqual(self.go_on('.B.C'), 2 * BLOCK)

    def test_what_was_left_of_another_size_is_forgotten(self):
        self.leave('AAA', 4 * BLOCK)
        with self.begin(3 * BLOCK) as writer:
            self.assertEqual(0, writer.kept)
            self.draw(writer, '.B')
            made = writer.publish(self.facts(self.key(), '.B.'))
        self.assertEqual(picture('.B.'), self.content(made.location))

    # What is kept with a base

    def test_facts_are_changed_one_by_one(self):
        facts = self.make_base('A').facts
        name = self.key().name
        for changes in (
            {'last_used': 1234567890},
            {'pinned': True},
            {'missing_since': 1234567891.5},
            {'pinned': False, 'last_used': 0},
        ):
            self.driver.set_base_facts(name, **changes)
            facts = dataclasses.replace(facts, **changes)
            self.assertEqual(facts, self.driver.find_base(self.key()).facts)

    def test_changed_facts_change_nothing_else(self):
        made = self.make_base('A.B')
        other = self.make_base('C', image_id='image-2')
        self.driver.set_base_facts(made.name, pinned=True)
        self.driver.set_base_manifest(made.name, b'hashes')
        found = {each.name: each for each in self.driver.list_bases()}
        self.assertEqual(other, found.pop(other.name))
        facts = dataclasses.replace(made.facts, pinned=True)
        self.assertEqual(facts, found.pop(made.name).facts)
        self.assertEqual({}, found)
        self.assertTrue(self.driver.cloneable(self.image_at(made.location)))
        self.clone(made, 'v1')
        self.assertEqual(picture('A.B'), self.content('v1'))

    def test_a_manifest_is_kept_with_its_base(self):
        made = self.make_base('A')
        self.assertEqual(b'', self.driver.base_manifest(made.name))
        for manifest in (bytes(range(256)) * 1024, b'short', b''):
            self.driver.set_base_manifest(made.name, manifest)
            self.assertTrue(
                self.driver.base_manifest(made.name) == manifest,
                'the manifest is another',
            )

    def test_a_manifest_goes_with_its_base(self):
        made = self.make_base('A')
        other = self.make_base('C', image_id='image-2')
        for each in (made, other):
            self.driver.set_base_manifest(each.name, b'hashes')
        self.driver.retire_base(made.name)
        self.make_base('B')
        self.assertEqual(b'', self.driver.base_manifest(made.name))
        self.assertEqual(b'hashes', self.driver.base_manifest(other.name))

    def test_nothing_is_kept_with_a_base_that_is_not_there(self):
        made = self.make_base('A')
        self.driver.retire_base(made.name)
        for name in (made.name, self.key('image-2').name):
            for call in (
                lambda name: self.driver.set_base_facts(name, pinned=True),
                lambda name: self.driver.set_base_manifest(name, b'hashes'),
                self.driver.base_manifest,
            ):
                self.assert_refused(Reason.BASE_NOT_FOUND, call, name)
        self.assertEqual([], list(self.driver.list_bases()))

    def test_publish_tells_of_a_write_that_failed(self):
        facts = self.facts(self.key(), 'A' * 100)
        writer = self.driver.begin_base(self.key(), 100 * BLOCK)
        self.assert_a_failed_write_is_told(
            writer, lambda: writer.publish(facts)
        )
        self.assertEqual([], list(self.driver.list_bases()))
        self.make_base('B')

    def test_a_published_base_never_changes(self):
        with self.driver.begin_base(self.key(), 2 * BLOCK) as writer:
            writer.write(picture('A'))
            made = writer.publish(self.facts(self.key(), 'A.'))
            self.clone(made, 'v1')
            self.assertRaises(ValueError, writer.write, picture('B'))
        self.assertEqual(picture('A.'), self.content(made.location))
        self.assertEqual(picture('A.'), self.content('v1'))

    def test_an_aborted_base_is_not_published(self):
        writer = self.driver.begin_base(self.key(), BLOCK)
        writer.abort()
        facts = self.facts(self.key(), 'A')
        self.assertRaises(ValueError, writer.publish, facts)
        self.assertEqual([], list(self.driver.list_bases()))

    def test_reading_a_base_that_is_not_there(self):
        location = image_location.BaseLocation(
            self.driver.backend, self.key().name
        )
        self.assert_refused(Reason.BASE_NOT_FOUND, self.driver.read, location)

    def test_a_clone_has_the_bytes_of_its_parent(self):
        made = self.make_base('A.BC')
        info = self.clone(made, 'v1')
        self.assertEqual(picture('A.BC'), self.content('v1'))
        self.assertEqual(info.size, len(picture('A.BC')))
        self.assertEqual(self.driver.show('v1').size, info.size)

    def test_a_clone_has_the_size_asked_for(self):
        made = self.make_base('AB')
        self.clone(made, 'v1', size=9 * BLOCK)
        expected = picture('AB').ljust(9 * BLOCK, b'\0')
        self.assertEqual(expected, self.content('v1'))

    def test_a_bound_view_leaves_the_driver_as_it_is(self):
        image = self.image_at(self.make_base('AB').location)
        large = self.driver.bound(base.VolumeRequest(size=9 * BLOCK))
        self.driver.bound(base.VolumeRequest(size=4 * BLOCK))
        self.assertEqual(9 * BLOCK, large.clone(image, 'v1').size)
        self.assertEqual(2 * BLOCK, self.driver.clone(image, 'v2').size)

    def test_bad_names_of_clones_are_refused(self):
        made = self.make_base('A')
        for name in BAD_NAMES:
            self.assert_refused(Reason.INVALID_NAME, self.clone, made, name)
        self.assertEqual([], self.names())

    def test_extents_of_a_base_and_its_clone_tell_the_truth(self):
        made = self.make_base('A..B')
        self.assert_extents_are_true(made.location, picture('A..B'))
        self.clone(made, 'v1', size=10 * BLOCK)
        self.overwrite('v1', 5 * BLOCK, b'x' * BLOCK)
        content = (picture('A..B.') + b'x' * BLOCK).ljust(10 * BLOCK, b'\0')
        self.assertEqual(content, self.content('v1'))
        self.assert_extents_are_true('v1', content)

    def test_a_clone_is_never_a_truncation(self):
        made = self.make_base('AB')
        self.assert_refused(
            Reason.VOLUME_TOO_SMALL, self.clone, made, 'v1', 2 * BLOCK - 1
        )
        self.assertFalse(self.driver.exists('v1'))
        self.clone(made, 'v1')  # the name is free

    def test_a_clone_takes_almost_no_space(self):
        made = self.make_base('A' * 100)
        before = self.driver.show(self.clone(made, 'v1').name).allocated
        self.overwrite('v1', 0, b'x' * 4096)
        after = self.driver.show('v1').allocated
        self.assertLess(after - before, 100 * BLOCK // 4)

    def test_clones_take_almost_no_space(self):
        made = self.make_base('A' * 100)
        before = self.space_used()
        for number in range(10):
            self.clone(made, f'v{number}')
        self.assertLess(self.space_used() - before, 100 * BLOCK)

    def test_a_write_to_a_clone_shows_in_no_other(self):
        made = self.make_base('ABC')
        for name in ('v1', 'v2', 'v3'):
            self.clone(made, name)
        self.overwrite('v2', BLOCK - 100, b'x' * 200)
        self.assertEqual(picture('ABC'), self.content('v1'))
        self.assertEqual(picture('ABC'), self.content('v3'))
        self.assertEqual(picture('ABC'), self.content(made.location))
        self.clone(made, 'v4')
        self.assertEqual(picture('ABC'), self.content('v4'))
        changed = bytearray(picture('ABC'))
        changed[BLOCK - 100 : BLOCK + 100] = b'x' * 200
        self.assertEqual(bytes(changed), self.content('v2'))

    def test_clone_and_stream_give_the_same_bytes(self):
        self.clone(self.make_base('A..BC.'), 'fast', size=8 * BLOCK)
        self.write_volume('slow', 'A..BC.', size=8 * BLOCK)
        self.assertEqual(self.content('slow'), self.content('fast'))

    def test_a_clone_can_be_extended_and_deleted(self):
        made = self.make_base('AB')
        self.clone(made, 'v1')
        self.driver.extend('v1', 6 * BLOCK)
        expected = picture('AB').ljust(6 * BLOCK, b'\0')
        self.assertEqual(expected, self.content('v1'))
        self.driver.delete('v1')
        self.assertEqual([], self.names())
        self.assertEqual(picture('AB'), self.content(made.location))

    def test_a_clone_does_not_take_a_name_in_use(self):
        self.write_volume('v1', 'Z')
        made = self.make_base('AB')
        self.assert_refused(Reason.VOLUME_EXISTS, self.clone, made, 'v1')
        self.assertEqual(picture('Z'), self.content('v1'))

    def test_only_own_bases_are_cloneable(self):
        made = self.make_base('AB')
        self.assertTrue(self.driver.cloneable(self.image_at(made.location)))
        for location in (
            image_location.BaseLocation('another', made.name),
            image_location.BaseLocation(self.driver.backend, 'cow-base-no'),
            image_location.parse('file:///etc/passwd'),
            image_location.parse('unheard-of://x/y'),
        ):
            verdict = self.driver.cloneable(self.image_at(location))
            self.assertFalse(verdict)
            self.assertTrue(verdict.refusal.remedy)

    def test_a_base_with_children_stays(self):
        made = self.make_base('AB')
        self.clone(made, 'v1')
        self.write_volume('v2', 'C')  # no child of anything
        children = self.driver.children(made, 20)
        parent = self.driver.show('v1').parent
        self.assertEqual(made.name if children else None, parent)
        if children:
            self.assertEqual(['v1'], list(children))
            message = self.assert_refused(
                Reason.BASE_IN_USE, self.driver.retire_base, made.name
            )
            self.assertIn('v1', message)
            self.driver.delete('v1')
        self.driver.retire_base(made.name)
        self.driver.retire_base(made.name)
        self.assertIsNone(self.driver.find_base(self.key()))
        if not children:
            self.assertEqual(picture('AB'), self.content('v1'))

    def test_many_at_once(self):
        made = self.make_base('AB')
        errors = []

        def work(number):
            try:
                for turn in range(5):
                    name = f'v{number}-{turn}'
                    self.clone(made, name)
                    if turn % 2:
                        self.driver.delete(name)
            except BaseException as error:  # noqa: BLE001 - told below
                errors.append(error)

        works = [functools.partial(work, number) for number in range(8)]
        self.join(self.start(*works))
        self.assertEqual([], errors)
        self.assertEqual(24, len(self.names()))
        self.assertEqual(picture('AB'), self.content('v7-4'))

    def test_one_name_many_makers_one_winner(self):
        made = self.make_base('AB')
        answers: list[Any] = []

        def work():
            try:
                self.clone(made, 'v1')
                answers.append('made')
            except exception.RequestError as error:
                answers.append(error.reason)

        self.join(self.start(*[work] * 8))
        self.assertEqual(1, answers.count('made'))
        self.assertEqual(7, answers.count(Reason.VOLUME_EXISTS))


class BaseLinkerConformance(BaseKeeperConformance):
    """The cases of a driver that makes bases of volumes, without copying.

    A driver that refuses each with NOT_LINKABLE passes: it may depend on the
    storage.
    """

    def link(self, size):
        """Link volume v1; return the writer, or None where it cannot be."""
        before = self.content('v1')
        try:
            begun = self.driver.link_base(self.key(), size, 'v1')
        except exception.BackendError as error:
            self.assertEqual(Reason.NOT_LINKABLE, error.reason)
            self.assertIn('v1', str(error))
            self.assertEqual(before, self.content('v1'))
            self.begin(size).abort()
            return None
        self.assertNotIsInstance(begun, (bases.Base, bases.Making))
        return begun

    def link_published(self, text):
        """Link volume v1, to a base with the content of that picture."""
        writer = self.link(len(picture(text)))
        if writer is None:
            return None
        with writer:
            return writer.publish(self.facts(self.key(), text))

    def test_is_a_base_linker(self):
        self.assertIsInstance(self.driver, bases.BaseLinker)

    def test_a_linked_base_has_the_content_of_the_volume(self):
        self.write_volume('v1', 'A.BC')
        made = self.link_published('A.BC')
        if made is None:
            return
        self.assertEqual(made, self.driver.find_base(self.key()))
        self.assertEqual(picture('A.BC'), self.content(made.location))
        self.clone(made, 'v2')
        self.assertEqual(picture('A.BC'), self.content('v2'))

    def test_a_linked_base_ends_where_its_content_does(self):
        self.write_volume('v1', 'ABCD')
        size = 2 * BLOCK - 700
        writer = self.link(size)
        if writer is None:
            return
        with writer:
            facts = self.facts(self.key(), 'AB')
            facts = dataclasses.replace(facts, content_size=size)
            made = writer.publish(facts)
        content = picture('AB')[:size]
        found = self.content(made.location)
        # Where a back end rounds up, zeros follow.
        self.assertEqual(content.ljust(len(found), b'\0'), found)
        self.clone(made, 'v2', size=3 * BLOCK)
        self.assertEqual(content.ljust(3 * BLOCK, b'\0'), self.content('v2'))

    def test_a_linked_base_does_not_follow_its_volume(self):
        self.write_volume('v1', 'ABC')
        writer = self.link(3 * BLOCK)
        if writer is None:
            return
        with writer:
            self.overwrite('v1', 0, b'x' * 4096)
            made = writer.publish(self.facts(self.key(), 'ABC'))
        self.overwrite('v1', BLOCK, b'y' * 4096)
        self.assertEqual(picture('ABC'), self.content(made.location))
        self.clone(made, 'v2')
        self.assertEqual(picture('ABC'), self.content('v2'))

    def test_a_linked_volume_does_not_follow_its_base(self):
        content = self.write_volume('v1', 'ABC')
        before = self.driver.show('v1')
        made = self.link_published('ABC')
        if made is None:
            return
        after = self.driver.show('v1')
        for name in ('name', 'size', 'format', 'path', 'parent'):
            self.assertEqual(getattr(before, name), getattr(after, name))
        self.clone(made, 'v2')
        self.overwrite('v2', 0, b'x' * BLOCK)
        self.assertEqual(content, self.content('v1'))
        self.overwrite('v1', 0, b'y' * BLOCK)
        self.driver.extend('v1', 5 * BLOCK)
        content = b'y' * BLOCK + picture('BC..')
        self.assertEqual(content, self.content('v1'))
        self.assertEqual(picture('ABC'), self.content(made.location))

    def test_linking_takes_almost_no_space(self):
        self.write_volume('v1', 'A' * 100)
        before = self.space_used()
        if self.link_published('A' * 100):
            self.assertLess(self.space_used() - before, 50 * BLOCK)

    def test_an_aborted_link_leaves_nothing(self):
        content = self.write_volume('v1', 'AB')
        for end in ('abort', 'leave'):
            writer = self.link(2 * BLOCK)
            if writer is None:
                return
            getattr(writer, end)()
            self.assertIsNone(self.driver.find_base(self.key()))
            self.assertEqual(content, self.content('v1'))
            # It is not what a maker wrote in order.
            with self.begin(2 * BLOCK) as other:
                self.assertEqual(0, other.kept)

    def test_linking_where_somebody_left_something(self):
        self.leave('CCCC', 5 * BLOCK)
        self.write_volume('v1', 'AB', size=5 * BLOCK)
        made = self.link_published('AB...')
        if made is not None:
            self.assertEqual(picture('AB...'), self.content(made.location))

    def test_linking_what_is_there_or_being_made(self):
        self.write_volume('v1', 'A')
        if self.link_published('A') is None:
            return
        made = self.driver.find_base(self.key())
        self.assertEqual(made, self.driver.link_base(self.key(), BLOCK, 'v1'))
        other = self.key('image-2')
        with self.begin(BLOCK, other):
            begun = self.driver.link_base(other, BLOCK, 'v1')
            self.assertIsInstance(begun, bases.Making)

    def test_linking_what_is_not_there(self):
        self.assert_refused(
            Reason.VOLUME_NOT_FOUND,
            self.driver.link_base,
            self.key(),
            BLOCK,
            'nothing',
        )
        for name in BAD_NAMES:
            # Invalid or not found: nothing can have such a name.
            self.assertRaises(
                exception.RequestError,
                self.driver.link_base,
                self.key(),
                BLOCK,
                name,
            )
        self.make_base('A')
