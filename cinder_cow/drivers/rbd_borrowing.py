# SPDX-License-Identifier: Apache-2.0
"""Let QEMU read an image of a pool in which we may only read.

QEMU opens what it reads as one who may write: librbd then asks to watch the
image, and that is no right of a reader. So it is given a clone in our own
pool, made in 30 ms, that holds no data and is gone afterwards.
"""

from collections.abc import Iterator
import contextlib
import functools
from typing import Any
import uuid

from cinder_cow import image_location
from cinder_cow.drivers import base
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_undo
from cinder_cow.drivers import rbd_works
from cinder_cow.drivers.rbd_lease_row import Work

_NAME = f'{base.RESERVED_PREFIX}source-'


@contextlib.contextmanager
def borrowed(
    pool: ceph.Pool,
    location: image_location.RbdLocation,
    options: dict[str, Any],
) -> Iterator[str]:
    """Give the name of a clone of a trusted location, in our pool.

    Its lease is that of a stream which is never published: who is killed
    leaves it to the next sweep, with the watch of a qemu-img that was, too.

    :param options: of new images
    :raises CephError: there can be none
    """
    assert location.pool
    assert location.snapshot
    volume = f'{_NAME}{uuid.uuid4().hex}'
    name = rbd_undo.partial_name(volume)
    holding = rbd_leases.take(pool, pool.connection, volume, Work.STREAM)
    undo = functools.partial(rbd_undo.remove, pool, name)
    with (
        rbd_works.undone(holding, undo),
        pool.connection.pool(location.pool) as pool_of_image,
    ):
        pool.clone(
            pool_of_image, location.image, location.snapshot, name, **options
        )
        yield name
    undo()
    holding.release()
