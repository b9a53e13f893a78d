# SPDX-License-Identifier: Apache-2.0
"""The header of an image, read and grown without opening the image.

Opening to write registers a watch and opens the parent too: with closing it
takes 13 ms, and resizing 4 more, of the 38 ms of a clone. These calls take
0.3 ms each. They are those that librbd makes itself: cls_rbd, src/cls/rbd and
src/librbd/operation/ResizeRequest.cc of Ceph, since version 14.
"""

import contextlib
import struct

from cinder_cow.drivers.ceph.calls import translated
from cinder_cow.drivers.ceph.encoding import unpacked

with contextlib.suppress(ImportError):
    import rados

# The image itself, and none of its snapshots.
_HEAD = 0xFFFF_FFFF_FFFF_FFFE
# RBD_FEATURE_*: layering, exclusive lock, object map, fast diff, deep flatten,
# data pool, operations. What is more (a journal, stripes, a migration) has
# more to do with a resize.
_KNOWN = 1 | 4 | 8 | 16 | 32 | 128 | 256
_OBJECT_MAP = 8
# The state of new objects in the map.
_NOTHING_THERE = 0


class Header:
    """The header of an image.

    :param image_id: not its name
    """

    def __init__(self, ioctx: 'rados.Ioctx', image_id: str) -> None:
        self._ioctx = ioctx
        self._id = image_id
        self._name = f'rbd_header.{image_id}'

    def parent(self) -> str:
        """Tell what it was cloned from, by :func:`identity`; '' for nothing.

        :raises CephError: ENOENT: there is no such image
        """
        answer = self._execute('parent_get')
        # Version, length; then the pool, its namespace, the image, the
        # snapshot.
        (pool,) = struct.unpack_from('<q', answer, 6)
        if pool < 0:
            return ''
        namespace, offset = unpacked(answer, 14)
        image_id, offset = unpacked(answer, offset)
        (snapshot,) = struct.unpack_from('<Q', answer, offset)
        return identity(pool, image_id, snapshot, namespace)

    def size(self) -> int:
        """Tell its size in bytes."""
        return self._size_and_order()[0]

    def grow(self, size: int) -> bool:
        """Make an image larger that nobody has open.

        :returns: False, with nothing changed: librbd must do it
        """
        answer = self._execute('get_features', struct.pack('<QB', _HEAD, 0))
        (features,) = struct.unpack_from('<Q', answer)
        if features & ~_KNOWN:
            return False
        if features & _OBJECT_MAP:
            _size, order = self._size_and_order()
            count = -(-size // (1 << order))
            data = struct.pack('<QB', count, _NOTHING_THERE)
            self._call(f'rbd_object_map.{self._id}', 'object_map_resize', data)
        self._execute('set_size', struct.pack('<Q', size))
        return True

    def _size_and_order(self) -> tuple[int, int]:
        answer = self._execute('get_size', struct.pack('<Q', _HEAD))
        order, size = struct.unpack_from('<BQ', answer)
        return size, order

    def _execute(self, method: str, data: bytes = b'') -> bytes:
        return self._call(self._name, method, data)

    def _call(self, name: str, method: str, data: bytes) -> bytes:
        with translated():
            _status, answer = self._ioctx.execute(name, 'rbd', method, data)
        return answer


def identity(
    pool_id: int, image_id: str, snapshot_id: int, namespace: str = ''
) -> str:
    """Name a snapshot by numbers that are never used again."""
    return f'{pool_id}/{namespace}/{image_id}@{snapshot_id}'
