# SPDX-License-Identifier: Apache-2.0
"""The project's own tools run: a short benchmark, and the demonstration."""

import os
import pathlib
import subprocess
import sys
import unittest

from oslotest import base as test_base

TOOLS = pathlib.Path(__file__).parents[3] / 'tools'


class TestTools(test_base.BaseTestCase):
    def run_tool(self, *command):
        if not TOOLS.exists():
            raise unittest.SkipTest('machine: installed without its source')
        programs = pathlib.Path(sys.executable).parent
        done = subprocess.run(
            [sys.executable, *command],
            cwd=TOOLS.parent,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PATH': f'{programs}:{os.environ["PATH"]}:/usr/sbin:/sbin',
            },
        )
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def test_the_demonstration(self):
        told = self.run_tool(TOOLS / 'demo.py')
        self.assertIn('GRUB was reached', told)
        self.assertIn('ext4: volumes 0, 1 and 20 are identical', told)
        self.assertIn('backing_file', told)

    def test_a_short_benchmark(self):
        if os.geteuid():
            raise unittest.SkipTest('machine: mounting needs root')
        told = self.run_tool(TOOLS / 'bench_files.py', '--short')
        # What it tells is for people; here it matters that all rows came.
        for row in (
            'no hash',
            'sha512',
            'peak memory',
            'qcow2',
            'ext4',
            'xfs',
        ):
            self.assertIn(row, told)
