# SPDX-License-Identifier: Apache-2.0
"""Who is at work on which volume: a row of one object of the pool.

Making and deleting a volume takes librbd many steps, and any of them may be
the last one of a process. So the work is written down first: a row of the
object ``cow_leases``, under the volume's name, together with a lock that ends
by itself. While the row is there, nobody sees the volume. The step that
removes it publishes the volume, or shows that it is gone. What a row says is
in :mod:`.rbd_lease_row`.

A row whose maker is dead is taken over: that client is shut out first, so
that it does no harm should it only have slept.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import time
from typing import Any, Self
import uuid

from oslo_log import log as logging

from cinder_cow.drivers import ceph
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd_lease_row
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.drivers.rbd_lease_row import Work
from cinder_cow.drivers.rbd_owner import Owner

LOG = logging.getLogger(__name__)

OBJECT = 'cow_leases'
# Seconds; renewed three times before it ends.
SECONDS = 30


class TakenError(Exception):
    """Another one is at work on the volume.

    :param lease: its; None where its row cannot be read
    """

    def __init__(self, lease: Lease | None) -> None:
        super().__init__(lease)
        self.lease = lease

    def __str__(self) -> str:
        """Say what is done to it, and by whom."""
        if self.lease is None:
            return 'is being worked on by another release'
        ends = self.lease.work in {Work.DELETE, Work.RETIRE}
        doing = 'deleted' if ends else 'made'
        return f'is being {doing} by {self.lease.owner}'


class LostError(Exception):
    """A lease ended before its work did; another one may have taken over."""


# Of this process, so that a sweep in it leaves them alone: here before its
# row is, and until that is gone.
_held: set[str] = set()
os.register_at_fork(after_in_child=_held.clear)


class Holding:
    """A lease of ours: renewed until it is released or dropped.

    A context manager; left without ``release`` it is dropped: the row stays,
    for a sweep to finish what could not be undone.
    """

    def __init__(self, pool: ceph.Pool, lease: Lease) -> None:
        self.lease = lease
        self._pool = pool
        self._timer: Any = None
        self._dropped = False
        self._ticking = native.threading().Lock()
        self._wind_up()

    def renew(self) -> None:
        """Make sure that it is held, for all its seconds from now.

        Its lock ends while a machine sleeps, or when a clock is set; the work
        is ours all the same while nobody has changed the row to take it over.

        :raises LostError: another one has taken over, or is about to
        """
        rows = _rows(self._pool)
        lease = self.lease
        if rows.lock(lock_of(lease, renew=True)):
            return
        row = lease.packed()
        if not rows.put(lease.volume, row, was=row, lock=lock_of(lease)):
            raise self._lost()

    def write_down(self, lease: Lease) -> None:
        """Change the row, which is written once more where it is unclear.

        :raises LostError: another one has taken over
        """
        rows = _rows(self._pool)
        wanted = lease.packed()
        for _attempt in range(2):
            if rows.put(lease.volume, wanted, was=self.lease.packed()):
                self.lease = lease
                return
            self._read_again()
        raise self._lost()

    def leave(self) -> None:
        """Let the row be, for the next maker to go on at once.

        :raises LostError: another one has taken over
        """
        left = self.lease.changed(left=True)
        if not _rows(self._pool).put(
            left.volume,
            left.packed(),
            was=self.lease.packed(),
            unlock=left.id,
        ):
            raise self._lost()
        self.drop()

    def release(self) -> None:
        """Take the row away: what was made is published by it.

        :raises LostError: another one has taken over
        """
        if not self._remove():
            self._read_again()
            if not self._remove():
                raise self._lost()
        self.drop()

    def _remove(self) -> bool:
        lease = self.lease
        return _rows(self._pool).remove(lease.volume, lease.packed(), lease.id)

    def _read_again(self) -> None:
        """Look what became of a change that timed out.

        :raises LostError: another one has taken over
        """
        found = of(self._pool, self.lease.volume)
        if found is None or found.id != self.lease.id:
            raise self._lost()
        self.lease = found

    def _lost(self) -> LostError:
        return LostError(f'the lease on {self.lease.volume} was lost')

    def drop(self) -> None:
        self._dropped = True
        self._timer.cancel()
        # The pool may be closed next; librados crashes where it is in use.
        with self._ticking:
            _held.discard(self.lease.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.drop()

    def _wind_up(self) -> None:
        # Most works take milliseconds; the thread of a timer 0.1 ms.
        self._timer = native.threading().Timer(SECONDS / 3, self._tick)
        self._timer.daemon = True
        self._timer.start()
        if self._dropped:  # meanwhile, with the timer before
            self._timer.cancel()

    def _tick(self) -> None:
        with self._ticking:
            if self._dropped:
                return
            try:
                self.renew()
            except (LostError, ceph.CephError) as error:
                # It may be ours again: who publishes will see it.
                volume = self.lease.volume
                LOG.warning('%s: its lease is not renewed: %s', volume, error)
        self._wind_up()


def take(
    pool: ceph.Pool,
    connection: ceph.Connection,
    volume: str,
    work: Work,
    **facts: Any,  # noqa: ANN401 - those of the lease
) -> Holding:
    """Begin to work on a volume.

    :raises TakenError: another one is at it
    """
    lease = Lease(
        id=uuid.uuid4().hex,
        volume=volume,
        work=work,
        owner=Owner.me(),
        address=connection.address,
        client=connection.client,
        since=time.time(),
        **facts,
    )
    with _about_to_hold(lease):
        if not _rows(pool).put(volume, lease.packed(), lock=lock_of(lease)):
            raise TakenError(of(pool, volume))
        return Holding(pool, lease)


def take_from(
    pool: ceph.Pool, connection: ceph.Connection, lease: Lease
) -> Holding | None:
    """Have a lease in the place of a dead one's, as the only one who gets it.

    Both clients are to be shut out by who takes over next, until the first
    one is.

    :returns: None: it was released meanwhile, or another one was faster
    """
    ours = dataclasses.replace(
        lease,
        id=uuid.uuid4().hex,
        owner=Owner.me(),
        address=_both(connection.address, lease.address),
    )
    with _about_to_hold(ours):
        if not _rows(pool).put(
            lease.volume,
            ours.packed(),
            was=lease.packed(),
            lock=lock_of(ours),
            unlock=lease.id,
        ):
            # Our probe may have come after its release.
            _rows(pool).forget_lock(lease.id)
            _held.discard(ours.id)
            return None
        return Holding(pool, ours)


def lock_of(lease: Lease, renew: bool = False) -> ceph.Lock:
    """Describe the lock that comes and goes with the row of a lease."""
    return ceph.Lock(lease.id, lease.id, SECONDS, renew)


def _both(address: str, older: str) -> str:
    parts = f'{address.strip("[]")},{older.strip("[]")}'.split(',')
    return ','.join(dict.fromkeys(parts))


def is_dead(pool: ceph.Pool, lease: Lease) -> bool:
    """Tell whether a work will not be gone on with by who began it."""
    known = _known_dead(lease)
    if known is not None:
        return known
    # Only where it has ended can another one take it.
    probe = ceph.Lock(lease.id, 'a sweep', 1)
    return _rows(pool).lock(probe)


def seems_dead(pool: ceph.Pool, lease: Lease) -> bool:
    """Tell the same at this moment, changing nothing.

    One that is only late may still renew its lock.
    """
    known = _known_dead(lease)
    if known is not None:
        return known
    return not _rows(pool).is_locked(lease.id)


def _known_dead(lease: Lease) -> bool | None:
    """Tell whether a work is dead, where that takes no look at its lock."""
    if lease.id in _held:
        return False
    if lease.draft and lease.draft.left:
        return True
    # One of ours that is not held was dropped: it could not be undone.
    if lease.owner == Owner.me() or lease.owner.is_dead_here:
        return True
    return None


def stray_locks(pool: ceph.Pool) -> list[str]:
    """Name the locks that are of no row: a probe was late."""
    rows = _rows(pool)
    locks = rows.locks()
    # A row and its lock come and go together.
    held = {rbd_lease_row.id_of(row) for row in rows.all().values()}
    there = set(rows.locks())
    return [
        lock
        for lock in locks
        if lock not in held and lock in there and not rows.is_locked(lock)
    ]


def forget_lock(pool: ceph.Pool, lock: str) -> None:
    _rows(pool).forget_lock(lock)


def all_of(pool: ceph.Pool) -> dict[str, bytes]:
    """Read the rows, by volume."""
    return _rows(pool).all()


@contextlib.contextmanager
def _about_to_hold(lease: Lease) -> Iterator[None]:
    _held.add(lease.id)
    try:
        yield
    except BaseException:
        _held.discard(lease.id)
        raise


def of(pool: ceph.Pool, volume: str) -> Lease | None:
    """Return the lease on a volume, if there is one that can be read."""
    try:
        return Lease.unpacked(_rows(pool).get(volume))
    except ValueError:
        return None


def names(pool: ceph.Pool) -> set[str]:
    """Name the volumes that are worked on, which nobody is to see."""
    return set(_rows(pool).all())


def is_taken(pool: ceph.Pool, volume: str) -> bool:
    return bool(_rows(pool).get(volume))


def _rows(pool: ceph.Pool) -> ceph.Rows:
    return pool.rows(OBJECT)
