# SPDX-License-Identifier: Apache-2.0
"""What is in a pool: images by name, and objects beside them."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import datetime
import errno
import time
from typing import Any, TYPE_CHECKING

from oslo_utils import units

from cinder_cow.drivers.ceph.calls import has_object
from cinder_cow.drivers.ceph.calls import ignored
from cinder_cow.drivers.ceph.calls import translated
from cinder_cow.drivers.ceph.encoding import packed
from cinder_cow.drivers.ceph.encoding import unpacked
from cinder_cow.drivers.ceph.header import Header
from cinder_cow.drivers.ceph.images import Image
from cinder_cow.drivers.ceph.rows import Rows

with contextlib.suppress(ImportError):
    import rados
    import rbd

if TYPE_CHECKING:
    from cinder_cow.drivers.ceph.connection import Connection

# A name object, and the directory entry of an image.
_MAX_NAME = 4096
# Bytes of other objects that are read at once.
_PART = 4 * units.Mi
# How long an image stays open at least. The thread of librbd that opened it
# wakes us, and looks at it once more; where it is stopped in between for as
# long as we need to close it, the process ends (seen with 16.2.15, once in
# some thousand times on two busy cores; ImageState::complete_action_unlock).
_OPEN_SECONDS = 0.005
_DIRECTORY = 'rbd_directory'
_TRASH = 'rbd_trash'
_REMOVING = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What a pool holds of a name; in a sound one both are the same.

    :param id: of the image that opens under the name
    :param listed: of the image that the directory has under it
    """

    id: str = ''
    listed: str = ''

    def __bool__(self) -> bool:
        return bool(self.id or self.listed)

    @property
    def whole(self) -> bool:
        return bool(self.id) and self.id == self.listed


@dataclasses.dataclass(frozen=True, slots=True)
class Trashed:
    """An image that a user has moved to the trash.

    :param id: of the image
    :param name: that it had
    :param expired: it may be removed
    """

    id: str
    name: str
    expired: bool


class Pool:
    """A pool, or a namespace of it: images, and objects beside them."""

    def __init__(
        self,
        ioctx: 'rados.Ioctx',
        name: str,
        namespace: str,
        connection: 'Connection',
    ) -> None:
        self.ioctx = ioctx
        self.name = name
        self.namespace = namespace
        self.connection = connection
        self._directory = self.rows(_DIRECTORY)

    # Images

    def names(self) -> list[str]:
        with translated():
            return list(rbd.RBD().list(self.ioctx))

    @property
    def id(self) -> int:
        with translated():
            return int(self.ioctx.get_pool_id())

    def image(
        self, name: str, snapshot: str | None = None, *, write: bool = False
    ) -> contextlib.AbstractContextManager[Image]:
        """Open an image; errors in the block are translated too.

        :param write: else a user who may only read can open it
        """
        return self._opened(name=name, snapshot=snapshot, read_only=not write)

    def image_of(
        self,
        image_id: str,
        snapshot: str | None = None,
        *,
        write: bool = False,
    ) -> contextlib.AbstractContextManager[Image]:
        """Open an image that may have no name any more."""
        return self._opened(
            image_id=image_id, snapshot=snapshot, read_only=not write
        )

    @contextlib.contextmanager
    def _opened(self, **which: Any) -> Iterator[Image]:  # noqa: ANN401
        with translated(), rbd.Image(self.ioctx, **which) as image:
            opened = time.monotonic()
            try:
                yield image
            finally:
                still = opened + _OPEN_SECONDS - time.monotonic()
                time.sleep(max(0, still))

    def create(self, name: str, size: int, order: int, **options: Any) -> None:  # noqa: ANN401
        with translated():
            rbd.RBD().create(
                self.ioctx, name, size, order, old_format=False, **options
            )

    def clone(
        self,
        parent: 'Pool',
        image: str,
        snapshot: str,
        name: str,
        **options: Any,  # noqa: ANN401 - as rbd has them
    ) -> None:
        with translated():
            rbd.RBD().clone(
                parent.ioctx, image, snapshot, self.ioctx, name, **options
            )

    def rename(self, name: str, new_name: str) -> None:
        with translated():
            rbd.RBD().rename(self.ioctx, name, new_name)

    def remove(self, name: str) -> None:
        with translated():
            rbd.RBD().remove(self.ioctx, name)

    def trashed(self) -> list[Trashed]:
        """Name what users have moved to the trash."""
        now = datetime.datetime.now(datetime.UTC)
        with translated():
            return [
                Trashed(one['id'], one['name'], _utc(one) <= now)
                for one in rbd.RBD().trash_list(self.ioctx)
                if one['source'] == 'USER'
            ]

    def remove_trashed(self, image_id: str) -> None:
        with translated():
            rbd.RBD().trash_remove(self.ioctx, image_id)

    def half_removed(self, name: str) -> str:
        """Tell the id of an image whose removal was broken off; or ''."""
        for image_id, found in self.all_half_removed():
            if found == name:
                return image_id
        return ''

    def all_half_removed(self) -> Iterator[tuple[str, str]]:
        """Tell id and name of images whose removal was broken off.

        librbd removes by way of the trash, and lists what is there for other
        reasons alone. See TrashImageSpec of cls_rbd.
        """
        for key, value in self.rows(_TRASH).all().items():
            if value[6] == _REMOVING:
                yield key.removeprefix('id_'), unpacked(value, 7)[0]

    def forget_removed(self, image_id: str) -> None:
        """Take an image from the trash, of which nothing is left."""
        if self.rows(_TRASH).get(f'id_{image_id}'):
            with translated():
                self.ioctx.execute(
                    _TRASH, 'rbd', 'trash_remove', packed(image_id)
                )

    def listed(self, prefix: str) -> list[str]:
        """Name the images in the directory whose names begin so."""
        rows = self._directory.all(f'name_{prefix}')
        return sorted(row.removeprefix('name_') for row in rows)

    def find(self, name: str) -> Entry:
        """Tell what is there of a name, whole or not."""
        listed = self._directory.get(f'name_{name}')
        return Entry(id=self.id_of(name), listed=unpacked(listed)[0])

    def has_name(self, name: str) -> bool:
        """Whether an image opens under a name; one small read."""
        return self.has_object(f'rbd_id.{name}')

    def id_of(self, name: str) -> str:
        """Tell the id of the image that opens under a name; '' if none."""
        return unpacked(self.read_object(f'rbd_id.{name}'))[0]

    def listed_as(self, image_id: str) -> str:
        """Tell the name that the directory has for an image's id."""
        return unpacked(self._directory.get(f'id_{image_id}'))[0]

    def remove_name(self, name: str) -> None:
        """Take a name from an image, where a rename was not finished."""
        self.remove_object(f'rbd_id.{name}')

    def unlist(self, name: str, image_id: str) -> None:
        """Take an image from the directory, where creating was not finished.

        As librbd does it: cls_rbd's dir_remove_image.
        """
        data = packed(name) + packed(image_id)
        with translated():
            self.ioctx.execute(_DIRECTORY, 'rbd', 'dir_remove_image', data)

    def header(self, image_id: str) -> Header:
        return Header(self.ioctx, image_id)

    # Objects

    def object_names(self) -> Iterator[str]:
        """Name all objects of the pool, which takes its time."""
        with translated():
            for one in self.ioctx.list_objects():
                yield one.key

    def has_object(self, name: str) -> bool:
        return has_object(self.ioctx, name)

    def read_object(self, name: str) -> bytes:
        """Read a small object; b'' where there is none."""
        with ignored(errno.ENOENT):
            return bytes(self.ioctx.read(name, _MAX_NAME))
        return b''

    def read_all(self, name: str) -> bytes:
        """Read an object of any size; b'' where there is none."""
        found = bytearray()
        with ignored(errno.ENOENT):
            while part := self.ioctx.read(name, _PART, len(found)):
                found += part
        return bytes(found)

    def write_object(self, name: str, data: bytes) -> None:
        """Write a whole object: the new one or, if it fails, the old one."""
        with translated():
            self.ioctx.write_full(name, data)

    def remove_object(self, name: str) -> None:
        with ignored(errno.ENOENT):
            self.ioctx.remove_object(name)

    def version(self, name: str) -> int:
        """Tell a number that is another one after each change of an object."""
        with translated():
            self.ioctx.stat(name)
            return int(self.ioctx.get_last_version())

    def rows(self, name: str) -> Rows:
        """Return the rows of an object, which need not be there yet."""
        return Rows(self.ioctx, name)


def _utc(trashed: Mapping[str, Any]) -> datetime.datetime:
    end: datetime.datetime = trashed['deferment_end_time']
    return end.replace(tzinfo=datetime.UTC)
