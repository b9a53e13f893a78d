# SPDX-License-Identifier: Apache-2.0
"""Where the file driver's volumes and bases are written before publishing."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import math
import os
import pathlib
import tempfile
import time

from oslo_log import log as logging
from oslo_utils import units

from cinder_cow import direct_io
from cinder_cow import exception
from cinder_cow import qemu_img
from cinder_cow import sparse
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import common
from cinder_cow.drivers import file_kept
from cinder_cow.drivers import file_layout

LOG = logging.getLogger(__name__)

_KEPT = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# Recorded as kept after so many bytes: what a killed maker costs at most.
SYNC_STEP = 32 * units.Mi
# Those who wait need not know more often.
_TELL_SECONDS = 0.5
# linux/fs.h: share all blocks of another file.
_FICLONE = 0x40049409
# What a file system says that cannot: no reflinks, another file system, a
# file with other attributes (btrfs nodatacow), an ioctl not known.
_CANNOT_SHARE = {
    errno.EOPNOTSUPP,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOTTY,
    errno.ENOSYS,
}


def share_blocks(source: int, target: int) -> bool:
    """Make one open file share all blocks of another.

    :returns: False, with nothing changed, where that cannot be
    :raises OSError: it failed
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_SHARE:
            return False
        raise
    return True


def share_whole(source: int, file: direct_io.DirectWriter) -> bool:
    """Give a file that is being written all blocks of an open one.

    :returns: False, with nothing changed, where that cannot be
    """
    length = os.fstat(source).st_size
    if not share_blocks(source, file.descriptor):
        return False
    # Behind it there may be what was written before.
    os.ftruncate(file.descriptor, min(length, file.size))
    # The source may have been written to: its length is the claim.
    os.ftruncate(file.descriptor, file.size)
    return True


def can_share(directory: pathlib.Path) -> bool:
    """Whether files in a directory can share blocks.

    :raises OSError: it cannot be tried
    """
    with (
        tempfile.TemporaryFile(dir=directory) as one,
        tempfile.TemporaryFile(dir=directory) as other,
    ):
        return share_blocks(one.fileno(), other.fileno())


class _FileSink(common.SinkMixin):
    """A raw file in a partial, written directly, by QEMU, or by sharing."""

    zeroed = True

    def __init__(
        self,
        backend: str,
        partial: file_layout.Partial,
        path: pathlib.Path,
        size: int,
        start: int = 0,
    ) -> None:
        self._backend = backend
        self._partial = partial
        self._path = path
        with contextlib.ExitStack() as undo:
            undo.callback(partial.remove)
            with file_layout.translated(backend):
                path.parent.mkdir(mode=0o700, exist_ok=True)
                flags = _KEPT if start else _NEW
                descriptor = os.open(path, flags, 0o600)
                self._file = direct_io.DirectWriter(descriptor, size, start)
            undo.pop_all()

    def write(self, data: base.Data) -> None:
        with file_layout.translated(self._backend):
            self._file.write(data)

    def skip(self, length: int) -> None:
        with file_layout.translated(self._backend):
            self._file.skip(length)

    def flush(self) -> None:
        with file_layout.translated(self._backend):
            self._file.flush()

    def qemu_target(self) -> qemu_img.QemuNode:
        return qemu_img.QemuNode.path(self._path, self._file.direct)

    def share_file(self, descriptor: int) -> bool:
        with file_layout.translated(self._backend):
            return share_whole(descriptor, self._file)

    def abort(self) -> None:
        with file_layout.translated(self._backend):
            try:
                self._close()
            finally:
                self._partial.remove()

    def _close(self) -> None:
        self._file.close()

    def _tidy(self) -> None:
        """Let go of what was published; the next sweep does what fails."""
        try:
            self.abort()
        except exception.BackendError as error:
            LOG.warning('%s stays for the next sweep: %s', self._path, error)

    @property
    def _finished(self) -> bool:
        return self._file.descriptor < 0


class VolumeSink(_FileSink):
    """Writes a volume.

    :param publish: gives the file its final name
    """

    def __init__(
        self,
        backend: str,
        partial: file_layout.Partial,
        size: int,
        publish: Callable[[pathlib.Path], None],
    ) -> None:
        super().__init__(backend, partial, partial.path / 'image.raw', size)
        self._publish = publish

    def close(self) -> None:
        if self._finished:
            return
        self.flush()
        self._publish(self._path)
        self._tidy()


class BaseSink(_FileSink):
    """Writes a base, or goes on where another maker ended.

    :param publish: stores the facts beside the image, and gives the
        directory of both its final name
    """

    def __init__(
        self,
        backend: str,
        partial: file_layout.Partial,
        size: int,
        publish: Callable[[pathlib.Path, bases.BaseFacts], bases.Base],
    ) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(partial.remove)
            with file_layout.translated(backend):
                self._record = file_kept.Record.opened(partial.path, size)
            undo.callback(self._record.close)
            path = partial.path / file_kept.IMAGE
            super().__init__(backend, partial, path, size, self._record.done)
            undo.pop_all()
        self._publish = publish
        self.kept = self._record.done
        # Whether nothing but write and skip has written.
        self._in_order = True
        self._last_told = -math.inf

    def write(self, data: base.Data) -> None:
        super().write(data)
        if self._file.offset - self._record.done >= SYNC_STEP:
            with file_layout.translated(self._backend):
                self._keep(self._file.sync())

    def flush(self) -> None:
        super().flush()
        with file_layout.translated(self._backend):
            self._keep(self._file.offset)

    def qemu_target(self) -> qemu_img.QemuNode:
        with file_layout.translated(self._backend):
            self._forget()
        self._in_order = False
        return super().qemu_target()

    def share_file(self, descriptor: int) -> bool:
        done, in_order = self._record.done, self._in_order
        with file_layout.translated(self._backend):
            # First: its bytes must never be taken for those of a maker.
            self._forget()
            self._in_order = False
            if share_whole(descriptor, self._file):
                return True
            self._in_order = in_order
            self._keep(done)
            return False

    def kept_pieces(self) -> Iterator[bytes | int]:
        with file_layout.translated(self._backend):
            yield from sparse.file_pieces(self._file.descriptor, self.kept)

    def restart(self) -> None:
        with file_layout.translated(self._backend):
            self._forget()
            self._file.restart()
        self.kept = 0

    def tell(self, progress: bases.Progress) -> None:
        now = time.monotonic()
        if now - self._last_told < _TELL_SECONDS:
            return
        self._last_told = now
        with contextlib.suppress(OSError):
            self._partial.tell(progress)

    def publish(self, facts: bases.BaseFacts) -> bases.Base:
        if self._finished:
            raise ValueError('published after it was finished')
        self.flush()
        published = self._publish(self._path.parent, facts)
        self._tidy()
        return published

    def leave(self) -> None:
        if self._finished:
            return
        # Where it cannot be flushed, what was recorded before is kept.
        with contextlib.suppress(exception.BackendError):
            self.flush()
        with file_layout.translated(self._backend):
            try:
                self._close()
            finally:
                self._partial.leave()

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            self._record.close()

    def _keep(self, done: int) -> None:
        if self._in_order:
            self._record.write(done)

    def _forget(self) -> None:
        """Record that nothing is kept, if something was."""
        if self._record.done:
            self._record.forget()
