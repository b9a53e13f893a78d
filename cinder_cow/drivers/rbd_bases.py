# SPDX-License-Identifier: Apache-2.0
"""What the RBD driver does with bases; see the contract in :mod:`.bases`.

A base is written over the connection that all of the process shares: one
whose lease was lost was stopped, or cut off, and so was all else that its
process does. It is shut out with all of it.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
from typing import Any

from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_base_sink
from cinder_cow.drivers import rbd_base_store
from cinder_cow.drivers import rbd_base_works
from cinder_cow.drivers import rbd_cleanup
from cinder_cow.drivers import rbd_context
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_orphans
from cinder_cow.drivers import rbd_sweep
from cinder_cow.drivers import rbd_works


class RbdBases(rbd_context.RbdContext):
    """The part of the driver that keeps and links bases."""

    def __init__(
        self, settings: rbd_options.RbdSettings, backend: str
    ) -> None:
        super().__init__(settings, backend)
        self._works = rbd_works.Works(settings)
        self._store = rbd_base_store.BaseStore(backend)
        self._base_works = rbd_base_works.BaseWorks(
            backend, self._store, self._works
        )

    # BaseKeeper

    @rbd_context.called
    def find_base(self, key: bases.BaseKey) -> bases.Base | None:
        with self._opened() as (_connection, pool):
            found = self._store.find(pool, key.name)
            if found is None:
                return None
            rbd_base_store.protect(pool, found)
            return found.published

    @rbd_context.called
    def begin_base(self, key: bases.BaseKey, size: int) -> bases.Begun:
        with contextlib.ExitStack() as stack:
            connection, pool = stack.enter_context(self._opened())
            begun = self._base_works.begin(connection, pool, key.name, size)
            return self._sink(connection, begun, stack)

    @rbd_context.called
    def _bases(self) -> Sequence[bases.Base]:
        with self._opened() as (_connection, pool):
            return [found.published for found in self._store.list(pool)]

    def list_bases(self) -> Iterator[bases.Base]:
        return iter(self._bases())

    @rbd_context.called
    def children(self, base: bases.Base, limit: int) -> Sequence[str]:
        with self._opened() as (_connection, pool):
            found = self._store.find(pool, base.name)
            if found is None:
                return ()
            with pool.image_of(found.image) as image:
                return ceph.own_children(
                    image, pool.name, pool.namespace, limit
                )

    @rbd_context.called
    def set_base_facts(self, name: str, **changes: Any) -> None:  # noqa: ANN401
        with self._opened() as (_connection, pool):
            self._store.change_facts(pool, name, changes)

    @rbd_context.called
    def base_manifest(self, name: str) -> bytes:
        with self._opened() as (_connection, pool):
            return self._store.manifest(pool, name)

    @rbd_context.called
    def set_base_manifest(self, name: str, manifest: bytes) -> None:
        with self._opened() as (_connection, pool):
            self._store.write_manifest(pool, name, manifest)

    @rbd_context.called
    def retire_base(self, name: str) -> None:
        with self._opened() as (connection, pool):
            self._base_works.retire(connection, pool, name)

    # BaseLinker

    @rbd_context.called
    def link_base(
        self, key: bases.BaseKey, size: int, volume_name: str
    ) -> bases.Begun:
        with contextlib.ExitStack() as stack:
            connection, pool = stack.enter_context(self._opened())
            self._check_there(pool, volume_name)
            begun = self._base_works.link(
                connection, pool, key.name, size, volume_name
            )
            return self._sink(connection, begun, stack)

    # Checker

    @rbd_context.called
    def sweep(self) -> None:
        with self._opened() as (connection, pool):
            self._sweep(connection, pool)

    def orphans(self) -> Iterator[bases.Orphan]:
        return iter(self._checked(rbd_orphans.Orphans.list))

    def remove_orphans(self) -> Iterator[bases.Orphan]:
        return iter(self._checked(rbd_orphans.Orphans.remove))

    # Private

    @rbd_context.called
    def _checked(
        self,
        work: Callable[[rbd_orphans.Orphans], Iterator[bases.Orphan]],
    ) -> Sequence[bases.Orphan]:
        with self._opened() as (_connection, pool):
            orphans = rbd_orphans.Orphans(
                pool, self._store, self._base_works, self._translated
            )
            return list(work(orphans))

    def _sink(
        self,
        connection: ceph.Connection,
        begun: rbd_base_works.Begun,
        stack: contextlib.ExitStack,
    ) -> bases.Begun:
        if isinstance(begun, bases.Base | bases.Making):
            return begun
        try:
            node = stack.enter_context(self._settings.own_node(begun.name))
        except BaseException:
            begun.undo()
            raise
        guard = functools.partial(self._guarded, connection)
        return rbd_base_sink.BaseSink(begun, node, guard, stack.pop_all())

    def _sweep(self, connection: ceph.Connection, pool: ceph.Pool) -> None:
        rbd_sweep.sweep(
            pool, connection, rbd_cleanup.finish_or_undo, self._settings.keep
        )
