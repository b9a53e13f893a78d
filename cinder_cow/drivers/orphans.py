# SPDX-License-Identifier: Apache-2.0
"""How drivers name and remove what dead makers left."""

import abc
from collections.abc import Callable, Iterator
import contextlib
import dataclasses

from cinder_cow import exception
from cinder_cow.drivers import bases


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """An orphan, and what removes it."""

    orphan: bases.Orphan
    remove: Callable[[], None] | None = None


class Orphans(abc.ABC):
    """Finds and removes the orphans of one back end."""

    def list(self) -> Iterator[bases.Orphan]:
        """Name them, changing nothing."""
        for found in self._all():
            yield found.orphan

    def remove(self) -> Iterator[bases.Orphan]:
        """Remove them, and name each as it was."""
        for found in self._all():
            problem = self._removed(found.remove) if found.remove else ''
            if problem:
                yield dataclasses.replace(
                    found.orphan,
                    remedy=f'It could not be removed: {problem}',
                    removable=False,
                )
            else:
                yield found.orphan

    def _removed(self, remove: Callable[[], None]) -> str:
        """Remove one; tell what was in the way of it."""
        try:
            with self._errors():
                remove()
        except exception.CowError as error:
            return str(error)
        return ''

    @abc.abstractmethod
    def _all(self) -> Iterator[Found]: ...

    @abc.abstractmethod
    def _errors(self) -> contextlib.AbstractContextManager[None]:
        """Translate errors of the back end."""
