# SPDX-License-Identifier: Apache-2.0
"""Cinder's RBD driver over the connections that our driver has.

Upstream connects for each step of a work: five times for a volume from an
image. Here all of them get what this process has; only what names a cluster
or a time limit itself, as replication does, connects as upstream does.
"""

import dataclasses
from typing import Any

from cinder import exception as cinder_exception
from cinder import utils
from cinder.i18n import _
from cinder.volume.drivers import rbd
from oslo_config import cfg
from oslo_log import log as logging

from cinder_cow.drivers import ceph
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd_options
from cinder_cow.plugin import options as plugin_options
from cinder_cow.plugin import releases

LOG = logging.getLogger(__name__)

CONF = cfg.CONF

Remote = dict[str, str] | None


class _Client:
    """A connection as upstream calls it: by native threads, under eventlet.

    It must be kept as long as its pool is used; upstream keeps both.
    """

    def __init__(self, lent: ceph.Lent) -> None:
        self._lent = lent
        self._rados = releases.tpool_wrap(lent.rados)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any of Rados
        return getattr(self._rados, name)


class PooledRBDDriver(rbd.RBDDriver):
    """Upstream's driver with one connection to a cluster."""

    def __init__(self, *args: Any, **named: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **named)
        self._lenders: dict[ceph.Cluster, ceph.Lender] = {}

    def cow_rbd_settings(self) -> rbd_options.RbdSettings:
        """Read the options; the cluster is the one failed over to, if any."""
        options = plugin_options.CinderOptions(
            CONF, self.configuration.config_group
        )
        settings = rbd_options.RbdSettings.read(options)
        name, conf, user, _secret = self._get_config_tuple()
        cluster = dataclasses.replace(
            settings.cluster, name=name, conf=conf or '', user=user or ''
        )
        return dataclasses.replace(settings, cluster=cluster)

    def _connect_to_rados(
        self,
        pool: str | None = None,
        remote: Remote = None,
        timeout: int | None = None,
    ) -> tuple[Any, Any]:
        if remote or timeout is not None:
            client, ioctx = super()._connect_to_rados(pool, remote, timeout)
            return client, ioctx
        lender = self._lender()
        lend = native.threaded(lender.lend)

        @utils.retry(
            cinder_exception.VolumeBackendAPIException,
            self.configuration.rados_connection_interval,
            self.configuration.rados_connection_retries,
        )
        def lent() -> ceph.Lent:
            try:
                return lend(pool or self.configuration.rbd_pool)
            except ceph.CephError as error:
                LOG.warning('Connecting to Ceph failed: %s', error)
                message = _('Error connecting to ceph cluster.')
                raise cinder_exception.VolumeBackendAPIException(
                    data=f'{message} {error}'
                ) from error

        found: ceph.Lent = lent()
        return _Client(found), found.ioctx

    @staticmethod
    def _disconnect_from_rados(client: Any, ioctx: Any) -> None:  # noqa: ANN401
        # What is lent comes back when nobody has it any more.
        if not isinstance(client, _Client):
            ioctx.close()
            client.shutdown()

    def _lender(self) -> ceph.Lender:
        cluster = self.cow_rbd_settings().cluster
        if cluster not in self._lenders:
            self._lenders[cluster] = ceph.Lender(cluster)
        return self._lenders[cluster]
