# SPDX-License-Identifier: Apache-2.0
"""What a maker tells of itself in its lock file, for those who wait.

One line of JSON, always as long, so that one write replaces all of it. It is
read without a lock: what is torn is read as something that is not known.
"""

import json
import os
import pathlib
import socket
import time

from cinder_cow import refusal
from cinder_cow.drivers import bases

# More than the longest name of a host and a phase take in JSON.
_LENGTH = 1024
_MOST_CHARACTERS = 60


def begun() -> bases.Making:
    """Tell of this process, as a maker that begins now."""
    owner = f'process {os.getpid()} on {socket.gethostname()}'
    return bases.Making(owner, time.time())


def write(lock: int, making: bases.Making) -> None:
    """Put it into an open lock file, in place of what is there.

    :raises OSError: it cannot be written
    """
    progress = making.progress
    record = {
        'owner': making.owner,
        'since': making.since,
        'phase': progress.phase[:_MOST_CHARACTERS],
        'done': progress.done,
        'total': progress.total,
    }
    os.pwrite(lock, json.dumps(record).ljust(_LENGTH).encode() + b'\n', 0)


def read(path: pathlib.Path) -> bases.Making:
    """Tell who holds a lock file, or held it last; never fails."""
    try:
        text = path.read_text(errors='replace').strip()
    except OSError:
        return bases.Making('somebody who has just ended')
    try:
        return _unpacked(text)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        # Also of a release before, which wrote a sentence.
        owner = refusal.printable(text) or 'somebody who has just begun'
        return bases.Making(owner)


def _unpacked(text: str) -> bases.Making:
    record = json.loads(text)
    progress = bases.Progress(
        refusal.printable(str(record['phase'])),
        int(record['done']),
        int(record['total']),
    )
    owner = refusal.printable(str(record['owner']))
    return bases.Making(owner, float(record['since']), progress)
