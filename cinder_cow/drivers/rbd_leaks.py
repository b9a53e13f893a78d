# SPDX-License-Identifier: Apache-2.0
"""What Cinder's own RBD driver keeps for clones, and when that may go.

A clone of a volume hangs on a snapshot of it, ``NAME.clone_snap``, and a
volume that is deleted while it has clones is renamed ``NAME.deleted``. Cinder
29 removes neither when the last clone is gone. Nothing of it is removed here
that an image hangs on, or that has a snapshot of another name: that may be of
a user, of a backup or of a base.
"""

from collections.abc import Callable, Iterator
import dataclasses
import errno
import re
import time

from oslo_log import log as logging

from cinder_cow import refusal
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import orphans
from cinder_cow.drivers import rbd_undo

LOG = logging.getLogger(__name__)

DELETED = '.deleted'
CLONE_SNAPSHOT = '.clone_snap'
# Cinder makes a snapshot first and the clone of it next: of a younger one
# nobody can tell whether its clone is gone, or still to come.
YOUNG_SECONDS = 3600.0
# Who removes a snapshot or an image of a removed volume may meet another.
_ATTEMPTS = 3
_PAUSE = 0.2
_REMOVED_WITH_KIN = 'It is removed, and what was kept for it alone.'
# Of a volume, whatever volume_name_template says: its id is part of it.
_ID = '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'
_VOLUME = re.compile(_ID)
_DELETED_NAME = re.compile(rf'{_ID}{re.escape(DELETED)}\Z')
_CLONE_NAME = re.compile(rf'{_ID}{re.escape(CLONE_SNAPSHOT)}\Z')


@dataclasses.dataclass(frozen=True, slots=True)
class Kin:
    """What an image hangs on, in its own pool, and whether others do on it.

    :param parents: ids of images, and snapshots of them, as (id, name)
    """

    parents: frozenset[tuple[str, str]] = frozenset()
    has_children: bool = False


def kin(pool: ceph.Pool, image_id: str) -> Kin:
    """Tell the kin of an image; of one that is gone there is none."""
    with ceph.ignored(errno.ENOENT), pool.image_of(image_id) as image:
        found = {
            (parent.image, parent.snapshot)
            for parent in ceph.parents(image)
            if (parent.pool, parent.namespace) == (pool.name, pool.namespace)
        }
        return Kin(frozenset(found), ceph.has_children(image))
    return Kin()


def set_aside(pool: ceph.Pool, name: str) -> None:
    """Give a volume the name of one that is deleted, as Cinder does."""
    pool.rename(name, name + DELETED)


def release(pool: ceph.Pool, image_id: str, snapshot: str) -> None:
    """Remove what was kept for a clone that is gone: up to the first needed.

    :param snapshot: that the clone hung on; of another kind it stays
    """
    todo = [(image_id, snapshot)]
    while todo:
        image_id, snapshot = todo.pop()
        if is_of_clone(snapshot):
            remove_snapshot(pool, image_id, snapshot)
        todo.extend(remove_kept(pool, image_id))


def remove_kept(pool: ceph.Pool, image_id: str) -> frozenset[tuple[str, str]]:
    """Remove a volume that was kept for its clones, where it has none.

    :returns: what it hung on, where it is gone
    """
    place = _place(pool, image_id)
    if place and place.snapshots:
        _finish_snapshots(pool, image_id)
        place = _place(pool, image_id)
    if place is None or place.snapshots:
        return frozenset()
    parents = kin(pool, image_id).parents
    try:
        if place.in_trash:
            pool.remove_trashed(image_id)
        else:
            rbd_undo.remove(pool, place.name)
    except ceph.CephError as error:
        if error.errno == errno.ENOENT:
            return parents
        # Another one found it, too, and is about to remove it; or it has got
        # a clone.
        if error.errno in {errno.EBUSY, errno.ENOTEMPTY}:
            LOG.info('%s is left: %s', place.name, error)
            return frozenset()
        raise
    LOG.info('Removed %s, which had no clones any more', place.name)
    return parents


def remove_unneeded(pool: ceph.Pool, image_id: str) -> None:
    """Remove a volume that was kept for its clones, and what it hung on."""
    for parent, snapshot in remove_kept(pool, image_id):
        release(pool, parent, snapshot)


def half_removed(pool: ceph.Pool) -> list[tuple[str, str]]:
    """Tell ids and names of volumes whose removal was broken off."""
    return [
        (image_id, name)
        for image_id, name in pool.all_half_removed()
        if _VOLUME.search(name)
    ]


def finish_removal(pool: ceph.Pool, image_id: str) -> None:
    """Finish a removal that was broken off, unless somebody is at it.

    By its id: the name may be that of another volume by now.
    """
    parents = kin(pool, image_id).parents
    with ceph.ignored(errno.ENOENT, errno.EBUSY):
        pool.remove_trashed(image_id)
        for parent, snapshot in parents:
            release(pool, parent, snapshot)


def _finish_snapshots(pool: ceph.Pool, image_id: str) -> None:
    """Remove snapshots for clones whose removal was broken off.

    librbd removes them by way of a trash of the image, of any version.
    """
    gone = []
    with ceph.ignored(errno.ENOENT), pool.image_of(image_id) as image:
        for one in list(image.list_snaps()):
            trashed = one.get('trash', {}).get('original_name', '')
            if is_of_clone(trashed):
                image.set_snap_by_id(one['id'])
                if not ceph.has_children(image):
                    gone.append(one['id'])
    if not gone:
        return
    with (
        ceph.ignored(errno.ENOENT, errno.EBUSY),
        pool.image_of(image_id, write=True) as image,
    ):
        for number in gone:
            image.remove_snap_by_id(number)


def remove_stale(pool: ceph.Pool, image_id: str, age: float) -> None:
    """Remove the snapshots of clones that are gone.

    :param age: seconds, of the youngest that is removed
    """
    for snapshot in stale_snapshots(pool, image_id, age):
        remove_snapshot(pool, image_id, snapshot)


def stale_snapshots(pool: ceph.Pool, image_id: str, age: float) -> list[str]:
    """Name the snapshots for clones that have none, not the young ones."""
    found = []
    for snapshot in _snapshots(pool, image_id):
        if not is_of_clone(snapshot):
            continue
        with (
            ceph.ignored(errno.ENOENT),
            pool.image_of(image_id, snapshot) as image,
        ):
            made = ceph.snapshot_time(image, snapshot)
            if time.time() - made >= age and not ceph.has_children(image):
                found.append(snapshot)
    return found


def remove_snapshot(pool: ceph.Pool, image_id: str, snapshot: str) -> bool:
    """Remove a snapshot that nothing hangs on.

    :returns: whether it is gone
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        try:
            with pool.image_of(image_id, snapshot) as image:
                if ceph.has_children(image):
                    return False
            with pool.image_of(image_id, write=True) as image:
                if image.is_protected_snap(snapshot):
                    image.unprotect_snap(snapshot)
                image.remove_snap(snapshot)
        except ceph.CephError as error:
            if error.errno == errno.ENOENT:
                return True
            # Somebody else removes it, or makes a clone of it.
            if error.errno not in {errno.EBUSY, errno.EINVAL}:
                raise
            LOG.info('Snapshot %s: %s', snapshot, error)
        else:
            return True
    return False


def is_of_clone(snapshot: str) -> bool:
    return _CLONE_NAME.search(snapshot) is not None


def deleted(pool: ceph.Pool) -> Iterator[str]:
    """Tell the ids of volumes that are kept for their clones."""
    for name in pool.listed(''):
        if _DELETED_NAME.search(name) and (image_id := pool.id_of(name)):
            yield image_id


def trashed(pool: ceph.Pool) -> Iterator[str]:
    """Tell the ids of those that Cinder seems to have moved to the trash.

    They may be of somebody who wants to look at them yet.
    """
    for one in pool.trashed():
        if _is_kept(one):
            yield one.id


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a volume is that is kept for its clones."""

    name: str
    in_trash: bool
    snapshots: list[str]


def _place(pool: ceph.Pool, image_id: str) -> _Place | None:
    """Tell where it is; None where it is kept for something else, or gone."""
    name = pool.listed_as(image_id)
    in_trash = False
    if not name:
        found = [one for one in pool.trashed() if one.id == image_id]
        if not found or not _is_kept(found[0]):
            return None
        name, in_trash = found[0].name, True
    elif not _DELETED_NAME.search(name):
        return None
    return _Place(name, in_trash, _snapshots(pool, image_id))


def _is_kept(trashed: ceph.Trashed) -> bool:
    """Whether Cinder moved it there, and wants it no more.

    One that is to be kept until a time, by Cinder's deferred deletion or by
    hand, is left alone until then.
    """
    return trashed.expired and _VOLUME.search(trashed.name) is not None


def _snapshots(pool: ceph.Pool, image_id: str) -> list[str]:
    """Name all snapshots of an image; those in the trash have odd names."""
    with ceph.ignored(errno.ENOENT):
        return list(pool.header(image_id).kept().snapshots)
    return []


# For people


def found(pool: ceph.Pool) -> Iterator[orphans.Found]:
    """Find what has been left already, snapshots before their images."""
    going: dict[str, list[str]] = {}
    for image_id, name in _images(pool):
        # One damaged image must not hide the others.
        with ceph.ignored(errno.EIO):
            going[image_id] = stale_snapshots(pool, image_id, YOUNG_SECONDS)
        for snapshot in going.get(image_id, ()):
            yield _stale(pool, image_id, f'{name}@{snapshot}', snapshot)
    for image_id in (*deleted(pool), *trashed(pool)):
        place = _place(pool, image_id) if image_id in going else None
        if place and set(going[image_id]).issuperset(place.snapshots):
            yield _unneeded(pool, image_id, place)
    for image_id, name in half_removed(pool):
        if not _is_watched(pool, image_id):
            yield _half_removed(pool, image_id, name)


def _is_watched(pool: ceph.Pool, image_id: str) -> bool:
    """Whether somebody removes it just now."""
    with ceph.ignored(errno.ENOENT), pool.image_of(image_id) as image:
        return bool(ceph.watchers(image))
    return False


def _images(pool: ceph.Pool) -> Iterator[tuple[str, str]]:
    for name in pool.listed(''):
        if image_id := pool.id_of(name):
            yield image_id, name
    for trashed in pool.trashed():
        yield trashed.id, trashed.name


def _stale(
    pool: ceph.Pool, image_id: str, name: str, snapshot: str
) -> orphans.Found:
    return _orphan(
        f'snapshot {refusal.printable(name)}',
        'it was made for a clone, which is gone',
        'It is removed.',
        lambda: remove_snapshot(pool, image_id, snapshot),
    )


def _half_removed(pool: ceph.Pool, image_id: str, name: str) -> orphans.Found:
    def removed() -> bool:
        finish_removal(pool, image_id)
        return all(image_id != one for one, _name in half_removed(pool))

    return _orphan(
        f'image {refusal.printable(name)}, half removed',
        'its removal was broken off',
        _REMOVED_WITH_KIN,
        removed,
    )


def _unneeded(pool: ceph.Pool, image_id: str, place: _Place) -> orphans.Found:
    def removed() -> bool:
        remove_unneeded(pool, image_id)
        return _place(pool, image_id) is None

    where = ' in the trash' if place.in_trash else ''
    return _orphan(
        f'image {refusal.printable(place.name)}{where}',
        'its volume was deleted, and its clones are gone',
        _REMOVED_WITH_KIN,
        removed,
    )


def _orphan(
    what: str, problem: str, remedy: str, removed: Callable[[], bool]
) -> orphans.Found:
    """Tell of an orphan.

    :param removed: removes it, and tells whether it is gone
    """

    def remove() -> None:
        if not removed():
            raise ceph.CephError(errno.EBUSY, 'it is in use')

    return orphans.Found(bases.Orphan(what, problem, remedy), remove)
