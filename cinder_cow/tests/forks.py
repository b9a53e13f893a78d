# SPDX-License-Identifier: Apache-2.0
"""Processes that do as they are ordered, and may be killed meanwhile.

One process loads all that is needed, and forks a child for each order: that
takes milliseconds, where a new Python takes half a second.
"""

from collections.abc import Callable
import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Self, TypeVar

LIMIT = 60
_PR_SET_PDEATHSIG = 1


class Child:
    """A process that was ordered; see ``Forks.order``.

    :ivar told: what it had to say; empty until it has
    """

    def __init__(self, number: int, pid: int) -> None:
        self.number = number
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self.told: dict[str, Any] = {}

    def send(self, number: int) -> None:
        signal.pidfd_send_signal(self._descriptor, number)

    def is_over(self) -> bool:
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def wait(self, seconds: float = LIMIT) -> None:
        """Wait for its end.

        :raises TimeoutError: it goes on
        """
        if not select.select([self._descriptor], [], [], seconds)[0]:
            raise TimeoutError(f'child {self.number} goes on')

    def wait_stopped(self, seconds: float = LIMIT) -> bool:
        """Wait until it has got SIGSTOP; False: it has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.is_over():
                return False
            stat = pathlib.Path(f'/proc/{self.pid}/stat')
            with contextlib.suppress(OSError):
                if stat.read_text().rpartition(')')[2].split()[0] == 'T':
                    return True
            time.sleep(0.002)
        raise TimeoutError(f'child {self.number} goes on')

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        os.close(self._descriptor)


class Forks:
    """Where children come from; a context manager.

    :param module: that calls ``serve`` when it is run
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-m', module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What they log is no fault, and would hide those of tests.
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
            text=True,
        )
        self._numbers = itertools.count()
        self._children: dict[int, Child] = {}
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def order(self, order: Any) -> Child:
        """Have a child do it; ``order.number`` is set."""
        order.number = next(self._numbers)
        assert self._process.stdin
        line = json.dumps(dataclasses.asdict(order))
        self._process.stdin.write(f'{line}\n')
        self._process.stdin.flush()
        with self._changed:
            assert self._changed.wait_for(
                lambda: order.number in self._children, LIMIT
            )
            return self._children[order.number]

    def told(self, child: Child, seconds: float = LIMIT) -> dict[str, Any]:
        """Return what it has to say; for one that is not killed.

        :raises TimeoutError: it goes on, or has crashed
        """
        child.wait(seconds)
        with self._changed:
            if not self._changed.wait_for(lambda: child.told, 5):
                raise TimeoutError(f'child {child.number} said nothing')
        return child.told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        for child in self._children.values():
            child.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            found = json.loads(line)
            number = found['number']
            with self._changed:
                if 'pid' in found:
                    self._children[number] = Child(number, found['pid'])
                else:
                    self._children[number].told = found
                self._changed.notify_all()


_Order = TypeVar('_Order')


def serve(
    kind: Callable[..., _Order], answer: Callable[[_Order], dict[str, Any]]
) -> None:
    """Fork a child for each order that comes; it tells its answer."""
    # Children need not be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    for line in sys.stdin:
        record = json.loads(line)
        number = record['number']
        if pid := os.fork():
            _tell({'number': number, 'pid': pid})
            continue
        try:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # What it may start is waited for.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _tell(answer(kind(**record)) | {'number': number})
        finally:
            os._exit(0)


def _tell(told: dict[str, Any]) -> None:
    os.write(1, f'{json.dumps(told)}\n'.encode())
