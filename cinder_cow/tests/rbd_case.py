# SPDX-License-Identifier: Apache-2.0
"""What tests of faults share: images, drivers, victims, what is left."""

import contextlib
import itertools
import os
import time
from unittest import mock

from oslo_utils import units

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_leases
from cinder_cow.tests import rbd_place
from cinder_cow.tests import rbd_victim
from cinder_cow.tests.functional import test_rbd

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd as librbd  # noqa: TID251

_numbers = itertools.count()
SIZE = 8 * units.Mi
# Of leases, in tests; and the watches of their cluster are of 5 s.
LEASE = 3
# When all must be clean, at the latest, on a machine that does much else.
CLEAN = 60


class FaultCase(test_rbd.RbdTestCase):
    """Has an image that can be cloned, and short leases."""

    def setUp(self):
        super().setUp()
        self.content = os.urandom(4096)
        self.image = f'image-{os.getpid()}-{next(_numbers)}'
        self.upload()
        self.location = f'rbd://{self.cluster.fsid}/images/{self.image}/snap'
        patched = mock.patch.object(rbd_leases, 'SECONDS', LEASE)
        patched.start()
        self.addCleanup(patched.stop)
        self.driver = self.new_driver()

    def upload(self):
        """Store the image as Glance does."""
        with self.images() as ioctx:
            librbd.RBD().create(ioctx, self.image, SIZE)
            with librbd.Image(ioctx, self.image) as image:
                image.write(self.content, 0)
                image.create_snap('snap')
                image.protect_snap('snap')

    def images(self):
        return self.ioctx('images')

    def ioctx(self, pool=None):
        return rbd_place.opened(self.cluster, pool or self.pool)

    def delete_image(self):
        """Delete the image, as Glance does."""
        with self.images() as ioctx:
            with librbd.Image(ioctx, self.image) as image:
                image.unprotect_snap('snap')
                image.remove_snap('snap')
            librbd.RBD().remove(ioctx, self.image)

    def new_driver(self, user='admin', op_timeout=30):
        """Make a driver like one of another process."""
        ceph.disconnect()
        return rbd.RbdDriver(
            rbd_victim.settings(
                str(self.cluster.conf), self.pool, user, op_timeout
            ),
            'rbd1',
        )

    def order(self, work, name='victim', **options):
        return rbd_victim.Order(
            str(self.cluster.conf),
            self.pool,
            work,
            name,
            self.location,
            **{'seconds': LEASE, **options},
        )

    def make(self, work='clone', name='victim', driver=None):
        """Make or delete a volume in this process."""
        rbd_victim.do(self.order(work, name), driver or self.driver)

    @contextlib.contextmanager
    def full(self):
        """Let the cluster be full: it then takes no more writes."""
        try:
            self._set_full_ratio(0.00001)
            yield
        finally:
            self._set_full_ratio(0.95)

    def _set_full_ratio(self, ratio):
        for name in ('nearfull', 'backfillfull', 'full'):
            self.cluster.mon(prefix=f'osd set-{name}-ratio', ratio=ratio)
        deadline = time.monotonic() + 60
        while (ratio < 0.5) is not self._is_full():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def _is_full(self):
        pools = self.cluster.mon(prefix='osd dump')['pools']
        (names,) = (
            one['flags_names']
            for one in pools
            if one['pool_name'] == self.pool
        )
        return 'full' in names.split(',')

    def refused(self, *reasons, call=None, seconds=30):
        """Check that making a volume is refused, in bounded time."""
        begun = time.monotonic()
        error = self.assertRaises(exception.CowError, call or self.make)
        self.assertIn(error.reason, reasons, error)
        self.assertLess(time.monotonic() - begun, seconds, error)
        return error

    def names(self):
        """Do as the next command does: sweep, and list the volumes."""
        self.driver.sweep()
        return [volume.name for volume in self.driver.list()]

    def left(self, *expected):
        return rbd_place.left(self.cluster, self.pool, expected)

    def assert_clean(self, *expected):
        """Check that the next command leaves nothing but these volumes."""
        self.assertEqual(sorted(expected), self.names())
        self.assertEqual([], self.left(*expected))

    def assert_clean_soon(self, *expected, seconds=CLEAN):
        found = rbd_place.until(
            self.cluster, self.pool, expected, seconds, self.names
        )
        self.assertEqual([], found)
        self.assertEqual(sorted(expected), self.names())

    def assert_clone(self, name='victim'):
        with self.driver.read(name) as reader:
            self.assertEqual(16 * units.Mi, reader.size)
            self.assertEqual(self.content, reader.read(0, 4096))
            self.assertEqual(bytes(4096), reader.read(SIZE, 4096))

    def assert_stream(self, name='victim'):
        offset = 0
        with self.driver.read(name) as reader:
            self.assertEqual(16 * units.Mi, reader.size)
            for piece in rbd_victim.content():
                found = reader.read(offset, len(piece))
                self.assertIs(True, found == piece)
                offset += len(piece)
            rest = reader.read(offset, reader.size - offset)
        self.assertEqual(b'', rest.strip(b'\0'))
