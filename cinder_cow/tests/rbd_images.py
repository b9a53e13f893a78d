# SPDX-License-Identifier: Apache-2.0
"""Images in a Ceph of tests, as Glance stores them."""

from collections.abc import Iterator, Mapping
import contextlib
from typing import Any
import uuid

from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow.tests import ceph_client

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251


@contextlib.contextmanager
def stored(
    cluster: ceph_client.Client,
    data: Mapping[int, bytes],
    size: int,
    disk_format: str = 'raw',
    **fields: Any,
) -> Iterator[images.ImageInfo]:
    """Store an image in the pool "images"; give its record.

    :param data: what is in it, by offset
    :param fields: of the record
    """
    name = str(uuid.uuid4())
    with cluster.connect() as client, client.open_ioctx('images') as ioctx:
        rbd.RBD().create(ioctx, name, size, old_format=False)
        with rbd.Image(ioctx, name) as image:
            for offset, content in data.items():
                image.write(content, offset)
            image.create_snap('snap')
            image.protect_snap('snap')
    location = image_location.RbdLocation(name, 'images', cluster.fsid, 'snap')
    claims: dict[str, Any] = {
        'id': name,
        'name': f'image {name[:8]}',
        'disk_format': disk_format,
        'size': size,
        'locations': (location,),
        **fields,
    }
    record = images.ImageInfo(**claims)
    try:
        yield record
    finally:
        _remove(cluster, name)


def _remove(cluster: ceph_client.Client, name: str) -> None:
    """Remove an image, and what was cloned of it."""
    with cluster.connect() as client, client.open_ioctx('images') as ioctx:
        with rbd.Image(ioctx, name) as image:
            image.set_snap('snap')
            children = list(image.list_children())
        for pool, child in children:
            with client.open_ioctx(pool) as others:
                rbd.RBD().remove(others, child)
        with rbd.Image(ioctx, name) as image:
            image.unprotect_snap('snap')
            image.remove_snap('snap')
        rbd.RBD().remove(ioctx, name)
