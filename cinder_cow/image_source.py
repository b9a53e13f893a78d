# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of an image are read from.

A source is opened once and stays what it was: what was inspected is what is
read. Optional abilities are protocols, found by presence.
"""

from collections.abc import Hashable, Iterator
import contextlib
import os
import pathlib
import stat
from typing import Protocol, runtime_checkable

from cinder_cow import exception
from cinder_cow import file_state
from cinder_cow import formats
from cinder_cow import handles
from cinder_cow import image_info as images
from cinder_cow import qemu_img
from cinder_cow import refusal
from cinder_cow import sparse


class ImageSource(Protocol):
    """Reads an image.

    :ivar label: the image, for messages
    :ivar size: bytes
    """

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int: ...

    def head(self, length: int) -> bytes:
        """Read the first bytes; fewer when there are no more.

        :raises ImageError: it cannot be read
        """

    def tail(self, length: int) -> bytes:
        """Read the last bytes; fewer when there are no more, or no way.

        :raises ImageError: it cannot be read
        """

    def pieces(self) -> Iterator[bytes | int]:
        """Read all of it, in order: data, or the length of a hole.

        :raises ImageError: it cannot be read
        """

    def check_unchanged(self) -> None:
        """Make sure that what was read is one state of the image.

        :raises ImageError: IMAGE_CHANGED
        """


@runtime_checkable
class LocalFile(Protocol):
    """A source that is an open file; its blocks may be shared."""

    def fileno(self) -> int: ...


@runtime_checkable
class Seekable(Protocol):
    """A source that can be read from any byte on."""

    def pieces_from(self, offset: int) -> Iterator[bytes | int]:
        """Read it in order from that byte to the end.

        :raises ImageError: it cannot be read
        """


@runtime_checkable
class Resumable(Seekable, Protocol):
    """A source on a server.

    :ivar question: what it asks, and as whom: two sources that have the same
        get the same answer
    """

    @property
    def question(self) -> Hashable: ...

    def release(self) -> None:
        """Let go of a connection that is not used for a while."""

    def check_readable(self) -> None:
        """Make sure that it may be read, where nothing of it is read.

        :raises ImageError: it may not
        """


@runtime_checkable
class QemuReadable(Protocol):
    """A source that qemu-img can read where it is."""

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int: ...

    def head(self, length: int) -> bytes: ...

    def tail(self, length: int) -> bytes: ...

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes anywhere; fewer when there are no more.

        :raises ImageError: it cannot be read
        """

    def qemu_source(self) -> qemu_img.QemuNode:
        """Return what qemu-img shall open."""


class FileSource(handles.Closing):
    """A local file; a context manager.

    :param path: of a regular file
    :param label: what messages call it; None: its path
    :raises ImageError: IMAGE_NOT_FOUND, NOT_AN_IMAGE, EMPTY_IMAGE
    """

    def __init__(
        self, path: str | os.PathLike[str], label: str | None = None
    ) -> None:
        self.path = pathlib.Path(path)
        self.label = refusal.printable(str(path) if label is None else label)
        try:
            # O_NONBLOCK: opening a pipe with no writer must not hang.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(path, flags)
        except (OSError, ValueError) as error:
            raise self._error(
                refusal.Reason.IMAGE_NOT_FOUND,
                problem=getattr(error, 'strerror', None) or str(error),
            ) from None
        try:
            self._status = os.fstat(self._descriptor)
            self._check_kind()
            self.image_id = os.path.realpath(path)
        except BaseException:
            self.close()
            raise

    def _check_kind(self) -> None:
        if not stat.S_ISREG(self._status.st_mode):
            raise self._error(
                refusal.Reason.NOT_AN_IMAGE,
                problem='it is not a regular file',
                remedy='Copy the image to a file first.',
            )
        if not self._status.st_size:
            raise self._error(refusal.Reason.EMPTY_IMAGE)

    @property
    def size(self) -> int:
        return self._status.st_size

    @property
    def content_id(self) -> str:
        """What changes when the file's content does.

        And at times more often: chmod too sets ctime, and then the next
        volume makes a base of its own.
        """
        found = self._status
        return (
            f'file:{found.st_dev}:{found.st_ino}:{found.st_size}'
            f':{found.st_mtime_ns}:{found.st_ctime_ns}'
        )

    def read(self, offset: int, length: int) -> bytes:
        with self._translated():
            return os.pread(self._descriptor, length, offset)

    def head(self, length: int) -> bytes:
        return self.read(0, length)

    def tail(self, length: int) -> bytes:
        start = max(0, self.size - length)
        return self.read(start, self.size - start)

    def pieces(self) -> Iterator[bytes | int]:
        with self._translated():
            yield from sparse.file_pieces(self._descriptor, self.size)

    def check_unchanged(self) -> None:
        if file_state.has_changed(self._descriptor, self._status):
            raise self._error(refusal.Reason.IMAGE_CHANGED)

    def qemu_source(self) -> qemu_img.QemuNode:
        return qemu_img.QemuNode.descriptor(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.check_unchanged()  # or else that is why
            raise self._error(
                refusal.Reason.IMAGE_NOT_FOUND, problem=str(error)
            ) from error

    def _error(
        self, reason: refusal.Reason, **facts: str
    ) -> exception.ImageError:
        return exception.ImageError.because(reason, image=self.label, **facts)


class Unregistered(ImageSource, Protocol):
    """A source that no record describes: a file, a URL.

    :ivar image_id: what names it, without secrets
    :ivar content_id: what changes with its content; empty if nothing does
    """

    @property
    def image_id(self) -> str: ...

    @property
    def content_id(self) -> str: ...


def describe(
    source: Unregistered, claimed: str | None, hash_: str | None = None
) -> images.ImageInfo:
    """Describe an image that has no record.

    :param claimed: the format somebody says it has; None: what it is
    :param hash_: 'algorithm:value' that its bytes must have, if known
    :raises ImageError: NOT_AN_IMAGE, FORMAT_MISMATCH, where nothing is
        claimed and the content alone does not say that it is a disk
    """
    inspection = formats.inspect_source(source, claimed)
    if claimed is None:
        _check_end(source, inspection)
        head = source.head(formats.SECTOR)
        formats.check_unclaimed(source.label, source.size, head, inspection)
        claimed = inspection.claim or str(inspection)
    algorithm, _, value = (hash_ or '').partition(':')
    return images.ImageInfo(
        id=source.image_id,
        name=source.label,
        disk_format=claimed,
        size=source.size,
        virtual_size=inspection.virtual_size,
        os_hash_algo=algorithm or None,
        os_hash_value=value.lower() or None,
        content_id=source.content_id,
    )


def _check_end(source: Unregistered, inspection: formats.Inspection) -> None:
    """Refuse what may be raw or a fixed VHD, where nothing tells which."""
    if inspection.claim == 'raw' and not source.tail(1):
        raise exception.ImageError.because(
            refusal.Reason.NOT_AN_IMAGE,
            image=source.label,
            problem='its server cannot show its end, by which a fixed VHD is'
            ' told from a raw disk',
            remedy='If it is a raw disk: --disk-format raw.',
        )
