# SPDX-License-Identifier: Apache-2.0
"""What an error of Ceph means to a person, and what can be done about it."""

from collections.abc import Iterator
import contextlib
import errno

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.refusal import Reason
from cinder_cow.refusal import Refusal
from cinder_cow.refusal import refuse

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class Errors:
    """Translates errors for one back end."""

    def __init__(
        self, backend: str, settings: rbd_options.RbdSettings
    ) -> None:
        self._backend = backend
        self._settings = settings

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn errors of Ceph into ours.

        :raises BackendError: CEPH_UNAVAILABLE, POOL_NOT_FOUND, POOL_DENIED,
            TIMED_OUT, NO_SPACE, BUSY, BACKEND_ERROR
        """
        try:
            yield
        except ceph.CephError as error:
            raise exception.BackendError(self._refusal(error)) from error
        except rbd_leases.LostError as error:
            raise exception.BackendError.because(
                Reason.BACKEND_ERROR,
                backend=self._backend,
                problem=str(error),
            ) from error

    def _refusal(self, error: ceph.CephError) -> Refusal:
        settings = self._settings
        if isinstance(error, ceph.NoConnectionError):
            return refuse(
                Reason.CEPH_UNAVAILABLE,
                backend=self._backend,
                problem=error.problem,
                remedy=self._connect_remedy(error.errno),
            )
        if isinstance(error, ceph.NoPoolError):
            return refuse(
                Reason.NO_POOL, backend=self._backend, pool=settings.pool
            )
        if error.denied:
            return refuse(
                Reason.POOL_DENIED,
                location=self._pools(),
                user=settings.cluster.user or 'admin',
                caps=settings.caps,
            )
        if error.errno in _NO_SPACE or self._is_full(error):
            return refuse(
                Reason.NO_SPACE, backend=self._backend, problem=error.problem
            )
        if error.errno == errno.ETIMEDOUT:
            return refuse(
                Reason.CEPH_TIMED_OUT,
                backend=self._backend,
                seconds=settings.cluster.op_timeout,
                problem=error.problem,
            )
        return refuse(
            Reason.BACKEND_ERROR, backend=self._backend, problem=error.problem
        )

    def _pools(self) -> str:
        settings = self._settings
        data = f' or {settings.data_pool}' if settings.data_pool else ''
        return f'pool {settings.pool}{data}'

    def _is_full(self, error: ceph.CephError) -> bool:
        """Whether a write timed out because there is no room for it."""
        if error.errno != errno.ETIMEDOUT:
            return False
        try:
            with ceph.connected(self._settings.cluster) as connection:
                return connection.is_full(self._settings.pool)
        except ceph.CephError:
            return False

    def _connect_remedy(self, number: int) -> str:
        cluster = self._settings.cluster
        conf = cluster.conf or '/etc/ceph/ceph.conf'
        user = f'client.{cluster.user or "admin"}'
        if number == ceph.NO_MODULES:
            return 'Install them: apt-get install python3-rados python3-rbd.'
        if number == errno.ETIMEDOUT:
            return (
                'Look whether its monitors run and can be reached: ceph -s'
                f' -c {conf}.'
            )
        if number == errno.EACCES:
            return (
                f'Put the right key of {user} into its keyring (ceph auth'
                f' get-or-create {user}), and let it use the monitor: ceph'
                f' auth caps {user} {self._settings.caps}.'
            )
        return (
            f'Look at rbd_ceph_conf and rbd_user: {conf} must exist, and name'
            f' a keyring with the key of {user}.'
        )
