# SPDX-License-Identifier: Apache-2.0
"""Pools of the process's connection, lent to code that knows only librbd.

Such code closes nothing of what it got, and may use it after it has told
that it is done: Cinder 29 removes the image of a volume that it could not set
up with a handle that it has given back, and librbd ends the process where
that one is closed. So a handle lives as long as its connection, and a
connection that was lost as long as somebody has something of it.
"""

import contextlib
from typing import Any
import weakref

from cinder_cow.drivers import native
from cinder_cow.drivers.ceph.calls import CephError
from cinder_cow.drivers.ceph.connection import Cluster
from cinder_cow.drivers.ceph.connection import connected
from cinder_cow.drivers.ceph.connection import Connection

# An object that need not be there; each user of images may ask for it.
_PROBE = 'rbd_directory'


class Lent:
    """A pool that is lent, until nobody has this object any more.

    :ivar rados: the connection, a ``rados.Rados``
    :ivar ioctx: the pool, a ``rados.Ioctx``
    """

    # Both are what the libraries make, and who gets them calls anything.
    def __init__(self, rados: Any, ioctx: Any) -> None:  # noqa: ANN401
        self.rados = rados
        self.ioctx = ioctx


class _Kept:
    """A connection with the handles of its pools, and who has them."""

    def __init__(self, cluster: Cluster) -> None:
        with contextlib.ExitStack() as stack:
            self._connection = stack.enter_context(connected(cluster))
            self._open = stack.pop_all()
        self._lock = native.threading().Lock()
        self._ioctxs: dict[str, Any] = {}
        self._lent: weakref.WeakSet[Lent] = weakref.WeakSet()

    @property
    def connection(self) -> Connection:
        return self._connection

    def lend(self, pool: str) -> Lent:
        with self._lock:
            if pool not in self._ioctxs:
                self._ioctxs[pool] = self._connection.handle(pool)
            lent = Lent(self._connection.rados, self._ioctxs[pool])
            self._lent.add(lent)
        return lent

    def closed(self) -> bool:
        """Close it, where nobody has anything of it."""
        if len(self._lent):
            return False
        for ioctx in self._ioctxs.values():
            ioctx.close()
        self._open.close()
        return True


class Lender:
    """Lends the pools of a cluster; a lost connection is replaced."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._lock = native.threading().Lock()
        self._kept: _Kept | None = None
        self._lost: list[_Kept] = []

    def lend(self, pool: str) -> Lent:
        """Lend a pool; call it in a native thread.

        Who uses it does not tell us that the connection was lost, so that is
        asked for before: one small read, 0.3 ms.

        :raises CephError: the cluster or the pool cannot be reached
        """
        try:
            return self._lend(pool)
        except CephError as error:
            if not error.lost:
                raise
        return self._lend(pool)

    def _lend(self, pool: str) -> Lent:
        kept = self._current()
        lent = kept.lend(pool)
        try:
            kept.connection.probe(lent.ioctx, _PROBE)
        except CephError as error:
            kept.connection.lost |= error.lost
            raise
        return lent

    def _current(self) -> _Kept:
        with self._lock:
            if self._kept is not None and self._kept.connection.lost:
                self._lost.append(self._kept)
                self._kept = None
            self._lost = [kept for kept in self._lost if not kept.closed()]
            if self._kept is None:
                self._kept = _Kept(self.cluster)
            return self._kept
