# SPDX-License-Identifier: Apache-2.0
"""Cinder's own unit tests of its RBD driver hold for ours."""

import json
import subprocess

from oslotest import base as test_base

from cinder_cow.tests import ceph_client
from cinder_cow.tests import services

# How many there are in Cinder 29.0.0.
TESTS = 290
# How many of them expect what we mean to do in another way.
MOST_KNOWN = 10


class TestCinderUnit(test_base.BaseTestCase):
    def test_all_but_the_known_pass(self):
        ceph_client.needed()
        services.environment_of_services()
        done = subprocess.run(
            [services.PROGRAMS / 'python', 'tools/cinder_unit.py'],
            cwd=services.ROOT,
            env={'PYTHONPATH': str(services.ROOT)},
            capture_output=True,
            text=True,
        )
        self.assertEqual(0, done.returncode, done.stderr[-10000:])
        counts = json.loads(done.stdout)
        self.assertEqual([], counts['failed'])
        self.assertEqual([], counts['passed_though_known'])
        self.assertLessEqual(len(counts['known']), MOST_KNOWN)
        self.assertEqual(0, counts['skipped'])
        self.assertEqual(TESTS, counts['run'])
