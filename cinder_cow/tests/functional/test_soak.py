# SPDX-License-Identifier: Apache-2.0
"""The program is killed at a few moments; ``tools/soak`` does it at many."""

import os
import pathlib
import subprocess
import sys
import unittest

from oslotest import base as test_base

from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_daemons

TOOLS = pathlib.Path(__file__).parents[3] / 'tools'


class TestSoak(test_base.BaseTestCase):
    def test_kills(self):
        if os.geteuid():
            raise unittest.SkipTest('machine: mounting needs root')
        told = self.soak('kills', '--rounds', '3', '--mib', '40')
        self.assertIn('kills: 6 rounds, 6 right, 0 wrong', told)

    def test_rbd(self):
        ceph_client.needed()
        for program in ('ceph-mon', 'ceph-osd', 'rbd'):
            ceph_daemons.needed(program)
        told = self.soak('rbd', '--rounds', '6')
        self.assertIn('kills: 6 rounds, 6 right, 0 wrong', told)

    def test_bases(self):
        if os.geteuid():
            raise unittest.SkipTest('machine: mounting needs root')
        ceph_client.needed()
        for program in ('ceph-mon', 'ceph-osd'):
            ceph_daemons.needed(program)
        told = self.soak('bases', '--rounds', '6')
        self.assertIn('bases: 6 rounds, 6 right, 0 wrong', told)

    def soak(self, kind, *arguments):
        if not TOOLS.exists():
            raise unittest.SkipTest('machine: installed without its source')
        done = subprocess.run(
            [sys.executable, TOOLS / f'soak_{kind}.py', *arguments],
            cwd=TOOLS.parent,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin',
            },
        )
        # The seed is told, for who wants to see it again.
        told = done.stdout + done.stderr
        self.assertEqual(0, done.returncode, told)
        return told
