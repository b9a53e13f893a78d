# SPDX-License-Identifier: Apache-2.0
"""A clone that was grown by its header is as librbd would have made it."""

import contextlib
import errno

import ddt
from oslo_utils import units

from cinder_cow.drivers import ceph
from cinder_cow.tests.functional import test_rbd

# Layering, exclusive lock, object map, fast diff, deep flatten; a journal.
USUAL = 61
JOURNAL = 64
OBJECT_MAP = 8
SIZE = 5 * units.Mi + 512


@ddt.ddt
class TestHeader(test_rbd.RbdTestCase):
    def setUp(self):
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        connection = stack.enter_context(
            ceph.connected(self.settings().cluster)
        )
        self.connection = connection
        self.pool_ = stack.enter_context(connection.pool(self.pool))

    def cloned(self, features, order=22):
        """Make a clone of an image; return its header, and what it is of."""
        pool = self.pool_
        pool.create('parent', SIZE, order, features=features & ~JOURNAL)
        with pool.image('parent', write=True) as image:
            image.write(b'P' * SIZE, 0)
            image.create_snap('snap')
            image.protect_snap('snap')
            identity = self.connection.identity(self.pool, image, 'snap')
        pool.clone(pool, 'parent', 'snap', 'child', features=features)
        return pool.header(pool.id_of('child')), identity

    @ddt.data((USUAL, 22), (1, 22), (5, 20), (USUAL, 24))
    @ddt.unpack
    def test_grown(self, features, order):
        header, identity = self.cloned(features, order)
        self.assertEqual(SIZE, header.size())
        self.assertEqual(identity, header.parent())
        size = 70 * units.Mi + 1
        self.assertTrue(header.grow(size))
        self.assertEqual(size, header.size())
        self.assertEqual(identity, header.parent())
        with self.pool_.image('child', write=True) as image:
            self.assertEqual(size, image.size())
            self.assertEqual(b'P' * 512, image.read(SIZE - 512, 512))
            self.assertEqual(bytes(units.Mi), image.read(SIZE, units.Mi))
            image.write(b'end', size - 3)
        # What librbd found of the object map, when it took the lock.
        with self.pool_.image('child') as image:
            self.assertEqual(0, image.flags())
            self.assertEqual(b'\0end', image.read(size - 4, 4))
            last = (size - 3) >> order << order
            self.assertEqual(size - last, ceph.allocated(image, size))
        self.check_object_map()

    def check_object_map(self):
        """Let librbd make the object map anew: it must be the same."""
        image_id = self.pool_.id_of('child')
        name = f'rbd_object_map.{image_id}'
        before = self.pool_.read_object(name)
        with self.pool_.image('child', write=True) as image:
            if not image.features() & OBJECT_MAP:
                return
            self.assertTrue(before)
            image.rebuild_object_map()
        self.assertEqual(before, self.pool_.read_object(name))

    def test_more_than_is_known_is_left_to_librbd(self):
        header, _identity = self.cloned(USUAL | JOURNAL)
        self.assertFalse(header.grow(2 * SIZE))
        self.assertEqual(SIZE, header.size())

    @ddt.data(USUAL, 1)
    def test_the_map_of_a_snapshot(self, features):
        self.cloned(features)
        image_id = self.pool_.id_of('parent')
        header = self.pool_.header(image_id)
        snapshot = header.kept().snapshots['snap']
        self.assertTrue(header.has_map(snapshot))
        name = f'rbd_object_map.{image_id}.{snapshot.id:016x}'
        has_one = bool(features & OBJECT_MAP)
        self.assertEqual(has_one, self.pool_.has_object(name))
        self.pool_.remove_object(name)
        self.assertEqual(not has_one, header.has_map(snapshot))
        # What it is asked for: whether librbd could open it.
        self.assertEqual(not has_one, self.opens())

    def opens(self):
        try:
            with self.pool_.image('parent', 'snap'):
                return True
        except ceph.CephError as error:
            self.assertEqual(errno.ENOENT, error.errno)
            return False

    def test_no_parent(self):
        self.pool_.create('image', SIZE, 22)
        header = self.pool_.header(self.pool_.id_of('image'))
        self.assertEqual('', header.parent())

    def test_no_image(self):
        self.assertRaises(ceph.CephError, self.pool_.header('123').parent)
