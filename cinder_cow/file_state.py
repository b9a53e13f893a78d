# SPDX-License-Identifier: Apache-2.0
"""Whether an open file is still what it was."""

import os


def has_changed(descriptor: int, was: os.stat_result) -> bool:
    """Tell whether anybody wrote to an open file since it had that status.

    Whoever writes to it may set mtime back, but not ctime.
    """
    found = os.fstat(descriptor)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns) != (
        was.st_size,
        was.st_mtime_ns,
        was.st_ctime_ns,
    )
