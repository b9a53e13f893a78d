# SPDX-License-Identifier: Apache-2.0
"""The file driver on real ext4 (overlays), XFS and btrfs (reflinks)."""

from concurrent import futures
import contextlib
import copy
import json
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
from typing import Any

import hypothesis
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow.drivers import bases
from cinder_cow.drivers import file
from cinder_cow.refusal import Reason
from cinder_cow.tests import conformance
from cinder_cow.tests import storage
from cinder_cow.tests.unit import test_manager

SIZE = 1024 * 1024


def overwrite(volume, offset, data):
    """Write into a volume as a guest does: through QEMU, if need be."""
    if volume.format == 'raw':
        with open(volume.path, 'r+b') as disk:
            os.pwrite(disk.fileno(), data, offset)
        return
    assert len(set(data)) == 1
    command = f'write -q -P {data[0]} {offset} {len(data)}'
    subprocess.run(
        ['qemu-io', '-f', 'qcow2', '-c', command, volume.path], check=True
    )


class FileDriverConformance(conformance.BaseLinkerConformance):
    kind: str

    def make_driver(self):
        self.root = storage.directory(self.kind)
        self.addCleanup(shutil.rmtree, self.root)
        return file.FileDriver(self.root)

    def overwrite(self, volume_name, offset, data):
        overwrite(self.driver.show(volume_name), offset, data)

    @contextlib.contextmanager
    def failing_writes(self):
        # The process may write no file beyond this: EFBIG, as on a full disk.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def space_used(self):
        os.sync()
        status = os.statvfs(self.root)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


class TestFileExt4(FileDriverConformance, test_base.BaseTestCase):
    kind = 'ext4'


class TestFileXfs(FileDriverConformance, test_base.BaseTestCase):
    kind = 'xfs'


class TestFileBtrfs(FileDriverConformance, test_base.BaseTestCase):
    kind = 'btrfs'


class FileModel(test_manager.Model):
    """The file driver against a dictionary of what it must hold."""

    kind = ''

    def make_driver(self):
        self.root = storage.directory(self.kind)
        return file.FileDriver(self.root)

    def overwrite(self, name, data):
        overwrite(self.driver.show(name), 0, data)

    def teardown(self):
        shutil.rmtree(self.root)


class Ext4Model(FileModel):
    kind = 'ext4'


class XfsModel(FileModel):
    kind = 'xfs'


TestExt4Model = Ext4Model.TestCase
TestXfsModel = XfsModel.TestCase
TestExt4Model.settings = TestXfsModel.settings = hypothesis.settings(
    deadline=None,
    max_examples=15,
    stateful_step_count=15,
    suppress_health_check=list(hypothesis.HealthCheck),
)


DAMAGE: list[tuple[list[str], Any]] = [
    (['facts'], 'x'),
    (['file'], 'x'),
    (['facts', 'made_at'], 'x'),
    (['facts', 'made_at'], 1e300),
    (['facts', 'key'], {}),
    (['facts', 'content_size'], 'x'),
    (['facts', 'content_size'], -1),
    (['facts', 'hash'], 1),
]


class TestFileDriver(test_base.BaseTestCase):
    """What the contract does not ask of every driver."""

    def setUp(self):
        super().setUp()
        self.root = storage.directory('ext4')
        self.addCleanup(shutil.rmtree, self.root)

    def make_base(self, driver):
        key = bases.BaseKey('image-1', 'sha512:1')
        with driver.begin_base(key, SIZE) as writer:
            writer.write(b'A' * SIZE)
            return writer.publish(
                bases.BaseFacts(key, 'an image', 'raw', SIZE, '', 0.0)
            )

    def clone(self, driver, made, name):
        image = images.ImageInfo(id='image-1', name='', disk_format='raw')
        return driver.clone(image.at(made.location), name)

    def test_the_whole_directory_may_move(self):
        driver = file.FileDriver(self.root / 'here')
        self.clone(driver, self.make_base(driver), 'v1')
        (self.root / 'here').rename(self.root / 'there')
        driver = file.FileDriver(self.root / 'there')
        volume = driver.show('v1')
        self.assertEqual('qcow2', volume.format)
        subprocess.run(['qemu-img', 'check', '-q', volume.path], check=True)
        with driver.read('v1') as reader:
            self.assertEqual(b'A' * SIZE, reader.read(0, SIZE))

    def test_nothing_is_for_other_users_to_read(self):
        driver = file.FileDriver(self.root / 'here')
        made = self.make_base(driver)
        volume = self.clone(driver, made, 'v1')
        with driver.open('v2', SIZE) as writer:
            writer.close()
        base_image = self.root / 'here/cow-bases' / made.name / 'image.raw'
        for path in (self.root / 'here', base_image, volume.path,
                     driver.show('v2').path):  # fmt: skip
            self.assertEqual(0, os.stat(path).st_mode & 0o077, path)
        self.assertEqual(0, os.stat(base_image).st_mode & 0o222)

    def test_children_are_named_up_to_twenty(self):
        driver = file.FileDriver(self.root)
        made = self.make_base(driver)
        for number in range(22):
            self.clone(driver, made, f'v{number:02}')
        error = self.assertRaises(
            exception.RequestError, driver.retire_base, made.name
        )
        self.assertIn('v00, v01', str(error))
        self.assertIn('v19 and more', str(error))
        self.assertNotIn('v20', str(error))

    def test_what_nobody_holds_is_swept_by_the_next_create(self):
        driver = file.FileDriver(self.root)
        # Its descriptor closed, it looks like what a dead maker left.
        left: Any = driver.open('left', SIZE)
        left.write(b'A' * SIZE)
        os.close(left._partial._lock)
        left._partial._lock = -1
        held = driver.open('held', SIZE)
        with driver.open('v1', SIZE) as writer:
            names = os.listdir(self.root / 'cow-partial')
            self.assertEqual(['held', 'v1'], sorted(names))
            writer.close()
        held.write(b'B' * SIZE)
        held.close()
        left._file.close()
        self.assertEqual(['held', 'v1'], [v.name for v in driver.list()])
        self.assertEqual([], os.listdir(self.root / 'cow-partial'))

    def test_no_descriptor_is_left_open(self):
        driver = file.FileDriver(self.root)
        made = self.make_base(driver)
        self.clone(driver, made, 'v0')
        before = os.listdir('/proc/self/fd')
        self.clone(driver, made, 'v1')
        with driver.open('v2', SIZE) as writer:
            writer.write(b'A' * SIZE)
            writer.close()
        driver.open('v3', SIZE).abort()
        for name in ('v1', 'v2'):
            with driver.read(name) as reader:
                reader.read(0, SIZE)
        self.assertRaises(
            exception.RequestError, self.clone, driver, made, 'v1'
        )
        self.assertRaises(
            exception.RequestError, driver.retire_base, made.name
        )
        driver.sweep()
        self.assertEqual(before, os.listdir('/proc/self/fd'))

    def test_a_base_that_lost_something_can_be_retired(self):
        for name in ('image.raw', 'facts.json'):
            self.lose(name)

    def lose(self, name):
        driver = file.FileDriver(self.root)
        made = self.make_base(driver)
        (self.root / 'cow-bases' / made.name / name).unlink()
        image = images.ImageInfo(id='image-1', name='', disk_format='raw')
        verdict = driver.cloneable(image.at(made.location))
        self.assertIn(Reason.BASE_CHANGED.value, str(verdict.refusal))
        driver.retire_base(made.name)
        self.assertEqual([], os.listdir(self.root / 'cow-bases'))

    def test_whatever_hangs_on_a_base_keeps_it(self):
        driver = file.FileDriver(self.root)
        made = self.make_base(driver)
        path = pathlib.Path(self.clone(driver, made, 'v1').path)
        odd = self.root / 'not a volume.qcow2'
        path.rename(odd)
        error: Any = self.assertRaises(
            exception.RequestError, driver.retire_base, made.name
        )
        self.assertIn('not a volume', str(error))
        odd.write_bytes(b'what was an overlay once')
        error = self.assertRaises(
            exception.BackendError, driver.retire_base, made.name
        )
        self.assertIn(str(odd), str(error))
        odd.unlink()
        driver.retire_base(made.name)

    def test_two_files_of_one_name_hide_no_child(self):
        driver = file.FileDriver(self.root)
        made = self.make_base(driver)
        self.clone(driver, made, 'v1')
        (self.root / 'v1.raw').write_bytes(b'x' * 512)
        self.assertRaises(
            exception.RequestError, driver.retire_base, made.name
        )
        error = self.assertRaises(exception.BackendError, driver.show, 'v1')
        self.assertIn('v1.qcow2', str(error))
        self.assertRaises(exception.BackendError, driver.open, 'v1', SIZE)
        self.assertEqual([], os.listdir(self.root / 'cow-partial'))

    def test_a_write_while_it_is_read_is_noticed(self):
        driver = file.FileDriver(self.root)
        made = self.make_base(driver)
        self.clone(driver, made, 'v1')
        with driver.open('v2', SIZE) as writer:
            writer.close()
        for name in ('v1', 'v2'):
            with driver.read(name) as reader:
                reader.read(0, SIZE)
                reader.check_unchanged()
                overwrite(driver.show(name), 0, b'x' * 4096)
                error: Any = self.assertRaises(
                    exception.BackendError, reader.check_unchanged
                )
                self.assertIs(Reason.BUSY, error.reason)

    def test_two_that_extend_never_shrink(self):
        driver = file.FileDriver(self.root)
        with driver.open('v1', SIZE) as writer:
            writer.close()

        def extend(size):
            with contextlib.suppress(exception.RequestError):
                driver.extend('v1', size)

        for turn in range(1, 200):
            sizes = [SIZE * (2 * turn + more) for more in (0, 1)]
            with futures.ThreadPoolExecutor(2) as pool:
                list(pool.map(extend, sizes))
            self.assertEqual(max(sizes), driver.show('v1').size)

    def test_no_umask_opens_it_to_others(self):
        (self.root / 'here').mkdir(mode=0o755)
        self.addCleanup(os.umask, os.umask(0))
        driver = file.FileDriver(self.root / 'here')
        self.clone(driver, self.make_base(driver), 'v1')
        for path in (self.root / 'here').rglob('*'):
            self.assertEqual(0, path.stat().st_mode & 0o077, path)

    def test_a_sweep_stays_in_the_directory(self):
        file.FileDriver(self.root / 'here')
        (self.root / 'precious').mkdir()
        (self.root / 'precious/file').touch()
        (self.root / 'here/cow-partial').rmdir()
        (self.root / 'here/cow-partial').symlink_to(self.root / 'precious')
        error: Any = self.assertRaises(
            exception.RequestError, file.FileDriver, self.root / 'here'
        )
        self.assertIs(Reason.LAYOUT_UNKNOWN, error.reason)
        self.assertEqual(['file'], os.listdir(self.root / 'precious'))

    def test_empty_directories_that_got_lost_are_made_again(self):
        file.FileDriver(self.root)
        (self.root / 'cow-partial').rmdir()
        (self.root / 'cow-bases').rmdir()
        driver = file.FileDriver(self.root)
        self.clone(driver, self.make_base(driver), 'v1')

    def test_damaged_facts_are_a_change_and_hide_no_others(self):
        driver = file.FileDriver(self.root)
        made = self.make_base(driver)
        facts = self.root / 'cow-bases' / made.name / 'facts.json'
        intact = json.loads(facts.read_text())
        for path, value in DAMAGE:
            record = copy.deepcopy(intact)
            place = record
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = value
            facts.write_text(json.dumps(record))
            (found,) = driver.list_bases()
            image = images.ImageInfo(id='image-1', name='', disk_format='raw')
            verdict = driver.cloneable(image.at(found.location))
            self.assertIn('base_changed', str(verdict.refusal), path)
        driver.retire_base(made.name)
        self.assertEqual([], os.listdir(self.root / 'cow-bases'))

    def test_a_directory_that_qemu_cannot_be_told(self):
        for name, good in (('\u00fc', True), ('\udcff', False)):
            root = self.root / name
            if good:
                driver = file.FileDriver(root)
                self.clone(driver, self.make_base(driver), 'v1')
                continue
            error: Any = self.assertRaises(
                exception.RequestError, file.FileDriver, root
            )
            self.assertIn('UTF-8', str(error))
            self.assertFalse(root.exists())

    def test_a_file_system_without_direct_writes_or_reflinks(self):
        top = pathlib.Path(tempfile.mkdtemp(dir='/dev/shm'))
        self.addCleanup(shutil.rmtree, top)
        driver = file.FileDriver(top)
        self.clone(driver, self.make_base(driver), 'v1')
        with driver.read('v1') as reader:
            self.assertEqual(b'A' * SIZE, reader.read(0, SIZE))

    def test_an_image_of_the_same_file_system_is_shared(self):
        root = storage.directory('xfs')
        self.addCleanup(shutil.rmtree, root)
        path = root / 'image.raw'
        path.write_bytes(os.urandom(64 * 2**20))
        driver = file.FileDriver(root / 'volumes')
        with image_source.FileSource(path) as source:
            outcome = test_manager.Manager(driver).create_volume_from_image(
                'v1', image_source.describe(source, None), source
            )
        self.assertTrue(outcome.base_made)
        self.assertEqual(0, outcome.bytes_copied)
        self.assertEqual('raw', outcome.volume.format)
        os.sync()
        found = os.statvfs(root)
        self.assertLess(
            (found.f_blocks - found.f_bfree) * found.f_frsize, 256 * 2**20
        )
        # A later write to the image reaches neither base nor volume.
        content = path.read_bytes()
        with path.open('r+b') as image:
            image.write(b'x' * 4096)
        with driver.read('v1') as reader:
            self.assertTrue(
                storage.same(content, reader.read(0, len(content)))
            )
