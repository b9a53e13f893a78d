# SPDX-License-Identifier: Apache-2.0
"""Blank volumes: one base per kind and size, and what is done without."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from typing import Any
import unittest

import ddt
import fixtures
from oslotest import base as test_base

from cinder_cow import blank
from cinder_cow import exception
from cinder_cow import opts
from cinder_cow.drivers import base as drivers
from cinder_cow.drivers import bases
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason

GIB = 2**30
SBIN = f'{os.environ["PATH"]}:/usr/sbin:/sbin'
# What finds faults in them, changing nothing.
CHECKS = {
    'ext4': ['e2fsck', '-fn'],
    'xfs': ['xfs_repair', '-n'],
    'swap': ['swaplabel'],
}
KINDS = tuple(CHECKS)


def quiet(phase, done, total):
    pass


class BlankTestCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        for kind in blank._KINDS.values():
            if shutil.which(kind.tool, path=SBIN) is None:
                raise unittest.SkipTest(f'machine: there is no {kind.tool}')
        self.top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, self.top)
        self.driver: Any = memory.MemoryDriver()
        self.settings: dict[str, Any] = {'scratch_dir': str(self.top)}

    def create(self, name, kind, size=GIB):
        settings = opts.Settings(**self.settings)
        return blank.create(self.driver, settings, name, kind, size, quiet)

    def exported(self, name):
        path = self.top / name
        with self.driver.read(name) as reader, path.open('wb') as file:
            file.truncate(reader.size)
            for extent in reader.extents():
                if not extent.hole:
                    file.seek(extent.offset)
                    file.write(reader.read(extent.offset, extent.length))
        return path

    def check(self, kind, path):
        subprocess.run(
            [*CHECKS[kind], path],
            check=True,
            capture_output=True,
            env={'PATH': SBIN},
        )

    def refused(self, reason, *args):
        error = self.assertRaises(exception.CowError, self.create, *args)
        self.assertIs(reason, error.reason, str(error))
        return error

    def assert_no_scratch(self):
        found = list(self.top.glob('cow-scratch-*/*'))
        self.assertEqual([], found)


@ddt.ddt
class TestBlank(BlankTestCase):
    @ddt.data(*KINDS)
    def test_one_base_for_all_of_a_size(self, kind):
        first = self.create('v1', kind)
        self.assertEqual(('base', True), (first.method, first.base_made))
        self.assertLess(first.bytes_copied, 8 * 2**20)
        second = self.create('v2', kind)
        self.assertEqual(
            ('base', False, 0),
            (second.method, second.base_made, second.bytes_copied),
        )
        self.assertIn('-U', second.uuid)
        other = self.create('v3', kind, 2 * GIB)
        self.assertTrue(other.base_made)
        self.assertEqual(2 * GIB, other.volume.size)
        self.assertEqual(2, len(list(self.driver.list_bases())))
        self.assert_no_scratch()

    @ddt.data(*KINDS)
    def test_it_is_sound(self, kind):
        self.create('v1', kind)
        self.check(kind, self.exported('v1'))

    def test_its_inode_tables_need_not_be_written(self):
        self.create('v1', 'ext4')
        told = subprocess.run(
            ['dumpe2fs', self.exported('v1')],
            capture_output=True, check=True, text=True, env={'PATH': SBIN},
        ).stdout  # fmt: skip
        groups = len(re.findall(r'^Group \d+:', told, re.MULTILINE))
        self.assertEqual(groups, told.count('ITABLE_ZEROED'))

    def test_nothing_at_all(self):
        made = self.create('v1', 'none')
        self.assertEqual(('empty', 0), (made.method, made.volume.allocated))
        self.assertEqual((GIB, ''), (made.volume.size, made.uuid))
        self.assertEqual([], list(self.driver.list_bases()))

    def test_kinds_have_bases_of_their_own(self):
        for kind in KINDS:
            self.assertTrue(self.create(f'v-{kind}', kind).base_made)

    def test_many_at_once_make_one_base(self):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            made = list(
                pool.map(lambda n: self.create(f'v{n}', 'ext4'), range(4))
            )
        self.assertEqual(1, [m.base_made for m in made].count(True))

    @ddt.data(*blank.CHOICES)
    def test_a_name_in_use(self, kind):
        self.create('v1', 'none')
        self.refused(Reason.VOLUME_EXISTS, 'v1', kind)
        self.refused(Reason.INVALID_NAME, '../v1', kind)
        self.assertEqual([], list(self.driver.list_bases()))

    def test_what_an_earlier_maker_left_is_not_gone_on_with(self):
        key = bases.BaseKey.of(blank._image('swap', blank._KINDS['swap'], GIB))
        with self.driver.begin_base(key, GIB) as writer:
            writer.write(b'other' * 1000)
            writer.leave()
        self.create('v1', 'swap')
        self.check('swap', self.exported('v1'))
        with self.driver.read('v1') as reader:
            self.assertEqual(bytes(1000), reader.read(0, 1000))

    def test_a_base_that_cannot_be_filled_is_not_published(self):
        self.driver.capacity = 64 * 1024
        self.refused(Reason.NO_SPACE, 'v1', 'ext4')
        self.assertEqual([], list(self.driver.list_bases()))
        self.assertEqual([], list(self.driver.list()))
        self.assert_no_scratch()


@ddt.ddt
class TestWithoutBases(BlankTestCase):
    @ddt.data(*KINDS)
    def test_a_full_copy_has_a_uuid_of_its_own(self, kind):
        self.settings['cow_enabled'] = False
        made = self.create('v1', kind)
        self.assertEqual(('stream', 'its own'), (made.method, made.uuid))
        self.assertGreater(made.bytes_copied, 0)
        self.assertEqual([], list(self.driver.list_bases()))
        self.check(kind, self.exported('v1'))

    def test_a_full_copy_is_forbidden(self):
        self.settings |= {'cow_enabled': False, 'cow_fallback': 'refuse'}
        self.refused(Reason.COW_DISABLED, 'v1', 'ext4')
        self.assertEqual([], list(self.driver.list()))
        # Of nothing there is no copy.
        self.assertEqual('empty', self.create('v1', 'none').method)

    def test_a_driver_that_keeps_no_bases(self):
        self.driver = Simple()
        self.assertEqual('stream', self.create('v1', 'swap').method)
        self.settings['cow_fallback'] = 'refuse'
        self.refused(Reason.NO_BASE_KEEPING, 'v2', 'swap')


class Simple:
    """A driver with nothing but what is required."""

    def __init__(self):
        driver = memory.MemoryDriver('simple')
        self.backend = 'simple'
        self.open, self.read, self.show = driver.open, driver.read, driver.show
        self.exists = driver.exists


class TestTools(BlankTestCase):
    """What goes wrong with the programs."""

    def tool(self, name, script):
        """Put a program of that name in front of the others."""
        path = self.top / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
        self.useFixture(
            fixtures.EnvironmentVariable('PATH', f'{path.parent}:{SBIN}')
        )

    def test_they_are_found_where_the_path_does_not_lead(self):
        self.useFixture(fixtures.EnvironmentVariable('PATH', '/usr/bin:/bin'))
        self.assertTrue(self.create('v1', 'ext4').base_made)

    def test_a_tool_is_missing(self):
        self.useFixture(fixtures.EnvironmentVariable('PATH', str(self.top)))
        self.useFixture(
            fixtures.MonkeyPatch('cinder_cow.blank._SBIN', str(self.top))
        )
        for kind, package in (
            ('ext4', 'e2fsprogs'),
            ('xfs', 'xfsprogs'),
            ('swap', 'util-linux'),
        ):
            error = self.refused(Reason.TOOL_MISSING, 'v1', kind)
            self.assertIn(f'apt-get install {package}', error.refusal.remedy)
        self.assertEqual([], list(self.driver.list_bases()))
        self.create('v1', 'none')

    def test_no_tool_is_needed_where_the_base_is_there(self):
        self.create('v1', 'xfs')
        with fixtures.MonkeyPatch('shutil.which', lambda name, path: None):
            self.assertFalse(self.create('v2', 'xfs').base_made)
            self.refused(Reason.TOOL_MISSING, 'v3', 'swap')

    def test_an_older_e2fsprogs(self):
        self.tool(
            'mkfs.ext4',
            'case "$*" in *prezeroed*) echo Bad option >&2; exit 1;; esac\n'
            f'exec {shutil.which("mkfs.ext4", path=SBIN)} "$@"',
        )
        self.create('v1', 'ext4')
        self.check('ext4', self.exported('v1'))

    def test_it_fails(self):
        self.tool('mkfs.xfs', 'echo "no \x1b such size" >&2; exit 1')
        error = self.refused(Reason.MKFS_FAILED, 'v1', 'xfs')
        self.assertIn('no ? such size', str(error))
        self.assertIn('mkfs.xfs', error.refusal.remedy)
        self.assertEqual([], list(self.driver.list_bases()))
        self.assert_no_scratch()

    def test_it_hangs(self):
        self.useFixture(fixtures.MonkeyPatch('cinder_cow.blank._TIMEOUT', 0.2))
        self.tool('mkswap', 'exec sleep 60')
        error = self.refused(Reason.MKFS_FAILED, 'v1', 'swap')
        self.assertIn('took longer', str(error))

    def test_it_reads_nothing_of_ours(self):
        self.tool('mkswap', 'readlink /proc/self/fd/0 >&2; exit 1')
        error = self.refused(Reason.MKFS_FAILED, 'v1', 'swap')
        self.assertIn('/dev/null', str(error))


class TestUuids(BlankTestCase):
    """Where a clone is a raw file, it has a UUID of its own."""

    def uuids(self, kind, tell):
        path = self.top / 'disk'
        with path.open('wb') as file:
            file.truncate(GIB)
            blank._make(blank._KINDS[kind], file.fileno(), GIB)
        path.chmod(0o600)
        volume = drivers.VolumeInfo('v1', GIB, 0, 'raw', str(path))
        found = [tell(path)]
        for _ in range(2):
            self.told = blank._renew(volume, blank._KINDS[kind])
            found.append(tell(path))
        self.check(kind, path)
        return found

    def tell_ext4(self, path):
        with path.open('rb') as file:
            file.seek(1024 + 0x68)
            return file.read(16)

    def tell_swap(self, path):
        with path.open('rb') as file:
            file.seek(1024 + 12)
            return file.read(16)

    def tell_xfs(self, path):
        with path.open('rb') as file:
            file.seek(32)
            return file.read(16)

    def test_it_is_new_each_time(self):
        for kind, tell in (('ext4', self.tell_ext4), ('swap', self.tell_swap)):
            self.assertEqual(3, len(set(self.uuids(kind, tell))), kind)
            self.assertEqual('its own', self.told)

    def test_that_of_xfs_is_left_to_the_guest(self):
        self.assertEqual(1, len(set(self.uuids('xfs', self.tell_xfs))))
        self.assertIn('xfs_admin -U generate DEV', self.told)

    def test_where_it_cannot_be_changed_that_is_told(self):
        volume = drivers.VolumeInfo('v1', GIB, 0, 'raw', __file__)
        before = pathlib.Path(__file__).read_bytes()
        told = blank._renew(volume, blank._KINDS['swap'])
        self.assertIn('swaplabel -U', told)
        self.assertEqual(before, pathlib.Path(__file__).read_bytes())
