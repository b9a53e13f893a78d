# SPDX-License-Identifier: Apache-2.0
"""Making and deleting volumes: what changes a pool, and how it is undone.

Each work begins with a lease on the volume's name and ends by releasing it.
What fails is undone at once; where that fails too, the lease stays for a
sweep.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import functools

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers import common
from cinder_cow.drivers import rbd_cleanup
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_parents
from cinder_cow.drivers import rbd_sweep
from cinder_cow.drivers import rbd_undo
from cinder_cow.drivers import rbd_writer
from cinder_cow.drivers.rbd_lease_row import Work
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

# How many snapshots, children and clients are named.
NAMED = 20


class Works:
    """What is done in the pool of one back end."""

    def __init__(
        self,
        settings: rbd_options.RbdSettings,
    ) -> None:
        self.image_options = settings.image_options()
        self._order = settings.order

    def clone(
        self,
        pool: ceph.Pool,
        parent: rbd_parents.Parent,
        judge: rbd_parents.Judge,
        volume_name: str,
        size: int,
    ) -> None:
        """Make a clone of that size; where it fails, leave nothing of it.

        :param judge: who judged the parent

        :raises RequestError: INVALID_NAME, VOLUME_EXISTS
        :raises BackendError: the parent is gone, or another one
        """
        with _begun(
            pool.connection,
            pool,
            volume_name,
            Work.CLONE,
            size=size,
        ) as holding:
            self._clone(pool, parent, judge, holding)
            undo = functools.partial(rbd_undo.undo_volume, pool, holding.lease)
            with undone(holding, undo):
                header = pool.header(pool.id_of(volume_name))
                if not parent.is_of(header):
                    raise judge.replaced(parent)
                _resize(pool, header, volume_name, parent.size, size)
            holding.release()

    def _clone(
        self,
        pool: ceph.Pool,
        parent: rbd_parents.Parent,
        judge: rbd_parents.Judge,
        holding: rbd_leases.Holding,
    ) -> None:
        lease = holding.lease
        undo = functools.partial(rbd_undo.undo_volume, pool, lease)
        place = parent.pool, parent.namespace
        with pool.connection.pool(*place) as pool_of_image:
            try:
                pool.clone(
                    pool_of_image,
                    parent.image,
                    parent.snapshot,
                    lease.volume,
                    **self.image_options,
                )
            except ceph.CephError as error:
                if error.errno == errno.EEXIST:
                    # Another tool was faster: nothing of this is ours.
                    holding.release()
                    raise _exists(lease.volume, 'exists already') from error
                with undone(holding, undo):
                    raise judge.refused(pool, parent, error) from error

    def stream(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        volume_name: str,
        size: int,
    ) -> 'Stream':
        """Begin a volume that is written, under a partial name.

        :raises RequestError: INVALID_NAME, VOLUME_EXISTS
        """
        partial = rbd_undo.partial_name(volume_name)
        holding = _begun(connection, pool, volume_name, Work.STREAM, size=size)
        undo = functools.partial(rbd_undo.undo_stream, pool, volume_name, '')
        with undone(holding, undo), contextlib.ExitStack() as opened:
            self.create(pool, partial, size)
            image = opened.enter_context(pool.image(partial, write=True))
            return Stream(pool, holding, image, opened.pop_all())

    def create(self, pool: ceph.Pool, name: str, size: int) -> None:
        """Make an image under a name of ours, in the place of what is left."""
        create = functools.partial(
            pool.create, name, size, self._order, **self.image_options
        )
        try:
            create()
        except ceph.CephError as error:
            if error.errno != errno.EEXIST:
                raise
            # The name is ours; to look first what is left takes 12 ms.
            rbd_undo.remove(pool, name)
            create()

    def delete(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        volume_name: str,
        entry: ceph.Entry,
    ) -> None:
        """Delete a volume; one that is gone already is deleted.

        :param entry: what was found of it
        :raises RequestError: VOLUME_HAS_SNAPSHOTS, VOLUME_IN_USE
        """
        if pool.find(volume_name) != entry:
            # Its deletion was begun, over a connection that was lost.
            rbd_sweep.sweep(pool, connection, rbd_cleanup.finish_or_undo)
            return
        with _taken(
            connection, pool, volume_name, Work.DELETE, image=entry.id
        ) as holding:
            try:
                _check_childless(pool, volume_name)
                _remove(pool, volume_name)
            except exception.RequestError:
                holding.release()  # it is as it was
                raise
            holding.release()


class Stream:
    """A volume that is being written, under a partial name.

    :ivar name: of its image until it is published
    :param opened: holds the image
    """

    def __init__(
        self,
        pool: ceph.Pool,
        holding: rbd_leases.Holding,
        image: ceph.Image,
        opened: contextlib.ExitStack,
    ) -> None:
        lease = holding.lease
        self.name = rbd_undo.partial_name(lease.volume)
        self.writer = rbd_writer.ImageWriter(image, lease.size)
        self._pool = pool
        self._holding = holding
        self._opened = opened
        self._image_id = image.id()

    def publish(self) -> None:
        """Give the volume its name; all that was written is flushed.

        :raises RequestError: VOLUME_EXISTS
        """
        self._opened.close()
        # Else another one may have it by now.
        self._holding.renew()
        volume_name = self._holding.lease.volume
        try:
            self._pool.rename(self.name, volume_name)
        except ceph.CephError as error:
            if error.errno != errno.EEXIST:
                raise
            raise _exists(volume_name, 'exists already') from error
        self._holding.release()

    def undo(self) -> None:
        """Leave nothing of it.

        :raises CephError: something is left for a sweep
        """
        with self._holding as holding:
            self.writer.drop()
            try:
                self._opened.close()
            except ceph.CephError as error:
                LOG.info('Closing an image that is removed: %s', error)
            volume_name = holding.lease.volume
            rbd_undo.undo_stream(self._pool, volume_name, self._image_id)
            holding.release()


def _resize(
    pool: ceph.Pool, header: ceph.Header, name: str, was: int, size: int
) -> None:
    """Give a new clone its size, without opening it where that can be."""
    if size == was or (size > was and header.grow(size)):
        return
    with pool.image(name, write=True) as image:
        image.resize(size)


def _begun(
    connection: ceph.Connection,
    pool: ceph.Pool,
    volume_name: str,
    work: Work,
    **facts: str | int,
) -> rbd_leases.Holding:
    """Begin to make a volume whose name is free.

    :raises RequestError: INVALID_NAME, VOLUME_EXISTS
    """
    holding = _taken(connection, pool, volume_name, work, **facts)
    with undone(holding):
        entry = pool.find(volume_name)
        if entry:
            state = 'already' if entry.whole else 'half, in Ceph'
            raise _exists(volume_name, f'exists {state}')
    return holding


def _taken(
    connection: ceph.Connection,
    pool: ceph.Pool,
    volume_name: str,
    work: Work,
    **facts: str | int,
) -> rbd_leases.Holding:
    """Begin to work on a volume, where nobody else is at it."""
    common.check_volume_name(volume_name)
    take = functools.partial(
        rbd_leases.take, pool, connection, volume_name, work, **facts
    )
    try:
        return take()
    except rbd_leases.TakenError:
        # Perhaps by one who is dead.
        rbd_sweep.sweep(pool, connection, rbd_cleanup.finish_or_undo)
    try:
        return take()
    except rbd_leases.TakenError as error:
        raise _exists(volume_name, str(error)) from None


@contextlib.contextmanager
def undone(
    holding: rbd_leases.Holding, undo: Callable[[], None] | None = None
) -> Iterator[None]:
    """Undo where the block fails; what fails then becomes a note."""
    try:
        yield
    except BaseException as error:
        try:
            if undo is not None:
                undo()
            holding.release()
        except Exception as second:  # noqa: BLE001 - the first one counts
            holding.drop()
            LOG.warning('Left for a sweep: %s', second)
            error.add_note(f'left for a sweep: {second}')
        raise


def _remove(pool: ceph.Pool, volume_name: str) -> None:
    try:
        rbd_undo.remove(pool, volume_name)
    except ceph.CephError as error:
        if error.errno != errno.EBUSY:
            raise
        raise exception.RequestError.because(
            Reason.VOLUME_IN_USE,
            volume=volume_name,
            clients=_clients(pool, volume_name),
        ) from error


def _clients(pool: ceph.Pool, volume_name: str) -> str:
    found: list[str] = []
    with (
        contextlib.suppress(ceph.CephError),
        pool.image(volume_name) as image,
    ):
        found = ceph.watchers(image)
    return listed(found) or 'a client that is gone by now'


def _check_childless(pool: ceph.Pool, volume_name: str) -> None:
    """Refuse to delete what others live on; say who they are.

    :raises RequestError: VOLUME_HAS_SNAPSHOTS
    """
    try:
        with pool.image(volume_name) as image:
            snapshots = ceph.snapshots(image)
            if not snapshots:
                return
            children = ceph.children(image, NAMED)
    except ceph.CephError as error:
        if error.errno == errno.ENOENT:
            return  # half of an image has none
        raise
    raise exception.RequestError.because(
        Reason.VOLUME_HAS_SNAPSHOTS,
        volume=volume_name,
        snapshots=listed(snapshots),
        children=listed(children) or 'nothing',
    )


def listed(names: list[str]) -> str:
    more = ' and more' if names[NAMED:] else ''
    return ', '.join(names[:NAMED]) + more


def _exists(volume_name: str, state: str) -> exception.RequestError:
    return exception.RequestError.because(
        Reason.VOLUME_EXISTS, volume=volume_name, state=state
    )
