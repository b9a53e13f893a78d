# SPDX-License-Identifier: Apache-2.0
"""The options of the RBD driver: Cinder's own, by their names, and ours."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
from typing import Any, Self

from oslo_config import cfg
from oslo_utils import units

from cinder_cow import opts
from cinder_cow import qemu_img
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_parents

# As Cinder has them (cinder/volume/drivers/rbd.py), so that its configuration
# is read as it is.
_CINDERS: list[cfg.Opt] = [
    cfg.StrOpt(
        'rbd_cluster_name', default='ceph', help='The name of ceph cluster'
    ),
    cfg.StrOpt(
        'rbd_pool',
        default='rbd',
        help='The RADOS pool where rbd volumes are stored',
    ),
    cfg.StrOpt(
        'rbd_user',
        help='The RADOS client name for accessing rbd volumes - only set '
        'when using cephx authentication',
    ),
    cfg.StrOpt(
        'rbd_ceph_conf',
        default='',
        help='Path to the ceph configuration file',
    ),
    cfg.IntOpt(
        'rbd_store_chunk_size',
        default=4,
        help='Volumes will be chunked into objects of this size (in '
        'megabytes).',
    ),
    cfg.IntOpt(
        'rados_connect_timeout',
        default=-1,
        help='Timeout value (in seconds) used when connecting to ceph '
        'cluster. If value < 0, no timeout is set and default librados value '
        'is used.',
    ),
]

_OURS: list[cfg.Opt] = [
    cfg.StrOpt(
        'cow_rbd_namespace',
        default='',
        help='Namespace of rbd_pool that the volumes are in. Clones into a '
        'namespace need Ceph to make clones of version 2.',
    ),
    cfg.StrOpt(
        'cow_rbd_data_pool',
        help='Pool of the data of new volumes, for instance an erasure coded '
        'one. Unset: as Ceph is configured.',
    ),
    cfg.ListOpt(
        'cow_rbd_trusted_pools',
        default=['images'],
        help='Pools whose images may be cloned: those that Glance keeps its '
        'images in, and nobody else writes to. A location is text of an '
        'image record, which must not give anybody the volumes of others.',
    ),
    cfg.BoolOpt(
        'cow_rbd_check_image',
        default=True,
        help='Clone an image only where it is named after the id of the '
        'image, as Glance names it.',
    ),
    cfg.StrOpt(
        'cow_rbd_snapshot',
        default='snap',
        help='Clone only a snapshot of this name, which is that of Glance. '
        'Empty: any.',
    ),
    cfg.IntOpt(
        'cow_rbd_op_timeout',
        default=60,
        min=1,
        help='How long an operation of the cluster may take, in seconds. '
        'Without a limit, one that cannot be done never ends.',
    ),
]

OPTS = [*_CINDERS, *_OURS]

# Where Cinder leaves it to librados, that waits for 300 s.
_CONNECT_TIMEOUT = 30


@dataclasses.dataclass(frozen=True, slots=True)
class RbdSettings:
    """What the options of an RBD back end say.

    :param order: an object of a new volume has 2 ** order bytes
    :param keep: seconds for which half a base is kept, to go on with
    """

    cluster: ceph.Cluster
    pool: str
    trust: rbd_parents.Trust
    namespace: str = ''
    data_pool: str = ''
    order: int = 22
    keep: float = 24 * 3600

    @classmethod
    def read(cls, options: opts.BackendOptions) -> Self:
        options.register(OPTS)
        get = options.get
        timeout: int = get('rados_connect_timeout')
        chunk: int = get('rbd_store_chunk_size') * units.Mi
        return cls(
            cluster=ceph.Cluster(
                conf=get('rbd_ceph_conf'),
                user=get('rbd_user') or '',
                name=get('rbd_cluster_name'),
                connect_timeout=timeout if timeout > 0 else _CONNECT_TIMEOUT,
                op_timeout=get('cow_rbd_op_timeout'),
            ),
            pool=get('rbd_pool'),
            trust=rbd_parents.Trust(
                pools=frozenset(get('cow_rbd_trusted_pools')),
                check_image=get('cow_rbd_check_image'),
                snapshot=get('cow_rbd_snapshot'),
            ),
            namespace=get('cow_rbd_namespace'),
            data_pool=get('cow_rbd_data_pool') or '',
            order=chunk.bit_length() - 1,
            keep=get('cow_scratch_keep_hours') * 3600,
        )

    @property
    def caps(self) -> str:
        """What the user needs, as ``ceph auth caps`` takes it."""
        own = [pool for pool in (self.pool, self.data_pool) if pool]
        writes = [f'profile rbd pool={pool}' for pool in own]
        reads = [
            f'profile rbd-read-only pool={pool}'
            for pool in sorted(self.trust.pools.difference(own))
        ]
        return (
            f"mon 'profile rbd' osd '{', '.join(writes + reads)}'"
            f" mgr '{', '.join(writes)}'"
        )

    def qemu_path(self, name: str) -> str:
        """Return what QEMU calls an image of the pool: block/rbd.c."""
        place = '/'.join(filter(None, (self.pool, self.namespace)))
        options = ''
        if self.cluster.user:
            options += f':id={self.cluster.user}'
        if self.cluster.conf:
            options += f':conf={self.cluster.conf}'
        return f'rbd:{place}/{name}{options}'

    def own_node(
        self, name: str, snapshot: str = ''
    ) -> contextlib.AbstractContextManager[qemu_img.QemuNode]:
        """Give an image of the pool, or a snapshot, as a block node."""
        return self.qemu_node(self.pool, self.namespace, name, snapshot)

    @contextlib.contextmanager
    def qemu_node(
        self, pool: str, namespace: str, name: str, snapshot: str
    ) -> Iterator[qemu_img.QemuNode]:
        """Give an image, or a snapshot of it, as a block node of QEMU.

        Of a configuration with our time limits, which QEMU has no options
        for: else a conversion waits for good where the cluster does.
        """
        with open(os.memfd_create('ceph.conf'), 'wb') as conf:
            conf.write(self.cluster.conf_text().encode())
            conf.flush()
            options = {
                'driver': 'rbd',
                'pool': pool,
                'image': name,
                'namespace': namespace,
                'snapshot': snapshot,
                'user': self.cluster.user,
                'conf': f'/dev/fd/{conf.fileno()}',
            }
            yield qemu_img.QemuNode(
                {key: value for key, value in options.items() if value},
                direct=True,
                descriptors=(conf.fileno(),),
            )

    def image_options(self) -> dict[str, Any]:
        """Return what librbd is told about a new image."""
        return {'data_pool': self.data_pool} if self.data_pool else {}
