# SPDX-License-Identifier: Apache-2.0
"""Cinder's RBD driver, whose volumes from images are copy-on-write."""

from cinder import interface
from cinder import objects
from cinder.volume.drivers import rbd

from cinder_cow import opts
from cinder_cow.drivers import base
from cinder_cow.drivers import rbd as cow_rbd
from cinder_cow.plugin import driver


@interface.volumedriver
class CowRBDDriver(driver.CowDriverMixin, rbd.RBDDriver):
    """What ``volume_driver`` is set to, in the place of RBDDriver."""

    def cow_driver(self, options: opts.BackendOptions) -> base.Driver:
        return cow_rbd.RbdDriver.from_options(options)

    def cow_set_up(self, volume: objects.Volume) -> driver.Update:
        update: driver.Update = self._setup_volume(volume)
        return update
