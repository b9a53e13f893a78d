# SPDX-License-Identifier: Apache-2.0
"""Cinder's RBD driver, whose volumes from images are copy-on-write."""

from cinder import context as cinder_context
from cinder import interface
from cinder import objects

from cinder_cow import opts
from cinder_cow.drivers import base
from cinder_cow.drivers import rbd as cow_rbd
from cinder_cow.plugin import driver
from cinder_cow.plugin import rbd_names


@interface.volumedriver
class CowRBDDriver(driver.CowDriverMixin, rbd_names.NamesRBDDriver):
    """What ``volume_driver`` is set to, in the place of RBDDriver."""

    def cow_driver(self, options: opts.BackendOptions) -> base.Driver:
        return self._driver()

    def failover_completed(
        self,
        context: cinder_context.RequestContext,
        secondary_id: str | None = None,
    ) -> None:
        super().failover_completed(context, secondary_id)
        if self._cow_life:
            self._cow.driver = self._driver()

    def cow_sweep(self) -> None:
        if self._cow_life:
            self._cow_life.sweep()
        super().cow_sweep()

    def cow_set_up(self, volume: objects.Volume) -> driver.Update:
        update: driver.Update = self._setup_volume(volume)
        return update

    def _driver(self) -> cow_rbd.RbdDriver:
        """Make our driver for the cluster that is used now."""
        group: str = self.configuration.config_group
        return cow_rbd.RbdDriver(self.cow_rbd_settings(), group)
