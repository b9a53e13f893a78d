# SPDX-License-Identifier: Apache-2.0
"""Rows of an object (its omap), and locks on it that end by themselves."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import struct
from typing import TypeAlias

from cinder_cow.drivers.ceph.calls import ignored
from cinder_cow.drivers.ceph.encoding import packed

with contextlib.suppress(ImportError):
    import rados

# From librados: compare a row with a value; make an object if there is none.
_EQUAL = 1
_CREATE = 0
# Rows that are read at once.
_PAGE = 1000

_Found: TypeAlias = tuple[Iterator[tuple[str, bytes]], int]


@dataclasses.dataclass(frozen=True, slots=True)
class Lock:
    """A lock on an object that ends by itself, by the clock of the OSD.

    :param cookie: tells apart who holds it
    :param seconds: how long it is held, unless it is renewed
    :param renew: it must be held already
    """

    name: str
    cookie: str
    seconds: int
    renew: bool = False

    def packed(self) -> bytes:
        """Return the argument of cls_lock's lock: cls_lock_ops.h."""
        exclusive, must_renew = 1, 2
        body = (
            packed(self.name)
            + struct.pack('<B', exclusive)
            + packed(self.cookie)
            + packed('')  # tag
            + packed('')  # description
            + struct.pack('<II', self.seconds, 0)
            + struct.pack('<B', must_renew if self.renew else 0)
        )
        return struct.pack('<BBI', 1, 1, len(body)) + body


class Rows:
    """The rows of an object: texts, and bytes under them."""

    def __init__(self, ioctx: 'rados.Ioctx', name: str) -> None:
        self._ioctx = ioctx
        self._name = name

    def get(self, key: str) -> bytes:
        """Read a row; b'' where there is none."""

        def ask(operation: 'rados.ReadOp') -> _Found:
            return self._ioctx.get_omap_vals_by_keys(operation, (key,))

        return self._read(ask).get(key, b'')

    def all(self) -> dict[str, bytes]:
        """Read all rows, some at once."""
        found: dict[str, bytes] = {}
        after = ''

        def ask(operation: 'rados.ReadOp') -> _Found:
            return self._ioctx.get_omap_vals(operation, after, '', _PAGE)

        while page := self._read(ask):
            found |= page
            after = max(page)
            if len(page) < _PAGE:
                break
        return found

    def _read(
        self, ask: Callable[['rados.ReadOp'], _Found]
    ) -> dict[str, bytes]:
        with ignored(errno.ENOENT), rados.ReadOpCtx() as operation:
            rows, _status = ask(operation)
            self._ioctx.operate_read_op(operation, self._name)
            return {key: bytes(value) for key, value in rows}
        return {}

    def put(
        self,
        key: str,
        value: bytes,
        *,
        was: bytes = b'',
        lock: Lock | None = None,
        unlock: str = '',
    ) -> bool:
        """Write a row, if it still is what it was; atomic.

        :param was: its value; b'' for no such row
        :param lock: is taken in the same step
        :param unlock: the name of a lock that is forgotten in it
        :returns: False: it is another one now
        """
        with ignored(errno.ECANCELED), rados.WriteOpCtx() as operation:
            operation.new(_CREATE)
            operation.omap_cmp(key, was.decode(), _EQUAL)
            self._ioctx.set_omap(operation, (key,), (value,))
            if lock:
                operation.execute('lock', 'lock', lock.packed())
            if unlock:
                operation.rm_xattr(f'lock.{unlock}')
            self._ioctx.operate_write_op(operation, self._name)
            return True
        return False

    def remove(self, key: str, was: bytes, unlock: str) -> bool:
        """Remove a row and forget a lock, in one step.

        :returns: False: the row is another one now
        """
        with ignored(errno.ECANCELED), rados.WriteOpCtx() as operation:
            operation.omap_cmp(key, was.decode(), _EQUAL)
            self._ioctx.remove_omap_keys(operation, (key,))
            operation.rm_xattr(f'lock.{unlock}')
            self._ioctx.operate_write_op(operation, self._name)
            return True
        return False

    def forget_lock(self, lock: str) -> None:
        """Forget a lock that nobody holds."""
        with ignored(errno.ENOENT, errno.ENODATA):
            self._ioctx.rm_xattr(self._name, f'lock.{lock}')

    def lock(self, lock: Lock) -> bool:
        """Take or renew a lock.

        :returns: False: another one holds it, or it was lost meanwhile
        """
        with ignored(errno.EBUSY, errno.ENOENT):
            self._ioctx.execute(self._name, 'lock', 'lock', lock.packed())
            return True
        return False
