# SPDX-License-Identifier: Apache-2.0
"""How our driver for Cinder connects: once, and to the right cluster."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import ddt
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import ceph_config
from cinder_cow.tests import cinder_service
from cinder_cow.tests import rbd_place
from cinder_cow.tests import services

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

PROGRAM = 'cinder_cow.tests.connection_program'


@ddt.ddt
class TestConnections(test_base.BaseTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        ceph_client.needed()
        services.environment_of_services()
        cls.top = pathlib.Path(
            tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        )
        cls.addClassCleanup(shutil.rmtree, cls.top)
        cls.cluster = ceph_cluster.shared()
        cls.second = cls.enterClassContext(
            ceph_cluster.Cluster(cls.top / 'second')
        )

    def told(self, active='', **environment):
        """Run the driver, by default not failed over; return what it told."""
        target = {
            'backend_id': 'second',
            'conf': self.second.conf,
            'user': 'cinder',
        }
        section = cinder_service.upstream_driver(
            self.cluster,
            replication_device=','.join(f'{k}:{v}' for k, v in target.items()),
            rados_connection_interval=1,
        )
        conf = self.top / 'cinder.conf'
        ceph_config.write_sections(conf, section)
        done = subprocess.run(
            [services.PROGRAMS / 'python', '-m', PROGRAM, conf, active,
             self.cluster.directory],
            cwd=self.top,
            env={
                'PATH': os.environ['PATH'],
                'PYTHONPATH': str(services.ROOT),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )  # fmt: skip
        self.assertEqual(0, done.returncode, done.stderr)
        return json.loads(done.stdout)

    def check(self, told, cluster):
        self.assertEqual(cluster.fsid, told['fsid'])
        self.assertEqual([f'rbd://{cluster.fsid}/images/'], told['places'])
        self.assertIs(True, told['same'])
        self.assertEqual('ImageNotFound', told['used_later'])
        self.assertEqual(self.second.fsid, told['remote'])
        self.assertIn('Error connecting to ceph cluster', told['no_pool'])

    @ddt.data({}, {'OS_CINDER_DISABLE_EVENTLET_PATCHING': '1'})
    def test_once(self, environment):
        told = self.told(**environment)
        self.check(told, self.cluster)
        self.assertEqual(
            {
                'replaced': True,
                'works': 'ImageNotFound',
                # ESHUTDOWN, and the process lives.
                'used_later': 'ConnectionShutdown',
                'open': 'connected',
                'closed': 'shutdown',
            },
            told['lost'],
        )

    def test_failed_over(self):
        with rbd_place.opened(self.second, 'volumes') as ioctx:
            rbd.RBD().create(ioctx, 'theirs', units.Gi)
            rbd.RBD().create(ioctx, 'cow-base-1', 2 * units.Gi)
        told = self.told('second')
        self.check(told, self.second)
        # In GiB, and without ours.
        self.assertEqual(1, told['usage'])
