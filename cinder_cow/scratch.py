# SPDX-License-Identifier: Apache-2.0
"""Scratch files: images fetched in order to be converted.

They lie in a directory of this user alone. ``NAME.part`` holds the first
bytes of an image; ``NAME.lock`` is locked by who fetches it, and tells how
many of these bytes were written, and since which start of the machine. A
fetch that broke off leaves both, for the next one to go on; what nobody came
for is removed after a time. ``slot-N`` are locked by those who fetch.

Nothing is forced to the disk, where half of an image would be written that is
removed a second later: with it, a fetch and conversion took 2.5 times as long
as by hand. The kernel keeps what a process wrote that was killed. What a
machine wrote that crashed is fetched again.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import pathlib
import stat
import tempfile
import time

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import file_locks
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import sparse
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
# Names a start of this machine; see random(4).
_BOOT_ID = pathlib.Path('/proc/sys/kernel/random/boot_id')
# SYNC_FILE_RANGE_WAIT_BEFORE of sync_file_range(2).
_WAIT_BEFORE = 1
_LIBC = ctypes.CDLL(None)


class ScratchFile:
    """The first bytes of an image.

    :param lock: its lock, and how many bytes were written; None for a file
        that has no name and is never kept
    :ivar size: bytes that it has
    :ivar keep: whether it stays for the next fetch
    """

    def __init__(self, descriptor: int, lock: int | None) -> None:
        self._descriptor = descriptor
        self._lock = lock
        self.keep = False
        kept = 0 if lock is None else _recorded(lock)
        # What came after the last record may be half a piece.
        self.cut(min(kept, os.fstat(descriptor).st_size))

    @property
    def is_nameless(self) -> bool:
        return self._lock is None

    def fileno(self) -> int:
        return self._descriptor

    def cut(self, size: int) -> None:
        """Forget what is behind the first bytes."""
        self._record(size)
        os.ftruncate(self._descriptor, size)
        self.size = size

    def pieces(self) -> Iterator[bytes | int]:
        """Read what there is, in order: data, or the length of a hole."""
        return sparse.file_pieces(self._descriptor, self.size)

    def append(self, piece: bytes | int) -> None:
        """Add data or the length of a hole.

        :raises OSError: it cannot be written
        """
        if isinstance(piece, int):
            self.size += piece
            os.ftruncate(self._descriptor, self.size)
        else:
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._descriptor, view, self.size)
                self.size += written
                view = view[written:]
        self._record(self.size)

    def has_lost(self) -> bool:
        """Whether the disk failed to take some of what was written.

        It is not waited for what the kernel has not written yet: that is
        read from memory. See sync_file_range(2).
        """
        first = ctypes.c_int64(0), ctypes.c_int64(1)
        status = _LIBC.sync_file_range(self._descriptor, *first, _WAIT_BEFORE)
        return bool(status)

    def _record(self, size: int) -> None:
        if self._lock is not None:
            os.pwrite(self._lock, _record(size), 0)


def _record(size: int) -> bytes:
    # Of one length, so that no old digit remains.
    return b'%020d %s\n' % (size, _boot_id())


def _recorded(lock: int) -> int:
    """Tell how many bytes were written since this machine was started."""
    digits, _, boot = os.pread(lock, len(_record(0)), 0).partition(b' ')
    if boot != _boot_id() + b'\n' or not digits.isdigit():
        return 0
    return int(digits)


@functools.cache
def _boot_id() -> bytes:
    return _BOOT_ID.read_bytes().strip()


class Scratch:
    """The scratch directory; made when it is needed."""

    def __init__(self, settings: opts.Settings) -> None:
        parent = settings.scratch_dir or tempfile.gettempdir()
        self.path = pathlib.Path(parent, f'cow-scratch-{os.geteuid()}')
        self._settings = settings

    @contextlib.contextmanager
    def file(self, name: str | None, label: str) -> Iterator[ScratchFile]:
        """Open a scratch file; it is removed afterwards unless kept.

        :param name: None for one that nobody shall find again
        :param label: the image, for people who look into the directory
        :raises BackendError: SCRATCH_UNUSABLE, NO_SCRATCH_SPACE
        """
        self._prepare()
        with contextlib.ExitStack() as opened:
            with self.translated():
                file = self._opened(name, label, opened)
            try:
                yield file
            finally:
                if name and not file.is_nameless and not file.keep:
                    self._remove(name)

    def _opened(
        self, name: str | None, label: str, opened: contextlib.ExitStack
    ) -> ScratchFile:
        lock = self._hold(name) if name else None
        if name is None or lock is None:
            # With a name, somebody is fetching it for another back end.
            temporary = tempfile.TemporaryFile(dir=self.path)  # noqa: SIM115
            opened.callback(temporary.close)
            return ScratchFile(temporary.fileno(), None)
        opened.callback(os.close, lock)
        os.pwrite(lock, f'{label}\n'.encode(), len(_record(0)))
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._part(name), flags, 0o600)
        opened.callback(os.close, descriptor)
        return ScratchFile(descriptor, lock)

    def refuse(self, size: int, label: str) -> refusal.Refusal | None:
        """Tell whether the directory has room for an image of that size.

        What is kept there counts as free: it is removed where it must be.
        """
        try:
            self._prepare()
            free = self._free() + sum(map(self._kept, self._names()))
        except exception.BackendError as error:
            return error.refusal
        if free >= size:
            return None
        return refusal.refuse(
            Reason.NO_SCRATCH_SPACE,
            path=str(self.path),
            free=free,
            image=label,
            needed=size,
        )

    def make_room(self, size: int, label: str) -> None:
        """Make sure of so many more bytes, removing what is kept.

        :raises BackendError: NO_SCRATCH_SPACE
        """
        if self._free() < size:
            self.sweep(keep=0)
        if self._free() < size and (refused := self.refuse(size, label)):
            raise exception.BackendError(refused)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until less than the most fetches are under way.

        :raises BackendError: BUSY, SCRATCH_UNUSABLE
        """
        self._prepare()
        wait = self._settings.fetch_wait
        deadline = time.monotonic() + wait
        while True:
            for number in range(self._settings.max_fetches):
                with self._locked(self.path / f'slot-{number}') as slot:
                    if slot is not None:
                        yield
                        return
            if time.monotonic() > deadline:
                raise exception.BackendError.because(
                    Reason.BUSY,
                    what=f'each of {self._settings.max_fetches} fetches',
                    owner='another process',
                    seconds=wait,
                )
            time.sleep(_POLL_SECONDS)

    def sweep(self, keep: float | None = None) -> None:
        """Remove what was kept for longer than that, in seconds.

        :param keep: None: as the options say
        """
        keep = self._settings.scratch_keep if keep is None else keep
        for name in self._names():
            # Nobody's command fails for what others left.
            with contextlib.suppress(OSError, exception.BackendError):
                self._sweep_one(name, keep)

    def _sweep_one(self, name: str, keep: float) -> None:
        # Not made if another one has just removed it.
        with self._locked(self._lock(name), create=0) as lock:
            if lock is None:
                return
            age = time.time() - os.fstat(lock).st_mtime
            if age >= keep:
                LOG.info('Removing %s, kept for %d s', name, age)
                self._remove(name)

    # Private

    def _part(self, name: str) -> pathlib.Path:
        return self.path / f'{name}.part'

    def _lock(self, name: str) -> pathlib.Path:
        return self.path / f'{name}.lock'

    def _names(self) -> list[str]:
        # In a directory of another one, the names may be anything.
        if not self._is_private():
            return []
        return sorted(path.stem for path in self.path.glob('*.lock'))

    def _kept(self, name: str) -> int:
        try:
            return self._part(name).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def _free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def _remove(self, name: str) -> None:
        """Remove a file whose lock we hold; the lock last."""
        self._part(name).unlink(missing_ok=True)
        self._lock(name).unlink(missing_ok=True)

    def _hold(self, name: str) -> int | None:
        """Take the lock of a name, if nobody has it."""
        with contextlib.ExitStack() as opened:
            lock = opened.enter_context(self._locked(self._lock(name)))
            # A second handle has the same lock, and outlives the block.
            return None if lock is None else os.dup(lock)

    @contextlib.contextmanager
    def _locked(
        self, path: pathlib.Path, create: int = os.O_CREAT
    ) -> Iterator[int | None]:
        """Give a lock file that is ours in the block, or None.

        :raises BackendError: SCRATCH_UNUSABLE, NO_SPACE
        """
        flags = create | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with self.translated():
            lock = os.open(path, flags, 0o600)
        try:
            held = file_locks.try_lock(lock, fcntl.LOCK_EX)
            # Else it was removed by its last holder.
            is_it = held and file_locks.same_file(lock, path)
            yield lock if is_it else None
        finally:
            os.close(lock)

    def _prepare(self) -> None:
        """Make the directory; what others can write to is not taken."""
        problem = ''
        try:
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            if not self._is_private():
                problem = 'it is not a directory of this user alone'
        if problem:
            raise exception.BackendError.because(
                Reason.SCRATCH_UNUSABLE, path=str(self.path), problem=problem
            )

    def _is_private(self) -> bool:
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & 0o077
        )

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn an OSError of a scratch file into ours.

        :raises BackendError: NO_SPACE, SCRATCH_UNUSABLE
        """
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise exception.BackendError.because(
                    Reason.NO_SPACE,
                    backend=str(self.path),
                    problem=error.strerror,
                ) from error
            raise exception.BackendError.because(
                Reason.SCRATCH_UNUSABLE,
                path=str(self.path),
                problem=error.strerror or str(error),
            ) from error
