# SPDX-License-Identifier: Apache-2.0
"""Locks that end with their holder: flock on an open file."""

import fcntl
import os
import pathlib
import time

_POLL_SECONDS = 0.02


def wait_lock(descriptor: int, kind: int, seconds: float) -> bool:
    """Take a flock of that kind, trying for so many seconds."""
    deadline = time.monotonic() + seconds
    while not try_lock(descriptor, kind):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a flock of that kind, if nobody holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same_file(descriptor: int, path: pathlib.Path) -> bool:
    """Tell whether a path still names an open file, or both are gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return descriptor < 0
    return descriptor >= 0 and os.path.samestat(os.fstat(descriptor), found)
