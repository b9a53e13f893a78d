# SPDX-License-Identifier: Apache-2.0
"""The directory of the file driver: names, locks, what is half-made.

::

    DIR/
      cow-layout            version of this layout
      cow-bases/BASE/       image.raw and facts.json, read-only once here
      cow-partial/NAME/     what is being made, with its maker's lock
      NAME.raw NAME.qcow2   the volumes

A maker holds the flock on ``cow-partial/NAME/lock`` while it lives. Whatever
is there and not held was left by one that died, and anybody may remove it.
The lock is on the name, so it also decides who makes the volume or base.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import socket
import time

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import file_locks
from cinder_cow import refusal

LOG = logging.getLogger(__name__)

VERSION = '1'
_VERSION_FILE = 'cow-layout'
# How long to wait for somebody who removes what dead makers left.
_SWEEP_WAIT_SECONDS = 60
# Each is a race lost against somebody who let the name go meanwhile.
_HOLD_ATTEMPTS = 1000

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_back_end(directory: pathlib.Path) -> bool:
    """Whether a directory is one of the file driver."""
    return (directory / _VERSION_FILE).exists()


@contextlib.contextmanager
def translated(backend: str) -> Iterator[None]:
    """Turn an OSError into ours.

    :raises BackendError: NO_SPACE or BACKEND_ERROR
    """
    try:
        yield
    except OSError as error:
        no_space = error.errno in _NO_SPACE
        raise exception.BackendError.because(
            refusal.Reason.NO_SPACE
            if no_space
            else refusal.Reason.BACKEND_ERROR,
            backend=backend,
            problem=str(error),
        ) from error


class Partial:
    """A directory for something half-made, held by a lock on its name."""

    def __init__(self, path: pathlib.Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def remove(self) -> None:
        """Remove all of it and let the name go. A second call: nothing."""
        if self._lock < 0:
            return
        try:
            self.clear()
            # The lock file last: what has none must hold nothing.
            (self.path / 'lock').unlink()
            with contextlib.suppress(OSError):
                # Somebody else may have begun here since the unlink.
                self.path.rmdir()
        finally:
            os.close(self._lock)
            self._lock = -1

    def clear(self) -> bool:
        """Remove all but the lock; tell whether there was anything."""
        entries = [e for e in os.scandir(self.path) if e.name != 'lock']
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        return bool(entries)


class Layout:
    """One back end's directory.

    :param root: made, with its parents, if there is none
    :raises RequestError: LAYOUT_UNKNOWN
    :raises BackendError: BACKEND_ERROR
    """

    def __init__(self, root: pathlib.Path, backend: str) -> None:
        self._check_encoding(root)
        self.root = root
        self.backend = backend
        self.bases = root / 'cow-bases'
        self.partial = root / 'cow-partial'
        with translated(backend):
            self._prepare()

    def _check_encoding(self, root: pathlib.Path) -> None:
        try:
            os.fsencode(root).decode()
        except UnicodeDecodeError:
            # QEMU takes names in JSON, which has nothing else.
            raise exception.RequestError.because(
                refusal.Reason.BACKEND_UNKNOWN,
                problem=f"the path of directory '{root}' is not UTF-8",
                remedy='Choose another directory.',
            ) from None

    def _prepare(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        version_file = self.root / _VERSION_FILE
        for directory in (self.bases, self.partial):
            if directory.is_symlink():
                # A sweep removes what is in there: never somewhere else.
                self._check_version(f'{directory.name}, a link')
        if version_file.exists():
            self._make_directories()
            self._check_version(version_file.read_text(errors='replace'))
            return
        for name in os.listdir(self.root):
            # A fresh file system has one; other files would become volumes.
            if not name.startswith('cow-') and name != 'lost+found':
                self._check_version('none, but files')
        self._make_directories()
        # Written aside and renamed: never seen half-written. Another process
        # that is at the same may sweep ours away; its own will do.
        temporary = self.partial / f'layout-{os.getpid()}-{time.time_ns()}'
        temporary.touch(mode=0o600)
        temporary.write_text(VERSION + '\n')
        with contextlib.suppress(FileNotFoundError):
            temporary.rename(version_file)
        sync_directory(self.root)

    def _make_directories(self) -> None:
        # Empty ones get lost in backups.
        self.bases.mkdir(mode=0o700, exist_ok=True)
        self.partial.mkdir(mode=0o700, exist_ok=True)

    def _check_version(self, found: str) -> None:
        if found.strip() == VERSION:
            return
        raise exception.RequestError.because(
            refusal.Reason.LAYOUT_UNKNOWN,
            path=str(self.root),
            found=refusal.printable(found.strip(), 20),
            known=VERSION,
        )

    def hold(self, name: str) -> Partial | None:
        """Begin something of that name, as the only one.

        :returns: None while a living maker holds the name
        """
        with self._makers(fcntl.LOCK_SH):
            return self._hold(name)

    def _hold(self, name: str) -> Partial | None:
        path = self.partial / name
        for _attempt in range(_HOLD_ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            try:
                lock = os.open(
                    path / 'lock', os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
                )
            except FileNotFoundError:
                continue  # removed between the two lines: begin again
            if not file_locks.try_lock(lock, fcntl.LOCK_EX):
                os.close(lock)
                return None
            if file_locks.same_file(lock, path / 'lock'):
                return self._take_over(Partial(path, lock), lock)
            os.close(lock)  # locked what its last holder had removed
        raise OSError(errno.EAGAIN, 'it cannot be held', str(path))

    def _take_over(self, partial: Partial, lock: int) -> Partial:
        """Make a partial that is held ours: empty, with our name on it."""
        try:
            if partial.clear():
                LOG.warning(
                    'Removed what was left half-made in %s', partial.path
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, _whoami().encode(), 0)
        except BaseException:
            os.close(lock)
            raise
        return partial

    def owner(self, name: str) -> str:
        """Tell who holds a name, for a message."""
        try:
            text = (self.partial / name / 'lock').read_text(errors='replace')
        except OSError:
            return 'somebody who has just ended'
        return refusal.printable(text) or 'somebody who has just begun'

    def sweep(self) -> None:
        """Remove what makers left that live no more."""
        if not os.listdir(self.partial):
            return
        # Alone, so that nobody takes our holding a name for a maker's.
        with self._makers(fcntl.LOCK_EX):
            for entry in list(os.scandir(self.partial)):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                elif partial := self._hold(entry.name):
                    partial.remove()

    @contextlib.contextmanager
    def _makers(self, kind: int) -> Iterator[None]:
        """Hold the lock between those who begin (shared) and a sweep."""
        lock = os.open(self.partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not file_locks.wait_lock(lock, kind, _SWEEP_WAIT_SECONDS):
                raise exception.BackendError.because(
                    refusal.Reason.BUSY,
                    what=str(self.partial),
                    owner='another process',
                    seconds=_SWEEP_WAIT_SECONDS,
                )
            yield
        finally:
            os.close(lock)


def sync_directory(path: pathlib.Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whoami() -> str:
    return f'process {os.getpid()} on {socket.gethostname()}'
