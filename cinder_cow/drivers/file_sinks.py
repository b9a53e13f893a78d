# SPDX-License-Identifier: Apache-2.0
"""Where the file driver's volumes and bases are written before publishing."""

from collections.abc import Callable
import contextlib
import errno
import fcntl
import os
import pathlib

from oslo_log import log as logging

from cinder_cow import direct_io
from cinder_cow import exception
from cinder_cow import qemu_img
from cinder_cow.drivers import base
from cinder_cow.drivers import common
from cinder_cow.drivers import file_layout

LOG = logging.getLogger(__name__)

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
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
    if not share_blocks(source, file.descriptor):
        return False
    # The source may have been written to: its length is the claim.
    os.ftruncate(file.descriptor, file.size)
    return True


class _FileSink(common.SinkMixin):
    """A raw file in a partial, written directly, by QEMU, or by sharing."""

    zeroed = True

    def __init__(
        self,
        backend: str,
        partial: file_layout.Partial,
        path: pathlib.Path,
        size: int,
    ) -> None:
        self._backend = backend
        self._partial = partial
        self._path = path
        with contextlib.ExitStack() as undo:
            undo.callback(partial.remove)
            with file_layout.translated(backend):
                path.parent.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(path, _NEW, 0o600)
                self._file = direct_io.DirectWriter(descriptor, size)
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
                self._file.close()
            finally:
                self._partial.remove()

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
    """Writes a base.

    :param path: its image, in the directory that is to be published
    :param publish: stores the facts there and gives it its final name
    """

    def __init__(
        self,
        backend: str,
        partial: file_layout.Partial,
        path: pathlib.Path,
        size: int,
        publish: Callable[[pathlib.Path, base.BaseFacts], base.Base],
    ) -> None:
        super().__init__(backend, partial, path, size)
        self._publish = publish

    def publish(self, facts: base.BaseFacts) -> base.Base:
        if self._finished:
            raise ValueError('published after it was finished')
        self.flush()
        published = self._publish(self._path.parent, facts)
        self._tidy()
        return published
