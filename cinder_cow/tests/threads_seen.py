# SPDX-License-Identifier: Apache-2.0
"""What proc(5) tells of threads, any of which may end meanwhile."""

import contextlib
import pathlib


def read(pid: int | str, name: str) -> list[str]:
    """Read a file of each thread of a process.

    :param pid: 'self': of ours
    :param name: as "stat"
    """
    told = []
    for path in pathlib.Path(f'/proc/{pid}/task').glob(f'*/{name}'):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            told.append(path.read_text())
    return told


def connections() -> int:
    """Count the connections of this process to Ceph that were not closed."""
    return read('self', 'comm').count('msgr-worker-0\n')
