# SPDX-License-Identifier: Apache-2.0
"""The RBD driver: a volume is an image of a Ceph pool.

A clone goes straight to its final name, a stream to a partial one that is
renamed when all of it is written. Either is written down before it begins
(see :mod:`.rbd_leases`), and nobody sees the volume until that row is gone.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import copy
import errno
import functools
from typing import ClassVar, Self
import urllib.parse

from oslo_config import cfg
from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import qemu_img
from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import ceph
from cinder_cow.drivers import common
from cinder_cow.drivers import rbd_base_store
from cinder_cow.drivers import rbd_bases
from cinder_cow.drivers import rbd_borrowing
from cinder_cow.drivers import rbd_context
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_parents
from cinder_cow.drivers import rbd_reader
from cinder_cow.drivers import rbd_signatures
from cinder_cow.drivers import rbd_sink
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

# How often a clone is begun where its base was to be retired, and stayed.
_ATTEMPTS = 3


class RbdDriver(rbd_bases.RbdBases):
    """Volumes in a pool; see the contract in :mod:`.base`."""

    OPTS: ClassVar[list[cfg.Opt]] = rbd_options.OPTS

    def __init__(
        self, settings: rbd_options.RbdSettings, backend: str = 'rbd'
    ) -> None:
        super().__init__(settings, backend)
        self.request = base.VolumeRequest()
        self._parents = rbd_parents.Parents(
            backend, settings.caps, settings.trust
        )

    @classmethod
    def from_options(cls, options: opts.BackendOptions) -> Self:
        """Make the driver of a configured back end."""
        settings = rbd_options.RbdSettings.read(options)
        return cls(settings, options.backend)

    def bound(self, request: base.VolumeRequest) -> Self:
        view = copy.copy(self)
        view.request = request
        return view

    @rbd_context.called
    def open(self, volume_name: str, size: int) -> base.Writer:
        with contextlib.ExitStack() as stack:
            connection, pool = stack.enter_context(self._opened())
            stream = self._works.stream(connection, pool, volume_name, size)
            node = self._settings.own_node(stream.name)
            return rbd_sink.Sink(
                stream,
                stack.enter_context(node),
                functools.partial(self._guarded, connection),
                stack.pop_all(),
            )

    @rbd_context.called
    def read(self, source: str | image_location.Location) -> base.Reader:
        with contextlib.ExitStack() as stack:
            connection, pool = stack.enter_context(self._opened())
            if not isinstance(source, str):
                found = self._store.sound(pool, source)
                snapshot = rbd_base_store.SNAPSHOT
                image = stack.enter_context(
                    pool.image_of(found.image, snapshot)
                )
                return self._reader(
                    connection,
                    image,
                    functools.partial(
                        self._settings.own_node, found.name, snapshot
                    ),
                    stack,
                )
            self._check_there(pool, source)
            image = stack.enter_context(pool.image(source))
            header = f'rbd_header.{image.id()}'
            return self._reader(
                connection,
                image,
                functools.partial(self._settings.own_node, source),
                stack,
                functools.partial(pool.version, header),
            )

    @rbd_context.called
    def read_image(self, image_info: images.ImageInfo) -> base.Reader:
        with contextlib.ExitStack() as stack:
            connection, pool = stack.enter_context(self._opened())
            location = self._parents.trusted(connection, image_info)
            snapshot = stack.enter_context(
                self._parents.opened(connection, location)
            )
            node = functools.partial(self._borrowed_node, pool, location)
            return self._reader(connection, snapshot, node, stack)

    def _reader(
        self,
        connection: ceph.Connection,
        image: ceph.Image,
        node: Callable[
            [], contextlib.AbstractContextManager[qemu_img.QemuNode]
        ],
        stack: contextlib.ExitStack,
        state: Callable[[], int] | None = None,
    ) -> base.Reader:
        guard = functools.partial(self._guarded, connection)
        if connection.is_imported(image):
            return rbd_reader.ImportedReader(
                image, guard, stack.pop_all(), state
            )
        return rbd_reader.Reader(image, guard, stack.pop_all(), state, node)

    @contextlib.contextmanager
    def _borrowed_node(
        self, pool: ceph.Pool, location: image_location.RbdLocation
    ) -> Iterator[qemu_img.QemuNode]:
        """Give QEMU an image of another pool, by a clone in ours."""
        options = self._settings.image_options()
        with (
            rbd_borrowing.borrowed(pool, location, options) as name,
            self._settings.own_node(name) as node,
        ):
            yield node

    @rbd_context.called
    def exists(self, volume_name: str) -> bool:
        common.check_volume_name(volume_name)
        with self._opened() as (_connection, pool):
            return self._is_there(pool, volume_name)

    @rbd_context.called
    def show(self, volume_name: str) -> base.VolumeInfo:
        with self._opened() as (_connection, pool):
            self._check_there(pool, volume_name)
            with self._image(pool, volume_name) as image:
                return self._told(volume_name, image)

    @rbd_context.called
    def extend(self, volume_name: str, size: int) -> None:
        with self._opened() as (_connection, pool):
            self._check_there(pool, volume_name)
            with self._image(pool, volume_name, write=True) as image:
                found = image.size()
                if size < found:
                    raise exception.RequestError.because(
                        Reason.SHRINK,
                        volume=volume_name,
                        size=found,
                        new_size=size,
                    )
                if size > found:
                    image.resize(size)

    def delete(self, volume_name: str) -> None:
        common.check_volume_name(volume_name)
        if entry := self._entry(volume_name):
            self._delete(volume_name, entry)

    @rbd_context.called
    def _entry(self, volume_name: str) -> ceph.Entry:
        with self._opened() as (_connection, pool):
            return pool.find(volume_name)

    @rbd_context.called
    def _delete(self, volume_name: str, entry: ceph.Entry) -> None:
        # Where it is called again, the name may be that of a new volume.
        with self._opened() as (connection, pool):
            self._works.delete(connection, pool, volume_name, entry)

    def list(self) -> Iterator[base.VolumeInfo]:
        for name in self._names():
            try:
                yield self.show(name)
            except exception.RequestError:
                continue  # deleted meanwhile
            except exception.BackendError as error:
                # One damaged image must not hide the others.
                LOG.warning('Volume %s: %s', name, error)

    # Cloner

    @rbd_context.called
    def cloneable(self, image_info: images.ImageInfo) -> refusal.Verdict:
        try:
            with self._opened() as (connection, pool):
                found, _judge = self._parent(connection, pool, image_info)
        except exception.BackendError as error:
            return refusal.Verdict(error.refusal)
        return refusal.Verdict(content_size=found.content_size)

    def clone(
        self, image_info: images.ImageInfo, volume_name: str
    ) -> base.VolumeInfo:
        for _attempt in range(_ATTEMPTS):
            with contextlib.suppress(rbd_base_store.AgainError):
                return self._clone(image_info, volume_name)
        with self._translated():
            try:
                return self._clone(image_info, volume_name)
            except rbd_base_store.AgainError as again:
                raise again.error from None

    @rbd_context.called
    def _clone(
        self, image_info: images.ImageInfo, volume_name: str
    ) -> base.VolumeInfo:
        with self._opened() as (connection, pool):
            parent, judge = self._parent(connection, pool, image_info)
            size = common.clone_size(
                self.request, parent.content_size, image_info.label
            )
            self._works.clone(pool, parent, judge, volume_name, size)
        return base.VolumeInfo(
            name=volume_name,
            size=size,
            allocated=0,
            format='raw',
            path=self._settings.qemu_path(volume_name),
            parent=parent.name,
        )

    def _parent(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        image_info: images.ImageInfo,
    ) -> tuple[rbd_parents.Parent, rbd_parents.Judge]:
        (location,) = image_info.locations
        if isinstance(location, image_location.BaseLocation):
            return self._store.parent(pool, location), self._store
        found = self._parents.find(connection, pool, image_info)
        return found, self._parents

    # ImagePlaces

    @rbd_context.called
    def image_places(self) -> Sequence[str]:
        with self._opened() as (connection, _pool):
            fsid = urllib.parse.quote(connection.fsid, safe='')
        return [
            f'rbd://{fsid}/{urllib.parse.quote(pool, safe="")}/'
            for pool in sorted(self._settings.trust.pools)
        ]

    # SignatureKeeper

    @rbd_context.called
    def has_signature(
        self, image_info: images.ImageInfo, identity: str
    ) -> bool:
        with self._opened() as (connection, pool):
            parent, _judge = self._parent(connection, pool, image_info)
            return rbd_signatures.has(pool, parent, identity)

    @rbd_context.called
    def keep_signature(
        self, image_info: images.ImageInfo, identity: str
    ) -> None:
        with self._opened() as (connection, pool):
            parent, _judge = self._parent(connection, pool, image_info)
            rbd_signatures.keep(pool, parent, identity)

    # Private

    @contextlib.contextmanager
    def _image(
        self, pool: ceph.Pool, volume_name: str, write: bool = False
    ) -> Iterator[ceph.Image]:
        """Open a volume that may go meanwhile."""
        try:
            with pool.image(volume_name, write=write) as image:
                yield image
        except ceph.CephError as error:
            if error.errno == errno.ENOENT:
                raise self._not_found(volume_name) from error
            raise

    def _told(self, volume_name: str, image: ceph.Image) -> base.VolumeInfo:
        size = image.size()
        return base.VolumeInfo(
            name=volume_name,
            size=size,
            allocated=ceph.allocated(image, size),
            format='raw',
            path=self._settings.qemu_path(volume_name),
            parent=self._parent_name(image),
        )

    def _parent_name(self, image: ceph.Image) -> str | None:
        pool = f'{self._settings.pool}/'
        found = ceph.parent_name(image)
        if found and found.startswith(pool):
            name = found.removeprefix(pool).partition('@')[0]
            return name if rbd_base_store.is_name(name) else found
        return found

    @rbd_context.called
    def _names(self) -> Sequence[str]:
        with self._opened() as (_connection, pool):
            taken = rbd_leases.names(pool)
            return sorted(
                name
                for name in pool.names()
                if name not in taken
                and not name.startswith(base.RESERVED_PREFIX)
            )
