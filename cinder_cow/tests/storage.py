# SPDX-License-Identifier: Apache-2.0
"""Real file systems for tests, on loop devices, made once per process."""

import atexit
import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

# XFS refuses to be smaller than 300 MiB; the files are sparse.
SIZE = 4 * 2**30
MKFS = {
    'ext4': ['mkfs.ext4', '-q', '-F'],
    'xfs': ['mkfs.xfs', '-q', '-f'],
    'btrfs': ['mkfs.btrfs', '-q', '-f'],
}
KINDS = tuple(MKFS)


def directory(kind):
    """Return a new empty directory on a file system of that kind.

    :raises unittest.SkipTest: the machine cannot mount it, and why
    """
    return pathlib.Path(tempfile.mkdtemp(dir=_mounted(kind)))


def same(one, other):
    """Compare contents; assertEqual would print megabytes of them."""
    return one == other


@contextlib.contextmanager
def mounted(kind, size=SIZE):
    """Make and mount a file system; nothing of it is left afterwards."""
    if os.geteuid():
        raise unittest.SkipTest(f'machine: mounting {kind} needs root')
    if kind not in pathlib.Path('/proc/filesystems').read_text().split():
        raise unittest.SkipTest(f'machine: the kernel has no {kind}')
    # Not in TMPDIR, which is a test's own and emptied after it.
    top = pathlib.Path(tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp'))
    try:
        disk, mount = top / 'disk', top / 'mount'
        mount.mkdir()
        with disk.open('wb') as file:
            file.truncate(size)
        subprocess.run([*MKFS[kind], disk], check=True, capture_output=True)
        # The loop device goes with the mount (autoclear).
        subprocess.run(['mount', '-o', 'loop', disk, mount], check=True)
        try:
            yield mount
        finally:
            subprocess.run(['umount', mount], check=True)
    finally:
        shutil.rmtree(top)


@functools.cache
def _mounted(kind):
    stack = contextlib.ExitStack()
    path = stack.enter_context(mounted(kind))
    atexit.register(stack.close)
    return path
