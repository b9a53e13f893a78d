# SPDX-License-Identifier: Apache-2.0
"""Who is at work on which volume: a row of one object of the pool.

Making and deleting a volume takes librbd many steps, and any of them may be
the last one of a process. So the work is written down first: a row of the
object ``cow_leases``, under the volume's name, together with a lock that ends
by itself. While the row is there, nobody sees the volume. The step that
removes it publishes the volume, or shows that it is gone.

A row whose maker is dead is taken over: that client is shut out first, so
that it does no harm should it only have slept.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import enum
import errno
import functools
import json
import os
import pathlib
import socket
import time
from typing import Any, Self
import uuid

from oslo_log import log as logging

from cinder_cow import refusal
from cinder_cow.drivers import ceph
from cinder_cow.drivers import native

LOG = logging.getLogger(__name__)

OBJECT = 'cow_leases'
# Seconds; renewed three times before it ends.
SECONDS = 30


class Work(enum.Enum):
    """What is done to a volume."""

    CLONE = 'clone'
    STREAM = 'stream'
    DELETE = 'delete'


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """A process, so that others on its host can tell whether it lives.

    :param boot: which run of which kernel
    :param pids: which namespace its number is of
    :param started: when it was, in ticks since boot; see proc(5)
    """

    host: str
    pid: int
    started: str
    boot: str
    pids: str

    @classmethod
    def me(cls) -> 'Owner':
        return _owner(os.getpid())

    @property
    def is_dead_here(self) -> bool:
        """Whether it ran here and has ended; False where nobody can tell."""
        me = self.me()
        if (self.boot, self.pids) != (me.boot, me.pids):
            return False
        return _started(self.pid) != self.started

    def __str__(self) -> str:
        return f'process {self.pid} on {refusal.printable(self.host)}'


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> Owner:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
    return Owner(
        host=socket.gethostname(),
        pid=pid,
        started=_started(pid),
        boot=boot.read_text().strip(),
        pids=os.readlink('/proc/self/ns/pid'),
    )


def _started(pid: int) -> str:
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ''
    fields = stat.rpartition(')')[2].split()
    # A zombie does nothing any more.
    return '' if fields[0] == 'Z' else fields[19]


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A work that is under way.

    :param id: of this one attempt
    :param address: of its client, by which it can be shut out
    :param client: its number, with which the ids of its images begin
    :param image: id of the image that is deleted
    :param size: bytes it shall have
    :param since: seconds since the epoch, for people
    """

    id: str
    volume: str
    work: Work
    owner: Owner
    address: str
    client: str
    image: str = ''
    size: int = 0
    since: float = 0

    def packed(self) -> bytes:
        record = dataclasses.asdict(self) | {'work': self.work.value}
        return json.dumps(record).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Read a row.

        :raises ValueError: it is none of ours
        """
        try:
            record: dict[str, Any] = json.loads(data)
            owner = Owner(**record.pop('owner'))
            work = Work(record.pop('work'))
            return cls(work=work, owner=owner, **record)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from None

    def has_made(self, image_id: str) -> bool:
        """Whether an image is of this work's client.

        librbd makes an id of the client's number and one by chance, both in
        hexadecimal, and keeps the last 14 digits of it.
        """
        return any(
            image_id[:-length] == self.client[length - 14 :]
            for length in range(1, 9)
        )

    def lock(self, renew: bool = False) -> ceph.Lock:
        return ceph.Lock(self.id, self.id, SECONDS, renew)


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
        doing = 'deleted' if self.lease.work is Work.DELETE else 'made'
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

        :raises LostError: it is not
        """
        if not _rows(self._pool).lock(self.lease.lock(renew=True)):
            raise LostError(f'the lease on {self.lease.volume} was lost')

    def release(self) -> None:
        """Take the row away: what was made is published by it.

        :raises LostError: another one has taken over
        """
        lease = self.lease
        if not _rows(self._pool).remove(
            lease.volume, lease.packed(), lease.id
        ):
            raise LostError(f'the lease on {lease.volume} was lost')
        self.drop()

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
            except LostError:
                return  # who publishes will see it
            except ceph.CephError as error:
                LOG.warning('The lease on %s: %s', self.lease.volume, error)
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
        if not _rows(pool).put(volume, lease.packed(), lock=lease.lock()):
            raise TakenError(of(pool, volume))
        return Holding(pool, lease)


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


def _is_dead(pool: ceph.Pool, lease: Lease) -> bool:
    # One of ours that is not held was dropped: it could not be undone.
    if lease.owner == Owner.me() or lease.owner.is_dead_here:
        return True
    # Only where it has ended can another one take it.
    probe = ceph.Lock(lease.id, 'a sweep', 1)
    return _rows(pool).lock(probe)


def _take_over(
    pool: ceph.Pool, connection: ceph.Connection, lease: Lease
) -> Holding | None:
    """Have a lease in the place of a dead one's, as the only one who gets it.

    :returns: None: it was released meanwhile, or another one was faster
    """
    ours = dataclasses.replace(
        lease,
        id=uuid.uuid4().hex,
        owner=Owner.me(),
        address=connection.address,
    )
    with _about_to_hold(ours):
        if not _rows(pool).put(
            lease.volume,
            ours.packed(),
            was=lease.packed(),
            lock=ours.lock(),
            unlock=lease.id,
        ):
            # Our probe may have come after its release.
            _rows(pool).forget_lock(lease.id)
            _held.discard(ours.id)
            return None
        return Holding(pool, ours)


def _rows(pool: ceph.Pool) -> ceph.Rows:
    return pool.rows(OBJECT)


Clean = Callable[[ceph.Pool, Lease], None]


def sweep(pool: ceph.Pool, connection: ceph.Connection, clean: Clean) -> None:
    """Finish or undo what dead makers left; what fails stays for the next.

    :raises CephError: the cluster does not answer
    """
    for volume, row in _rows(pool).all().items():
        try:
            lease = Lease.unpacked(row)
        except ValueError as error:
            LOG.warning('The lease on %s is unknown: %s', volume, error)
            continue
        if lease.id in _held or not _is_dead(pool, lease):
            continue
        try:
            _end(pool, connection, lease, clean)
        except ceph.CephError as error:
            if error.errno == errno.ETIMEDOUT or error.lost:
                raise
            LOG.warning('Volume %s: %s', volume, error)


def _end(
    pool: ceph.Pool,
    connection: ceph.Connection,
    lease: Lease,
    clean: Clean,
) -> None:
    """Clean up behind a maker, whose client is shut out before."""
    holding = _take_over(pool, connection, lease)
    if holding is None:
        return
    with holding:
        if lease.address != connection.address:
            connection.shut_out(lease.address)
        clean(pool, lease)
        holding.release()
        LOG.warning(
            'Removed what was left half-made by %s: volume %s',
            lease.owner,
            lease.volume,
        )
