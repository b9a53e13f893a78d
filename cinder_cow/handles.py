# SPDX-License-Identifier: Apache-2.0
"""How handles are left: closing one never hides the first error."""

import abc
from types import TracebackType
from typing import Self

from oslo_log import log as logging

LOG = logging.getLogger(__name__)


class Handle(abc.ABC):
    """What is let go of where its ``with`` block is left."""

    @abc.abstractmethod
    def _let_go(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go; an error in it becomes a note where it would hide one."""
        try:
            self._let_go()
        except Exception as second:
            if error is None:
                raise
            LOG.exception('Closing failed after another error')
            error.add_note(str(second))


class Closing(Handle):
    """A handle that is closed."""

    @abc.abstractmethod
    def close(self) -> None: ...

    def _let_go(self) -> None:
        self.close()
