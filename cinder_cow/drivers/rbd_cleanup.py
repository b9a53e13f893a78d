# SPDX-License-Identifier: Apache-2.0
"""Bring works to an end that were broken off: those on bases too.

A base whose snapshot is there is published, and stays; one whose snapshot is
gone is half removed, and goes. So it can be told at every step what is to be
done.
"""

import errno

from oslo_log import log as logging

from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_base_links
from cinder_cow.drivers import rbd_undo
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.drivers.rbd_lease_row import Work

LOG = logging.getLogger(__name__)

# Publishes a base.
SNAPSHOT = 'snap'


def finish_or_undo(pool: ceph.Pool, lease: Lease) -> None:
    """Bring an end to a work that a dead maker has left at any step.

    :raises CephError: it could not be; may be tried again
    """
    if lease.work is Work.BASE:
        undo_base(pool, lease)
    elif lease.work is Work.RETIRE:
        end_retiring(pool, lease)
    else:
        rbd_undo.finish_or_undo(pool, lease)


def undo_base(pool: ceph.Pool, lease: Lease) -> None:
    """Leave nothing of a base, unless it is published.

    :raises CephError: something is left
    """
    entry = pool.find(lease.volume)
    if entry.whole and is_published(pool, entry.id):
        if _is_whole(pool, entry.id):
            _settle(pool, entry.id)
            return
        _unpublish(pool, entry.id)
    rbd_undo.remove(pool, lease.volume)
    rbd_base_links.remove(pool, lease)


def end_retiring(pool: ceph.Pool, lease: Lease) -> None:
    """Finish removing a base; or let it be, where its snapshot still is.

    :raises CephError: something is left
    """
    entry = pool.find(lease.volume)
    if entry.whole and entry.id != lease.image:
        return  # another one by now
    if entry.whole and is_published(pool, entry.id):
        _settle(pool, entry.id)
        return
    remove_rest(pool, lease)


def remove_rest(pool: ceph.Pool, lease: Lease) -> None:
    """Remove a base whose snapshot is gone, and what belongs to it.

    :raises CephError: something is left; ENOTEMPTY: somebody made a clone of
        it meanwhile, and it is a base again
    """
    try:
        rbd_undo.remove(pool, lease.volume)
    except ceph.CephError as error:
        if error.errno == errno.ENOTEMPTY:
            _restore(pool, lease.image)
        raise
    pool.remove_object(manifest_of(lease.image))
    rbd_base_links.remove(pool, lease)


def _restore(pool: ceph.Pool, image_id: str) -> None:
    """Publish a base again; nobody has written to it."""
    with pool.image_of(image_id, write=True) as image:
        image.create_snap(SNAPSHOT)
    check_published(pool, image_id)
    protect(pool, image_id)


def check_published(pool: ceph.Pool, image_id: str) -> None:
    """Make sure that the snapshot just made of a base is whole.

    :raises CephError: ENOSPC: it was not, and is gone
    """
    if not _is_whole(pool, image_id):
        _unpublish(pool, image_id)
        raise ceph.CephError(errno.ENOSPC, 'half a snapshot was made')


def _is_whole(pool: ceph.Pool, image_id: str) -> bool:
    snapshot = _published(pool, image_id)
    return snapshot is not None and pool.header(image_id).has_map(snapshot)


def _unpublish(pool: ceph.Pool, image_id: str) -> None:
    with pool.image_of(image_id, write=True) as image:
        if image.is_protected_snap(SNAPSHOT):
            image.unprotect_snap(SNAPSHOT)
        image.remove_snap(SNAPSHOT)


def is_published(pool: ceph.Pool, image_id: str) -> bool:
    return _published(pool, image_id) is not None


def _published(pool: ceph.Pool, image_id: str) -> ceph.Snapshot | None:
    # An image that is being made has its names before its header.
    with ceph.ignored(errno.ENOENT):
        return pool.header(image_id).kept().snapshots.get(SNAPSHOT)
    return None


def protect(pool: ceph.Pool, image_id: str) -> None:
    """Protect the snapshot of a base."""
    with pool.image_of(image_id, write=True) as image:
        _protect(image)


def _protect(image: ceph.Image) -> None:
    with ceph.translated():
        if not image.is_protected_snap(SNAPSHOT):
            image.protect_snap(SNAPSHOT)


def _settle(pool: ceph.Pool, image_id: str) -> None:
    """Have a base be as its maker would have left it."""
    with pool.image_of(image_id, write=True) as image:
        ceph.take_lock(image)
        _protect(image)


def manifest_of(image_id: str) -> str:
    """Name the object that is kept with a base."""
    return f'cow_manifest.{image_id}'
