# SPDX-License-Identifier: Apache-2.0
"""Our driver for Cinder alone, and how it connects.

A test runs it, with the Python of ``.venv-services``. Its words are a
cinder.conf with a section "rbd1", what that back end was failed over to (or
''), and a directory of the cluster. It prints what it found, as JSON.
"""

# mypy: disable-error-code="import-not-found"
# ruff: noqa: E402, TID251

from cinder_cow.tests import monkey_patch

# Before all other imports, as in Cinder's own programs.
monkey_patch.patch()

import gc
import json
import sys
from typing import Any

from cinder import exception
from cinder import objects
from cinder.volume import configuration
from cinder.volume import driver as volume_driver
from cinder.volume.drivers import rbd as upstream
from oslo_config import cfg
import rbd

from cinder_cow.plugin import rbd as plugin
from cinder_cow.tests import ceph_client

CONF = cfg.CONF


def main(conf: str, active: str, directory: str) -> None:
    objects.register_all()
    CONF(['--config-file', conf], project='cinder')
    driver = plugin.CowRBDDriver(
        configuration=configuration.Configuration(
            volume_driver.volume_opts, config_group='rbd1'
        ),
        active_backend_id=active or None,
    )
    driver.do_setup(None)
    found = {
        'fsid': driver._get_fsid(),
        'places': _places(driver),
        'same': _same(driver),
        'used_later': _used_later(driver),
        'remote': _remote(driver),
        'usage': driver._get_usage_info(),
        'no_pool': _error(driver, 'missing'),
    }
    if not active:
        found['lost'] = _lost(driver, ceph_client.Client(directory))
    print(json.dumps(found))


def _places(driver: Any) -> Any:
    """Tell where images must be that our driver clones."""
    return driver._cow.driver.image_places()


def _same(driver: Any) -> bool:
    """Whether two clients are one connection."""
    with (
        upstream.RADOSClient(driver) as one,
        upstream.RADOSClient(driver) as other,
    ):
        return bool(one.ioctx is other.ioctx)


def _used_later(driver: Any) -> str:
    """Do as upstream does where it cannot set up a volume."""
    with upstream.RADOSClient(driver) as client:
        pass
    return _tried(driver, client)


def _tried(driver: Any, client: Any) -> str:
    try:
        driver.RBDProxy().remove(client.ioctx, 'nothing')
    except rbd.Error as error:
        return type(error).__name__
    return ''


def _remote(driver: Any) -> str:
    """Tell which cluster a target of replication is."""
    client, ioctx = driver._connect_to_rados(
        remote=driver._get_target_config('second'), timeout=30
    )
    try:
        return str(client.get_fsid())
    finally:
        driver._disconnect_from_rados(client, ioctx)


def _error(driver: Any, pool: str) -> str:
    try:
        driver._connect_to_rados(pool)
    except exception.VolumeBackendAPIException as error:
        return str(error)
    return ''


def _lost(driver: Any, cluster: Any) -> dict[str, Any]:
    """Have the connection shut out, and tell what happens."""
    with upstream.RADOSClient(driver) as old:
        pass
    rados = old.cluster._lent.rados
    for address in rados.get_addrs().strip('[]').split(','):
        cluster.mon(prefix='osd blocklist', blocklistop='add', addr=address)
    # Until its OSD knows of it, it is served.
    with cluster.connect() as other:
        other.wait_for_latest_osdmap()
    for _attempt in range(100):
        with upstream.RADOSClient(driver) as new:
            if new.ioctx is not old.ioctx:
                break
    found = {
        'replaced': new.ioctx is not old.ioctx,
        'works': _tried(driver, new),
        # And of the old one something is still there.
        'used_later': _tried(driver, old),
        'open': rados.state,
    }
    del old
    gc.collect()
    # Eventlet keeps what was raised last, with its frames.
    for _attempt in range(100):
        _tried(driver, new)
        gc.collect()
        with upstream.RADOSClient(driver):
            if rados.state == 'shutdown':
                break
    return {**found, 'closed': rados.state}


if __name__ == '__main__':
    main(*sys.argv[1:])
