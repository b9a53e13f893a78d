# SPDX-License-Identifier: Apache-2.0
"""Bases of the file driver: makers that die, facts, links and orphans."""

from concurrent import futures
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import ddt
import fixtures
from oslo_config import cfg
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import opts
from cinder_cow.drivers import bases
from cinder_cow.drivers import file
from cinder_cow.drivers import file_sinks
from cinder_cow.refusal import Reason
from cinder_cow.tests import storage

SIZE = 96 * units.Mi
KEY = bases.BaseKey('image-1', 'sha512:1')
STEP = units.Mi
DAY = 24 * 3600
LIMIT_SECONDS = 60

# Another process: begins the base, writes so many bytes, tells, and waits.
MAKER = """
import pathlib, sys
from cinder_cow.drivers import bases, file
root, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
driver = file.FileDriver(pathlib.Path(root))
writer = driver.begin_base(bases.BaseKey('image-1', 'sha512:1'), size)
print(writer.kept, flush=True)
data = b''.join(bytes([n + 1]) * 2**20 for n in range(count))[writer.kept:]
for offset in range(0, len(data), 700_001):
    writer.write(data[offset : offset + 700_001])
writer.tell(bases.Progress('streaming', count, size))
print('written', flush=True)
sys.stdin.readline()
writer.leave()
"""


def content(size):
    """The bytes that a maker writes."""
    return b''.join(bytes([n + 1]) * STEP for n in range(size // STEP))


def facts(key=KEY, size=SIZE):
    return bases.BaseFacts(key, 'an image', 'raw', size, '', 1.0)


def tree(root):
    """All files, with what changes where somebody changes them."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in root.rglob('*')
    }


class Case(test_base.BaseTestCase):
    kind = 'ext4'

    def setUp(self):
        super().setUp()
        self.root = storage.directory(self.kind)
        self.addCleanup(shutil.rmtree, self.root)
        self.driver = file.FileDriver(self.root)
        self.partial = self.root / 'cow-partial' / KEY.name

    def begin(self, size=SIZE, key=KEY) -> Any:
        begun = self.driver.begin_base(key, size)
        self.assertNotIsInstance(begun, (bases.Base, bases.Making))
        return begun

    def leave(self, data, size=SIZE):
        with self.begin(size) as writer:
            writer.write(data)
            writer.leave()

    def make_base(self, size=STEP, key=KEY):
        with self.begin(size, key) as writer:
            writer.write(b'A' * size)
            return writer.publish(facts(key, size))

    def clone(self, made, name):
        image = images.ImageInfo(id='image-1', name='', disk_format='raw')
        return self.driver.clone(image.at(made.location), name)

    def write_volume(self, name, data):
        with self.driver.open(name, len(data)) as writer:
            writer.write(data)
            writer.close()

    def read(self, source):
        with self.driver.read(source) as reader:
            return reader.read(0, reader.size)

    def assert_same(self, expected, found):
        self.assertTrue(storage.same(expected, found), 'other bytes')

    def assert_refused(self, reason, call, *args, **more):
        try:
            call(*args, **more)
        except exception.CowError as error:
            self.assertEqual(reason, error.reason)
            return str(error)
        raise AssertionError(f'{reason} was not raised')

    def kept(self, writer):
        return b''.join(
            bytes(piece) if isinstance(piece, int) else piece
            for piece in writer.kept_pieces()
        )

    @contextlib.contextmanager
    def maker(self, count, size=SIZE):
        """Run another process that has written so many MiB of the base."""
        with subprocess.Popen(
            [sys.executable, '-c', MAKER, self.root, str(size), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                self.told = int(process.stdout.readline())
                self.assertEqual('written\n', process.stdout.readline())
                yield process
            finally:
                process.kill()


class DeadMakers:
    """What one that was killed, or that left, gives to the next one."""

    def kill_one(self: Any, count):
        with self.maker(count) as process:
            process.send_signal(signal.SIGKILL)
            process.wait(LIMIT_SECONDS)

    def test_what_was_written_before_a_kill_is_gone_on_with(self: Any):
        self.kill_one(80)
        self.driver.sweep()
        with self.begin() as writer:
            self.assertGreaterEqual(writer.kept, 48 * units.Mi)
            self.assertLessEqual(writer.kept, 80 * units.Mi)
            self.assertEqual(0, writer.kept % 4096)
            expected = content(SIZE)
            self.assert_same(expected[: writer.kept], self.kept(writer))
            writer.write(expected[writer.kept :])
            made = writer.publish(facts())
        self.assert_same(expected, self.read(made.location))
        self.assertEqual([], os.listdir(self.root / 'cow-partial'))
        self.assertEqual(
            ['facts.json', 'image.raw'],
            sorted(os.listdir(self.root / 'cow-bases' / made.name)),
        )

    def test_what_is_behind_the_recorded_byte_is_cut_off(self: Any):
        self.kill_one(40)
        with (self.partial / 'base/image.raw').open('r+b') as image:
            image.seek(33 * units.Mi)
            image.write(b'x' * (SIZE - 33 * units.Mi))
        with self.begin() as writer:
            kept = writer.kept
            self.assertLessEqual(kept, 33 * units.Mi)
            self.assertGreater(kept, 0)
            made = writer.publish(facts())
        expected = content(SIZE)[:kept].ljust(SIZE, b'\0')
        self.assert_same(expected, self.read(made.location))

    def test_a_maker_is_killed_again_and_again(self: Any):
        for count in (35, 70, 90):
            before = getattr(self, 'told', 0)
            self.kill_one(count)
            self.assertGreaterEqual(self.told, before)
        self.assertGreaterEqual(self.told, 48 * units.Mi)
        with self.begin() as writer:
            expected = content(SIZE)
            self.assert_same(expected[: writer.kept], self.kept(writer))

    def test_another_process_is_told_and_goes_on(self: Any):
        with self.maker(3) as process:
            making = self.driver.begin_base(KEY, SIZE)
            self.assertIsInstance(making, bases.Making)
            self.assertIn(f'process {process.pid} on', making.owner)
            self.assertLess(abs(time.time() - making.since), LIMIT_SECONDS)
            self.assertEqual(
                bases.Progress('streaming', 3, SIZE), making.progress
            )
            # Nobody takes from it what it holds.
            self.driver.sweep()
            self.assertEqual([], list(self.driver.remove_orphans()))
            process.communicate('leave\n', LIMIT_SECONDS)
        with self.begin() as writer:
            self.assertEqual(3 * STEP, writer.kept)
            self.assert_same(content(3 * STEP), self.kept(writer))


class TestDeadMakersExt4(DeadMakers, Case):
    kind = 'ext4'


class TestDeadMakersXfs(DeadMakers, Case):
    kind = 'xfs'


@ddt.ddt
class TestKept(Case):
    """What is kept, for how long, and what never is."""

    def recorded(self):
        return int((self.partial / 'kept').read_text().split()[1])

    @ddt.data(1, 4095, 4096, 5000, STEP, STEP + 1, 2 * STEP)
    def test_of_what_was_left_all_whole_pages_are(self, length):
        data = (b'0123456789abcdef' * (length // 16 + 1))[:length]
        self.leave(data, 2 * STEP)
        whole = length == 2 * STEP
        with self.begin(2 * STEP) as writer:
            self.assertEqual(
                length if whole else length - length % 4096, writer.kept
            )
            writer.write(data[writer.kept :])
            made = writer.publish(facts(size=2 * STEP))
        self.assert_same(data.ljust(2 * STEP, b'\0'), self.read(made.location))

    def test_it_is_recorded_while_it_is_written(self):
        with self.begin() as writer:
            for _turn in range(5):
                writer.write(b'A' * (file_sinks.SYNC_STEP // 2))
            found = self.driver._layout.making(KEY.name)
            self.assertIn(str(os.getpid()), found.owner)
            record = (self.partial / 'kept').read_text().split()
        self.assertEqual(SIZE, int(record[0]))
        self.assertGreaterEqual(
            int(record[1]), 2 * file_sinks.SYNC_STEP - STEP
        )

    def failing(self, name):
        def fail(descriptor):
            raise OSError(errno.EIO, 'broken')

        return fixtures.MonkeyPatch(name, fail)

    def test_only_what_is_on_storage_is_recorded(self):
        with self.begin() as writer, self.failing('os.fdatasync'):
            self.assertRaises(
                exception.BackendError,
                writer.write, bytes(file_sinks.SYNC_STEP + STEP),
            )  # fmt: skip
            self.assertEqual(0, self.recorded())
            writer.leave()
        self.assertEqual([], os.listdir(self.root / 'cow-partial'))

    def test_only_what_was_flushed_is_recorded(self):
        with self.begin() as writer:
            writer.write(b'A' * STEP)
            writer.flush()
            writer.write(b'B' * STEP)
            with self.failing('os.fsync'):
                self.assertRaises(exception.BackendError, writer.flush)
            self.assertEqual(STEP, self.recorded())
            writer.leave()
        with self.begin() as writer:
            self.assert_same(b'A' * STEP, self.kept(writer))

    def test_what_is_left_alone_goes_after_a_day(self):
        self.leave(b'A' * STEP)
        self.driver.sweep()
        for age, stays in ((DAY - 60, True), (DAY + 60, False)):
            then = time.time() - age
            os.utime(self.partial / 'kept', (then, then))
            self.driver.sweep()
            self.assertEqual(stays, self.partial.exists())
        with self.begin() as writer:
            self.assertEqual(0, writer.kept)

    def test_going_on_with_it_begins_the_day_anew(self):
        self.leave(b'A' * STEP)
        then = time.time() - DAY + 60
        os.utime(self.partial / 'kept', (then, then))
        writer = self.begin()
        # As if it was killed: it writes nothing more.
        writer._partial.let_go()
        writer._close()
        self.assertGreater((self.partial / 'kept').stat().st_mtime, then + 60)

    def test_a_base_that_nothing_was_written_of_leaves_nothing(self):
        self.begin().leave()
        self.assertEqual([], os.listdir(self.root / 'cow-partial'))

    def test_what_cannot_be_flushed_is_kept_as_it_was_recorded(self):
        writer = self.begin()
        writer.write(b'A' * STEP)
        writer.flush()
        writer.write(b'B' * STEP)
        writer._file._error = OSError('broken')
        writer.leave()
        with self.begin() as writer:
            self.assertEqual(STEP, writer.kept)

    def test_what_qemu_wrote_is_never_kept(self):
        self.leave(b'A' * STEP)
        with self.begin() as writer:
            self.assertEqual(STEP, writer.kept)
            writer.qemu_target()
            # Also where it is killed, from now on.
            self.assertEqual(0, self.recorded())
            writer.restart()
            writer.write(b'A' * STEP)
            writer.leave()
        self.assertEqual([], os.listdir(self.root / 'cow-partial'))

    def test_what_could_not_be_shared_is_kept(self):
        self.write_volume('v1', b'B' * STEP)
        self.leave(b'A' * STEP)
        with self.begin() as writer:
            with open(self.driver.show('v1').path, 'rb') as source:
                self.assertFalse(writer.share_file(source.fileno()))
            self.assertEqual(STEP, self.recorded())
            writer.leave()
        with self.begin() as writer:
            self.assert_same(b'A' * STEP, self.kept(writer))

    def test_what_the_release_before_left_is_removed(self):
        for finish in (self.driver.sweep, lambda: self.begin().abort()):
            (self.partial / 'base').mkdir(parents=True)
            (self.partial / 'lock').write_text('process 1 on host')
            (self.partial / 'base/image.raw').write_bytes(b'x' * STEP)
            finish()
            self.assertEqual([], os.listdir(self.root / 'cow-partial'))

    def test_a_maker_of_the_release_before_is_told(self):
        with self.begin() as writer:
            os.ftruncate(writer._partial._lock, 0)
            os.pwrite(writer._partial._lock, b'process 1 on host', 0)
            making = self.driver.begin_base(KEY, SIZE)
        self.assertEqual(bases.Making('process 1 on host'), making)

    @ddt.data(
        b'',
        b'x' * 42,
        b'%020d %020d\n' % (SIZE, SIZE + 1),
        b'%020d %020d\n' % (SIZE - 1, STEP),
        b'%020d %020d\n' % (STEP, STEP),
        b'%020d %019d-\n' % (SIZE, STEP),
    )
    def test_a_damaged_record_keeps_nothing(self, record):
        self.leave(b'A' * STEP)
        (self.partial / 'kept').write_bytes(record)
        with self.begin() as writer:
            self.assertEqual(0, writer.kept)
            writer.write(b'B')
            made = writer.publish(facts())
        self.assert_same(b'B'.ljust(SIZE, b'\0'), self.read(made.location))

    def test_a_maker_that_died_while_publishing(self):
        self.leave(b'A' * STEP, STEP)
        (self.partial / 'base/facts.json').write_text('half-wri')
        (self.partial / 'base/facts.json.new').write_text('half-wri')
        (self.partial / 'base/image.raw').chmod(0o400)
        with self.begin(STEP) as writer:
            self.assertEqual(STEP, writer.kept)
            self.assertEqual(
                0o600, (self.partial / 'base/image.raw').stat().st_mode & 0o777
            )
            made = writer.publish(facts(size=STEP))
        self.assert_same(b'A' * STEP, self.read(made.location))
        self.assertEqual([], list(self.driver.orphans()))

    def test_no_descriptor_is_left_open(self):
        before = os.listdir('/proc/self/fd')
        self.leave(b'A' * STEP)
        with self.begin() as writer:
            self.driver.begin_base(KEY, SIZE)
            list(writer.kept_pieces())
            writer.restart()
        made = self.make_base()
        self.driver.set_base_facts(made.name, pinned=True)
        self.driver.set_base_manifest(made.name, b'x')
        list(self.driver.remove_orphans())
        self.assertEqual(before, os.listdir('/proc/self/fd'))


class TestTelling(Case):
    def progress(self):
        begun = self.driver.begin_base(KEY, SIZE)
        assert isinstance(begun, bases.Making)
        return begun.progress

    def test_it_is_written_twice_a_second_at_most(self):
        with self.begin() as writer:
            for done in range(1, 100):
                writer.tell(bases.Progress('streaming', done, 100))
            self.assertEqual(1, self.progress().done)
            time.sleep(0.6)
            writer.tell(bases.Progress('x' * 1000, 100, 100))
            self.assertEqual(100, self.progress().done)
            time.sleep(0.6)
            writer.tell(bases.Progress('short', 2**62, 2**62))
            self.assertEqual(
                bases.Progress('short', 2**62, 2**62), self.progress()
            )

    def test_it_never_fails(self):
        writer = self.begin()
        kept = writer._partial._lock
        writer._partial._lock = os.open('/dev/full', os.O_WRONLY)
        self.addCleanup(os.close, writer._partial._lock)
        writer.tell(bases.Progress('streaming', 1, 2))
        writer._partial._lock = kept
        writer.abort()
        writer._last_told = 0
        writer.tell(bases.Progress('streaming', 1, 2))

    def test_what_is_torn_is_not_known(self):
        with self.begin():
            lock = self.partial / 'lock'
            whole = lock.read_bytes()
            for text in (b'', b'{', whole[:30], b'[]', b'{"owner": 1}',
                         b'\xff\0', b'1' * 5000):  # fmt: skip
                lock.write_bytes(text)
                making = self.driver.begin_base(KEY, SIZE)
                assert isinstance(making, bases.Making)
                self.assertTrue(making.owner)
                self.assertEqual(0, making.since)


class TestFacts(Case):
    def path(self, made, name='facts.json'):
        return self.root / 'cow-bases' / made.name / name

    def test_facts_of_the_release_before(self):
        made = self.make_base()
        record = json.loads(self.path(made).read_text())
        for name in ('verified', 'last_used', 'pinned', 'missing_since'):
            del record['facts'][name]
        self.path(made).write_text(json.dumps(record, indent=1))
        self.assertEqual(made, self.driver.find_base(KEY))
        self.driver.set_base_facts(made.name, pinned=True)
        expected = dataclasses.replace(made.facts, pinned=True)
        found = self.driver.find_base(KEY)
        assert found is not None
        self.assertEqual(expected, found.facts)

    def test_lost_facts_are_not_written_over(self):
        made = self.make_base()
        self.path(made).write_text('{')
        for call in (
            lambda: self.driver.set_base_facts(made.name, pinned=True),
            lambda: self.driver.set_base_manifest(made.name, b'x'),
        ):
            self.assert_refused(Reason.BASE_CHANGED, call)
        self.assertEqual('{', self.path(made).read_text())

    def test_a_changed_base_stays_changed(self):
        made = self.make_base()
        image = self.path(made, 'image.raw')
        os.utime(image, (1, 1))
        self.driver.set_base_facts(made.name, missing_since=5)
        found = self.driver.find_base(KEY)
        assert found is not None
        self.assertEqual(5, found.facts.missing_since)
        self.assert_refused(Reason.BASE_CHANGED, self.clone, made, 'v1')

    def test_what_cannot_be_written_changes_nothing(self):
        made = self.make_base()
        before = sorted(os.listdir(self.path(made, '')))
        self.path(made, 'manifest.new').mkdir()
        self.assert_refused(
            Reason.BACKEND_ERROR,
            self.driver.set_base_manifest, made.name, b'x',
        )  # fmt: skip
        self.path(made, 'manifest.new').rmdir()
        self.assertEqual(before, sorted(os.listdir(self.path(made, ''))))
        self.assertEqual(b'', self.driver.base_manifest(made.name))

    def test_what_there_is_no_space_for_leaves_nothing(self):
        made = self.make_base()
        self.driver.set_base_manifest(made.name, b'before')
        before = tree(self.path(made, ''))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, hard))
        try:
            for call in (
                lambda: self.driver.set_base_manifest(made.name, b'after'),
                lambda: self.driver.set_base_facts(made.name, pinned=True),
            ):
                self.assert_refused(Reason.NO_SPACE, call)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.assertEqual(before, tree(self.path(made, '')))

    def test_others_never_see_a_half_written_one(self):
        made = self.make_base()
        end = time.monotonic() + 2

        def change(name):
            turn = 0
            while time.monotonic() < end:
                turn += 1
                self.driver.set_base_facts(made.name, **{name: turn})
                self.driver.set_base_manifest(made.name, b'x' * turn)
            return turn

        def look():
            turn = 0
            while time.monotonic() < end:
                turn += 1
                found = self.driver.find_base(KEY)
                assert found is not None
                assert found.facts.key == KEY, found
                assert set(self.driver.base_manifest(made.name)) <= {ord('x')}
            return turn

        def clone(number):
            turn = 0
            while time.monotonic() < end:
                turn += 1
                self.clone(made, f'v{number}')
                self.driver.delete(f'v{number}')
            return turn

        with futures.ThreadPoolExecutor(6) as pool:
            works = [
                pool.submit(change, 'last_used'),
                pool.submit(change, 'missing_since'),
                pool.submit(look),
                pool.submit(clone, 1),
                pool.submit(clone, 2),
            ]
            used, missing, *_others = [work.result() for work in works]
        found = self.driver.find_base(KEY)
        assert found is not None
        # No change of one was lost to the other.
        self.assertEqual(used, found.facts.last_used)
        self.assertEqual(missing, found.facts.missing_since)

    def test_retiring_and_changing_at_once(self):
        for _turn in range(20):
            made = self.make_base()
            with futures.ThreadPoolExecutor(2) as pool:
                change = pool.submit(
                    self.driver.set_base_facts, made.name, pinned=True
                )
                pool.submit(self.driver.retire_base, made.name).result()
                if error := change.exception():
                    assert isinstance(error, exception.BackendError)
                    self.assertIn(
                        error.reason, (Reason.BASE_NOT_FOUND, Reason.BUSY)
                    )
            self.assertEqual([], os.listdir(self.root / 'cow-bases'))
            self.assertEqual([], os.listdir(self.root / 'cow-partial'))


class TestLinking(Case):
    kind = 'xfs'

    def link(self, size=SIZE, name='v1') -> Any:
        return self.driver.link_base(KEY, size, name)

    def test_nothing_is_copied(self):
        self.write_volume('v1', content(SIZE))
        os.sync()
        before = os.statvfs(self.root)
        with self.link() as writer:
            made = writer.publish(facts())
        os.sync()
        after = os.statvfs(self.root)
        self.assertLess(
            (before.f_bfree - after.f_bfree) * before.f_frsize, STEP
        )
        self.assert_same(content(SIZE), self.read(made.location))
        self.driver.delete('v1')
        self.assert_same(content(SIZE), self.read(made.location))

    def test_a_volume_that_qemu_writes_to_is_not_linked(self):
        self.write_volume('v1', b'A' * SIZE)
        path = self.driver.show('v1').path
        with subprocess.Popen(
            ['qemu-io', '-f', 'raw', path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as guest:
            assert guest.stdin is not None
            assert guest.stdout is not None
            guest.stdin.write('write -P 66 0 4096\n')
            guest.stdin.flush()
            guest.stdout.readline()
            error = self.assert_refused(Reason.NOT_LINKABLE, self.link)
            self.assertIn('open for writing', error)
            self.assertEqual([], os.listdir(self.root / 'cow-partial'))
            guest.communicate('quit\n', LIMIT_SECONDS)
        # One that only reads is in nobody's way.
        with subprocess.Popen(
            ['qemu-io', '-r', '-f', 'raw', path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as guest:
            assert guest.stdin is not None
            assert guest.stdout is not None
            guest.stdin.write('read 0 4096\n')
            guest.stdin.flush()
            guest.stdout.readline()
            self.link().abort()
            guest.communicate('quit\n', LIMIT_SECONDS)

    def test_a_volume_that_is_too_short_is_not_linked(self):
        self.write_volume('v1', b'A' * STEP)
        self.assert_refused(Reason.NOT_LINKABLE, self.link)

    def test_an_overlay_is_not_linked(self):
        self.write_volume('v1', b'A' * STEP)
        path = pathlib.Path(self.driver.show('v1').path)
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', path,
             path.with_suffix('.qcow2')], check=True,
        )  # fmt: skip
        path.unlink()
        error = self.assert_refused(Reason.NOT_LINKABLE, self.link, STEP)
        self.assertIn('overlay', error)

    def test_what_was_left_of_a_longer_content_does_not_shine_through(self):
        self.leave(b'x' * 3 * STEP, 4 * STEP)
        self.write_volume('v1', b'A' * 4 * STEP)
        with self.link(4 * STEP) as writer:
            made = writer.publish(facts(size=4 * STEP))
        self.assert_same(b'A' * 4 * STEP, self.read(made.location))

    def test_a_link_that_is_killed_is_not_gone_on_with(self):
        self.leave(b'x' * 3 * STEP, 4 * STEP)
        self.write_volume('v1', b'A' * 4 * STEP)
        writer = self.link(4 * STEP)
        # Its descriptor closed, it looks like what a dead maker left.
        writer._partial.let_go()
        with self.begin(4 * STEP) as other:
            self.assertEqual(0, other.kept)
        writer._close()


class TestNotLinking(Case):
    kind = 'ext4'

    def test_without_reflinks_what_was_left_stays(self):
        self.leave(b'A' * STEP, 2 * STEP)
        self.write_volume('v1', b'A' * 2 * STEP)
        error = self.assert_refused(
            Reason.NOT_LINKABLE, self.driver.link_base, KEY, 2 * STEP, 'v1'
        )
        self.assertIn('shares no blocks', error)
        with self.begin(2 * STEP) as writer:
            self.assertEqual(STEP, writer.kept)


class TestOrphans(Case):
    def orphans(self):
        before = tree(self.root)
        found = list(self.driver.orphans())
        self.assertEqual(before, tree(self.root))
        return found

    def one(self):
        (orphan,) = self.orphans()
        return orphan

    def assert_removed(self, *others):
        """Remove all; these are told too, and stay."""
        found = self.orphans()
        self.assertEqual(found, list(self.driver.remove_orphans()))
        self.assertEqual(list(others), self.orphans())

    def test_what_is_alive_is_none(self):
        self.make_base()
        self.write_volume('v1', b'A')
        other = bases.BaseKey('image-2', 'sha512:2')
        with self.begin(key=other) as writer, self.driver.open('v2', STEP):
            writer.write(b'A' * STEP)
            # Else storage may tell of the write as it is looked.
            writer.flush()
            self.assertEqual([], self.orphans())
            self.assertEqual([], list(self.driver.remove_orphans()))
            self.assertIsInstance(
                self.driver.begin_base(other, SIZE), bases.Making
            )
            writer.publish(facts(other))

    def test_a_dead_maker_of_a_volume(self):
        left: Any = self.driver.open('left', SIZE)
        left._partial.let_go()
        orphan = self.one()
        self.assertIn('left', orphan.what)
        self.assertIn(f'process {os.getpid()}', orphan.problem)
        self.assertTrue(orphan.removable)
        self.assert_removed()
        left._file.close()

    def test_what_is_kept_is_told_with_age_and_size(self):
        self.leave(b'A' * 3 * STEP)
        then = time.time() - 2 * 3600
        os.utime(self.partial / 'kept', (then, then))
        orphan = self.one()
        self.assertIn(KEY.name, orphan.what)
        self.assertIn('3 MiB', orphan.problem)
        self.assertIn('2.0 hours', orphan.problem)
        self.assertTrue(orphan.removable)
        self.driver.sweep()
        self.assertEqual(orphan, self.one())
        self.assert_removed()

    def test_files_and_empty_directories_among_partials(self):
        (self.root / 'cow-partial/layout-1-2').touch()
        (self.root / 'cow-partial/empty').mkdir()
        self.assertEqual(2, len(self.orphans()))
        self.assert_removed()

    def test_bases_that_lost_something(self):
        for name in ('image.raw', 'facts.json'):
            made = self.make_base()
            (self.root / 'cow-bases' / made.name / name).unlink()
            orphan = self.one()
            self.assertIn(made.name, orphan.what)
            self.assertIn(name, orphan.problem)
            self.assertTrue(orphan.removable)
            self.assert_removed()
            self.assertEqual([], os.listdir(self.root / 'cow-bases'))

    def test_a_lost_base_with_children_stays(self):
        made = self.make_base()
        self.clone(made, 'v1')
        path = self.root / 'cow-bases' / made.name / 'facts.json'
        path.write_text('{')
        orphan = self.one()
        self.assertIn('damaged', orphan.problem)
        self.assertFalse(orphan.removable)
        self.assertIn('v1', orphan.remedy)
        self.assert_removed(orphan)
        (self.root / 'v1.qcow2').write_bytes(b'no overlay any more')
        orphan = self.one()
        self.assertFalse(orphan.removable)
        self.assertIn('v1.qcow2', orphan.remedy)
        self.driver.delete('v1')
        self.assert_removed()

    def test_a_changed_base_is_none(self):
        made = self.make_base()
        os.utime(self.root / 'cow-bases' / made.name / 'image.raw', (1, 1))
        self.assertEqual([], self.orphans())

    def test_what_was_written_aside(self):
        made = self.make_base()
        directory = self.root / 'cow-bases' / made.name
        for name in ('facts.json.new', 'manifest.new'):
            (directory / name).write_text('half-wri')
        self.assertEqual(2, len(self.orphans()))
        self.assert_removed()
        self.assertEqual(made, self.driver.find_base(KEY))

    def test_names_of_ours_that_nobody_knows(self):
        (self.root / 'cow-filler').touch()
        (self.root / 'cow-bases/x').mkdir()
        found = self.orphans()
        self.assertEqual(2, len(found))
        self.assertFalse(any(orphan.removable for orphan in found))
        self.assert_removed(*found)

    def test_what_cannot_be_removed_is_told(self):
        self.leave(b'A' * STEP)
        base = self.partial / 'base'
        subprocess.run(['chattr', '+i', base], check=True)
        self.addCleanup(
            subprocess.run, ['chattr', '-i', base], capture_output=True
        )
        before = os.listdir('/proc/self/fd')
        (orphan,) = self.driver.remove_orphans()
        self.assertEqual(before, os.listdir('/proc/self/fd'))
        self.assertFalse(orphan.removable)
        self.assertIn('could not be removed', orphan.remedy)
        self.assertIn('not permitted', orphan.remedy)
        subprocess.run(['chattr', '-i', base], check=True)
        self.assert_removed()

    def test_a_new_driver_does_not_sweep(self):
        (self.root / 'cow-partial/left').mkdir()
        conf = cfg.ConfigOpts()
        conf(args=[], project='cinder_cow', default_config_files=[])
        options = opts.BackendOptions(conf, 'files')
        options.register(file.FileDriver.OPTS)
        options.override('cow_file_dir', str(self.root))
        driver = file.FileDriver.from_options(options)
        self.assertEqual(['left'], os.listdir(self.root / 'cow-partial'))
        self.assertIsInstance(driver, bases.Checker)
        driver.sweep()
        self.assertEqual([], os.listdir(self.root / 'cow-partial'))
