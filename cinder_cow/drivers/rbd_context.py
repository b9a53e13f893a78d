# SPDX-License-Identifier: Apache-2.0
"""How the RBD driver calls Ceph: with a connection, and errors told."""

from collections.abc import Callable, Iterator
import contextlib
import functools
from typing import ParamSpec, TypeVar

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers import common
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd_errors
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.refusal import Reason

_Arguments = ParamSpec('_Arguments')
_Answer = TypeVar('_Answer')


def called(
    function: Callable[_Arguments, _Answer],
) -> Callable[_Arguments, _Answer]:
    """Run in a native thread; once more where the connection was lost.

    That is one that Ceph has blocklisted: of what it had begun nothing more
    will be done, and another connection cleans up behind it.
    """

    @functools.wraps(function)
    def call(*args: _Arguments.args, **named: _Arguments.kwargs) -> _Answer:
        try:
            return function(*args, **named)
        except exception.BackendError as error:
            cause = error.__cause__
            if not isinstance(cause, ceph.CephError) or not cause.lost:
                raise
        return function(*args, **named)

    return native.threaded(call)


class RbdContext:
    """One back end, as its user."""

    def __init__(
        self, settings: rbd_options.RbdSettings, backend: str
    ) -> None:
        self.backend = backend
        self._settings = settings
        self._errors = rbd_errors.Errors(backend, settings)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[ceph.Connection, ceph.Pool]]:
        """Give the connection and the pool; translate errors of the block."""
        settings = self._settings
        with (
            self._translated(),
            ceph.connected(settings.cluster) as connection,
            connection.pool(settings.pool, settings.namespace) as pool,
        ):
            yield connection, pool

    def _translated(self) -> contextlib.AbstractContextManager[None]:
        return self._errors.translated()

    @contextlib.contextmanager
    def _guarded(self, connection: ceph.Connection) -> Iterator[None]:
        """Translate errors of a handle that keeps a connection."""
        with self._translated():
            try:
                with ceph.translated():
                    yield
            except ceph.CephError as error:
                connection.lost |= error.lost
                raise

    def _is_there(self, pool: ceph.Pool, volume_name: str) -> bool:
        return pool.has_name(volume_name) and not rbd_leases.is_taken(
            pool, volume_name
        )

    def _check_there(self, pool: ceph.Pool, volume_name: str) -> None:
        common.check_volume_name(volume_name)
        if not self._is_there(pool, volume_name):
            raise self._not_found(volume_name)

    def _not_found(self, volume_name: str) -> exception.RequestError:
        return exception.RequestError.because(
            Reason.VOLUME_NOT_FOUND, volume=volume_name, backend=self.backend
        )
