# SPDX-License-Identifier: Apache-2.0
"""The RBD driver's writer of a base, by the contract of drivers."""

from collections.abc import Callable, Iterator
import contextlib

from cinder_cow import exception
from cinder_cow import qemu_img
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd_base_stream
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_reader
from cinder_cow.drivers import rbd_sink
from cinder_cow.refusal import Reason


class BaseSink(rbd_sink.StreamSink[rbd_base_stream.BaseStream]):
    """A base that is written; see the contract in :mod:`.bases`."""

    @property
    def kept(self) -> int:
        return self._stream.kept

    def kept_pieces(self) -> Iterator[bytes | int]:
        return rbd_reader.pieces(self._stream.image, self._guard, self.kept)

    @native.threaded
    def restart(self) -> None:
        self._failed = None
        self._run(self._stream.restart)

    @native.threaded
    def tell(self, progress: bases.Progress) -> None:
        if not self._finished:
            self._stream.tell(progress)

    @native.threaded
    def publish(self, facts: bases.BaseFacts) -> bases.Base:
        found: list[bases.Base] = []
        self._run(self._stream.writer.flush)
        self._run(lambda: found.append(self._stream.publish(facts)))
        self._end()
        return found[0]

    @native.threaded
    def leave(self) -> None:
        if not self._finished:
            self._give_up(self._stream.leave)

    @native.threaded
    def qemu_target(self) -> qemu_img.QemuNode:
        self._run(self._stream.give_away)
        return self._node

    # Private

    def _run(self, work: Callable[[], None]) -> None:
        with self._lost_told():
            super()._run(work)
        if not self._finished:
            self._stream.tell()

    def _give_up(self, work: Callable[[], None]) -> None:
        try:
            super()._give_up(work)
        except exception.BackendError as error:
            # Nothing of it is ours any more.
            if not _is_lost(error):
                raise

    @contextlib.contextmanager
    def _lost_told(self) -> Iterator[None]:
        """Say that another maker has taken over, where it has."""
        try:
            yield
        except exception.BackendError as error:
            if error.reason is Reason.BASE_LOST or not _is_lost(error):
                raise
            raise exception.BackendError.because(
                Reason.BASE_LOST, base=self._stream.name
            ) from error


def _is_lost(error: BaseException) -> bool:
    cause = error.__cause__
    if isinstance(cause, ceph.CephError):
        return cause.lost
    return isinstance(cause, rbd_leases.LostError)
