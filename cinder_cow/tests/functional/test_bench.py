# SPDX-License-Identifier: Apache-2.0
"""The benchmarks on Ceph run, in their short form."""

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
        told = self.bench('rbd', '--only', part, '--volumes', '20')
        for row in ROWS[part]:
            self.assertIn(row, told)

    @ddt.data('files', 'rbd')
    def test_bases(self, part):
        if os.geteuid():
            raise unittest.SkipTest('machine: mounting needs root')
        told = self.bench('bases', '--only', part)
        rows = ['one request, by hand', '64 at once']
        if part == 'rbd':
            rows += ['in the cluster, over HTTP', 'bare qemu-img convert']
        for row in rows:
            self.assertIn(row, told)

    def test_cinder(self):
        told = self.bench('cinder')
        for row in (
            'raw, 3 in turn: upstream',
            'raw, 3 at once: its cache',
            'first qcow2, in a file: upstream',
            'beyond its own',
            'first qcow2, in the cluster: upstream',
            'next qcow2: our raw',
            'qcow2, 3 at once: its cache',
            # What is compared did what it is compared for.
            'downloads of the image: cached 1, ours 0, plain 3',
        ):
            self.assertIn(row, told)

    def bench(self, kind, *arguments):
        if not TOOLS.exists():
            raise unittest.SkipTest('machine: installed without its source')
        ceph_client.needed()
        done = subprocess.run(
            [sys.executable, TOOLS / f'bench_{kind}.py', '--short',
             *arguments],
            cwd=TOOLS.parent,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin',
            },
        )  # fmt: skip
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        return done.stdout
