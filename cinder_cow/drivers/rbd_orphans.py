# SPDX-License-Identifier: Apache-2.0
"""What the RBD driver has no use for: what dead makers and damage leave.

Most of it has a row in ``cow_leases``, which a sweep finds. What has none was
left by other tools, by a pool that was restored, or by a row that somebody
removed; it is told by its name, which is one of ours. Whatever has a row of
its own is somebody's, and no orphan of the other kinds. What Cinder's own
driver leaves is in :mod:`.rbd_leaks`.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import json

from oslo_utils import units

from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import orphans
from cinder_cow.drivers import rbd_base_store
from cinder_cow.drivers import rbd_base_works
from cinder_cow.drivers import rbd_cleanup
from cinder_cow.drivers import rbd_leaks
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_parents
from cinder_cow.drivers import rbd_sweep
from cinder_cow.drivers import rbd_undo
from cinder_cow.drivers import rbd_works
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.drivers.rbd_lease_row import Work

_REMOVED = 'It is removed.'
_NAME = 'rbd_id.'


class Orphans(orphans.Orphans):
    """Finds and removes the orphans of one pool."""

    def __init__(
        self,
        pool: ceph.Pool,
        store: rbd_base_store.BaseStore,
        works: rbd_base_works.BaseWorks,
        translated: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._pool = pool
        self._store = store
        self._works = works
        self._translated = translated

    def _removed(self, remove: Callable[[], None]) -> str:
        try:
            return super()._removed(remove)
        except rbd_leases.TakenError as error:
            return f'it {error}'

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return self._translated()

    def _all(self) -> Iterator[orphans.Found]:
        # Each only when the one before is done with.
        yield from self._rows()
        names, manifests = self._ours()
        for name in names:
            yield from self._image(name)
        for image_id in manifests:
            yield from self._manifest(image_id)
        yield from self._locks()
        yield from self._verdicts()
        yield from rbd_leaks.found(self._pool)

    # By row

    def _rows(self) -> Iterator[orphans.Found]:
        for volume, row in rbd_leases.all_of(self._pool).items():
            what = f'work on {refusal.printable(volume)}'
            try:
                lease = Lease.unpacked(row)
            except ValueError as error:
                orphan = bases.Orphan(
                    what,
                    f'its row in {rbd_leases.OBJECT} cannot be read: {error}',
                    'If it was written by another release: use that.',
                    removable=False,
                )
                yield orphans.Found(orphan)
                continue
            if rbd_leases.seems_dead(self._pool, lease):
                orphan = bases.Orphan(
                    what, _how_dead(lease), 'It is finished or undone.'
                )
                remove = functools.partial(self._end, lease)
                yield orphans.Found(orphan, remove)

    def _end(self, lease: Lease) -> None:
        if rbd_leases.is_dead(self._pool, lease):
            rbd_sweep.end(
                self._pool,
                self._pool.connection,
                lease,
                rbd_cleanup.finish_or_undo,
            )

    # By name

    def _ours(self) -> tuple[Sequence[str], Sequence[str]]:
        """Name what has our names: images, half or whole, and manifests."""
        pool = self._pool
        prefix = base.RESERVED_PREFIX
        names = set(pool.listed(prefix))
        names.update(
            name
            for _id, name in pool.all_half_removed()
            if name.startswith(prefix)
        )
        manifest = rbd_cleanup.manifest_of('')
        manifests = []
        for one in pool.object_names():
            if one.startswith(_NAME + prefix):
                names.add(one.removeprefix(_NAME))
            elif one.startswith(manifest):
                manifests.append(one.removeprefix(manifest))
        return sorted(names), sorted(manifests)

    def _image(self, name: str) -> Iterator[orphans.Found]:
        pool = self._pool
        is_base = rbd_base_store.is_name(name)
        volume = name if is_base else rbd_undo.volume_of_partial(name)
        # First: a base loses its row when it has its snapshot.
        if not volume:
            yield orphans.Found(_unknown(name))
        elif rbd_leases.is_taken(pool, volume):
            return
        elif found := self._store.find(pool, name):
            if found.problem:
                yield self._damaged(found)
        else:
            orphan = bases.Orphan(
                f'image {refusal.printable(name)}',
                'it is half-made or half removed, and nobody is at work on it',
                _REMOVED,
            )
            yield orphans.Found(
                orphan, functools.partial(self._remove_image, volume, name)
            )

    def _remove_image(self, volume: str, name: str) -> None:
        """Remove an image that is no base, as the only one who may."""
        pool = self._pool
        work = Work.STREAM
        if volume == name:
            work = Work.BASE
        holding = rbd_leases.take(pool, pool.connection, volume, work)
        with rbd_works.undone(holding):
            if not self._store.find(pool, name):
                rbd_undo.remove(pool, name)
        holding.release()

    def _damaged(self, found: rbd_base_store.StoredBase) -> orphans.Found:
        with self._pool.image_of(found.image) as image:
            children = ceph.children(image, rbd_works.NAMED)
        what, problem = f'base {found.name}', found.problem
        if children:
            named = rbd_works.listed(children)
            remedy = f'Export and delete the volumes that hang on it: {named}.'
            return orphans.Found(
                bases.Orphan(what, problem, remedy, removable=False)
            )
        return orphans.Found(
            bases.Orphan(what, problem, _REMOVED),
            functools.partial(
                self._works.retire,
                self._pool.connection,
                self._pool,
                found.name,
            ),
        )

    def _manifest(self, image_id: str) -> Iterator[orphans.Found]:
        if self._pool.has_object(f'rbd_header.{image_id}'):
            return
        one = rbd_cleanup.manifest_of(image_id)
        # Of a base that is being retired just now it goes, too.
        if self._pool.has_object(one):
            orphan = bases.Orphan(
                f'object {one}', 'its base is gone', _REMOVED
            )
            remove = functools.partial(self._pool.remove_object, one)
            yield orphans.Found(orphan, remove)

    # By what it is about

    def _locks(self) -> Iterator[orphans.Found]:
        for lock in rbd_leases.stray_locks(self._pool):
            orphan = bases.Orphan(
                f'lock {refusal.printable(lock)} on {rbd_leases.OBJECT}',
                'its work has ended',
                _REMOVED,
            )
            remove = functools.partial(
                rbd_leases.forget_lock, self._pool, lock
            )
            yield orphans.Found(orphan, remove)

    def _verdicts(self) -> Iterator[orphans.Found]:
        rows = rbd_parents.verdicts(self._pool)
        for key in rows.all():
            if not self._is_stale(key):
                continue
            orphan = bases.Orphan(
                f'verdict {refusal.printable(key)}',
                'the image that it is about is gone',
                _REMOVED,
            )
            yield orphans.Found(orphan, functools.partial(rows.delete, key))

    def _is_stale(self, key: str) -> bool:
        try:
            made = json.loads(key)[0]
            return not self._pool.connection.has_snapshot(made)
        except (ValueError, LookupError, TypeError, AttributeError):
            return True  # it is none of ours, and serves nobody
        except ceph.CephError as error:
            if error.denied:
                return False
            raise


def _how_dead(lease: Lease) -> str:
    problem = f'it was begun by {lease.owner}, which lives no more'
    if lease.draft and lease.draft.left:
        problem = f'it was left by {lease.owner}'
    if lease.kept:
        kept = lease.kept // units.Mi
        problem += f'; {kept} MiB of it are kept to go on with'
    return problem


def _unknown(name: str) -> bases.Orphan:
    return bases.Orphan(
        f'image {refusal.printable(name)}',
        'it has a name of ours, and nothing of ours is named so',
        'Look at it, and remove it by hand if nobody needs it.',
        removable=False,
    )
