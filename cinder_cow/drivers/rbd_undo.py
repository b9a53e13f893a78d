# SPDX-License-Identifier: Apache-2.0
"""Remove images for good, also ones that were made or renamed half.

Creating, renaming and removing an image are several steps each (the name
object, the directory, the header). What they leave where they are broken off
is told by reading these, and removed by the image's id: a name may be that
of another image by now.
"""

import errno
import itertools
import time

from cinder_cow.drivers import base
from cinder_cow.drivers import ceph
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.drivers.rbd_lease_row import Work

_PARTIAL = f'{base.RESERVED_PREFIX}partial.'
# A client that has just closed an image may be its watcher for a moment.
_BUSY_SECONDS = 5
_ATTEMPTS = 3
_PAUSE = 0.2


def partial_name(volume_name: str) -> str:
    """Name what a volume is until it is published."""
    return _PARTIAL + volume_name


def volume_of_partial(name: str) -> str:
    """Tell the volume that an image was to be; '' where it is no partial."""
    return name.removeprefix(_PARTIAL) if name.startswith(_PARTIAL) else ''


def finish_or_undo(pool: ceph.Pool, lease: Lease) -> None:
    """Bring an end to a work that a dead maker has left at any step.

    What was to be made is undone, also where all but its row is done: the
    maker's lock may be on it, and its parent may not know of it.

    :raises CephError: it could not be; may be tried again
    """
    if lease.work is Work.DELETE:
        # By its id: the name may be that of another tool's image by now.
        entry = pool.find(lease.volume)
        if not entry.whole or entry.id == lease.image:
            remove(pool, lease.volume)
        return
    if lease.work is Work.STREAM:
        _finish_rename(pool, lease.volume)
        remove(pool, partial_name(lease.volume))
    undo_volume(pool, lease)


def undo_volume(pool: ceph.Pool, lease: Lease) -> None:
    """Leave nothing of a volume that could not be made.

    :raises CephError: something is left
    """
    entry = pool.find(lease.volume)
    # Another tool's is left alone, also one that is just being made.
    if not entry or lease.has_made(entry.id or entry.listed):
        remove(pool, lease.volume)


def undo_stream(pool: ceph.Pool, volume_name: str, image_id: str) -> None:
    """Leave nothing of a stream, which may even have been renamed.

    :param image_id: of its image; '' where there was none yet
    :raises CephError: something is left
    """
    _finish_rename(pool, volume_name)
    if image_id and pool.find(volume_name).id == image_id:
        remove(pool, volume_name)
    remove(pool, partial_name(volume_name))


def _finish_rename(pool: ceph.Pool, volume_name: str) -> None:
    """Let an image have one name again, where a rename was broken off.

    That begins with the new name's object, goes on with the directory and
    ends with the old name's. All bytes were written before it.
    """
    name = partial_name(volume_name)
    partial, volume = pool.find(name), pool.find(volume_name)
    if not partial.id:
        return
    if pool.listed_as(partial.id) == volume_name:
        pool.remove_name(name)
    elif volume.id == partial.id:
        pool.remove_name(volume_name)


def remove(pool: ceph.Pool, name: str) -> None:
    """Remove an image and all that is known of its name.

    One that is gone, or was never whole, is removed too.

    :raises CephError: EBUSY: a client has it open; ENOTEMPTY: it has
        snapshots
    """
    entry = pool.find(name)
    if entry.id and pool.listed_as(entry.id) not in ('', name):
        # A rename was broken off: the image is another one's.
        pool.remove_name(name)
    # Also where the name is gone: then librbd goes on with a removal that was
    # broken off, when the image was on its way through the trash.
    _remove_image(pool, name)
    entry = pool.find(name)
    if any(
        pool.has_object(f'rbd_header.{image_id}')
        for image_id in (entry.id, entry.listed)
        if image_id
    ):
        # librbd says ENOENT too where there is no room for its first trash.
        raise ceph.CephError(errno.ENOSPC, f'{name} could not be removed')
    if entry.id:
        pool.remove_name(name)
    if entry.listed:
        pool.unlist(name, entry.listed)


def _remove_image(pool: ceph.Pool, name: str) -> None:
    image_id = pool.id_of(name) or pool.half_removed(name)
    _shut_out_others(pool, name, image_id)
    deadline = time.monotonic() + _BUSY_SECONDS
    for attempt in itertools.count(1):
        try:
            pool.remove(name)
        except ceph.CephError as error:
            if error.errno == errno.ENOENT:
                return
            if error.errno != errno.EBUSY:
                raise
            # One attempt may take as long: it asks a dead client for its
            # lock.
            if attempt >= _ATTEMPTS and time.monotonic() > deadline:
                raise
            image_id = pool.find(name).id or pool.half_removed(name)
            if image_id and _is_haunted(pool, name, image_id):
                _remove_by_hand(pool, image_id)
                return
            time.sleep(_PAUSE)
        else:
            return


def _is_haunted(pool: ceph.Pool, name: str, image_id: str) -> bool:
    """Whether only clients that are shut out have an image open.

    The OSD keeps a watch for good whose client was killed a moment after
    asking for it, and librbd removes nothing that is watched.
    """
    _shut_out_others(pool, name, image_id)
    with pool.image_of(image_id) as image:
        found = set(ceph.watchers(image))
    return bool(found) and found <= pool.connection.shut_out_clients()


def _shut_out_others(pool: ceph.Pool, name: str, image_id: str) -> None:
    """Shut out who else has something open that is half-made by us.

    What is ours is open to nobody but us and qemu-img. Of one that was killed
    librbd would ask for the lock, until its watch ends: 30 s.
    """
    if not image_id or not name.startswith(base.RESERVED_PREFIX):
        return
    connection = pool.connection
    # Half of an image cannot be opened; and not everybody may shut out.
    with ceph.ignored(errno.ENOENT, errno.EACCES, errno.EPERM):
        with pool.image_of(image_id) as image:
            found = ceph.watchers(image)
        others = {one for one in found if one not in connection.address}
        for one in others and others - connection.shut_out_clients():
            connection.shut_out(one)


def _remove_by_hand(pool: ceph.Pool, image_id: str) -> None:
    """Remove an image as librbd does, but for its looking who watches."""
    with pool.image_of(image_id, write=True) as image:
        if ceph.parent_name(image):
            # An image of no size tells no parent, which still knows of it.
            image.resize(1)
            image.flatten()
        image.resize(0)
    for kind in ('rbd_object_map', 'rbd_header'):
        pool.remove_object(f'{kind}.{image_id}')
    pool.forget_removed(image_id)
