# SPDX-License-Identifier: Apache-2.0
"""Run the real program in tests, and look at what it leaves."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from oslotest import base as test_base

PROGRAM = pathlib.Path(sys.executable).parent / 'cinder-cow'
# A command takes 0.3 s; this is for a machine that does much else.
LIMIT = 120


class ProgramTestCase(test_base.BaseTestCase):
    """Runs cinder-cow on a back end of its own."""

    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, self.top)
        self.use_home(self.top / 'home')

    def use_home(self, home):
        self.volumes = home / 'volumes'
        self.environment = {
            **os.environ,
            'CINDER_COW_HOME': str(home),
            'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin',
        }

    def start(self, *arguments, **options):
        return subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self.environment,
            **options,
        )

    def finish(self, process):
        """Wait for a program; return its status, output and errors."""
        output, errors = process.communicate(timeout=LIMIT)
        return process.returncode, output, errors

    def cow(self, *arguments):
        """Run a command that must succeed, quietly; return its answer."""
        answer = self.finish(self.start(*arguments, '-f', 'json'))
        status, output, errors = answer
        self.assertEqual((0, ''), (status, errors))
        return json.loads(output)

    def do(self, *arguments):
        """Run a command that must succeed and says nothing."""
        self.assertEqual((0, '', ''), self.finish(self.start(*arguments)))

    def refused(self, reason, *arguments):
        """Run a command that must be refused, in one line; return that."""
        status, output, errors = self.finish(self.start(*arguments))
        self.assertEqual((1, ''), (status, output))
        self.assertEqual(1, errors.count('\n'), errors)
        self.assertIn(f'({reason.value})', errors)
        return errors

    def image(self, name='image.raw', mib=8):
        """Make a raw image of random bytes with a hole in its middle."""
        path = self.top / name
        third = mib * 2**20 // 3 // 4096 * 4096
        with path.open('wb') as file:
            file.write(os.urandom(third))
            file.seek(mib * 2**20 - third)
            file.write(os.urandom(third))
        return path

    def qcow2(self, raw):
        path = raw.with_suffix('.qcow2')
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', raw, path], check=True
        )
        return path

    def exported(self, name):
        path = self.top / f'{name}.exported'
        self.do('volume', 'export', name, path)
        return path.read_bytes()

    def wait_half_way(self, process):
        """Wait until a program has written something half-made."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            for path in self.volumes.glob('cow-partial/*/**/image.*'):
                try:
                    if path.stat().st_blocks * 512 > 16 * 2**20:
                        return
                except FileNotFoundError:
                    continue
            self.assertIsNone(process.poll(), 'it ended before half way')
            time.sleep(0.002)
        self.fail('it never came half way')

    def assert_nothing_left(self, but=()):
        """Check that the back end holds its layout and what is named."""
        found = {
            str(path.relative_to(self.volumes))
            for path in self.volumes.rglob('*')
        }
        layout = {'cow-layout', 'cow-bases', 'cow-partial'}
        self.assertEqual(set(but), found - layout)
        self.assertEqual([], self.processes())

    def processes(self):
        """Tell processes that have our directory among their words."""
        found = []
        for directory in pathlib.Path('/proc').glob('[0-9]*'):
            try:
                words = (directory / 'cmdline').read_bytes()
                state = (directory / 'stat').read_text().rsplit(')')[-1]
            except (FileNotFoundError, ProcessLookupError):
                continue
            # One that is dead and not yet reaped holds nothing.
            if str(self.top).encode() in words and state.split()[0] != 'Z':
                found.append(words)
        return found

    def interrupt(self, number, *arguments):
        """Signal a program half way; return how it ended."""
        process = self.start(*arguments)
        self.wait_half_way(process)
        process.send_signal(number)
        return self.finish(process)


def peak_memory(process):
    """Wait for the end of a program; tell the most memory it took, in bytes.

    Not by its usage as a child: to that belongs what this process had when it
    made it.
    """
    status = pathlib.Path(f'/proc/{process.pid}/status')
    deadline = time.monotonic() + LIMIT
    peak = 0
    while process.poll() is None and time.monotonic() < deadline:
        found = re.search(r'VmHWM:\s+(\d+) kB', status.read_text())
        peak = int(found[1]) * 1024 if found else peak
        time.sleep(0.01)
    return peak


SIGNALS = {'sigint': signal.SIGINT, 'sigterm': signal.SIGTERM}
