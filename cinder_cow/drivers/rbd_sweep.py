# SPDX-License-Identifier: Apache-2.0
"""Works whose makers live no more: they are taken over, and ended."""

from collections.abc import Callable
import errno
import math
import time

from oslo_log import log as logging

from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers.rbd_lease_row import Lease

LOG = logging.getLogger(__name__)

Clean = Callable[[ceph.Pool, Lease], None]


def sweep(
    pool: ceph.Pool,
    connection: ceph.Connection,
    clean: Clean,
    keep: float = math.inf,
) -> None:
    """Finish or undo what dead makers left; what fails stays for the next.

    :param keep: seconds for which what can be gone on with is left alone
    :raises CephError: the cluster does not answer
    """
    for volume, row in rbd_leases.all_of(pool).items():
        try:
            lease = Lease.unpacked(row)
        except ValueError as error:
            LOG.warning('The lease on %s is unknown: %s', volume, error)
            continue
        if is_kept(lease, keep) or not rbd_leases.is_dead(pool, lease):
            continue
        try:
            end(pool, connection, lease, clean)
        except ceph.CephError as error:
            if error.errno == errno.ETIMEDOUT or error.lost:
                raise
            LOG.warning('Volume %s: %s', volume, error)


def is_kept(lease: Lease, keep: float) -> bool:
    """Whether the next maker may still go on with what was left."""
    draft = lease.draft
    if draft is None or not draft.kept:
        return False
    return time.time() < draft.told + keep


def end(
    pool: ceph.Pool,
    connection: ceph.Connection,
    lease: Lease,
    clean: Clean,
) -> None:
    """Clean up behind a dead maker."""
    holding = take_over(pool, connection, lease)
    if holding is None:
        return
    with holding:
        clean(pool, lease)
        holding.release()
        LOG.warning(
            'Removed what was left half-made by %s: %s',
            lease.owner,
            lease.volume,
        )


def take_over(
    pool: ceph.Pool, connection: ceph.Connection, lease: Lease
) -> rbd_leases.Holding | None:
    """Have a lease in the place of a dead one's, whose client is shut out.

    :returns: None: it was released meanwhile, or another one was faster
    :raises CephError: EACCES: this user may not shut out
    """
    holding = rbd_leases.take_from(pool, connection, lease)
    if holding is None:
        return None
    try:
        shut_out(connection, lease.address)
    except BaseException:
        holding.drop()
        raise
    return holding


def shut_out(connection: ceph.Connection, address: str) -> None:
    """Shut out the clients of a row, but for our own."""
    ours = connection.address.strip('[]').split(',')
    parts = address.strip('[]').split(',')
    if others := [part for part in parts if part not in ours]:
        connection.shut_out(','.join(others))
