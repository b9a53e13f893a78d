# SPDX-License-Identifier: Apache-2.0
"""A back end of the soak tests: runs the program, looks at what it leaves."""

from collections.abc import Callable, Iterator, Mapping
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import TypeVar

from oslo_utils import units

from cinder_cow import sparse

PROGRAM = pathlib.Path(sys.executable).parent / 'cinder-cow'
# A command takes 0.3 s, and 1 s with these images.
LIMIT = 60
# What has been killed is gone after milliseconds.
GONE = 5
# What a file system keeps of files that are gone: directories that grew, a
# log. What could be lost is as large as an image.
METADATA = units.Mi

# In a mask of signals, and in the flags of a process (PF_EXITING).
KILLED = 1 << signal.SIGKILL - 1
EXITING = 4

Found = TypeVar('Found')


class Backend:
    """A back end that the program is run with, and what is in it."""

    def __init__(self, mount: pathlib.Path) -> None:
        self._mount = mount
        self._root = mount / 'home' / 'volumes'
        self._scratch = mount / 'tmp'
        self._scratch.mkdir()
        self._sessions: set[int] = set()
        self.partial = self._root / 'cow-partial'
        self.bases = self._root / 'cow-bases'
        self._environment = {
            **os.environ,
            'CINDER_COW_HOME': str(mount / 'home'),
            'TMPDIR': str(self._scratch),
        }

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start the program as the leader of a session and a group."""
        process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # A pipe would be held open by what outlives the program.
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        self._sessions.add(process.pid)
        return process

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Run the program to its end; return its status and what it says."""
        done = subprocess.run(
            [PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=LIMIT,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def made(self, name: str, image: object) -> tuple[bool, list[str]]:
        """Make a volume unless it is there; tell which, and what is wrong."""
        status, _said, error = self.run(
            'volume', 'create', name, '--image', image
        )
        if status == 1 and '(volume_exists)' in error:
            return False, []
        if status or any(map(is_wrong, error.splitlines())):
            return True, [f'the next create: status {status}: {error}']
        return True, []

    def volumes(self, name: str) -> list[pathlib.Path]:
        return list(self._root.glob(f'{name}.*'))

    @staticmethod
    def has(directory: pathlib.Path, pattern: str) -> bool:
        try:
            return any(directory.glob(pattern))
        except FileNotFoundError:
            return False  # a directory that it came by went

    def parts(self) -> list[pathlib.Path]:
        """Find what is kept of a fetch."""
        found = self._scratch.glob('cow-scratch-*/*')
        return [path for path in found if path.suffix in ('.part', '.lock')]

    def used(self) -> int:
        """Tell how many bytes of the file system are taken."""
        subprocess.run(['sync', '-f', self._mount], check=True)
        found = os.statvfs(self._mount)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def differences(self, expected: Mapping[str, pathlib.Path]) -> list[str]:
        """Compare the volumes that there are with raw files, as users see."""
        found = self.run('volume', 'list', '-f', 'value', '-c', 'name')
        problems = []
        if found != (0, ''.join(f'{name}\n' for name in sorted(expected)), ''):
            problems.append(f'volume list: {found}')
        for name, raw in expected.items():
            path = self._mount / 'exported'
            found = self.run('volume', 'export', name, path)
            if found != (0, '', ''):
                problems.append(f'volume export {name}: {found}')
            elif not same_disk(path, raw):
                problems.append(f'volume {name} has other bytes')
            path.unlink(missing_ok=True)
        return problems

    def clear(self) -> None:
        """Delete all volumes and bases, as a user does."""
        self.run('volume', 'delete', *{p.stem for p in self.volumes('*')})
        if bases := [path.name for path in self.bases.iterdir()]:
            self.run('base', 'remove', *bases)

    def left(self, before: int) -> list[str]:
        """Tell what is there that nobody knows of, once all is deleted.

        :param before: bytes that were taken before
        """
        layout = {'cow-layout', 'cow-bases', 'cow-partial'}
        found = {
            str(path.relative_to(self._root)) for path in self._root.rglob('*')
        }
        problems = [f'left: {name}' for name in sorted(found - layout)]
        problems += [f'left: {path.name}' for path in self.parts()]
        problems += [f'left: {words}' for words in until(self._processes)]
        problems += [f'locked: {lock}' for lock in until(self._locks)]
        until(lambda: self.used() > before + METADATA)
        if (lost := self.used() - before) > METADATA:
            problems.append(f'{lost} bytes are taken by nothing')
        return problems

    def outliving(self) -> list[tuple[str, float]]:
        """Find what a killed program has started and nobody has killed.

        :returns: what it is, and its age in seconds
        """
        return [(words, age) for words, age, dies in self._ours() if not dies]

    def _processes(self) -> list[str]:
        return [words for words, _age, _dies in self._ours()]

    def _ours(self) -> Iterator[tuple[str, float, bool]]:
        """Find what is left of the sessions, and all that names us.

        Each with its age, and whether SIGKILL has come to it or it is on its
        way out.
        """
        for directory in pathlib.Path('/proc').glob('[0-9]*'):
            try:
                words = (directory / 'cmdline').read_bytes()
                stat = (directory / 'stat').read_text()
                status = (directory / 'status').read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # State, parent, group, session, ..., flags; see proc(5).
            state, *numbers = stat.rsplit(')')[-1].split()
            is_ours = int(numbers[2]) in self._sessions
            # One that is dead and not yet reaped holds nothing.
            if state in 'ZX' or not (is_ours or bytes(self._mount) in words):
                continue
            pending = re.findall(r'(?:Sig|Shd)Pnd:\s*([0-9a-f]+)', status)
            is_killed = any(int(mask, 16) & KILLED for mask in pending)
            is_leaving = bool(int(numbers[5]) & EXITING)
            told = words.replace(b'\0', b' ').decode()
            begun = int(numbers[18]) / os.sysconf('SC_CLK_TCK')
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun
            yield told or stat, age, is_killed or is_leaving

    def _locks(self) -> list[str]:
        device = self._mount.stat().st_dev
        name = f' {os.major(device):02x}:{os.minor(device):02x}:'
        lines = pathlib.Path('/proc/locks').read_text().splitlines()
        return [line for line in lines if name in line]


def is_wrong(line: str) -> bool:
    """Tell a line of standard error that should not be.

    That something half-made was removed is a warning, and is true here.
    """
    return bool(line) and not line.startswith('Removed what was left half-')


def until(gone: Callable[[], Found]) -> Found:
    """Wait until there is nothing; return what still is there."""
    deadline = time.monotonic() + GONE
    while (found := gone()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def same_disk(path: pathlib.Path, expected: pathlib.Path) -> bool:
    """Compare two raw files; behind the end of the second are zeros."""
    with path.open('rb') as file, expected.open('rb') as other:
        size = os.fstat(file.fileno()).st_size
        for piece in sparse.file_pieces(file.fileno(), size):
            if isinstance(piece, int):
                if other.read(piece).strip(b'\0'):
                    return False
                continue
            wanted = other.read(len(piece))
            if piece[: len(wanted)] != wanted:
                return False
            if piece[len(wanted) :].strip(b'\0'):
                return False
        return not other.read(1)
