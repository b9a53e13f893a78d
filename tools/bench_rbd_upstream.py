# SPDX-License-Identifier: Apache-2.0
"""Cinder's own RBD driver, unmodified, as a cinder-volume process has it.

Import it first of all: as the program cinder-volume does, it lets eventlet
patch the process, unless OS_CINDER_DISABLE_EVENTLET_PATCHING is set.
"""

# ruff: noqa: E402, TID251 - in this order or not at all
from cinder import monkey_patch

monkey_patch.patch()

from cinder import objects

objects.register_all()

import os
import pathlib

from cinder import context
from cinder.common import config as _config  # noqa: F401 - its options
from cinder.volume import configuration
from cinder.volume import manager
from eventlet import tpool
from oslo_config import cfg
from oslo_utils import importutils
from oslo_utils import units

# What cinder-volume gives a driver to call librbd with.
NATIVE_THREADS = 20

if monkey_patch.is_patched():
    tpool.set_num_threads(NATIVE_THREADS)


class Upstream:
    """Clones by ``RBDDriver.clone_image``.

    :param fsid: of the cluster
    :param size: of volumes, in bytes
    """

    def __init__(self, cinder_conf: os.PathLike, fsid: str, size: int) -> None:
        self._fsid = fsid
        self._gib = size // units.Gi
        self._admin = context.get_admin_context()
        path = str(pathlib.Path(cinder_conf))
        cfg.CONF([], project='cinder', default_config_files=[path])
        options = configuration.Configuration(
            manager.volume_backend_opts, config_group='rbd1'
        )
        # As cinder.volume.manager makes it.
        self._driver = importutils.import_object(
            options.volume_driver,
            configuration=options,
            host='bench@rbd1',
            cluster_name=None,
            is_vol_db_empty=True,
            active_backend_id=None,
        )
        self._driver.do_setup(self._admin)
        self._driver.check_for_setup_error()

    def make(self, image: str, volume: str) -> None:
        # Whole, so that it asks no database for the rest.
        record = objects.Volume(
            self._admin,
            id=volume,
            _name_id=None,
            size=self._gib,
            volume_type_id=None,
            volume_type=None,
        )
        url = f'rbd://{self._fsid}/images/{image}/snap'
        # What Glance's location call gives; it has no direct URL.
        places = (None, [{'url': url, 'metadata': {}}])
        meta = {'id': image, 'disk_format': 'raw'}
        _update, cloned = self._driver.clone_image(
            self._admin, record, places, meta, None
        )
        if not cloned:
            raise RuntimeError(f'not cloned: {url}')
