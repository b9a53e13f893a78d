# SPDX-License-Identifier: Apache-2.0
"""What a pool of Cinder's holds, compared with what Cinder knows."""

import contextlib
import itertools

from cinder_cow.tests import rbd_place

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

OURS = 'cow-'


def unneeded(cluster, pool, volumes, snapshots):
    """Name what neither Cinder knows nor anything it knows hangs on.

    :param volumes: ids that Cinder has
    :param snapshots: ids that Cinder has
    """
    volumes = {f'volume-{one}' for one in volumes}
    snapshots = {f'snapshot-{one}' for one in snapshots}
    with rbd_place.opened(cluster, pool) as ioctx:
        names = rbd.RBD().list(ioctx)
        trashed = [one['id'] for one in rbd.RBD().trash_list(ioctx)]
        found = []
        for which in itertools.chain(
            ({'name': name} for name in names if not name.startswith(OURS)),
            ({'image_id': image_id} for image_id in trashed),
        ):
            label = which.get('name') or f'trash {which["image_id"]}'
            with rbd.Image(ioctx, read_only=True, **which) as image:
                needed = _snapshots(image)
            found += [
                f'{label}@{name}'
                for name, children in needed.items()
                if not children and name not in snapshots
            ]
            if label not in volumes and not any(needed.values()):
                found.append(label)
    missing = volumes.difference(names)
    return sorted(found + [f'{name} is missing' for name in missing])


def _snapshots(image):
    """Tell how many children each snapshot of an image has."""
    found = {}
    for snapshot in list(image.list_snaps()):
        image.set_snap_by_id(snapshot['id'])
        found[snapshot['name']] = len(list(image.list_children2()))
    return found
