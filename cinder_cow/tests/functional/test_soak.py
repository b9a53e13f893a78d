# SPDX-License-Identifier: Apache-2.0
"""The program is killed at a few moments; ``tools/soak`` does it at many."""

import os
import pathlib
import subprocess
import sys
import unittest

from oslotest import base as test_base

TOOLS = pathlib.Path(__file__).parents[3] / 'tools'


class TestSoak(test_base.BaseTestCase):
    def test_kills(self):
        if not TOOLS.exists():
            raise unittest.SkipTest('machine: installed without its source')
        if os.geteuid():
            raise unittest.SkipTest('machine: mounting needs root')
        done = subprocess.run(
            [sys.executable, TOOLS / 'soak_kills.py', '--rounds', '3',
             '--mib', '40'],
            cwd=TOOLS.parent,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin',
            },
        )  # fmt: skip
        # The seed is told, for who wants to see it again.
        told = done.stdout + done.stderr
        self.assertEqual(0, done.returncode, told)
        self.assertIn('kills: 6 rounds, 6 right, 0 wrong', told)
