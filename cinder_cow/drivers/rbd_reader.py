# SPDX-License-Identifier: Apache-2.0
"""Reads an image of Ceph, or a snapshot of one."""

from collections.abc import Callable, Iterator
import contextlib

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import qemu_img
from cinder_cow import sparse
from cinder_cow.drivers import ceph
from cinder_cow.drivers import common
from cinder_cow.drivers import native
from cinder_cow.refusal import Reason

# The extents of so many bytes are in memory at once: 20 MiB at most.
_WINDOW = units.Ti
_Node = qemu_img.QemuNode

Guard = Callable[[], contextlib.AbstractContextManager[None]]


class _Reader(common.ReaderMixin):
    """Reads an open image; see the contract in :mod:`.base`.

    :param opened: holds what is open; closing it closes the image
    :param state: tells a number that changes when a client takes or gives up
        the lock to write; None: nobody can. An image without the feature
        exclusive-lock has no such lock: one who writes to it and has closed
        it in the meantime is not noticed.
    """

    def __init__(
        self,
        image: ceph.Image,
        guard: Guard,
        opened: contextlib.ExitStack,
        state: Callable[[], int] | None = None,
    ) -> None:
        self._image = image
        self._guard = guard
        self._opened = opened
        self._state = state
        self.size = image.size()
        self._was = self._state_now()

    @native.threaded
    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise ValueError('read beyond the size')
        with self._guard():
            return self._image.read(offset, length)

    def extents(self) -> Iterator[sparse.Extent]:
        for offset in range(0, self.size, _WINDOW):
            yield from self._extents(offset, min(_WINDOW, self.size - offset))

    @native.threaded
    def _extents(self, start: int, length: int) -> list[sparse.Extent]:
        """Tell data and holes of a part, by what is stored of it."""
        with self._guard():
            stored = ceph.stored(self._image, start, length)
        found: list[sparse.Extent] = []
        end = start
        for data_start, data_end in stored:
            if data_start > end:
                found.append(sparse.Extent(end, data_start - end, hole=True))
            end = data_end
            found.append(
                sparse.Extent(data_start, end - data_start, hole=False)
            )
        if end < start + length:
            rest = start + length - end
            found.append(sparse.Extent(end, rest, hole=True))
        return found

    @native.threaded
    def check_unchanged(self) -> None:
        with self._guard():
            if self._state_now() != self._was or self._writers():
                raise exception.BackendError.because(
                    Reason.BUSY,
                    what='the volume',
                    owner=self._writers() or 'a client that writes to it',
                    seconds=0,
                )

    @native.threaded
    def close(self) -> None:
        with self._guard():
            self._opened.close()

    def _state_now(self) -> int:
        return self._state() if self._state else 0

    def _writers(self) -> str:
        """Name the clients that have it open to write: they watch it."""
        if not self._state:
            return ''
        return ', '.join(ceph.watchers(self._image))


class Reader(_Reader):
    """Reads an image that qemu-img can read as well.

    :param node: makes what qemu-img opens, as long as ``opened`` is
    """

    def __init__(
        self,
        image: ceph.Image,
        guard: Guard,
        opened: contextlib.ExitStack,
        state: Callable[[], int] | None,
        node: Callable[[], contextlib.AbstractContextManager[_Node]],
    ) -> None:
        super().__init__(image, guard, opened, state)
        self._make_node = node
        self._node: _Node | None = None

    @native.threaded
    def qemu_source(self) -> qemu_img.QemuNode:
        if self._node is None:
            with self._guard():
                self._node = self._opened.enter_context(self._make_node())
        return self._node


class ImportedReader(_Reader):
    """Reads an image that is being imported, or is a clone of one.

    Whoever asks librbd what is stored of it is ended, qemu-img too.
    """

    def _extents(self, start: int, length: int) -> list[sparse.Extent]:
        return [sparse.Extent(start, length, hole=False)]


def pieces(
    image: ceph.Image, guard: Guard, length: int
) -> Iterator[bytes | int]:
    """Read the first bytes of an open image of ours, in order."""
    reader = _Reader(image, guard, contextlib.ExitStack())
    extents = sparse.between(reader.extents(), 0, length)
    return sparse.pieces(extents, reader.read)
