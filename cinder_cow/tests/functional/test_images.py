# SPDX-License-Identifier: Apache-2.0
"""Real images, good and bad, through the whole way to a volume.

A good one gives the bytes that qemu-img reads from it; a bad one is refused
for the right reason and leaves nothing; one that was cut short gives its
bytes or an error, never something else.
"""

from concurrent import futures
import contextlib
import ctypes
import itertools
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time
from typing import Any
import unittest
from unittest import mock

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_source
from cinder_cow import intact
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import plan as plans
from cinder_cow import qcow2
from cinder_cow import qemu_img
from cinder_cow.drivers import file
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason
from cinder_cow.tests import corpus
from cinder_cow.tests import corpus_disks
from cinder_cow.tests import storage

# No image here takes a second; what hangs takes longer.
LIMIT_SECONDS = 30
# Of each image that is cut everywhere.
RANDOM_CUTS = 15
GOOD = [*corpus.GOOD, *corpus_disks.GOOD]
BAD = [*corpus.BAD, *corpus.NO_FILES, *corpus_disks.BAD]
CUT = [*corpus.CUT, *corpus_disks.CUT]
# From linux/inotify.h
IN_OPEN = 0x20

COPY = opts.Settings(cow_enabled=False, qemu_img_timeout=LIMIT_SECONDS)
COW = opts.Settings(qemu_img_timeout=LIMIT_SECONDS)


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver: Any, settings: opts.Settings) -> None:
        self.driver = driver
        self.settings = settings

    def create(self, name, path, claimed=None, size=None):
        with image_source.FileSource(path) as source:
            image = image_source.describe(source, claimed)
            return self.create_volume_from_image(name, image, source, size)


def content(driver, name):
    with driver.read(name) as reader:
        return reader.read(0, reader.size)


def difference(expected, found):
    """Tell where bytes differ, in few words; '' where they do not."""
    found = found.rstrip(b'\0')
    expected = expected.rstrip(b'\0')
    if expected == found:
        return ''
    pairs = itertools.zip_longest(expected, found)
    wrong = [number for number, (a, b) in enumerate(pairs) if a != b]
    return f'{len(wrong)} bytes differ from {wrong[0]} on'


def named(images, *others):
    """Give the data of a ddt table: each image with each of the others."""
    for values in itertools.product(*others, images):
        name = '_'.join(getattr(v, 'name', v) for v in values)
        yield name, *values


def opened(watch):
    """Tell whether what is watched was opened since."""
    try:
        return bool(os.read(watch, 4096))
    except BlockingIOError:
        return False


class ImageTestCase(test_base.BaseTestCase):
    def directory(self, kind):
        """Make a directory, on a file system of that kind."""
        top = storage.directory(kind)
        self.addCleanup(shutil.rmtree, top)
        return top

    def limit(self):
        """Fail what hangs, rather than wait for it."""
        self.useFixture(fixtures.Timeout(3 * LIMIT_SECONDS, gentle=True))


@ddt.ddt
class TestGoodImages(ImageTestCase):
    """The bytes of the image, and zeros behind them."""

    def setUp(self):
        super().setUp()
        self.limit()

    def check(self, driver, settings, path, image, expected):
        size = (len(expected) // corpus.MI + 2) * corpus.MI
        outcome = Manager(driver, settings).create(
            'v1', path, image.claimed, size
        )
        self.assertEqual(size, driver.show('v1').size)
        found = content(driver, 'v1')
        self.assertEqual(size, len(found))
        self.assertEqual('', difference(expected, found))
        return outcome

    @ddt.named_data(*named(GOOD, ('ext4', 'xfs')))
    def test_file(self, kind, image):
        # On one file system, so that the blocks of raw ones may be shared.
        top = self.directory(kind)
        path = top / 'image'
        image.make(path)
        expected = corpus.expected(path, image.claimed)
        for settings, method in (
            (COW, plans.Method.BASE),
            (COPY, plans.Method.STREAM),
        ):
            driver = file.FileDriver(top / method.value)
            outcome = self.check(driver, settings, path, image, expected)
            self.assertEqual(method, outcome.method)
            self.check_guest(driver.show('v1'), expected)
            partial = top / method.value / 'cow-partial'
            self.assertEqual([], os.listdir(partial))

    def check_guest(self, volume, expected):
        """Compare with what QEMU sees in the volume, zeros behind too."""
        with tempfile.NamedTemporaryFile() as disk:
            disk.write(expected)
            disk.truncate(volume.size)
            disk.flush()
            subprocess.run(
                ['qemu-img', 'compare', '-f', volume.format,
                 '-F', 'raw', volume.path, disk.name],
                check=True, capture_output=True,
            )  # fmt: skip

    @ddt.named_data(*named(GOOD))
    def test_memory(self, image):
        path = pathlib.Path(tempfile.mkdtemp(), 'image')
        image.make(path)
        expected = corpus.expected(path, image.claimed)
        for settings in (COW, COPY):
            driver = memory.MemoryDriver()
            self.check(driver, settings, path, image, expected)

    def test_size_is_that_of_the_image_in_whole_gib(self):
        path = self.directory('xfs') / 'image'
        corpus.PLAIN(path)
        driver = file.FileDriver(path.with_name('backend'))
        outcome = Manager(driver, COW).create('v1', path)
        self.assertEqual(1024 * corpus.MI, outcome.volume.size)
        self.check_guest(outcome.volume, corpus.expected(path))


@ddt.ddt
class TestBadImages(ImageTestCase):
    """The reason, soon, and nothing is left."""

    def setUp(self):
        super().setUp()
        self.limit()
        # Only for what is left behind: all else lies elsewhere.
        self.scratch = pathlib.Path(tempfile.gettempdir())
        self.top = self.directory('ext4')
        self.path = self.top / 'image'

    def check(self, driver, settings, image):
        before = sorted(self.scratch.rglob('*'))
        other = corpus.other(self.path)
        watch = self.watch(other) if other.exists() else None
        begun = time.monotonic()
        try:
            Manager(driver, settings).create('v1', self.path, image.claimed)
        except exception.CowError as error:
            self.assertEqual(image.reason, error.reason, str(error))
            self.assertNotIn('\n', str(error))
        else:
            raise AssertionError('it was taken')
        self.assertLess(time.monotonic() - begun, LIMIT_SECONDS)
        self.assertEqual([], list(driver.list()))
        self.assertEqual([], list(driver.list_bases()))
        self.assertEqual(before, sorted(self.scratch.rglob('*')))
        self.assertFalse(watch and opened(watch))

    def watch(self, path):
        """Begin to watch whether a file is opened, by whomever."""
        libc = ctypes.CDLL(None, use_errno=True)
        watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.addCleanup(os.close, watch)
        if libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), 'inotify', str(path))
        return watch

    @ddt.named_data(*named(BAD))
    def test_file(self, image):
        image.make(self.path)
        for settings in (COW, COPY):
            root = self.top / f'backend-{settings.cow_enabled}'
            self.check(file.FileDriver(root), settings, image)
            self.assertEqual([], os.listdir(root / 'cow-partial'))
            self.assertEqual([], os.listdir(root / 'cow-bases'))
            self.assertEqual(
                ['cow-bases', 'cow-layout', 'cow-partial'],
                sorted(os.listdir(root)),
            )

    @ddt.named_data(*named(BAD))
    def test_memory(self, image):
        image.make(self.path)
        for settings in (COW, COPY):
            driver = memory.MemoryDriver()
            self.check(driver, settings, image)
            self.assertEqual({}, driver._making)

    def test_unreadable(self):
        corpus.raw(corpus.noise(corpus.MI))(self.path)
        self.top.chmod(0o711)
        # Nobody may pass the directories above: name it from within.
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.top)
        path = pathlib.Path(self.path.name)
        driver = memory.MemoryDriver()
        with self.as_nobody():
            if os.access(path, os.W_OK, effective_ids=True):
                raise unittest.SkipTest('machine: this user may do all')
            Manager(driver, COW).create('readable', path)
        path.chmod(0)
        try:
            with self.as_nobody():
                Manager(driver, COW).create('v1', path)
        except exception.ImageError as error:
            self.assertEqual(Reason.IMAGE_NOT_FOUND, error.reason)
        else:
            raise AssertionError('it was taken')

    @contextlib.contextmanager
    def as_nobody(self):
        if os.geteuid():
            yield
            return
        try:
            os.seteuid(65534)
        except OSError as error:
            raise unittest.SkipTest(f'machine: {error}') from None
        try:
            yield
        finally:
            os.seteuid(0)

    def test_messages_are_bounded(self):
        corpus.noisy(self.path)
        driver = memory.MemoryDriver()
        peak = 0
        with futures.ThreadPoolExecutor(1) as pool:
            made = pool.submit(Manager(driver, COPY).create, 'v1', self.path)
            while not made.done():
                peak = max(peak, self.said_by_children())
        self.assertIsInstance(made.exception(), exception.CowError)
        self.assertLess(peak, corpus.MI)

    def test_a_table_is_read_once(self):
        corpus.shared_table(self.path)
        with image_source.FileSource(self.path) as image:
            read = mock.Mock(wraps=image.read)
            end = qcow2.used_end(read, image.size)
        # Of the header, of its table, and of the one that this names.
        self.assertEqual(3, read.call_count)
        self.assertEqual(self.path.stat().st_size + 512, end)

    def said_by_children(self):
        """Tell how much a process of ours has written to standard error."""
        sizes = [0]
        for task in pathlib.Path('/proc/self/task').iterdir():
            # A process may end, and a thread, while we look.
            with contextlib.suppress(OSError):
                for child in (task / 'children').read_text().split():
                    sizes.append(os.stat(f'/proc/{child}/fd/2').st_size)
        return max(sizes)

    def test_opening_would_be_noticed(self):
        corpus.DATA_FILE(self.path)
        watch = self.watch(corpus.other(self.path))
        self.assertFalse(opened(watch))
        # It hangs, as a pipe does without a writer.
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ['qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', self.path,
                 self.path.with_name('disk')],
                timeout=1,
                check=False,
                capture_output=True,
            )  # fmt: skip
        self.assertTrue(opened(watch))


@ddt.ddt
class TestUsed(ImageTestCase):
    """How much of a disk has data; what is shared counts each time."""

    def used(self, make, claimed):
        path = pathlib.Path(tempfile.mkdtemp(), 'image')
        make(path)
        with image_source.FileSource(path) as source:
            image = image_source.describe(source, claimed)
            disk = qemu_img.Disk(source.qemu_source(), claimed)
            begun = time.monotonic()
            part = intact.check(image, disk, source, qemu_img.Limits())
            self.assertLess(time.monotonic() - begun, LIMIT_SECONDS)
            return part, part * (image.virtual_size or 0) / source.size

    @ddt.named_data(
        ['qcow2', corpus.shared_cluster, 'qcow2'],
        ['vmdk', corpus_disks.large(0, 200), 'vmdk'],
    )
    def test_shared(self, make, claimed):
        part, ratio = self.used(make, claimed)
        self.assertEqual(1, part)
        self.assertGreater(ratio, 10_000)

    def test_a_gib_of_empty_tables(self):
        part, _ = self.used(corpus_disks.large(4, 0), 'vmdk')
        self.assertEqual(0, part)

    @ddt.named_data(
        ['vmdk', corpus_disks.VMDK, 'vmdk'],
        ['vdi', corpus_disks.VDI, 'vdi'],
        ['vhd', corpus_disks.VHD, 'vhd'],
        ['vhd_fixed', corpus_disks.VHD_FIXED, 'vhd'],
        ['vhdx', corpus_disks.VHDX, 'vhdx'],
    )
    def test_is_what_qemu_maps(self, make, claimed):
        path = pathlib.Path(tempfile.mkdtemp(), 'image')
        make(path)
        disk = qemu_img.Disk(qemu_img.QemuNode.path(path), claimed)
        runs = list(qemu_img.mapping(disk, qemu_img.Limits()))
        data = sum(run['length'] for run in runs if run['data'])
        size = runs[-1]['start'] + runs[-1]['length']
        part, _ = self.used(make, claimed)
        self.assertEqual(data / size, part)


@ddt.ddt
class TestCutImages(ImageTestCase):
    """An image cut anywhere gives its bytes or an error."""

    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(tempfile.mkdtemp())

    def verdict(self, path, end, expected, claimed='qcow2'):
        """Cut a copy and tell what is wrong with what becomes of it."""
        piece = path.with_name(f'cut-{end}')
        shutil.copyfile(path, piece)
        os.truncate(piece, end)
        driver = memory.MemoryDriver()
        # Large enough for any: its size shall not be what is refused.
        size = max(len(expected), path.stat().st_size)
        try:
            Manager(driver, COPY).create('v1', piece, claimed, size)
            return difference(expected, content(driver, 'v1'))
        except exception.CowError as error:
            allowed = {Reason.IMAGE_CORRUPT}
            if end < (68 if claimed == 'vdi' else 8):  # of its magic
                allowed |= {Reason.FORMAT_MISMATCH, Reason.EMPTY_IMAGE}
            return '' if error.reason in allowed else str(error)
        finally:
            piece.unlink()

    def places(self, path):
        """At, before and behind every cluster boundary, and anywhere."""
        size = path.stat().st_size
        with path.open('rb') as file:
            if file.read(4) != b'QFI\xfb':
                return self.places_by_tables(path, size)
        step = corpus.cluster_size(path)
        found = {0, 1, 72, 104, 511, 512, size - 1}
        for boundary in range(step, size + 1, step):
            found |= {boundary - 1, boundary, boundary + 1}
        chosen = random.Random(path.stat().st_size)
        found |= {chosen.randrange(size) for _ in range(RANDOM_CUTS)}
        # What is behind the last boundary is the hardest to miss.
        found |= {
            chosen.randrange(corpus.last_cluster(path), size)
            for _ in range(RANDOM_CUTS)
        }
        return sorted(end for end in found if end < size)

    def places_by_tables(self, path, size):
        """At, before, in and behind each table, at the end, and anywhere."""
        chosen = random.Random(size)
        found = {0, 7, 67, 100, 511, size - 1, size - 511, size - 512}
        found |= {size - 513, size - 1025, size - 4 * corpus.KI}
        for start in corpus_disks.tables(path):
            found |= {start + more for more in (-1, 0, 3, 300, 70000)}
        found |= {chosen.randrange(size) for _ in range(RANDOM_CUTS)}
        return sorted(end for end in found if 0 <= end < size)

    @ddt.named_data(*named(CUT))
    def test_everywhere(self, image):
        path = self.top / 'image'
        image.make(path)
        expected = corpus.expected(path)
        claimed = image.claimed or 'qcow2'
        # Whole, it is taken.
        driver = memory.MemoryDriver()
        Manager(driver, COPY).create('v1', path, claimed)
        places = self.places(path)
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            verdicts = list(
                pool.map(
                    lambda end: self.verdict(path, end, expected, claimed),
                    places,
                )
            )
        wrong = {
            end: verdict
            for end, verdict in zip(places, verdicts, strict=True)
            if verdict
        }
        self.assertEqual({}, wrong, f'{len(wrong)} of {len(places)}')

    def test_anything(self):
        """Cut what was written anyhow, and find the simplest that fails."""
        hypothesis.settings(
            max_examples=60,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )(hypothesis.given(strategies.data())(self.cut_anything))()

    def cut_anything(self, data):
        path = self.top / 'any'
        path.unlink(missing_ok=True)
        bits = data.draw(strategies.sampled_from([9, 12, 16]), 'cluster bits')
        numbers = strategies.integers(0, 127)
        writes = strategies.lists(
            strategies.tuples(numbers, strategies.integers(1, 20)),
            min_size=1,
            max_size=4,
        )
        commands = [
            f'write -q -P {number} {start}k {min(length, 128 - start)}k'
            for number, (start, length) in enumerate(
                data.draw(writes, 'writes'), 1
            )
        ]
        corpus.created(
            128 * corpus.KI,
            f'cluster_size={1 << bits}',
            commands=tuple(commands),
        )(path)
        expected = corpus.expected(path)
        size = path.stat().st_size
        # Not one number up to the size: most would be small.
        step = corpus.cluster_size(path)
        cluster = data.draw(strategies.integers(0, size // step - 1))
        inside = strategies.sampled_from([0, 1, 2, 8, 9, 120, step // 2])
        end = max(512, cluster * step + data.draw(inside))
        hypothesis.note(f'cut at {end} of {size}')
        self.assertEqual('', self.verdict(path, end, expected))
