# SPDX-License-Identifier: Apache-2.0
"""The directory of the file driver: names, locks, what is half-made.

::

    DIR/
      cow-layout            version of this layout
      cow-bases/BASE/       image.raw, facts.json and manifest; the image is
                            read-only once here
      cow-partial/NAME/     what is being made, with its maker's lock
      NAME.raw NAME.qcow2   the volumes

A maker holds the flock on ``cow-partial/NAME/lock`` while it lives. Whatever
is there and not held was left by one that died, and anybody may remove it;
only what the next maker of a base can go on with stays for a time. The lock
is on the name, so it also decides who makes the volume or base.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import shutil
import time

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import file_locks
from cinder_cow import refusal
from cinder_cow.drivers import bases
from cinder_cow.drivers import file_kept
from cinder_cow.drivers import file_makers

LOG = logging.getLogger(__name__)

VERSION = '1'
_VERSION_FILE = 'cow-layout'
# How long to wait for somebody who removes what dead makers left.
_SWEEP_WAIT_SECONDS = 60
# What a base can be gone on with waits so long for its next maker.
KEEP_SECONDS = 24 * 60 * 60
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
        self._making = file_makers.begun()

    def tell(self, progress: bases.Progress) -> None:
        """Let those who wait know.

        :raises OSError: it cannot be written
        """
        if self._lock >= 0:
            making = dataclasses.replace(self._making, progress=progress)
            file_makers.write(self._lock, making)

    def take_over(self, size: int | None) -> None:
        """Begin, with nothing in it but what can be gone on with.

        :param size: of a base; None: nothing can
        """
        kept = 0 if size is None else file_kept.bytes_kept(self.path, size)
        if kept:
            LOG.info('%s goes on behind byte %d', self.path, kept)
            # There may be facts already, of a maker that died late.
            self._clear_base()
        elif self.clear():
            LOG.warning('Removed what was left half-made in %s', self.path)
        file_makers.write(self._lock, self._making)

    def leave(self) -> None:
        """Let the name go; the next maker can go on with what is kept."""
        if file_kept.bytes_kept(self.path):
            self.let_go()
        else:
            self.remove()

    def let_go(self) -> None:
        """Let the name go, and leave all as it is. A second call: nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

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
            self.let_go()

    def clear(self) -> bool:
        """Remove all but the lock; tell whether there was anything."""
        return _clear(self.path, {'lock'})

    def _clear_base(self) -> None:
        image = self.path / file_kept.IMAGE
        _clear(self.path, {'lock', file_kept.NAME, image.parent.name})
        _clear(image.parent, {image.name})
        image.chmod(0o600)


def _clear(directory: pathlib.Path, keep: set[str]) -> bool:
    entries = [e for e in os.scandir(directory) if e.name not in keep]
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    return bool(entries)


@dataclasses.dataclass(frozen=True, slots=True)
class Dead:
    """Something in ``cow-partial`` that nobody holds.

    :param owner: who held it last
    :param kept: bytes that can be gone on with
    :param age: seconds since they were recorded
    """

    name: str
    owner: str
    kept: int
    age: float

    @property
    def waits(self) -> bool:
        """Whether it is left alone, for the next maker."""
        return self.kept > 0 and self.age < KEEP_SECONDS


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

    def hold(self, name: str, size: int | None = None) -> Partial | None:
        """Begin something of that name, as the only one.

        :param size: of a base, that what is kept of it can be gone on with;
            None: nothing can
        :returns: None while a living maker holds the name
        """
        with self._makers(fcntl.LOCK_SH):
            partial = self._hold(name)
            if partial is None:
                return None
            try:
                partial.take_over(size)
            except BaseException:
                partial.let_go()
                raise
            return partial

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
                return Partial(path, lock)
            os.close(lock)  # locked what its last holder had removed
        raise OSError(errno.EAGAIN, 'it cannot be held', str(path))

    def making(self, name: str) -> bases.Making:
        """Tell who holds a name, and how far it is."""
        return file_makers.read(self.partial / name / 'lock')

    def owner(self, name: str) -> str:
        """Tell who holds a name, for a message."""
        return self.making(name).owner

    def sweep(self) -> None:
        """Remove what makers left that live no more.

        What can be gone on with is left alone for a time.
        """
        if not os.listdir(self.partial):
            return
        # Alone, so that nobody takes our holding a name for a maker's.
        with self._makers(fcntl.LOCK_EX):
            for dead in self._dead():
                if not dead.waits:
                    self._remove(dead.name)

    def dead(self) -> list[Dead]:
        """Tell what makers left that live no more, changing nothing."""
        with self._makers(fcntl.LOCK_EX):
            return list(self._dead())

    def remove_dead(self, name: str) -> None:
        """Remove what a maker left, also what could be gone on with."""
        with self._makers(fcntl.LOCK_EX):
            self._remove(name)

    def others(self) -> list[pathlib.Path]:
        """Name files with a name of ours that are no part of the layout."""
        known = {_VERSION_FILE, self.bases.name, self.partial.name}
        return [
            self.root / name
            for name in sorted(os.listdir(self.root))
            if name.startswith('cow-') and name not in known
        ]

    def _dead(self) -> Iterator[Dead]:
        for name in sorted(os.listdir(self.partial)):
            path = self.partial / name
            if self._is_held(path / 'lock'):
                continue
            record, age = path / file_kept.NAME, 0.0
            with contextlib.suppress(OSError):
                age = max(0.0, time.time() - record.stat().st_mtime)
            kept = file_kept.bytes_kept(path)
            yield Dead(name, self.owner(name), kept, age)

    def _is_held(self, path: pathlib.Path) -> bool:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return not file_locks.try_lock(lock, fcntl.LOCK_EX)
        finally:
            os.close(lock)

    def _remove(self, name: str) -> None:
        path = self.partial / name
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif partial := self._hold(name):
            try:
                partial.take_over(None)
                partial.remove()
            finally:
                partial.let_go()

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
