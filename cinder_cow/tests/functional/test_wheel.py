# SPDX-License-Identifier: Apache-2.0
"""The wheel: it holds all, and works where there is no git."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

import cliff
from oslotest import base as test_base

ROOT = pathlib.Path(__file__).parents[3]
# What we need comes from where the tests have it.
OTHERS = pathlib.Path(str(cliff.__file__)).parents[1]


class TestWheel(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        if not (ROOT / 'setup.cfg').exists():
            raise unittest.SkipTest('machine: installed without its source')
        self.top = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)

    def run_here(self, *command, **environment):
        path = self.top / 'bin'
        path.mkdir(exist_ok=True)
        for tool in ('qemu-img', 'setpriv', 'prlimit'):
            with_path = shutil.which(tool)
            if not (path / tool).exists():
                (path / tool).symlink_to(str(with_path))
        done = subprocess.run(
            command,
            cwd=self.top,
            capture_output=True,
            text=True,
            env={'PATH': str(path), 'HOME': str(self.top), **environment},
        )
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def test_it_is_whole_and_works_without_git(self):
        source = self.top / 'source'
        # As a source archive is: no git history.
        shutil.copytree(
            ROOT / 'cinder_cow', source / 'cinder_cow',
            ignore=shutil.ignore_patterns('__pycache__'),
        )  # fmt: skip
        for name in ('setup.cfg', 'setup.py', 'pyproject.toml', 'README.rst',
                     'LICENSE', 'requirements.txt'):  # fmt: skip
            shutil.copy(ROOT / name, source / name)
        subprocess.run(
            [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w',
             self.top, source],
            check=True,
            capture_output=True,
            env={**os.environ, 'PBR_VERSION': '1.2.3'},
        )  # fmt: skip
        (wheel,) = self.top.glob('*.whl')
        installed = self.top / 'installed'
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            archive.extractall(installed)
        self.assertLessEqual(
            {
                'cinder_cow/py.typed',
                'cinder_cow/cli/app.py',
                'cinder_cow/drivers/memory.py',
                'cinder_cow/tests/conformance.py',
                'cinder_cow-1.2.3.dist-info/entry_points.txt',
            },
            names,
        )
        code = (
            'import sys; from cinder_cow.cli import app; sys.exit(app.main())'
        )
        python = [sys.executable, '-c', code]
        found = {'PYTHONPATH': f'{installed}:{OTHERS}'}
        told = self.run_here(*python, '--version', **found)
        self.assertTrue(told.endswith(' 1.2.3\n'), told)
        (self.top / 'image').write_bytes(b'A' * 1024 * 1024)
        self.run_here(
            *python, 'volume', 'create', 'v', '--image', 'image', **found
        )
        told = self.run_here(
            *python, 'volume', 'list', '-f', 'value', '-c', 'name', **found
        )
        self.assertEqual('v\n', told)
