# SPDX-License-Identifier: Apache-2.0
"""How librados and librbd are called: what they cannot do is a CephError."""

from collections.abc import Iterator
import contextlib
import errno
from typing import Any

try:
    import rados
    import rbd
except ImportError as _error:  # Debian: python3-rados, python3-rbd
    _missing = str(_error)
else:
    _missing = ''

_DENIED = {errno.EPERM, errno.EACCES}
# What a client is told that was shut out.
_LOST = {errno.ESHUTDOWN, errno.ENOTCONN}
# There are no libraries to call.
NO_MODULES = errno.ENOSYS


class CephError(Exception):
    """A call of librados or librbd failed.

    :param errno: as the library tells it, 0 where it tells none
    :param problem: in its words
    """

    def __init__(self, errno: int, problem: str) -> None:
        super().__init__(problem)
        self.errno = errno
        self.problem = problem

    @property
    def denied(self) -> bool:
        """Whether this user may not do it."""
        return self.errno in _DENIED

    @property
    def lost(self) -> bool:
        """Whether the connection is at fault, and another one may do."""
        return self.errno in _LOST


class NoConnectionError(CephError):
    """The cluster cannot be reached, or not as this user."""


class NoPoolError(CephError):
    """There is no pool of that name."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn errors of the libraries into ours."""
    if _missing:
        raise CephError(NO_MODULES, _missing)
    try:
        yield
    except (rados.Error, rbd.Error) as error:
        number = getattr(error, 'errno', None) or 0
        raise CephError(number, str(error)) from error


@contextlib.contextmanager
def ignored(*numbers: int) -> Iterator[None]:
    """Turn errors of the libraries into ours, and leave the block at some.

    :param numbers: of errors that are an answer, for instance ENOENT
    """
    try:
        with translated():
            yield
    except CephError as error:
        if error.errno not in numbers:
            raise


def has_object(ioctx: Any, name: str) -> bool:  # noqa: ANN401 - a rados.Ioctx
    """Whether there is an object of that name; one small read."""
    with ignored(errno.ENOENT):
        ioctx.stat(name)
        return True
    return False
