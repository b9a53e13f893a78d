# SPDX-License-Identifier: Apache-2.0
"""The Cinder of three processes is what benchmarks take it for."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from oslotest import base as test_base

from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import cinder_processes
from cinder_cow.tests import services
from cinder_cow.tests.functional import test_cinder_service

# Starts it on the Ceph in a directory, says so, and waits.
_HOLDER = """
import sys, time
from cinder_cow.tests import ceph_client
from cinder_cow.tests import cinder_processes
from cinder_cow.tests.functional import test_cinder_service as tests

top, ceph = sys.argv[1:]
ceph = ceph_client.Client(ceph)
with cinder_processes.Cinder(top, tests.NO_GLANCE, ceph):
    print('started', flush=True)
    time.sleep(600)
"""
# Of the kernel and who reaps, on a machine that does much else.
_GONE_SECONDS = 60


class TestProcesses(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        cinder_processes.needed()
        self.cluster = ceph_cluster.shared()
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, top)
        self.directory = pathlib.Path(top) / 'cinder'

    def cinder(self):
        return cinder_processes.Cinder(
            self.directory, test_cinder_service.NO_GLANCE, self.cluster
        )

    def running(self):
        """Tell the processes that work in our directory, or are told of it."""
        processes = map(_told, pathlib.Path('/proc').glob('[0-9]*'))
        return [told for told in processes if str(self.directory) in told]

    def assert_gone(self):
        deadline = time.monotonic() + _GONE_SECONDS
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual([], self.running())

    def test_killed_and_started_again(self):
        with self.cinder() as cinder:
            volume = cinder.create_volume(1)
            cinder.wait(volume)
            cinder.kill()
            cinder.restart()
            self.assertEqual('available', cinder.show(volume)['status'])
            cinder.delete_volume(volume)
            # Cinder's three and what they start; MariaDB, RabbitMQ and epmd.
            self.assertGreater(len(self.running()), 6)
        self.assert_gone()

    def test_all_die_with_us(self):
        errors = self.enterContext(tempfile.TemporaryFile('w+'))
        holder = subprocess.Popen(
            [sys.executable, '-c', _HOLDER, self.directory,
             self.cluster.directory],
            cwd=services.ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )  # fmt: skip
        self.addCleanup(holder.communicate)
        self.addCleanup(holder.kill)
        assert holder.stdout
        told = holder.stdout.readline()
        errors.seek(0)
        self.assertEqual('started\n', told, errors.read())
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        self.assert_gone()


def _told(process):
    try:
        words = (process / 'cmdline').read_bytes().decode(errors='replace')
        return words + os.readlink(process / 'cwd')
    except OSError:
        return ''
