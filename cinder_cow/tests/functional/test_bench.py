# SPDX-License-Identifier: Apache-2.0
"""The benchmark on Ceph runs, in its short form."""

import os
import pathlib
import subprocess
import sys
import unittest

import ddt
from oslotest import base as test_base

from cinder_cow.tests import ceph_client

TOOLS = pathlib.Path(__file__).parents[3] / 'tools'


# What it tells is for people; here it matters that all rows came.
ROWS = {
    'clone': ('clone: bare', 'create_volume_from_image', '32 at once'),
    'many': ('100.0 MiB of 100 MiB', 'last 2 of 20', ', 0 hold data'),
    'stream': ('half empty', 'sha512', 'memory', 'storage: 0 bytes'),
}


@ddt.ddt
class TestBench(test_base.BaseTestCase):
    @ddt.data(*ROWS)
    def test_rbd(self, part):
        if not TOOLS.exists():
            raise unittest.SkipTest('machine: installed without its source')
        ceph_client.needed()
        done = subprocess.run(
            [sys.executable, TOOLS / 'bench_rbd.py', '--short', '--only', part,
             '--volumes', '20'],
            cwd=TOOLS.parent,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin',
            },
        )  # fmt: skip
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        for row in ROWS[part]:
            self.assertIn(row, done.stdout)
