# SPDX-License-Identifier: Apache-2.0
"""Processes of one Ceph, known by the configuration file on their command."""

from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import queue
import select
import shutil
import signal
import subprocess
import threading
from typing import Any
import unittest

# In the order in which they are to end.
NAMES = ('mgr', 'osd', 'mon')
_IDS = {'mgr': 'x', 'osd': '0', 'mon': 'a'}
_STOP_SECONDS = 5.0


class Daemons:
    """The daemons of one configuration, whoever started them.

    :param conf: the absolute path of ceph.conf
    :param logs: directory for what they print
    """

    def __init__(self, conf: pathlib.Path, logs: pathlib.Path) -> None:
        self._conf = conf
        self._logs = logs
        self._ours: list[subprocess.Popen[bytes]] = []

    def launch(
        self, name: str, *, bound: bool, args: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start mon, osd or mgr; it does not go to the background.

        :param bound: it gets SIGKILL when this process ends, however
        :raises unittest.SkipTest: the program is not installed
        """
        program = needed(f'ceph-{name}')
        command = [program, '-c', str(self._conf), '-i', _IDS[name]]
        command += args or ['-f']
        if bound:
            command[:0] = ['setpriv', '--pdeathsig', 'KILL']
        with self.log(name).open('ab') as log:
            process = _started(
                command,
                cwd='/',
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Control-C reaches us alone.
                start_new_session=True,
            )
        self._ours.append(process)
        return process

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for a process that ends by itself.

        :raises RuntimeError: it failed, and what it printed
        """
        if process.wait():
            raise RuntimeError(self.failure(name))

    def check(self, name: str) -> None:
        """Raise RuntimeError if a daemon does not run."""
        if not self.running(name):
            raise RuntimeError(self.failure(name))

    def failure(self, name: str) -> str:
        lines = self.log(name).read_text(errors='replace').splitlines()
        return '\n'.join([f'ceph-{name} failed:', *lines[-20:]])

    def log(self, name: str) -> pathlib.Path:
        return self._logs / f'{name}.out'

    def running(self, *names: str) -> list[int]:
        """Return the process ids of these daemons, by default of all."""
        with self._found(names or NAMES) as found:
            return [pid for pid, _descriptor in found]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a daemon.

        :raises ProcessLookupError: there is none
        """
        with self._found([name]) as found:
            if not found:
                raise ProcessLookupError(f'no ceph-{name} of {self._conf}')
            for _pid, descriptor in found:
                signal.pidfd_send_signal(descriptor, number)

    def end(self, *names: str, kill: bool = False) -> None:
        """End these daemons, by default all; SIGKILL after 5 s or at once."""
        for name in names or NAMES:
            with self._found([name]) as found:
                descriptors = [descriptor for _pid, descriptor in found]
                if not kill:
                    # One that is stopped takes SIGTERM when it goes on.
                    _send(descriptors, signal.SIGTERM)
                    _send(descriptors, signal.SIGCONT)
                    descriptors = _left(descriptors, _STOP_SECONDS)
                _send(descriptors, signal.SIGKILL)
                _left(descriptors, _STOP_SECONDS)
        # Those that were ours to reap.
        self._ours = [one for one in self._ours if one.poll() is None]

    @contextlib.contextmanager
    def _found(self, names: Sequence[str]) -> Iterator[list[tuple[int, int]]]:
        with contextlib.ExitStack() as stack:
            found = []
            for pid in self._pids(names):
                with contextlib.suppress(ProcessLookupError):
                    descriptor = os.pidfd_open(pid)
                    stack.callback(os.close, descriptor)
                    # Asked again: what is open cannot become another one.
                    if self._is_ours(pid, names):
                        found.append((pid, descriptor))
            yield found

    def _pids(self, names: Sequence[str]) -> list[int]:
        pids = (int(name) for name in os.listdir('/proc') if name.isdigit())
        return [pid for pid in pids if self._is_ours(pid, names)]

    def _is_ours(self, pid: int, names: Sequence[str]) -> bool:
        try:
            line = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
        except OSError:
            return False
        words = line.decode(errors='replace').split('\0')
        three = (words[:-2], words[1:-1], words[2:])
        # setpriv may stand before it for a moment; "rbd -c" is not ours.
        return any(
            program.rpartition('/')[2] in {f'ceph-{name}' for name in names}
            and (option, conf) == ('-c', str(self._conf))
            for program, option, conf in zip(*three, strict=True)
        )


def needed(program: str) -> str:
    """Return the path of a program.

    :raises unittest.SkipTest: it is not installed
    """
    path = shutil.which(program, path=f'{os.environ["PATH"]}:/usr/sbin:/sbin')
    if not path:
        raise unittest.SkipTest(f'machine: {program} is not installed')
    return path


def _started(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
    """Make a Popen, in a thread that lives as long as this process.

    A process of setpriv --pdeathsig dies with the thread that started it,
    and tests have threads that end.
    """
    future: concurrent.futures.Future[subprocess.Popen[bytes]]
    future = concurrent.futures.Future()
    _orders().put((future, args, kwargs))
    return future.result()


@functools.cache
def _orders() -> queue.SimpleQueue[Any]:
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def start() -> None:
        while True:
            future, args, kwargs = orders.get()
            try:
                future.set_result(subprocess.Popen(*args, **kwargs))
            except Exception as error:  # noqa: BLE001
                future.set_exception(error)

    # The threads of an executor end before the functions of atexit run.
    threading.Thread(target=start, daemon=True).start()
    return orders


def _send(descriptors: Sequence[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


def _left(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Wait for processes to end; return those that did not."""
    left = list(descriptors)
    while left:
        # Ready when it has ended, even if nobody reaps it.
        ended, _, _ = select.select(left, [], [], seconds)
        if not ended:
            break
        left = [one for one in left if one not in ended]
    return left
