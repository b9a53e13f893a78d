# SPDX-License-Identifier: Apache-2.0
"""What the file driver has no use for: what dead makers and damage leave.

Whatever is locked is alive, and no orphan.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
import pathlib

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import file_bases
from cinder_cow.drivers import file_facts
from cinder_cow.drivers import file_layout
from cinder_cow.drivers import orphans

# How many children are named of a base that they keep.
_CHILDREN = 20
_BY_HAND = 'Look at it, and remove it by hand if nobody needs it.'


class Orphans(orphans.Orphans):
    """Finds and removes orphans of one directory.

    :param children: names some or all volumes that need a base
    :param retire: removes a base
    """

    def __init__(
        self,
        layout: file_layout.Layout,
        store: file_bases.BaseStore,
        children: Callable[[bases.Base, int], Sequence[str]],
        retire: Callable[[str], None],
    ) -> None:
        self._layout = layout
        self._store = store
        self._children = children
        self._retire = retire

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return file_layout.translated(self._layout.backend)

    def _all(self) -> Iterator[orphans.Found]:
        with file_layout.translated(self._layout.backend):
            dead = self._layout.dead()
            names = sorted(os.listdir(self._layout.bases))
            others = self._layout.others()
        yield from map(self._partial, dead)
        for name in names:
            with file_layout.translated(self._layout.backend):
                found = list(self._base(name))
            yield from found
        for path in others:
            yield _unknown(path)

    def _partial(self, dead: file_layout.Dead) -> orphans.Found:
        hours = dead.age / 3600
        problem = f'its maker lives no more: {dead.owner}'
        if dead.kept:
            problem += (
                f'; {dead.kept // units.Mi} MiB, written {hours:.1f} hours '
                f'ago, are kept to go on with'
            )
        orphan = bases.Orphan(
            what=f'half-made {refusal.printable(dead.name)}',
            problem=problem,
            remedy='It is removed.',
        )

        def remove() -> None:
            self._layout.remove_dead(dead.name)

        return orphans.Found(orphan, remove)

    def _base(self, name: str) -> Iterator[orphans.Found]:
        directory = self._layout.bases / name
        try:
            found = self._store.find(name)
        except exception.BackendError as error:
            yield orphans.Found(
                _orphan_base(name, str(error), _BY_HAND, False)
            )
            return
        if found is None:
            # Or it has been retired just now.
            if os.path.lexists(directory):
                yield _unknown(directory)
        elif found.is_lost:
            yield self._lost(name, found)
        elif not file_facts.is_being_written(directory):
            for path in file_facts.aside(directory):
                yield orphans.Found(_aside(name, path), _removal(path))

    def _lost(self, name: str, found: file_bases.StoredBase) -> orphans.Found:
        """Tell of a base that cannot be used; overlays may need it yet."""
        try:
            children = self._children(found.published, _CHILDREN)
        except exception.BackendError as error:
            # One that cannot be read may be a child.
            remedy = f'Look at this first: {error}'
            return orphans.Found(
                _orphan_base(name, found.problem, remedy, False)
            )
        if children:
            names = ', '.join(children)
            remedy = f'Save what is left of these volumes first: {names}.'
            return orphans.Found(
                _orphan_base(name, found.problem, remedy, False)
            )
        orphan = _orphan_base(name, found.problem, 'It is removed.', True)
        return orphans.Found(orphan, lambda: self._retire(name))


def _orphan_base(
    name: str, problem: str, remedy: str, removable: bool
) -> bases.Orphan:
    return bases.Orphan(f'base {name}', problem, remedy, removable)


def _aside(name: str, path: pathlib.Path) -> bases.Orphan:
    return bases.Orphan(
        what=f'file {path.name} of base {name}',
        problem='a write ended before it had its name',
        remedy='It is removed.',
    )


def _removal(path: pathlib.Path) -> Callable[[], None]:
    def remove() -> None:
        # Whoever writes it now is the one to rename it.
        with (
            contextlib.suppress(FileNotFoundError),
            file_facts.writing(path.parent) as is_ours,
        ):
            if is_ours:
                path.unlink(missing_ok=True)

    return remove


def _unknown(path: pathlib.Path) -> orphans.Found:
    orphan = bases.Orphan(
        what=refusal.printable(str(path)),
        problem=f"names with '{base.RESERVED_PREFIX}' are ours, and this "
        'release knows nothing of it',
        remedy=_BY_HAND,
        removable=False,
    )
    return orphans.Found(orphan)
