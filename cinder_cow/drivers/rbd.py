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
from typing import ClassVar, ParamSpec, Self, TypeVar

from oslo_config import cfg
from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import ceph
from cinder_cow.drivers import common
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd_errors
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_parents
from cinder_cow.drivers import rbd_reader
from cinder_cow.drivers import rbd_sink
from cinder_cow.drivers import rbd_undo
from cinder_cow.drivers import rbd_works
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)


_Arguments = ParamSpec('_Arguments')
_Answer = TypeVar('_Answer')


def _called(
    function: Callable[_Arguments, _Answer],
) -> Callable[_Arguments, _Answer]:
    """Run in a native thread; once more where the connection was lost.

    That is one that Ceph has blocklisted: of what it had begun nothing more
    will be done, and another connection cleans up behind it.
    """

    @functools.wraps(function)
    def call(*args: _Arguments.args, **named: _Arguments.kwargs) -> _Answer:
        try:
            return function(*args, **named)
        except exception.BackendError as error:
            cause = error.__cause__
            if not isinstance(cause, ceph.CephError) or not cause.lost:
                raise
        return function(*args, **named)

    return native.threaded(call)


class RbdDriver:
    """Volumes in a pool; see the contract in :mod:`.base`."""

    OPTS: ClassVar[list[cfg.Opt]] = rbd_options.OPTS

    def __init__(
        self, settings: rbd_options.RbdSettings, backend: str = 'rbd'
    ) -> None:
        self.backend = backend
        self.request = base.VolumeRequest()
        self._settings = settings
        self._errors = rbd_errors.Errors(backend, settings)
        self._parents = rbd_parents.Parents(
            backend, settings.caps, settings.trust
        )
        self._works = rbd_works.Works(settings, self._parents)

    @classmethod
    def from_options(cls, options: opts.BackendOptions) -> Self:
        """Make the driver of a configured back end, and tidy that up.

        :raises BackendError: CEPH_UNAVAILABLE, POOL_NOT_FOUND
        """
        settings = rbd_options.RbdSettings.read(options)
        driver = cls(settings, options.backend)
        driver.sweep()
        return driver

    @_called
    def sweep(self) -> None:
        """Finish or undo what makers left that live no more."""
        with self._opened() as (connection, pool):
            rbd_leases.sweep(pool, connection, rbd_undo.finish_or_undo)

    def bound(self, request: base.VolumeRequest) -> Self:
        view = copy.copy(self)
        view.request = request
        return view

    @_called
    def open(self, volume_name: str, size: int) -> base.Writer:
        with contextlib.ExitStack() as stack:
            connection, pool = stack.enter_context(self._opened())
            stream = self._works.stream(connection, pool, volume_name, size)
            node = self._settings.qemu_node(stream.name)
            return rbd_sink.Sink(
                stream,
                stack.enter_context(node),
                functools.partial(self._guarded, connection),
                stack.pop_all(),
            )

    @_called
    def read(self, source: str | image_location.Location) -> base.Reader:
        with contextlib.ExitStack() as stack:
            connection, pool = stack.enter_context(self._opened())
            if not isinstance(source, str):
                raise self._parents.outside(source)
            self._check_there(pool, source)
            image = stack.enter_context(pool.image(source))
            header = f'rbd_header.{image.id()}'
            return rbd_reader.Reader(
                image,
                functools.partial(self._guarded, connection),
                stack.pop_all(),
                functools.partial(connection.is_imported, image),
                functools.partial(pool.version, header),
            )

    @_called
    def read_image(self, image_info: images.ImageInfo) -> base.Reader:
        with contextlib.ExitStack() as stack:
            connection, _pool = stack.enter_context(self._opened())
            location = self._parents.trusted(connection, image_info)
            snapshot = stack.enter_context(
                self._parents.opened(connection, location)
            )
            return rbd_reader.Reader(
                snapshot,
                functools.partial(self._guarded, connection),
                stack.pop_all(),
                functools.partial(connection.is_imported, snapshot),
            )

    @_called
    def exists(self, volume_name: str) -> bool:
        common.check_volume_name(volume_name)
        with self._opened() as (_connection, pool):
            return self._is_there(pool, volume_name)

    @_called
    def show(self, volume_name: str) -> base.VolumeInfo:
        with self._opened() as (_connection, pool):
            self._check_there(pool, volume_name)
            with self._image(pool, volume_name) as image:
                return self._told(volume_name, image)

    @_called
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

    @_called
    def _entry(self, volume_name: str) -> ceph.Entry:
        with self._opened() as (_connection, pool):
            return pool.find(volume_name)

    @_called
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

    @_called
    def cloneable(self, image_info: images.ImageInfo) -> refusal.Verdict:
        try:
            with self._opened() as (connection, pool):
                found = self._parents.find(connection, pool, image_info)
        except exception.BackendError as error:
            return refusal.Verdict(error.refusal)
        return refusal.Verdict(content_size=found.size)

    @_called
    def clone(
        self, image_info: images.ImageInfo, volume_name: str
    ) -> base.VolumeInfo:
        with self._opened() as (connection, pool):
            parent = self._parents.find(connection, pool, image_info)
            size = common.clone_size(
                self.request, parent.size, image_info.label
            )
            self._works.clone(connection, pool, parent, volume_name, size)
        return base.VolumeInfo(
            name=volume_name,
            size=size,
            allocated=0,
            format='raw',
            path=self._settings.qemu_path(volume_name),
            parent=parent.name,
        )

    # Private

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[ceph.Connection, ceph.Pool]]:
        """Give the connection and the pool; translate errors of the block."""
        settings = self._settings
        with (
            self._translated(),
            ceph.connected(settings.cluster) as connection,
            connection.pool(settings.pool, settings.namespace) as pool,
        ):
            yield connection, pool

    def _translated(self) -> contextlib.AbstractContextManager[None]:
        return self._errors.translated()

    @contextlib.contextmanager
    def _guarded(self, connection: ceph.Connection) -> Iterator[None]:
        """Translate errors of a handle that keeps a connection."""
        with self._translated():
            try:
                with ceph.translated():
                    yield
            except ceph.CephError as error:
                connection.lost |= error.lost
                raise

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

    def _is_there(self, pool: ceph.Pool, volume_name: str) -> bool:
        return pool.has_name(volume_name) and not rbd_leases.is_taken(
            pool, volume_name
        )

    def _check_there(self, pool: ceph.Pool, volume_name: str) -> None:
        common.check_volume_name(volume_name)
        if not self._is_there(pool, volume_name):
            raise self._not_found(volume_name)

    def _told(self, volume_name: str, image: ceph.Image) -> base.VolumeInfo:
        size = image.size()
        return base.VolumeInfo(
            name=volume_name,
            size=size,
            allocated=ceph.allocated(image, size),
            format='raw',
            path=self._settings.qemu_path(volume_name),
            parent=ceph.parent_name(image),
        )

    @_called
    def _names(self) -> Sequence[str]:
        with self._opened() as (connection, pool):
            rbd_leases.sweep(pool, connection, rbd_undo.finish_or_undo)
            taken = rbd_leases.names(pool)
            return sorted(
                name
                for name in pool.names()
                if name not in taken
                and not name.startswith(base.RESERVED_PREFIX)
            )

    def _not_found(self, volume_name: str) -> exception.RequestError:
        return exception.RequestError.because(
            Reason.VOLUME_NOT_FOUND, volume=volume_name, backend=self.backend
        )
