# SPDX-License-Identifier: Apache-2.0
"""Rows of an object (its omap), and locks on it that end by themselves."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import itertools
import struct
from typing import TypeAlias

from cinder_cow.drivers.ceph.calls import ignored
from cinder_cow.drivers.ceph.calls import translated
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
    :param renew: it must be held already; else it may, by the same cookie
    """

    name: str
    cookie: str
    seconds: int
    renew: bool = False

    def packed(self) -> bytes:
        """Return the argument of cls_lock's lock: cls_lock_ops.h."""
        exclusive, may_renew, must_renew = 1, 1, 2
        body = (
            packed(self.name)
            + struct.pack('<B', exclusive)
            + packed(self.cookie)
            + packed('')  # tag
            + packed('')  # description
            + struct.pack('<II', self.seconds, 0)
            + struct.pack('<B', must_renew if self.renew else may_renew)
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

    def get_with(self, keys: tuple[str, ...], prefix: str) -> dict[str, bytes]:
        """Read rows, and those that begin so, as they are at one moment.

        :param prefix: of a page of rows at most
        :raises CephError: ENOENT: there is no such object
        """
        with translated(), rados.ReadOpCtx() as operation:
            named, _status = self._ioctx.get_omap_vals_by_keys(operation, keys)
            others, _status = self._ioctx.get_omap_vals(
                operation, '', prefix, _PAGE
            )
            self._ioctx.operate_read_op(operation, self._name)
            rows = itertools.chain(named, others)
            return {key: bytes(value) for key, value in rows}

    def all(self, prefix: str = '') -> dict[str, bytes]:
        """Read all rows that begin so, some at once."""
        found: dict[str, bytes] = {}
        after = ''

        def ask(operation: 'rados.ReadOp') -> _Found:
            return self._ioctx.get_omap_vals(operation, after, prefix, _PAGE)

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
        :returns: False: it is another one now, or another one has the lock
        """
        with (
            ignored(errno.ECANCELED, errno.EBUSY),
            rados.WriteOpCtx() as operation,
        ):
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

    def delete(self, key: str) -> None:
        """Remove a row, whatever it is."""
        with translated(), rados.WriteOpCtx() as operation:
            self._ioctx.remove_omap_keys(operation, (key,))
            self._ioctx.operate_write_op(operation, self._name)

    def forget_lock(self, lock: str) -> None:
        """Forget a lock that nobody holds."""
        with ignored(errno.ENOENT, errno.ENODATA):
            self._ioctx.rm_xattr(self._name, f'lock.{lock}')

    def locks(self) -> list[str]:
        """Name the locks on the object, also those that have ended."""
        with ignored(errno.ENOENT):
            return [
                name.removeprefix('lock.')
                for name, _value in self._ioctx.get_xattrs(self._name)
                if name.startswith('lock.')
            ]
        return []

    def is_locked(self, lock: str) -> bool:
        """Tell whether a lock is held, which has not ended; only looks."""
        # cls_lock's get_info; its answer begins with those who hold it.
        data = packed(lock)
        data = struct.pack('<BBI', 1, 1, len(data)) + data
        with ignored(errno.ENOENT):
            _status, answer = self._ioctx.execute(
                self._name, 'lock', 'get_info', data
            )
            (count,) = struct.unpack_from('<I', answer, 6)
            return bool(count)
        return False

    def lock(self, lock: Lock) -> bool:
        """Take or renew a lock.

        :returns: False: another one holds it, or it was lost meanwhile
        """
        with ignored(errno.EBUSY, errno.ENOENT):
            self._ioctx.execute(self._name, 'lock', 'lock', lock.packed())
            return True
        return False
