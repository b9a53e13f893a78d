# SPDX-License-Identifier: Apache-2.0
"""What Cinder's own RBD driver leaves undone in the life of a volume.

Whoever uses this has a driver that removes images, and asks before and after
what else there is to do. A volume that was deleted is deleted, whatever is
left of its kin; so what fails then is logged, and left for a sweep or fsck.
"""

from collections.abc import Callable
import functools

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_cleanup
from cinder_cow.drivers import rbd_context
from cinder_cow.drivers import rbd_leaks
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_sweep
from cinder_cow.drivers import rbd_undo
from cinder_cow.drivers import rbd_works
from cinder_cow.drivers.rbd_lease_row import Work

LOG = logging.getLogger(__name__)


class Life(rbd_context.RbdContext):
    """The lives of volumes of one back end."""

    @rbd_context.called
    def exists(self, volume_name: str) -> bool:
        with self._opened() as (_connection, pool):
            return bool(pool.find(volume_name))

    @rbd_context.called
    def kin(self, volume_name: str) -> rbd_leaks.Kin:
        """Tell what a volume hangs on, before it is deleted."""
        with self._opened() as (_connection, pool):
            image_id = pool.id_of(volume_name)
            return rbd_leaks.kin(pool, image_id) if image_id else _NO_KIN

    @rbd_context.called
    def set_aside(self, volume_name: str) -> None:
        """Keep a volume that is deleted for what hangs on it."""
        with self._opened() as (_connection, pool):
            rbd_leaks.set_aside(pool, volume_name)

    def after_delete(
        self, volume_name: str, kin: rbd_leaks.Kin, source: str
    ) -> None:
        """Remove what was there for a volume that is deleted; never fails.

        :param kin: it had; none where a deletion that was broken off before
            goes on, or where it was never made
        :param source: the volume that it was to be a clone of; or ''
        """
        for work in (
            functools.partial(self._remove_own, volume_name),
            functools.partial(self._finish_removal, volume_name),
            functools.partial(self._release_parents, kin),
            functools.partial(self._release_source, volume_name, source),
            functools.partial(self._remove_partial, volume_name),
        ):
            _logged(work, volume_name)

    def after_failure(self, volume_name: str, source: str) -> None:
        """Leave nothing of a volume that could not be made; never fails.

        :param source: the volume that it was to be a clone of; or ''
        """

        def undo() -> None:
            kin = self.kin(volume_name)
            if not kin.has_children:
                self._remove(volume_name)
                self.after_delete(volume_name, kin, source)

        _logged(undo, volume_name)

    def sweep(self) -> None:
        """Remove what was kept for clones that are gone; never fails."""
        _logged(self._remove_deleted, 'all that are deleted')

    # Private

    @rbd_context.called
    def _remove(self, volume_name: str) -> None:
        with self._opened() as (_connection, pool):
            rbd_undo.remove(pool, volume_name)

    @rbd_context.called
    def _remove_own(self, volume_name: str) -> None:
        """Remove what is kept of a deleted volume, where nothing needs it.

        Nobody makes a clone of it any more, so its snapshots need not be old.
        """
        with self._opened() as (_connection, pool):
            if image_id := pool.id_of(volume_name + rbd_leaks.DELETED):
                _remove_unneeded(pool, image_id, age=0)

    @rbd_context.called
    def _finish_removal(self, volume_name: str) -> None:
        """Remove what is left where its removal was broken off before."""
        with self._opened() as (_connection, pool):
            if image_id := pool.half_removed(volume_name):
                rbd_leaks.finish_removal(pool, image_id)

    @rbd_context.called
    def _release_parents(self, kin: rbd_leaks.Kin) -> None:
        with self._opened() as (_connection, pool):
            for image_id, snapshot in sorted(kin.parents):
                rbd_leaks.release(pool, image_id, snapshot)

    @rbd_context.called
    def _release_source(self, volume_name: str, source: str) -> None:
        """Remove the snapshot for a clone that told no parent itself.

        It was flattened, or its deletion was broken off, or it was never
        made.
        """
        if not source:
            return
        snapshot = volume_name + rbd_leaks.CLONE_SNAPSHOT
        with self._opened() as (_connection, pool):
            if pool.has_name(volume_name):
                return
            for name in (source, source + rbd_leaks.DELETED):
                if image_id := pool.id_of(name):
                    rbd_leaks.release(pool, image_id, snapshot)

    @rbd_context.called
    def _remove_partial(self, volume_name: str) -> None:
        """Remove what was written of a volume, unless it still is."""
        name = rbd_undo.partial_name(volume_name)
        with self._opened() as (connection, pool):
            if not pool.find(name):
                return
            rbd_sweep.sweep(pool, connection, rbd_cleanup.finish_or_undo)
            if not pool.find(name):
                return
            holding = rbd_leases.take(
                pool, connection, volume_name, Work.STREAM
            )
            with rbd_works.undone(holding):
                rbd_undo.remove(pool, name)
            holding.release()

    @rbd_context.called
    def _remove_deleted(self) -> None:
        with self._opened() as (_connection, pool):
            for image_id, name in rbd_leaks.half_removed(pool):
                if name.endswith(rbd_leaks.DELETED):
                    rbd_leaks.finish_removal(pool, image_id)
            for image_id in list(rbd_leaks.deleted(pool)):
                _remove_unneeded(pool, image_id, age=rbd_leaks.YOUNG_SECONDS)


_NO_KIN = rbd_leaks.Kin()


def _remove_unneeded(pool: ceph.Pool, image_id: str, age: float) -> None:
    rbd_leaks.remove_stale(pool, image_id, age)
    rbd_leaks.remove_unneeded(pool, image_id)


def _logged(work: Callable[[], None], volume_name: str) -> None:
    try:
        work()
    except (exception.CowError, rbd_leases.TakenError) as error:
        LOG.warning('Left in Ceph of %s, for fsck: %s', volume_name, error)
