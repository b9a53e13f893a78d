# SPDX-License-Identifier: Apache-2.0
"""The only user of librados and librbd.

What is said of them here was tried with Ceph 16.2.
"""

from cinder_cow.drivers.ceph.calls import CephError
from cinder_cow.drivers.ceph.calls import ignored
from cinder_cow.drivers.ceph.calls import NO_MODULES
from cinder_cow.drivers.ceph.calls import NoConnectionError
from cinder_cow.drivers.ceph.calls import NoPoolError
from cinder_cow.drivers.ceph.calls import translated
from cinder_cow.drivers.ceph.connection import Cluster
from cinder_cow.drivers.ceph.connection import connected
from cinder_cow.drivers.ceph.connection import Connection
from cinder_cow.drivers.ceph.connection import disconnect
from cinder_cow.drivers.ceph.header import Header
from cinder_cow.drivers.ceph.header import identity
from cinder_cow.drivers.ceph.header import Snapshot
from cinder_cow.drivers.ceph.images import allocated
from cinder_cow.drivers.ceph.images import children
from cinder_cow.drivers.ceph.images import empty_behind
from cinder_cow.drivers.ceph.images import has_children
from cinder_cow.drivers.ceph.images import Image
from cinder_cow.drivers.ceph.images import is_migrating
from cinder_cow.drivers.ceph.images import locked_by_another
from cinder_cow.drivers.ceph.images import object_size
from cinder_cow.drivers.ceph.images import own_children
from cinder_cow.drivers.ceph.images import Parent
from cinder_cow.drivers.ceph.images import parent_name
from cinder_cow.drivers.ceph.images import parent_place
from cinder_cow.drivers.ceph.images import parents
from cinder_cow.drivers.ceph.images import snapshot_time
from cinder_cow.drivers.ceph.images import snapshots
from cinder_cow.drivers.ceph.images import stored
from cinder_cow.drivers.ceph.images import take_lock
from cinder_cow.drivers.ceph.images import watchers
from cinder_cow.drivers.ceph.lending import Lender
from cinder_cow.drivers.ceph.lending import Lent
from cinder_cow.drivers.ceph.pool import Entry
from cinder_cow.drivers.ceph.pool import Pool
from cinder_cow.drivers.ceph.pool import Trashed
from cinder_cow.drivers.ceph.rows import Lock
from cinder_cow.drivers.ceph.rows import Rows

__all__ = [
    'NO_MODULES',
    'CephError',
    'Cluster',
    'Connection',
    'Entry',
    'Header',
    'Image',
    'Lender',
    'Lent',
    'Lock',
    'NoConnectionError',
    'NoPoolError',
    'Parent',
    'Pool',
    'Rows',
    'Snapshot',
    'Trashed',
    'allocated',
    'children',
    'connected',
    'disconnect',
    'empty_behind',
    'has_children',
    'identity',
    'ignored',
    'is_migrating',
    'locked_by_another',
    'object_size',
    'own_children',
    'parent_name',
    'parent_place',
    'parents',
    'snapshot_time',
    'snapshots',
    'stored',
    'take_lock',
    'translated',
    'watchers',
]
