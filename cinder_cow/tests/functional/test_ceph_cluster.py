# SPDX-License-Identifier: Apache-2.0
"""A real Ceph: its life, its users, and how it is made to fail."""

import contextlib
import errno
import itertools
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from oslotest import base as test_base

from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import ceph_config
from cinder_cow.tests import ceph_daemons

with contextlib.suppress(ImportError):
    # Without them all tests are skipped, by what makes the cluster.
    import rados  # noqa: TID251
    import rbd  # noqa: TID251

ROOT = pathlib.Path(ceph_cluster.__file__).parents[2]
MIB = 2**20

# The thread that starts it ends; says where it is, and waits for its end.
SHARED = """
import threading
import time
from cinder_cow.tests import ceph_cluster

thread = threading.Thread(target=ceph_cluster.shared)
thread.start()
thread.join()
print(ceph_cluster.shared().directory, flush=True)
time.sleep(60)
"""


def make(client, pool, name, size=MIB, data=b''):
    """Make an image, and write to it."""
    with client.open_ioctx(pool) as ioctx:
        rbd.RBD().create(ioctx, name, size)
        if data:
            with rbd.Image(ioctx, name) as image:
                image.write(data, 0)
                image.flush()


def read(client, pool, name, length):
    with (
        client.open_ioctx(pool) as ioctx,
        rbd.Image(ioctx, name, read_only=True) as image,
    ):
        return image.read(0, length)


class TestCluster(test_base.BaseTestCase):
    """What tests do with a cluster that all of them share."""

    def setUp(self):
        super().setUp()
        self.cluster = ceph_cluster.shared()
        self.pool = self.getUniqueString('pool')
        self.cluster.make_pool(self.pool)
        self.addCleanup(self.cluster.remove_pool, self.pool)

    def test_an_image_is_written_and_read(self):
        data = os.urandom(MIB)
        with self.cluster.connect() as client:
            self.assertEqual(self.cluster.fsid, client.get_fsid())
            make(client, self.pool, 'disk', data=data)
            found = read(client, self.pool, 'disk', MIB)
        self.assertIs(True, found == data)

    def test_what_its_users_may_do(self):
        images, volumes = self.names('images', 'volumes')
        with self.cluster.connect('glance') as glance:
            make(glance, 'images', images, data=b'image')
            self.refused(make, glance, 'volumes', volumes)
        with self.cluster.connect('cinder') as cinder:
            make(cinder, 'volumes', volumes, data=b'volume')
            found = read(cinder, 'images', images, 5)
            self.assertEqual(b'image', found)
            self.refused(make, cinder, 'images', volumes)
        with self.cluster.connect('noimages') as noimages:
            found = read(noimages, 'volumes', volumes, 6)
            self.assertEqual(b'volume', found)
            self.refused(read, noimages, 'images', images, 5)
            self.refused(make, noimages, 'volumes2', volumes)

    def test_a_new_user(self):
        name = self.getUniqueString('user')
        caps = ceph_config.caps([self.pool])
        path = self.cluster.add_user(name, caps)
        self.assertEqual(path, self.cluster.keyring(name))
        with self.cluster.connect(name) as client:
            make(client, self.pool, 'disk', data=b'mine')
            self.refused(make, client, 'volumes', name)
        self.cluster.remove_user(name)
        with contextlib.ExitStack() as stack:
            connection = self.cluster.connect(name)
            self.assertRaises(rados.OSError, stack.enter_context, connection)

    def test_an_osd_that_comes_back_has_its_data(self):
        with self.cluster.connect() as client:
            make(client, self.pool, 'disk', data=b'kept')
            for end in (self.cluster.stop, self.cluster.kill):
                before = self.up_from()
                end('osd')
                self.assertEqual([], self.cluster.running('osd'))
                self.cluster.start('osd')
                self.assertGreater(self.up_from(), before)
                self.assertEqual(b'kept', read(client, self.pool, 'disk', 4))

    def up_from(self):
        """Return the epoch in which the OSD came up."""
        (osd,) = self.cluster.mon(prefix='osd dump')['osds']
        return osd['up_from']

    def test_a_monitor_that_comes_back_knows_the_pools(self):
        self.cluster.kill('mon')
        self.cluster.start('mon')
        found = self.cluster.mon(prefix='osd pool ls')
        self.assertIn(self.pool, found)

    def test_an_osd_that_is_paused_goes_on(self):
        impatient = {**ceph_client.CLIENT, 'rados_osd_op_timeout': '1'}
        self.cluster.pause()
        self.addCleanup(self.cluster.resume)
        with self.cluster.connect(settings=impatient) as client:
            error = self.assertRaises(
                rbd.OSError, make, client, self.pool, 'disk'
            )
            self.assertEqual(errno.ETIMEDOUT, error.errno)
            self.cluster.resume()
            make(client, self.pool, 'later')

    def test_options_change_while_it_runs(self):
        # One that ceph.conf has, so the monitor's store would not do.
        self.cluster.set_config('mon', 'mon_max_pg_per_osd', 1)
        self.addCleanup(
            self.cluster.set_config, 'mon', 'mon_max_pg_per_osd', 1000
        )
        error = self.assertRaises(
            RuntimeError, self.cluster.make_pool, f'{self.pool}-more'
        )
        self.assertIn('mon_max_pg_per_osd', str(error))
        self.cluster.set_config('client', 'rbd_cache', 'false')
        with self.cluster.connect() as client:
            self.assertEqual('false', client.conf_get('rbd_cache'))
        self.cluster.mon(prefix='config rm', who='client', name='rbd_cache')

    def test_connections_break(self):
        log = self.cluster.directory / 'log/osd.0.log'
        broken = 'injecting socket failure'
        before = log.read_text().count(broken)
        # One of so many reads and writes of a socket. Large requests would
        # rarely pass, and every failure may cost a second.
        self.cluster.set_config('osd', 'ms_inject_socket_failures', 100)
        self.addCleanup(
            self.cluster.set_config, 'osd', 'ms_inject_socket_failures', 0
        )
        data = os.urandom(65536)
        with self.cluster.connect() as client:
            for number in itertools.count():
                make(client, self.pool, f'disk{number}', data=data)
                found = read(client, self.pool, f'disk{number}', len(data))
                self.assertIs(True, found == data)
                if log.read_text().count(broken) > before + 2:
                    break

    def test_a_client_is_shut_out(self):
        with self.cluster.connect() as client:
            make(client, self.pool, 'disk')
            self.cluster.blocklist(client.get_addrs())
            # The OSD has heard of it a moment later.
            deadline = time.monotonic() + 60
            with contextlib.suppress(rbd.OSError):
                while time.monotonic() < deadline:
                    read(client, self.pool, 'disk', 1)
            error = self.assertRaises(
                rbd.OSError, read, client, self.pool, 'disk', 1
            )
            self.assertEqual(errno.ESHUTDOWN, error.errno)

    def test_a_command_that_fails_says_why(self):
        error = self.assertRaises(
            RuntimeError, self.cluster.mon, prefix='osd none'
        )
        self.assertIn('osd none', str(error))

    def names(self, *pools):
        """Return names of images, which are removed afterwards."""
        for pool in pools:
            name = self.getUniqueString(pool)
            self.addCleanup(self.remove, pool, name)
            yield name

    def remove(self, pool, name):
        with self.cluster.connect() as client, client.open_ioctx(pool) as io:
            rbd.RBD().remove(io, name)

    def refused(self, *args):
        self.assertRaises(rbd.PermissionError, *args)


class TestLife(test_base.BaseTestCase):
    """Clusters of tools/ceph-cluster, and what is left of any."""

    def setUp(self):
        super().setUp()
        place = tempfile.TemporaryDirectory(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(place.cleanup)
        self.top = pathlib.Path(place.name)

    def cluster(self, name, **options):
        cluster = ceph_cluster.Cluster(self.top / name, **options)
        self.addCleanup(cluster.down)
        return cluster

    def tool(self, *args, status=0):
        if not (ROOT / 'tools').exists():
            raise unittest.SkipTest('machine: installed without its source')
        done = subprocess.run(
            [sys.executable, ROOT / 'tools/ceph_cluster.py', *args],
            cwd=self.top,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )
        told = done.stdout + done.stderr
        if told.startswith('machine: '):
            raise unittest.SkipTest(told.strip())
        self.assertEqual(status, done.returncode, told)
        return told

    def test_it_tells_what_the_osd_holds(self):
        # Not a shared one, where what was deleted before is freed meanwhile.
        cluster = self.enterContext(self.cluster('one'))
        cluster.make_pool('pool')
        before = cluster.osd_used()
        with cluster.connect() as client:
            data = os.urandom(100 * MIB)
            make(client, 'pool', 'disk', len(data), data)
        more = cluster.osd_used() - before
        self.assertGreaterEqual(more, 100 * MIB)
        self.assertLess(more, 102 * MIB)

    def test_two_of_the_tool_side_by_side(self):
        one, two = self.cluster('one'), self.cluster('two')
        told = self.tool('up', 'one')
        self.assertIn('Made and started', told)
        self.assertIn(f'CEPH_CONF={one.conf}\n', told)
        self.assertIn(f'CINDER_CONF={one.cinder_conf}\n', told)
        self.tool('up', 'two', '--store', 'memstore', '--min-compat', 'mimic')
        self.assertNotEqual(one.fsid, two.fsid)
        for cluster in (one, two):
            with cluster.connect('cinder') as client:
                make(client, 'volumes', cluster.directory.name)
        self.assertIn('It runs already', self.tool('up', 'one'))
        self.tool('down', 'one')
        self.assertEqual([], one.running())
        self.assertEqual(2, len(two.running()))
        self.tool('down', 'two', '--rm')
        self.assertEqual([], two.running())
        self.assertEqual([one.directory], list(self.top.iterdir()))
        self.tool('down', 'two', '--rm')

    def test_it_starts_again_with_its_data(self):
        for store in ('bluestore', 'memstore'):
            cluster = self.cluster(store, store=store)
            with cluster, cluster.connect() as client:
                make(client, 'volumes', 'disk', data=b'kept')
            self.assertEqual([], cluster.running())
            self.assertIn('Started again', self.tool('up', store))
            with cluster.connect() as client:
                found = read(client, 'volumes', 'disk', 4)
            self.assertEqual(b'kept', found)
            cluster.down(remove=True)
            self.assertIs(False, cluster.directory.exists())

    def test_one_that_does_not_start_leaves_no_daemon(self):
        ceph_daemons.needed('ceph-mon')
        bad = self.cluster('bad', osd_size=MIB)
        error = self.assertRaises(RuntimeError, bad.up)
        self.assertIn('ceph-osd failed', str(error))
        self.assertEqual([], bad.running())
        # What is half made is made anew.
        self.assertIn('Made and started', self.tool('up', 'bad'))

    def test_it_keeps_off_other_files(self):
        ceph_daemons.needed('ceph-mon')
        mine = self.top / 'full/mine'
        mine.parent.mkdir()
        mine.touch()
        for args in (['up', 'full'], ['down', 'full', '--rm']):
            told = self.tool(*args, status=1)
            self.assertIn('holds other files', told)
        self.assertEqual([mine], list(mine.parent.iterdir()))

    def test_a_killed_process_leaves_no_daemon(self):
        ceph_cluster.shared()
        process = subprocess.Popen(
            [sys.executable, '-c', SHARED],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout
            place = process.stdout.readline().strip()
            cluster = ceph_cluster.Cluster(place)
            pids = cluster.running()
            self.assertEqual(2, len(pids))
            descriptors = [os.pidfd_open(pid) for pid in pids]
            process.send_signal(signal.SIGKILL)
        for descriptor in descriptors:
            ended, _, _ = select.select([descriptor], [], [], 10)
            self.assertEqual([descriptor], ended)
            os.close(descriptor)
        self.assertEqual([], cluster.running())
        # The next one that starts removes the files.
        ceph_cluster.sweep()
        self.assertIs(False, cluster.directory.parent.exists())
        self.assertEqual(2, len(ceph_cluster.shared().running()))
