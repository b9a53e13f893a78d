# SPDX-License-Identifier: Apache-2.0
"""What an open image tells."""

from collections.abc import Iterator, Mapping
import dataclasses
import datetime
import errno
import itertools
from typing import Any, TYPE_CHECKING, TypeAlias

from cinder_cow.drivers.ceph.calls import ignored
from cinder_cow.drivers.ceph.calls import translated

if TYPE_CHECKING:
    import rbd

    # An open image.
    Image: TypeAlias = rbd.Image
else:
    # The libraries may be missing.
    Image = Any

# rbd.RBD_FEATURE_MIGRATING: it is being imported, see "rbd migration".
_MIGRATING = 1 << 9
_ATTEMPTS = 10
# rbd.RBD_FEATURE_EXCLUSIVE_LOCK.
_EXCLUSIVE_LOCK = 1 << 2
# rbd.RBD_LOCK_MODE_EXCLUSIVE.
_EXCLUSIVE = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Parent:
    """What an image hangs on.

    :param image: its id
    :param snapshot: its name, an odd one where it is in the trash
    """

    pool: str
    namespace: str
    image: str
    snapshot: str


def watchers(image: Image) -> list[str]:
    """Name the clients that have an open image open to write."""
    with translated():
        return sorted({one['addr'] for one in image.watchers_list()})


def snapshots(image: Image) -> list[str]:
    """Name the snapshots of an image, those in the trash by what they were."""
    with translated():
        return [
            one.get('trash', {}).get('original_name', one['name'])
            for one in image.list_snaps()
        ]


def children(image: Image, limit: int) -> list[str]:
    """Name what was cloned of an image; one more than the limit at most."""
    found: list[str] = []
    for attempt in range(_ATTEMPTS):
        # librbd fails where one of them is removed as it looks.
        numbers = {errno.ENOENT} if attempt < _ATTEMPTS - 1 else set()
        with ignored(*numbers):
            some = itertools.islice(image.list_descendants(), limit + 1)
            found = [_child_name(child) for child in some]
            break
    return found


def has_children(image: Image) -> bool:
    """Whether anything was cloned of an image, or of the snapshot open."""
    for attempt in range(_ATTEMPTS):
        # As for children().
        numbers = {errno.ENOENT} if attempt < _ATTEMPTS - 1 else set()
        with ignored(*numbers):
            return any(True for _child in image.list_children2())
    return False


def own_children(
    image: Image, pool: str, namespace: str, limit: int
) -> list[str]:
    """Name what was cloned of any snapshot, by name alone in a pool."""
    place = '/'.join([*filter(None, (pool, namespace)), ''])
    found = children(image, limit)[:limit]
    return [name.removeprefix(place) for name in found]


def locked_by_another(image: Image) -> bool:
    """Whether the lock to write, which this client had, is not its own."""
    with translated():
        if not image.features() & _EXCLUSIVE_LOCK:
            return False
        return not image.is_exclusive_lock_owner()


def take_lock(image: Image) -> None:
    """Take the lock to write from a dead client; it ends with the handle."""
    # The feature may be missing.
    with ignored(errno.EINVAL):
        image.lock_acquire(_EXCLUSIVE)


def object_size(image: Image) -> int:
    with translated():
        return int(image.stat()['obj_size'])


def empty_behind(image: Image, offset: int) -> None:
    """Have an image read as zeros from the start of an object on."""
    with translated():
        size = image.size()
        if offset < size:
            image.resize(offset)
            image.resize(size)


def _child_name(child: Mapping[str, Any]) -> str:
    place = filter(None, (child['pool'], child['pool_namespace']))
    name = '/'.join([*place, child['image']])
    return f'{name} (in the trash)' if child['trash'] else name


def parent_name(image: Image) -> str | None:
    """Name what an image was cloned from, for people."""
    with ignored(errno.ENOENT):
        return '{}/{}@{}'.format(*image.parent_info())
    return None


def allocated(image: Image, size: int) -> int:
    """Tell how many bytes an image holds itself, in whole objects."""
    if is_migrating(image):
        return size
    own = stored(image, 0, size, parents=False)
    return sum(end - start for start, end in own)


def parent_place(image: Image) -> tuple[str, str, str] | None:
    """Tell pool, namespace and id of what an image was cloned from."""
    with ignored(errno.ENOENT):
        parent = image.get_parent_image_spec()
        return (
            parent['pool_name'],
            parent['pool_namespace'],
            image.parent_id(),
        )
    return None


def parents(image: Image) -> Iterator[Parent]:
    """Tell what an image hangs on, and what its snapshots do.

    Those may have a parent where the image has none any more: it was
    flattened.
    """
    with translated():
        numbers = [one['id'] for one in image.list_snaps()]
    # None: the image itself.
    for number in (None, *numbers):
        with ignored(errno.ENOENT):
            image.set_snap_by_id(number)
            parent = image.get_parent_image_spec()
            yield Parent(
                parent['pool_name'],
                parent['pool_namespace'],
                image.parent_id(),
                parent['snap_name'],
            )
    with translated():
        image.set_snap_by_id(None)


def snapshot_time(image: Image, snapshot: str) -> float:
    """Tell when a snapshot was made, in seconds of the epoch."""
    with translated():
        made = image.get_snap_timestamp(image.snap_get_id(snapshot))
    return made.replace(tzinfo=datetime.UTC).timestamp()


def stored(
    image: Image, start: int, length: int, *, parents: bool = True
) -> list[tuple[int, int]]:
    """Tell what is stored of a part, by an image or what it was cloned from.

    In whole objects: with the feature fast-diff 1 TiB takes 0.1 s, else, and
    for parts of objects always, 14 s. Must not be called while one of them
    is being imported: it would end the process.

    :param parents: what it was cloned from is asked too
    :returns: starts and ends, in order
    """
    found: list[tuple[int, int]] = []

    def add(at: int, size: int, exists: bool) -> None:
        if not exists:
            return
        end = at + size
        if found and found[-1][1] == at:
            at, _ = found.pop()
        found.append((at, end))

    with translated():
        image.diff_iterate(
            start,
            length,
            None,
            add,
            include_parent=parents,
            whole_object=True,
        )
    return found


def is_migrating(image: Image) -> bool:
    """Whether an image is being imported, see ``rbd migration``."""
    with translated():
        return bool(image.features() & _MIGRATING)
