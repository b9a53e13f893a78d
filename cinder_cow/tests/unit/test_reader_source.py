# SPDX-License-Identifier: Apache-2.0
"""Images that are read where they are; on a real cluster."""

import contextlib
import functools
import io
import json
import os
import pathlib
import random
import resource
import tempfile
import time
from typing import Any

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import reader_source
from cinder_cow.drivers import file
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason
from cinder_cow.tests import corpus
from cinder_cow.tests import rbd_images
from cinder_cow.tests.functional import test_rbd

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

OBJECT = 4 * units.Mi
# Features of images: with and without a map of what is stored.
ALL, LAYERING = 61, 1
# Seconds. 1 TiB takes 0.2 s where there is a map, else 14, for each object is
# asked for; to read it would take half an hour.
LIMIT = 60


def assembled(source):
    """Put the pieces of a source together; tell also how much was read."""
    found, read = io.BytesIO(), 0
    for piece in source.pieces():
        if isinstance(piece, int):
            found.seek(piece, os.SEEK_CUR)
        else:
            read += found.write(piece)
    return found.getvalue().ljust(source.size, b'\0'), read


@ddt.ddt
class TestReaderSource(test_rbd.RbdTestCase):
    def setUp(self):
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        client = stack.enter_context(self.cluster.connect())
        self.ioctx = stack.enter_context(client.open_ioctx(self.pool))
        self.driver = self.rbd_driver()

    def make(self, name, size, data=(), features=ALL):
        rbd.RBD().create(
            self.ioctx, name, size, old_format=False, features=features
        )
        self.write(name, data)

    def write(self, name, data):
        with rbd.Image(self.ioctx, name) as image:
            for offset, content in data:
                image.write(content, offset)

    def clone(self, name, child):
        with rbd.Image(self.ioctx, name) as image:
            image.create_snap('snap')
            image.protect_snap('snap')
        rbd.RBD().clone(self.ioctx, name, 'snap', self.ioctx, child)

    @contextlib.contextmanager
    def source(self, name):
        with self.driver.read(name) as reader:
            yield reader_source.ReaderSource(reader, name)

    def content(self, name):
        with rbd.Image(self.ioctx, name, read_only=True) as image:
            return image.read(0, image.size())

    def check(self, name):
        """Check the bytes; return how many were read for them."""
        with self.source(name) as source:
            found, read = assembled(source)
            source.check_unchanged()
        self.assertTrue(found == self.content(name))  # noqa: H204
        return read

    def test_ends(self):
        data = corpus.noise(10000)
        self.make('v1', 10000, [(0, data)])
        with self.source('v1') as source:
            self.assertEqual(data[:512], source.head(512))
            self.assertEqual(data[-512:], source.tail(512))
            self.assertEqual(data, source.head(20000))
            self.assertEqual(data, source.tail(20000))

    @ddt.data((ALL, units.Ti), (LAYERING, 128 * units.Gi))
    @ddt.unpack
    def test_a_large_hole_is_not_read(self, features, size):
        written = [0, size // 2 + OBJECT, size - OBJECT]
        data = [(offset, b'x' * 4096) for offset in written]
        self.make('v1', size, data, features)
        begun = time.monotonic()
        with self.source('v1') as source:
            holes, read = 0, 0
            for piece in source.pieces():
                if isinstance(piece, int):
                    holes += piece
                else:
                    read += len(piece)
        self.assertEqual((3 * OBJECT, size), (read, holes + read))
        self.assertLess(time.monotonic() - begun, LIMIT)

    def test_a_clone_reads_its_parent_and_what_differs(self):
        self.make(
            'parent', 64 * units.Mi, [(5 * OBJECT, corpus.noise(OBJECT))]
        )
        self.clone('parent', 'v1')
        self.assertEqual(OBJECT, self.check('v1'))
        self.write('v1', [(9 * OBJECT, b'y')])
        self.assertEqual(2 * OBJECT, self.check('v1'))
        # What was written to the parent afterwards is none of it.
        self.write('parent', [(0, b'z')])
        self.assertEqual(2 * OBJECT, self.check('v1'))

    def test_what_a_clone_discards_is_not_that_of_its_parent(self):
        self.make('parent', 16 * units.Mi, [(0, corpus.noise(3 * OBJECT))])
        self.clone('parent', 'v1')
        with rbd.Image(self.ioctx, 'v1') as image:
            image.discard(0, OBJECT)
            image.discard(OBJECT, OBJECT // 2)
            image.write_zeroes(2 * OBJECT + 1000, 5000)
        self.check('v1')
        self.assertFalse(self.content('v1')[:OBJECT].strip(b'\0'))

    def test_any_history(self):
        for seed in range(6):
            choose = random.Random(seed)
            name = f'v{seed}'
            self.make(name, 24 * units.Mi, features=choose.choice([ALL, 1]))
            for level in range(3):
                self.mess(name, choose)
                self.check(name)
                self.clone(name, f'{name}.{level}')
                name = f'{name}.{level}'

    def mess(self, name, choose):
        with rbd.Image(self.ioctx, name) as image:
            for _ in range(5):
                offset = choose.randrange(image.size())
                length = choose.choice([1, 4096, OBJECT, 2 * OBJECT])
                length = min(length, image.size() - offset)
                what = choose.choice(['write', 'write', 'discard', 'resize'])
                if what == 'write':
                    image.write(choose.randbytes(length), offset)
                elif what == 'discard':
                    image.discard(offset, length)
                else:
                    image.resize(choose.randrange(OBJECT, 24 * units.Mi))

    @ddt.data(False, True)
    def test_an_image_that_is_imported_does_not_end_us(self, cloned):
        content = corpus.noise(units.Mi) + bytes(15 * units.Mi)
        with tempfile.NamedTemporaryFile(dir='/var/tmp') as raw:
            raw.write(content)
            raw.flush()
            pathlib.Path(raw.name).chmod(0o644)
            stream = {'type': 'file', 'file_path': raw.name}
            spec = json.dumps({'type': 'raw', 'stream': stream})
            rbd.RBD().migration_prepare_import(spec, self.ioctx, 'v1', ALL)
            name = 'v1'
            if cloned:
                name = 'v2'
                self.clone('v1', 'v2')
                self.driver.show('v2')
            try:
                self.assertEqual(len(content), self.check(name))
            finally:
                rbd.RBD().migration_execute(self.ioctx, 'v1')
                rbd.RBD().migration_commit(self.ioctx, 'v1')
        self.check(name)

    def test_a_writer_in_the_meantime(self):
        self.make('v1', units.Mi)
        write = functools.partial(self.write, 'v1', [(0, b'x')])
        with self.source('v1') as source:
            write()
            self.assert_changed(source)

    def test_a_writer_that_was_there_before(self):
        self.make('v1', units.Mi)
        with rbd.Image(self.ioctx, 'v1') as image:
            image.write(b'x', 0)
            with self.source('v1') as source:
                image.write(b'y', 0)
                image.close()
                self.assert_changed(source)

    def test_a_writer_that_stays(self):
        self.make('v1', units.Mi)
        with rbd.Image(self.ioctx, 'v1'), self.source('v1') as source:
            self.assert_changed(source)

    def test_other_readers_do_no_harm(self):
        self.make('v1', units.Mi)
        with self.source('v1') as source:
            self.content('v1')
            self.driver.show('v1')
            self.check('v1')
            source.check_unchanged()

    def test_one_that_is_gone(self):
        self.make('v1', units.Mi)
        with self.source('v1') as source:
            self.driver.delete('v1')
            error = self.assertRaises(
                exception.CowError, source.check_unchanged
            )
        # It is no change that the image is at fault for.
        self.assertIs(Reason.BACKEND_ERROR, error.reason)

    def assert_changed(self, source):
        error = self.assertRaises(exception.ImageError, source.check_unchanged)
        self.assertIs(Reason.IMAGE_CHANGED, error.reason)

    def test_memory(self):
        # In every second object; 1 TiB of them takes 20 MiB.
        size = 64 * units.Gi
        self.make('v1', size)
        with self.driver.read('v1') as reader:
            stored = list(reader.extents())
            self.assertEqual(1, len(stored))
        self.write(
            'v1', [(offset, b'x') for offset in range(0, 2**32, 2 * OBJECT)]
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with self.driver.read('v1') as reader:
            self.assertEqual(2 * 512, sum(1 for _ in reader.extents()))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.assertLess(after - before, 10 * units.Ki)


class TestNearest(test_rbd.RbdTestCase):
    """The image where it is, if the driver has it."""

    def nearest(self, image, driver):
        other: Any = Nothing()
        return reader_source.nearest(image, other, driver), other

    def test_in_the_back_end(self):
        data = corpus.noise(4096)
        with rbd_images.stored(self.cluster, {0: data}, units.Mi) as image:
            near, _other = self.nearest(image, self.rbd_driver())
            with near as source:
                self.assertEqual(data, source.head(4096))
                self.assertEqual(image.label, source.label)

    def test_the_next_location_where_one_is_bad(self):
        data = corpus.noise(4096)
        with rbd_images.stored(self.cluster, {0: data}, units.Mi) as image:
            (good,) = image.locations
            bad = image_location.parse(
                str(good).replace('/images/', '/elsewhere/')
            )
            both = images.ImageInfo(
                image.id, 'x', 'raw', locations=(bad, good)
            )
            near, _other = self.nearest(both, self.rbd_driver())
            with near as source:
                self.assertEqual(data, source.head(4096))

    def test_elsewhere(self):
        none = images.ImageInfo('x', 'x', 'raw')
        with tempfile.TemporaryDirectory() as top:
            for driver in (
                None,
                memory.MemoryDriver(),
                file.FileDriver(pathlib.Path(top, 'volumes')),
                self.rbd_driver(),
            ):
                near, other = self.nearest(none, driver)
                with near as source:
                    self.assertIs(other, source)


class Nothing:
    """A source that must not be read."""

    label = 'nothing'
    size = 0
