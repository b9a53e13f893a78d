# SPDX-License-Identifier: Apache-2.0
"""A base that is being written, and how far that is told.

The lease is on its name, which nobody clones before it has its snapshot.
Which of it is written for good is told in the row, twice a second: a maker
that is killed leaves that for the next one.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import time

from oslo_log import log as logging

from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd_base_store
from cinder_cow.drivers import rbd_cleanup
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_writer

LOG = logging.getLogger(__name__)

# Seconds between two changes of the row.
_TELL = 0.5


class BaseStream:
    """A base until it is published.

    :ivar name: of its image, and the base
    :ivar kept: bytes that another maker wrote
    :param opened: holds the image
    """

    def __init__(
        self,
        store: rbd_base_store.BaseStore,
        pool: ceph.Pool,
        holding: rbd_leases.Holding,
        image: ceph.Image,
        opened: contextlib.ExitStack,
    ) -> None:
        with ceph.translated():
            self._size = image.size()
            self._image_id = image.id()
        self._object = ceph.object_size(image)
        self.name = holding.lease.volume
        self.image = image
        self.kept = 0
        self.writer = rbd_writer.ImageWriter(image, self._size)
        self._store = store
        self._pool = pool
        self._holding = holding
        self._opened = opened
        # Something other than the writer writes, or has written.
        self._foreign = False
        self._linked = False
        self._progress = bases.Progress()
        self._told_at = time.monotonic()
        # Who reads the progress of qemu-img is another thread.
        self._telling = native.threading().Lock()

    def go_on(self, kept: int) -> None:
        """Write behind what another maker wrote."""
        self.kept = kept
        self.writer = rbd_writer.ImageWriter(self.image, self._size, kept)

    def has_all(self) -> None:
        """Take no bytes: it has those of a volume."""
        self._linked = self._foreign = True
        self.writer = rbd_writer.ImageWriter(self.image, 0)

    def tell(self, progress: bases.Progress | None = None) -> None:
        """Write down how far it is, if that has not been done just now.

        It never fails: that the lease was lost is told by ``publish``.
        """
        if progress is not None:
            self._progress = progress
        if time.monotonic() < self._told_at + _TELL:
            return
        with self._telling:
            self._told_at = time.monotonic()
            try:
                self._write_down()
            except (ceph.CephError, rbd_leases.LostError) as error:
                LOG.info('Progress of base %s: %s', self.name, error)

    def give_away(self) -> None:
        """Let something else write: what that wrote is never kept."""
        if self.writer.end:
            self.restart()
        self._foreign = True
        with self._telling:
            self._write_down()

    def restart(self) -> None:
        """Begin again."""
        if self._linked:
            raise ValueError('it has its content already')
        if not (self.writer.end or self._foreign):
            return
        self.writer.drop()
        self.kept = 0
        self.writer = rbd_writer.ImageWriter(self.image, self._size)
        with self._telling:
            # First: half of what was kept would not be what was kept.
            self._write_down()
        ceph.empty_behind(self.image, 0)

    def publish(self, facts: bases.BaseFacts) -> bases.Base:
        """Make it a base; all that was written is flushed.

        :raises LostError: another maker has taken over
        """
        self._holding.renew()
        if self.writer.has_written and ceph.locked_by_another(self.image):
            raise rbd_leases.LostError(f'the lock on {self.name} was lost')
        allocated = ceph.allocated(self.image, self._size)
        self._store.write_facts(self._pool, self._image_id, facts, allocated)
        try:
            with ceph.translated():
                self.image.create_snap(rbd_base_store.SNAPSHOT)
        except ceph.CephError:
            # One that timed out may have been made.
            if not rbd_cleanup.is_published(self._pool, self._image_id):
                raise
        rbd_cleanup.check_published(self._pool, self._image_id)
        published = self._store.get(self._pool, self.name)
        self._finish()
        return published.published

    def undo(self) -> None:
        """Leave nothing of it, unless it is published or another one's.

        :raises CephError: something is left for a sweep
        """
        with self._holding as holding:
            self.writer.drop()
            self._close()
            try:
                holding.renew()
                rbd_cleanup.undo_base(self._pool, holding.lease)
                holding.release()
            except rbd_leases.LostError as error:
                LOG.info('Nothing is undone: %s', error)

    def leave(self) -> None:
        """Let what is written be there for the next maker.

        :raises CephError: it is left for a sweep, or the next maker
        """
        self.writer.drop()
        if not self._keepable():
            self.undo()
            return
        with self._holding as holding:
            self._close()
            try:
                holding.renew()
                with self._telling:
                    self._write_down()
                holding.leave()
            except rbd_leases.LostError as error:
                LOG.info('Nothing is left: %s', error)

    # Private

    def _keepable(self) -> int:
        """Tell how many bytes the next maker can go on behind."""
        if self._foreign:
            return 0
        end = self.writer.acknowledged
        return end - end % self._object

    def _write_down(self) -> None:
        """Have the row tell how far it is, if it does not.

        :raises LostError: another maker has taken over
        """
        lease = self._holding.lease
        progress = self._progress
        changed = lease.changed(
            kept=self._keepable(),
            phase=progress.phase,
            done=progress.done,
            total=progress.total,
        )
        assert changed.draft
        assert lease.draft
        told = changed.draft.told
        if changed.draft != dataclasses.replace(lease.draft, told=told):
            self._holding.write_down(changed)

    def _finish(self) -> None:
        """Let go of a base that is published; a sweep does what fails."""
        with self._holding as holding:
            for step in self._protect, self._close, holding.release:
                self._try(step)

    def _protect(self) -> None:
        with ceph.translated():
            self.image.protect_snap(rbd_base_store.SNAPSHOT)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (ceph.CephError, rbd_leases.LostError) as error:
            LOG.warning('Base %s, left for a sweep: %s', self.name, error)

    def _close(self) -> None:
        try:
            with ceph.translated():
                self._opened.close()
        except ceph.CephError as error:
            LOG.info('Closing base %s: %s', self.name, error)
