# SPDX-License-Identifier: Apache-2.0
"""Which process is at work, told so that others on its host can find it."""

import dataclasses
import functools
import os
import pathlib
import socket

from cinder_cow import refusal


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """A process, so that others on its host can tell whether it lives.

    :param boot: which run of which kernel
    :param pids: which namespace its number is of
    :param started: when it was, in ticks since boot; see proc(5)
    """

    host: str
    pid: int
    started: str
    boot: str
    pids: str

    @classmethod
    def me(cls) -> 'Owner':
        return _owner(os.getpid())

    @property
    def is_dead_here(self) -> bool:
        """Whether it ran here and has ended; False where nobody can tell."""
        me = self.me()
        if (self.boot, self.pids) != (me.boot, me.pids):
            return False
        return _started(self.pid) != self.started

    def __str__(self) -> str:
        return f'process {self.pid} on {refusal.printable(self.host)}'


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> Owner:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
    return Owner(
        host=socket.gethostname(),
        pid=pid,
        started=_started(pid),
        boot=boot.read_text().strip(),
        pids=os.readlink('/proc/self/ns/pid'),
    )


def _started(pid: int) -> str:
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ''
    fields = stat.rpartition(')')[2].split()
    # A zombie does nothing any more.
    return '' if fields[0] == 'Z' else fields[19]
