# SPDX-License-Identifier: Apache-2.0
"""The RBD driver on a real cluster."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import tempfile
import time

from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import qemu_img
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_owner
from cinder_cow.drivers import rbd_parents
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.drivers.rbd_lease_row import Work
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import conformance
from cinder_cow.tests import rbd_place

_numbers = itertools.count()


class RbdTestCase(test_base.BaseTestCase):
    """Has a cluster, and a pool of its own in it."""

    def setUp(self):
        self.cluster = ceph_cluster.shared()
        self.pool = f'test-{next(_numbers)}'
        self.cluster.make_pool(self.pool)
        self.addCleanup(self.cluster.remove_pool, self.pool)
        self.addCleanup(ceph.disconnect)
        super().setUp()

    def rbd_driver(self, user='admin', **settings):
        return rbd.RbdDriver(self.settings(user, **settings))

    def settings(self, user='admin', **settings):
        cluster = ceph.Cluster(
            conf=str(self.cluster.conf), user=user, op_timeout=30
        )
        return rbd_options.RbdSettings(
            **{
                'cluster': cluster,
                'pool': self.pool,
                'trust': rbd_parents.Trust(frozenset({'images'})),
                **settings,
            }
        )


class TestSweep(RbdTestCase):
    def leave_row(self):
        """Write down a work as one who died then."""
        me = rbd_owner.Owner.me()
        lease = Lease(
            id='1' * 32,
            volume='v1',
            work=Work.CLONE,
            owner=dataclasses.replace(me, pid=1, started='never'),
            address='127.0.0.1:0/1',
            client='1',
        )
        with self.opened() as pool:
            rows = pool.rows(rbd_leases.OBJECT)
            self.assertTrue(
                rows.put('v1', lease.packed(), lock=rbd_leases.lock_of(lease))
            )

    @contextlib.contextmanager
    def opened(self):
        cluster = self.settings().cluster
        with (
            ceph.connected(cluster) as connection,
            connection.pool(self.pool) as pool,
        ):
            yield pool

    def names(self):
        with self.opened() as pool:
            return rbd_leases.names(pool)

    def test_by_one_who_may_not_shut_out(self):
        caps = {'mon': 'allow r', 'osd': f'allow rwx pool={self.pool}'}
        self.cluster.add_user(self.pool, caps)
        self.addCleanup(self.cluster.remove_user, self.pool)
        self.leave_row()
        weak = self.rbd_driver(self.pool)
        # It goes on with its own work, and leaves that to others.
        weak.sweep()
        self.assertEqual([], list(weak.list()))
        with weak.open('v2', 512) as writer:
            writer.close()
        self.assertEqual({'v1'}, self.names())
        driver = self.rbd_driver()
        driver.sweep()
        self.assertEqual(['v2'], [v.name for v in driver.list()])
        self.assertEqual(set(), self.names())


class TestQemuImg(RbdTestCase):
    """qemu-img writes straight into an image."""

    LIMITS = qemu_img.Limits(timeout=60)

    def source(self):
        top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, top)
        path = top / 'image'
        path.write_bytes(b'Q' * units.Mi)
        return qemu_img.Disk(qemu_img.QemuNode.path(path), 'raw')

    def convert(self, sink):
        target = qemu_img.Disk(sink.qemu_target(), 'raw')
        qemu_img.convert(
            self.source(), target, zeroed=True, limits=self.LIMITS
        )

    def test_converts(self):
        driver = self.rbd_driver()
        with driver.open('v1', 2 * units.Mi) as sink:
            self.convert(sink)
            sink.close()
        with driver.read('v1') as reader:
            self.assertEqual(b'Q' * units.Mi, reader.read(0, units.Mi))

    def test_ends_where_the_cluster_does_not_answer(self):
        cluster = ceph.Cluster(
            conf=str(self.cluster.conf), user='admin', op_timeout=5
        )
        driver = self.rbd_driver(cluster=cluster)
        with driver.open('v1', 2 * units.Mi) as sink:
            self.cluster.pause()
            try:
                error = self.assertRaises(
                    qemu_img.QemuImgError, self.convert, sink
                )
            finally:
                self.cluster.resume()
            self.assertFalse(error.limited, str(error))
        self.assertFalse(driver.exists('v1'))


class TestRbdDriver(conformance.BaseLinkerConformance, RbdTestCase):
    def make_driver(self):
        # Of objects of 64 KiB: smaller than a picture, so that some of what
        # is left is kept, and a small write to a clone copies little.
        return self.rbd_driver(order=16)

    def space_used(self):
        with rbd_place.opened(self.cluster, self.pool) as ioctx:
            return sum(ioctx.stat(o.key)[0] for o in ioctx.list_objects())

    def overwrite(self, volume_name, offset, data):
        with self.image(volume_name, write=True) as image:
            image.write(data, offset)

    @contextlib.contextmanager
    def image(self, name, **options):
        settings = self.driver._settings
        with (
            ceph.connected(settings.cluster) as connection,
            connection.pool(self.pool) as pool,
            pool.image(name, **options) as image,
        ):
            yield image

    @contextlib.contextmanager
    def failing_writes(self):
        # Without filling it, which would take all of the machine's disk.
        self.set_full_ratio(0.00001)
        try:
            yield
        finally:
            self.set_full_ratio(0.95)

    def set_full_ratio(self, ratio):
        """Let the cluster be full, or not, and wait until it knows."""
        for name in ('nearfull', 'backfillfull', 'full'):
            self.cluster.mon(prefix=f'osd set-{name}-ratio', ratio=ratio)
        deadline = time.monotonic() + 60
        while self.is_full() is not (ratio < 0.5):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def is_full(self):
        settings = self.driver._settings
        with ceph.connected(settings.cluster) as connection:
            return connection.is_full(self.pool)


class TestReading(RbdTestCase):
    def test_a_read_is_no_write(self):
        # librbd notes that an image was read, if it did not do so lately.
        name = 'rbd_atime_update_interval'
        self.cluster.set_config('client', name, 1)
        self.addCleanup(
            self.cluster.mon, prefix='config rm', who='client', name=name
        )
        driver = self.rbd_driver()
        with driver.open('v1', units.Mi) as writer:
            writer.write(b'x' * units.Mi)
            writer.close()
        time.sleep(1.1)
        with driver.read('v1') as reader:
            reader.read(0, 4096)
            reader.check_unchanged()
