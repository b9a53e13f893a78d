# SPDX-License-Identifier: Apache-2.0
"""Scratch files: whose, for how long, and how many at once."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import threading
import time
import unittest
import uuid

import ddt
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import opts
from cinder_cow import scratch
from cinder_cow.refusal import Reason
from cinder_cow.tests import storage

NAME = 'image-1'
PIECE = b'x' * units.Mi
BOOT = pathlib.Path('/proc/sys/kernel/random/boot_id').read_bytes().strip()
NONSENSE = (
    b'',
    b'nonsense',
    b'9' * 20,
    b'9' * 20 + b' ' + BOOT + b'\n',
    b'-1 ' + BOOT + b'\n',
    b' ' + BOOT + b'\n',
    b'%020d\n' % units.Mi,
)


class ScratchTestCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, self.top)
        self.scratch = self.make()

    def make(self, **settings):
        return scratch.Scratch(
            opts.Settings(scratch_dir=str(self.top), **settings)
        )

    def names(self):
        return sorted(path.name for path in self.scratch.path.iterdir())

    def keep(self, name=NAME, pieces=(PIECE,)):
        """Leave a file as a fetch that broke off does."""
        with self.scratch.file(name, 'label') as file:
            for piece in pieces:
                file.append(piece)
            file.keep = True

    def refused(self, reason, call, *arguments):
        error = self.assertRaises(exception.BackendError, call, *arguments)
        self.assertIs(reason, error.reason, str(error))
        return str(error)


@ddt.ddt
class TestFile(ScratchTestCase):
    def test_is_removed(self):
        with self.scratch.file(NAME, 'label') as file:
            file.append(PIECE)
            self.assertEqual([f'{NAME}.lock', f'{NAME}.part'], self.names())
        self.assertEqual([], self.names())

    def test_is_kept(self):
        self.keep(pieces=(PIECE, 4096, PIECE))
        with self.scratch.file(NAME, 'label') as file:
            self.assertEqual(2 * units.Mi + 4096, file.size)
            found = b''.join(
                bytes(piece) if isinstance(piece, int) else piece
                for piece in file.pieces()
            )
            self.assertEqual(PIECE + bytes(4096) + PIECE, found)

    def test_half_a_piece_is_forgotten(self):
        self.keep()
        with (self.scratch.path / f'{NAME}.part').open('ab') as part:
            part.write(b'half')
        with self.scratch.file(NAME, 'label') as file:
            self.assertEqual(units.Mi, file.size)

    def test_what_was_written_before_the_machine_crashed_is_forgotten(self):
        self.keep()
        lock = self.scratch.path / f'{NAME}.lock'
        said = lock.read_bytes()
        self.assertIn(BOOT, said)
        lock.write_bytes(said.replace(BOOT, str(uuid.uuid4()).encode()))
        with self.scratch.file(NAME, 'label') as file:
            self.assertEqual(0, file.size)

    @ddt.data(False, True)
    def test_the_disk_fails_to_take_it(self, fails):
        with storage.failing_disk() as (mount, fill):
            path = mount / 'file'
            with path.open('xb') as opened:
                file = scratch.ScratchFile(opened.fileno(), None)
                if fails:
                    fill()
                file.append(PIECE)
                self.assertFalse(file.has_lost())
                with contextlib.suppress(OSError), path.open('ab') as other:
                    os.fsync(other)
                self.assertEqual(fails, file.has_lost())

    @ddt.data(*NONSENSE)
    def test_what_the_lock_says_is_not_trusted(self, said):
        self.keep()
        (self.scratch.path / f'{NAME}.lock').write_bytes(said)
        with self.scratch.file(NAME, 'label') as file:
            self.assertIn(file.size, (0, units.Mi))

    def test_cut(self):
        self.keep()
        with self.scratch.file(NAME, 'label') as file:
            file.cut(10)
            file.keep = True
        with self.scratch.file(NAME, 'label') as file:
            self.assertEqual(10, file.size)

    def test_a_second_one_has_no_name(self):
        with self.scratch.file(NAME, 'label') as first:
            with self.scratch.file(NAME, 'label') as second:
                second.append(PIECE)
                second.keep = True
                self.assertEqual(0, first.size)
                self.assertTrue(second.is_nameless)
            self.assertEqual([f'{NAME}.lock', f'{NAME}.part'], self.names())
        self.assertEqual([], self.names())

    def test_tells_people_which_image_it_is(self):
        with self.scratch.file(NAME, 'http://host/image'):
            said = (self.scratch.path / f'{NAME}.lock').read_text()
        self.assertIn('\nhttp://host/image\n', said)

    def test_a_link_is_not_followed(self):
        with self.scratch.file(NAME, 'label'):
            pass
        other = self.top / 'other'
        other.write_bytes(PIECE)
        (self.scratch.path / f'{NAME}.part').symlink_to(other)
        self.refused(Reason.SCRATCH_UNUSABLE, self.keep)
        self.assertEqual(PIECE, other.read_bytes())


@ddt.ddt
class TestDirectory(ScratchTestCase):
    """What others could have made is not taken."""

    def others(self, how):
        path, other = self.scratch.path, self.top / 'other'
        if how == 'file':
            path.touch()
            return
        if how == 'link':
            other.mkdir(mode=0o700)
            path.symlink_to(other)
            return
        path.mkdir(mode=0o700)
        if how == 'owner':
            if os.geteuid():
                raise unittest.SkipTest('machine: chown needs root')
            os.chown(path, 65534, 65534)
        else:
            path.chmod(int(how, 8))

    @ddt.data('file', 'link', 'owner', '777', '770', '701', '1777')
    def test_is_not_taken(self, how):
        self.others(how)
        said = self.refused(Reason.SCRATCH_UNUSABLE, self.keep)
        self.assertIn('of this user alone', said)
        self.refused(Reason.SCRATCH_UNUSABLE, self.scratch.turn().__enter__)
        refused = self.scratch.refuse(1, 'label')
        assert refused is not None
        self.assertIs(Reason.SCRATCH_UNUSABLE, refused.reason)

    @ddt.data('link', 'owner', '777')
    def test_is_not_swept(self, how):
        """Each command sweeps: none may fail for what another one made."""
        self.others(how)
        path = self.scratch.path
        (path / 'a.lock').symlink_to('/nowhere')
        (path / 'b.lock').touch()
        os.mkfifo(path / 'c.lock')
        before = self.names()
        self.make().sweep(keep=0)
        self.assertEqual(before, self.names())

    def test_what_cannot_be_swept_stays(self):
        self.keep('first')
        (self.scratch.path / 'a.lock').symlink_to('/nowhere')
        self.scratch.sweep(keep=0)
        self.assertEqual(['a.lock'], self.names())

    def test_is_ours_alone(self):
        known = os.umask(0)
        self.addCleanup(os.umask, known)
        self.keep()
        self.assertEqual(0o40700, self.scratch.path.stat().st_mode)
        for path in self.scratch.path.iterdir():
            self.assertEqual(0o100600, path.stat().st_mode)

    def test_cannot_be_made(self):
        self.top.joinpath('file').touch()
        self.scratch = scratch.Scratch(
            opts.Settings(scratch_dir=str(self.top / 'file'))
        )
        said = self.refused(Reason.SCRATCH_UNUSABLE, self.keep)
        self.assertIn('Not a directory', said)


@ddt.ddt
class TestSweep(ScratchTestCase):
    def age(self, seconds):
        then = time.time() - seconds
        os.utime(self.scratch.path / f'{NAME}.lock', (then, then))

    @ddt.data((24 * 3600 - 60, True), (24 * 3600 + 60, False))
    @ddt.unpack
    def test_what_was_kept(self, age, stays):
        self.keep()
        self.age(age)
        self.make().sweep()
        self.assertEqual(stays, bool(self.names()))

    def test_what_is_held_stays(self):
        with self.scratch.file(NAME, 'label'):
            self.age(30 * 24 * 3600)
            self.make().sweep()
            self.make(scratch_keep=0).sweep()
            self.assertEqual([f'{NAME}.lock', f'{NAME}.part'], self.names())

    def test_slots_stay(self):
        with self.scratch.turn():
            self.make().sweep(keep=0)
            self.assertEqual(['slot-0'], self.names())

    def test_of_no_directory(self):
        self.scratch.sweep()
        self.assertFalse(self.scratch.path.exists())


class TestRoom(ScratchTestCase):
    def test_none(self):
        refused = self.scratch.refuse(2**62, 'label')
        assert refused is not None
        self.assertIs(Reason.NO_SCRATCH_SPACE, refused.reason)
        self.refused(
            Reason.NO_SCRATCH_SPACE, self.scratch.make_room, 2**62, 'label'
        )

    def test_what_is_kept_makes_room(self):
        self.keep()
        self.assertIsNone(self.scratch.refuse(units.Mi, 'label'))
        self.scratch.make_room(units.Mi, 'label')
        self.assertEqual([f'{NAME}.lock', f'{NAME}.part'], self.names())
        self.refused(
            Reason.NO_SCRATCH_SPACE, self.scratch.make_room, 2**62, 'label'
        )
        self.assertEqual([], self.names())


class TestTurn(ScratchTestCase):
    def setUp(self):
        super().setUp()
        self.scratch = self.make(max_fetches=2, fetch_wait=0.3)

    def test_so_many_at_once(self):
        with self.scratch.turn(), self.scratch.turn():
            said = self.refused(Reason.BUSY, self.scratch.turn().__enter__)
        self.assertIn('each of 2 fetches', said)
        with self.scratch.turn():
            pass

    def test_waits_for_the_first_that_ends(self):
        self.scratch = self.make(max_fetches=1, fetch_wait=5)
        ended = threading.Event()

        def hold():
            with self.scratch.turn():
                begun.set()
                time.sleep(0.3)
                ended.set()

        begun = threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        self.addCleanup(thread.join)
        begun.wait()
        with self.scratch.turn():
            self.assertTrue(ended.is_set())

    def test_an_error_inside_is_its_own(self):
        def fail():
            with self.scratch.turn():
                raise OSError('not of the directory')

        self.assertRaises(OSError, fail)
