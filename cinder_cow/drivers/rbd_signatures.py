# SPDX-License-Identifier: Apache-2.0
"""What is remembered of signatures: rows beside those of other verdicts."""

import json

from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_parents

_GOOD = b'good'


def has(pool: ceph.Pool, parent: rbd_parents.Parent, identity: str) -> bool:
    """Tell whether a snapshot was found to have a signature."""
    return bool(rbd_parents.verdicts(pool).get(_row(parent, identity)))


def keep(pool: ceph.Pool, parent: rbd_parents.Parent, identity: str) -> None:
    rbd_parents.verdicts(pool).put(_row(parent, identity), _GOOD)


def _row(parent: rbd_parents.Parent, identity: str) -> str:
    # The snapshot first, as in all verdicts: fsck removes them when it is
    # gone.
    return json.dumps([parent.identity, 'signature', identity])
