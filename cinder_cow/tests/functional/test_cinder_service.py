# SPDX-License-Identifier: Apache-2.0
"""The Cinder of the tests is what they take it for."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from typing import Any

from oslo_utils import units
from oslotest import base as test_base

from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import cinder_case
from cinder_cow.tests import cinder_service
from cinder_cow.tests import corpus
from cinder_cow.tests import rbd_place
from cinder_cow.tests import services

MEMBER = 'alice:a1:member'
OTHER = 'bob:b2:member'
# Cinder asks it only for images.
NO_GLANCE: Any = types.SimpleNamespace(url='http://127.0.0.1:9')

# Starts a Cinder on the Ceph in a directory, and waits.
_HOLDER = """
import sys, time
from cinder_cow.tests import ceph_client
from cinder_cow.tests.functional import test_cinder_service as tests
from cinder_cow.tests import cinder_service

top, ceph = sys.argv[1:]
ceph = ceph_client.Client(ceph)
with cinder_service.Cinder(top, tests.NO_GLANCE, ceph) as cinder:
    print(cinder.process.pid, flush=True)
    time.sleep(600)
"""


class TestCinder(cinder_case.CinderCase):
    """Tests of one Cinder with its own driver; each leaves nothing."""

    def setUp(self):
        super().setUp()
        before = rbd_place.left(self.cluster, 'volumes')
        self.addCleanup(self.assert_left, before)

    def assert_left(self, before):
        self.assertEqual(before, rbd_place.left(self.cluster, 'volumes'))

    def test_a_raw_image_is_cloned(self):
        data = os.urandom(units.Mi)
        image_id = self.stored(data=data)
        volume = self.created(image_id=image_id)
        self.assert_content(volume, data, ('images', image_id, 'snap'))
        self.assertEqual([], self.glance.downloads(image_id))

    def test_a_qcow2_image_is_converted(self):
        data = corpus.holey(units.Mi)
        image_id = self.qcow2(data)
        volume = self.created(image_id=image_id)
        self.assert_content(volume, data)
        self.assertEqual(1, len(self.glance.downloads(image_id)))

    def test_a_snapshot(self):
        data = os.urandom(units.Mi)
        first = self.created(image_id=self.stored(data=data))
        snapshot = self.cinder.create_snapshot(first)
        self.addCleanup(self.cinder.delete_snapshot, snapshot)
        self.cinder.wait_snapshot(snapshot)
        clone = self.created(snapshot_id=snapshot)
        parent = ('volumes', f'volume-{first}', f'snapshot-{snapshot}')
        self.assert_content(clone, data, parent)

    def test_a_volume_that_fails(self):
        image_id = self.qcow2(corpus.noise(units.Mi))
        self.glance.set_hash(
            image_id, os_hash_algo='sha512', os_hash_value='0' * 128
        )
        volume = self.begun(image_id=image_id)
        error = self.assertRaises(RuntimeError, self.cinder.wait, volume)
        self.assertIn(f'volume {volume} is error', str(error))
        # It is Cinder that knows why.
        self.assertIn('Corrupt image download', str(error))

    def test_a_request_that_fails(self):
        error = self.assertRaises(RuntimeError, self.cinder.create_volume, 0)
        self.assertIn('POST /volumes: 400', str(error))
        self.assertIn('less than the minimum of 1', str(error))

    def test_who_asks(self):
        volume = self.created(token=MEMBER)
        for token, seen in ((MEMBER, True), (OTHER, False), (None, False)):
            self.assertEqual(seen, volume in self.cinder.volumes(token))
        for token, status in ((MEMBER, 403), (None, 200), ('alice:a1', 401)):
            answer = self.cinder.request(
                'GET', '/scheduler-stats/get_pools', token=token
            )
            self.assertEqual(status, answer.status_code)

    def test_pools(self):
        (pool,) = self.cinder.pools().items()
        self.assertEqual('cow@rbd1#rbd1', pool[0])
        self.assertEqual('ceph', pool[1]['storage_protocol'])

    def test_killed_and_started_again(self):
        data = os.urandom(units.Mi)
        image_id = self.stored(data=data)
        before = self.created(image_id=image_id)
        self.cinder.kill()
        self.cinder.restart()
        self.assertEqual('available', self.cinder.show(before)['status'])
        volume = self.created(image_id=image_id)
        self.assert_content(volume, data, ('images', image_id, 'snap'))


class TestStarting(test_base.BaseTestCase):
    def directory(self):
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, top)
        return pathlib.Path(top) / 'cinder'

    def test_it_tells_why_it_does_not_start(self):
        section = {'volume_driver': 'cinder_cow.no_such.Driver'}
        cinder = cinder_service.Cinder(
            self.directory(), NO_GLANCE, drivers={'other1': section}
        )
        error = self.assertRaises(RuntimeError, cinder.__enter__)
        self.assertIn("No module named 'cinder_cow.no_such'", str(error))
        self.assertIsNone(cinder.process)

    def test_it_dies_with_us(self):
        directory = self.directory()
        holder = subprocess.Popen(
            [sys.executable, '-c', _HOLDER, directory,
             ceph_cluster.shared().directory],
            cwd=services.ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.addCleanup(holder.communicate)
        self.addCleanup(holder.kill)
        assert holder.stdout
        group = int(holder.stdout.readline())
        os.killpg(group, 0)
        holder.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 60
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.02)
        self.assertRaises(ProcessLookupError, os.killpg, group, 0)
