# SPDX-License-Identifier: Apache-2.0
"""The RBD driver's sink: a stream, by the contract of drivers."""

from collections.abc import Callable
import contextlib
from typing import Generic, Protocol, TypeVar

from cinder_cow import qemu_img
from cinder_cow.drivers import base
from cinder_cow.drivers import common
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd_works
from cinder_cow.drivers import rbd_writer

Guard = Callable[[], contextlib.AbstractContextManager[None]]


class Stream(Protocol):
    """What is written."""

    @property
    def writer(self) -> rbd_writer.ImageWriter: ...

    def undo(self) -> None:
        """Leave nothing of it."""


_Stream = TypeVar('_Stream', bound=Stream)


class StreamSink(common.SinkMixin, Generic[_Stream]):
    """What volumes and bases have in common.

    :param node: what qemu-img writes to instead
    :param guard: translates errors
    :param held: is let go of at the end: pool and connection
    """

    zeroed = True

    def __init__(
        self,
        stream: _Stream,
        node: qemu_img.QemuNode,
        guard: Guard,
        held: contextlib.ExitStack,
    ) -> None:
        self._stream = stream
        self._node = node
        self._guard = guard
        self._held = held
        self._finished = False
        self._failed: Exception | None = None

    @native.threaded
    def write(self, data: base.Data) -> None:
        self._run(lambda: self._stream.writer.write(data))

    @native.threaded
    def skip(self, length: int) -> None:
        self._run(lambda: self._stream.writer.skip(length))

    @native.threaded
    def flush(self) -> None:
        self._run(self._stream.writer.flush)

    @native.threaded
    def abort(self) -> None:
        if not self._finished:
            self._give_up(self._stream.undo)

    def qemu_target(self) -> qemu_img.QemuNode:
        return self._node

    def _give_up(self, work: Callable[[], None]) -> None:
        try:
            with self._guard():
                work()
        finally:
            self._end()

    def _end(self) -> None:
        self._finished = True
        with self._guard():
            self._held.close()

    def _run(self, work: Callable[[], None]) -> None:
        """Do a step, unless an earlier one failed: that is told again."""
        if self._finished:
            raise ValueError('written after it was finished')
        if self._failed:
            raise self._failed
        try:
            with self._guard():
                work()
        except ValueError:
            raise
        except Exception as error:
            self._failed = error
            raise


class Sink(StreamSink[rbd_works.Stream]):
    """A volume that is written; see the contract in :mod:`.base`."""

    @native.threaded
    def close(self) -> None:
        if self._finished:
            return
        self._run(self._stream.writer.flush)
        with self._guard():
            self._stream.publish()
        self._end()
