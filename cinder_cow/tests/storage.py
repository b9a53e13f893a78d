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
def mounted(kind, size=SIZE, *, direct=False):
    """Make and mount a file system; nothing of it is left afterwards.

    :param direct: its device writes past the page cache, as a disk does. Else
        a direct write takes 0.5 or 1.4 s, by what else is in memory.
    """
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
            if direct:
                _write_directly(mount)
            yield mount
        finally:
            subprocess.run(['umount', mount], check=True)
    finally:
        shutil.rmtree(top)


def _write_directly(mount):
    device = subprocess.run(
        ['findmnt', '-no', 'SOURCE', mount],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    subprocess.run(['losetup', '--direct-io=on', device], check=True)


@contextlib.contextmanager
def failing_disk():
    """Mount a file system whose disk takes nothing any more, when told.

    The disk is a sparse file on a small file system, which is filled.
    """
    with mounted('ext4', 16 * 2**20) as small:
        disk, mount = small / 'disk', small / 'mount'
        mount.mkdir()
        with disk.open('wb') as file:
            file.truncate(64 * 2**20)
        subprocess.run([*MKFS['ext4'], disk], check=True)
        subprocess.run(['mount', '-o', 'loop', disk, mount], check=True)

        def fill():
            with (
                contextlib.suppress(OSError),
                (small / 'filling').open('wb') as file,
            ):
                while True:
                    file.write(bytes(2**16))
                    file.flush()

        try:
            yield mount, fill
        finally:
            subprocess.run(['umount', mount], check=True)


@functools.cache
def _mounted(kind):
    stack = contextlib.ExitStack()
    path = stack.enter_context(mounted(kind))
    atexit.register(stack.close)
    return path
