# SPDX-License-Identifier: Apache-2.0
"""The link between a volume and a base that is a clone of it.

Nothing is copied: the base is cloned from a snapshot of the volume. A clone
of version 2 can do without that snapshot at once; for one of version 1 the
volume keeps it until the base is retired.
"""

import errno
from typing import Any

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow.drivers import base
from cinder_cow.drivers import ceph
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

_PREFIX = f'{base.RESERVED_PREFIX}link-'
# What Ceph says that cannot make a clone of this volume, or not here.
_CANNOT_CLONE = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EXDEV,
}


def check_linkable(
    connection: ceph.Connection,
    pool: ceph.Pool,
    volume_name: str,
    size: int,
) -> None:
    """Make sure that a volume holds what a base is to have, and stays so.

    :raises BackendError: NOT_LINKABLE
    """
    with pool.image(volume_name) as image:
        if image.size() < size:
            raise _not_linkable(
                volume_name, f'it is smaller than {size} bytes'
            )
        if writers := ceph.watchers(image):
            raise _not_linkable(
                volume_name, f'it is open to {", ".join(writers)}'
            )
        if connection.is_imported(image):
            raise _not_linkable(volume_name, 'it is being imported')
        if parent := ceph.parent_name(image):
            LOG.info(
                'The base of volume %s hangs on its parent %s, too',
                volume_name,
                parent,
            )


def make(
    pool: ceph.Pool,
    volume: str,
    volume_name: str,
    name: str,
    options: dict[str, Any],
) -> None:
    """Make the base, as a clone of the volume.

    :param volume: id of its image, which is to be the one of that name still
    :param name: of the base
    :param options: of the new image
    :raises BackendError: NOT_LINKABLE
    """
    snapshot = _snapshot_of(name)
    try:
        with pool.image_of(volume, write=True) as image:
            image.create_snap(snapshot)
            image.protect_snap(snapshot)
            pool.clone(pool, volume_name, snapshot, name, **options)
            _let_go(image, snapshot)
        if pool.header(pool.id_of(name)).parent_image() != volume:
            raise _not_linkable(volume_name, 'it was replaced')
    except ceph.CephError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        raise _not_linkable(volume_name, error.problem) from error


def _let_go(image: ceph.Image, snapshot: str) -> None:
    """Remove the snapshot that a clone of version 2 can do without."""
    with ceph.ignored(errno.EBUSY):
        image.unprotect_snap(snapshot)
        image.remove_snap(snapshot)


def volume_of(image: ceph.Image) -> str:
    """Tell the id of the volume that keeps a snapshot for a linked base."""
    place = ceph.parent_place(image)
    return place[2] if place else ''


def remove(pool: ceph.Pool, lease: Lease) -> None:
    """Remove the snapshot of the volume that a base was linked to.

    :raises CephError: EBUSY: the base is a clone of version 1
    """
    if not (lease.draft and lease.draft.volume):
        return
    snapshot = _snapshot_of(lease.volume)
    try:
        with pool.image_of(lease.draft.volume, write=True) as image:
            found = [one['name'] for one in image.list_snaps()]
            if snapshot not in found:
                return
            if image.is_protected_snap(snapshot):
                image.unprotect_snap(snapshot)
            image.remove_snap(snapshot)
    except ceph.CephError as error:
        if error.errno != errno.ENOENT:
            raise


def _snapshot_of(name: str) -> str:
    """Name the snapshot of a volume that a base is a clone of."""
    return _PREFIX + name.rpartition('-')[2]


def _not_linkable(volume_name: str, problem: str) -> exception.BackendError:
    return exception.BackendError.because(
        Reason.NOT_LINKABLE, volume=volume_name, problem=problem
    )
