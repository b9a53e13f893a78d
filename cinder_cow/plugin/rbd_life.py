# SPDX-License-Identifier: Apache-2.0
"""Cinder's RBD driver, which leaves nothing in Ceph that Cinder forgot.

Upstream keeps a volume that has clones when it is deleted, and removes
neither it nor its snapshots when the clones are gone. The ways of upstream
are kept, so that its volumes and ours can be deleted by the other one.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

from cinder import context as cinder_context
from cinder import objects
from cinder.volume.drivers import rbd
from oslo_config import cfg

from cinder_cow.drivers import rbd_life
from cinder_cow.plugin import rbd_connections

CONF = cfg.CONF

Update = dict[str, Any]


class LeakFreeRBDDriver(rbd_connections.PooledRBDDriver):
    """Upstream's driver with what it leaves undone."""

    # None until the driver is set up: there is no cluster to ask before.
    _cow_life: rbd_life.Life | None = None

    def do_setup(self, context: cinder_context.RequestContext) -> None:
        super().do_setup(context)
        self._set_up_life()

    def failover_completed(
        self,
        context: cinder_context.RequestContext,
        secondary_id: str | None = None,
    ) -> None:
        super().failover_completed(context, secondary_id)
        if self._cow_life:
            self._set_up_life()

    def create_volume(self, volume: objects.Volume) -> Update | None:
        with self._undone(volume):
            update: Update | None = super().create_volume(volume)
            return update

    def create_volume_from_snapshot(
        self, volume: objects.Volume, snapshot: objects.Snapshot
    ) -> Update | None:
        with self._undone(volume):
            update: Update | None = super().create_volume_from_snapshot(
                volume, snapshot
            )
            return update

    def create_cloned_volume(
        self, volume: objects.Volume, src_vref: objects.Volume
    ) -> Update | None:
        with self._undone(volume, src_vref.name):
            update: Update | None = super().create_cloned_volume(
                volume, src_vref
            )
            return update

    def delete_volume(self, volume: objects.Volume) -> None:
        life = self._cow_life
        if life is None:
            super().delete_volume(volume)
            return
        kin = life.kin(volume.name)
        if kin.has_children:
            # Upstream would copy its data into the children that it finds.
            with rbd.RBDVolumeProxy(self, volume.name) as image:
                self._delete_backup_snaps(image)
            life.set_aside(volume.name)
        else:
            super().delete_volume(volume)
        life.after_delete(volume.name, kin, _source(volume))

    # Private

    def _set_up_life(self) -> None:
        settings = self.cow_rbd_settings()
        self._cow_life = rbd_life.Life(
            settings, self.configuration.config_group
        )

    @contextlib.contextmanager
    def _undone(
        self, volume: objects.Volume, source: str = ''
    ) -> Iterator[None]:
        """Leave nothing of a volume where the block does not make it."""
        life = self._cow_life
        if life is None or life.exists(volume.name):
            # Of another one, which is no business of this request.
            yield
            return
        try:
            yield
        except BaseException:
            life.after_failure(volume.name, source)
            raise


def _source(volume: objects.Volume) -> str:
    """Name the volume that a volume was to be a clone of; '' if none."""
    if not volume.source_volid:
        return ''
    return str(CONF.volume_name_template % volume.source_volid)
