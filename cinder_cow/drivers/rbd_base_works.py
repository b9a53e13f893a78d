# SPDX-License-Identifier: Apache-2.0
"""Making and retiring bases: what changes a pool, and how it is undone.

Who makes a base has a lease on its name, and tells in its row how far it is.
The next maker of one that was broken off goes on behind what was written for
good, as far as it is told there.
"""

import contextlib
import dataclasses
import errno
import functools
import time

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_base_links
from cinder_cow.drivers import rbd_base_store
from cinder_cow.drivers import rbd_base_stream
from cinder_cow.drivers import rbd_cleanup
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_sweep
from cinder_cow.drivers import rbd_works
from cinder_cow.drivers.rbd_lease_row import Draft
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.drivers.rbd_lease_row import Work
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

# How often it is looked again, where things change as they are looked at.
_ATTEMPTS = 25
# How long the watches of a client may last that is shut out.
_GHOST_SECONDS = 5
_PAUSE = 0.2
Begun = rbd_base_stream.BaseStream | bases.Base | bases.Making


class BaseWorks:
    """What is done to the bases of one back end."""

    def __init__(
        self,
        backend: str,
        store: rbd_base_store.BaseStore,
        works: rbd_works.Works,
    ) -> None:
        self._backend = backend
        self._store = store
        self._works = works

    def begin(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        name: str,
        size: int,
    ) -> Begun:
        """Begin a base of that size, or go on with it, as the only maker."""
        holding = self._begun(connection, pool, name, size)
        if not isinstance(holding, rbd_leases.Holding):
            return holding
        if resumed := self._resumed(connection, pool, holding, size):
            return resumed
        undo = functools.partial(rbd_cleanup.undo_base, pool, holding.lease)
        with (
            rbd_works.undone(holding, undo),
            contextlib.ExitStack() as opened,
        ):
            self._clear(connection, pool, holding, size)
            self._works.create(pool, name, size)
            image = opened.enter_context(pool.image(name, write=True))
            return self._stream(pool, holding, image, opened.pop_all())

    def link(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        name: str,
        size: int,
        volume_name: str,
    ) -> Begun:
        """Begin a base that is a clone of a volume.

        Where the volume is a clone itself, the base is one of two levels: a
        read of what is in neither asks three images.

        :raises BackendError: NOT_LINKABLE
        """
        holding = self._begun(connection, pool, name, size)
        if not isinstance(holding, rbd_leases.Holding):
            return holding
        with rbd_works.undone(holding):
            self._clear(connection, pool, holding, size)
            volume = pool.id_of(volume_name)
            rbd_base_links.check_linkable(connection, pool, volume_name, size)
            holding.write_down(holding.lease.changed(volume=volume))
        undo = functools.partial(rbd_cleanup.undo_base, pool, holding.lease)
        with (
            rbd_works.undone(holding, undo),
            contextlib.ExitStack() as opened,
        ):
            rbd_base_links.make(
                pool, volume, volume_name, name, self._works.image_options
            )
            image = opened.enter_context(pool.image(name, write=True))
            if image.size() > size:
                image.resize(size)
            stream = self._stream(pool, holding, image, opened.pop_all())
            stream.has_all()
            return stream

    def retire(
        self, connection: ceph.Connection, pool: ceph.Pool, name: str
    ) -> None:
        """Remove a base; one that is gone already is removed.

        :raises RequestError: BASE_IN_USE
        :raises BackendError: BUSY
        """
        lease = None
        for _attempt in range(_ATTEMPTS):
            found = self._store.find(pool, name)
            lease = rbd_leases.of(pool, name)
            if lease and rbd_leases.is_dead(pool, lease):
                if not found and lease.work is Work.BASE:
                    return  # half a base is no base
                self._end(connection, pool, lease)
                continue
            if found is None:
                return
            try:
                holding = rbd_leases.take(
                    pool, connection, name, Work.RETIRE, image=found.image
                )
            except rbd_leases.TakenError as error:
                lease = error.lease or lease
                time.sleep(_PAUSE)
                continue
            with holding:
                self._retire(pool, holding)
            return
        raise self._busy(name, lease)

    # Private: beginning

    def _begun(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        name: str,
        size: int,
    ) -> rbd_leases.Holding | bases.Base | bases.Making:
        """Get the lease, or tell who has it; or the base that is there."""
        for _attempt in range(_ATTEMPTS):
            if published := self._published(pool, name):
                return published
            try:
                holding = rbd_leases.take(
                    pool,
                    connection,
                    name,
                    Work.BASE,
                    size=size,
                    draft=Draft(),
                )
            except rbd_leases.TakenError as error:
                taken = self._taken(connection, pool, name, error.lease)
                if taken is None:
                    continue
                if isinstance(taken, bases.Making):
                    return taken
                holding = taken
            with rbd_works.undone(holding):
                published = self._published(pool, name)
            if published is None:
                return holding
            holding.release()
            return published
        return bases.Making('many others')

    def _published(self, pool: ceph.Pool, name: str) -> bases.Base | None:
        found = self._store.find(pool, name)
        if found is None:
            return None
        rbd_base_store.protect(pool, found)
        return found.published

    def _taken(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        name: str,
        lease: Lease | None,
    ) -> rbd_leases.Holding | bases.Making | None:
        """Take over from one who is dead.

        :returns: None: it is to be looked again
        """
        if lease is None:
            if rbd_leases.is_taken(pool, name):
                return bases.Making('another release')
            return None
        if not rbd_leases.is_dead(pool, lease):
            draft = lease.draft or Draft()
            progress = bases.Progress(draft.phase, draft.done, draft.total)
            return bases.Making(str(lease.owner), lease.since, progress)
        if lease.work is not Work.BASE:
            self._end(connection, pool, lease)
            return None
        return rbd_sweep.take_over(pool, connection, lease)

    def _end(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        lease: Lease,
    ) -> None:
        rbd_sweep.end(pool, connection, lease, rbd_cleanup.finish_or_undo)

    def _clear(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        holding: rbd_leases.Holding,
        size: int,
    ) -> None:
        """Leave nothing of makers before, and write down that it begins."""
        if holding.lease.image or holding.lease.draft != Draft():
            rbd_cleanup.undo_base(pool, holding.lease)
        holding.write_down(
            dataclasses.replace(
                holding.lease,
                image='',
                size=size,
                since=time.time(),
                address=connection.address,
                client=connection.client,
                draft=Draft(told=time.time()),
            )
        )

    def _stream(
        self,
        pool: ceph.Pool,
        holding: rbd_leases.Holding,
        image: ceph.Image,
        opened: contextlib.ExitStack,
    ) -> rbd_base_stream.BaseStream:
        with contextlib.ExitStack() as undo:
            undo.push(opened)
            holding.write_down(
                dataclasses.replace(holding.lease, image=image.id())
            )
            stream = rbd_base_stream.BaseStream(
                self._store, pool, holding, image, opened
            )
            undo.pop_all()
        return stream

    def _resumed(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        holding: rbd_leases.Holding,
        size: int,
    ) -> rbd_base_stream.BaseStream | None:
        """Go on with what another maker wrote, if that can be."""
        lease = holding.lease
        if not lease.kept or lease.size != size:
            return None
        try:
            if not self._is_free(connection, pool, lease):
                return None
            with contextlib.ExitStack() as opened:
                image = opened.enter_context(
                    pool.image(lease.volume, write=True)
                )
                if image.size() != size:
                    return None
                kept = lease.kept - lease.kept % ceph.object_size(image)
                if not kept:
                    return None
                # What was under way may have been written, and may not.
                ceph.empty_behind(image, kept)
                holding.write_down(
                    dataclasses.replace(
                        lease.changed(kept=kept, left=False),
                        since=time.time(),
                        address=connection.address,
                        client=connection.client,
                    )
                )
                stream = rbd_base_stream.BaseStream(
                    self._store, pool, holding, image, opened.pop_all()
                )
                stream.go_on(kept)
                return stream
        except ceph.CephError as error:
            if error.lost:
                holding.drop()
                raise
            LOG.warning('Base %s is begun anew: %s', lease.volume, error)
            return None
        except BaseException:
            holding.drop()
            raise

    def _is_free(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        lease: Lease,
    ) -> bool:
        """Whether an image is the one that was kept, and open to nobody."""
        entry = pool.find(lease.volume)
        if not entry.whole or entry.id != lease.image:
            return False  # another image, or half of one
        deadline = time.monotonic() + _GHOST_SECONDS
        with pool.image_of(entry.id) as image:
            while set(ceph.watchers(image)):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_PAUSE)
        return True

    # Private: retiring

    def _retire(self, pool: ceph.Pool, holding: rbd_leases.Holding) -> None:
        lease = holding.lease
        found = self._store.find(pool, lease.volume)
        if found is None or found.image != lease.image:
            holding.release()
            return
        try:
            self._remove_snapshot(pool, holding)
            rbd_cleanup.remove_rest(pool, holding.lease)
        except exception.RequestError:
            rbd_cleanup.end_retiring(pool, lease)  # it is as it was
            holding.release()
            raise
        except ceph.CephError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            holding.release()
            raise self._in_use(pool, lease) from error
        holding.release()

    def _remove_snapshot(
        self, pool: ceph.Pool, holding: rbd_leases.Holding
    ) -> None:
        """Take away what publishes a base, if nothing hangs on it."""
        lease = holding.lease
        snapshot = rbd_cleanup.SNAPSHOT
        with pool.image_of(lease.image, write=True) as image:
            if ceph.children(image, 0):
                raise self._in_use(pool, lease)
            if volume := rbd_base_links.volume_of(image):
                holding.write_down(lease.changed(volume=volume))
            try:
                with ceph.translated():
                    if image.is_protected_snap(snapshot):
                        image.unprotect_snap(snapshot)
            except ceph.CephError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise self._in_use(pool, lease) from error
            # A clone of version 2 that was made meanwhile keeps it, in the
            # trash: then the image cannot be removed, and is a base again.
            image.remove_snap(snapshot)

    def _in_use(self, pool: ceph.Pool, lease: Lease) -> exception.RequestError:
        limit = rbd_works.NAMED
        with pool.image_of(lease.image) as image:
            children = ceph.own_children(
                image, pool.name, pool.namespace, limit + 1
            )
        return exception.RequestError.because(
            Reason.BASE_IN_USE,
            base=lease.volume,
            children=rbd_works.listed(children) or 'a clone that is made',
        )

    def _busy(self, name: str, lease: Lease | None) -> exception.BackendError:
        if lease:
            return self._store.busy(lease, 0)
        return exception.BackendError.because(
            Reason.BUSY, what=f'base {name}', owner='others', seconds=0
        )
