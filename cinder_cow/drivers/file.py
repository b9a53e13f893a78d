# SPDX-License-Identifier: Apache-2.0
"""The file driver: volumes and bases are files in one directory.

A clone is a raw file that shares blocks (FICLONE) where the file system can,
else a qcow2 overlay; which of the two is found out by trying. The format is
in the file's name. See :mod:`.file_layout` for the directory.
"""

from collections.abc import Iterator, Sequence
import contextlib
import copy
import fcntl
import functools
import itertools
import os
import pathlib
from typing import Any, ClassVar, Self

from oslo_config import cfg
from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import file_locks
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import qcow2
from cinder_cow import qemu_img
from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import common
from cinder_cow.drivers import file_bases
from cinder_cow.drivers import file_layout
from cinder_cow.drivers import file_linking
from cinder_cow.drivers import file_orphans
from cinder_cow.drivers import file_reader
from cinder_cow.drivers import file_sinks
from cinder_cow.drivers import overlay

LOG = logging.getLogger(__name__)

_FORMATS = ('raw', 'qcow2')
# Extending takes milliseconds; longer than this something is stuck.
_EXTEND_SECONDS = 30
# How many children are named, of a base that has too many to read.
_CHILDREN = 20


class FileDriver:
    """Volumes in a directory; see the contract in :mod:`.base`.

    :param root: the directory; nothing outside of it is ever depended on
    :raises RequestError: LAYOUT_UNKNOWN
    """

    OPTS: ClassVar[list[cfg.Opt]] = [
        cfg.StrOpt(
            'cow_file_dir',
            help='Directory of the file driver. All volumes and bases of the '
            'back end are files in it, and nothing else may be.',
        ),
    ]

    def __init__(self, root: pathlib.Path, backend: str = 'file') -> None:
        self.backend = backend
        self.request = base.VolumeRequest()
        self._layout = file_layout.Layout(root.absolute(), backend)
        self._bases = file_bases.BaseStore(self._layout)
        self._translated = functools.partial(file_layout.translated, backend)
        self._orphans = file_orphans.Orphans(
            self._layout, self._bases, self.children, self.retire_base
        )

    @classmethod
    def from_options(cls, options: opts.BackendOptions) -> Self:
        """Make the driver of a configured back end.

        :raises RequestError: BACKEND_UNKNOWN without a directory
        """
        options.register(cls.OPTS)
        root = options.get('cow_file_dir')
        if not root:
            raise exception.RequestError.because(
                refusal.Reason.BACKEND_UNKNOWN,
                problem=f"back end '{options.backend}' has no directory",
                remedy=f'Set cow_file_dir in section [{options.backend}].',
            )
        return cls(pathlib.Path(root), options.backend)

    def bound(self, request: base.VolumeRequest) -> Self:
        view = copy.copy(self)
        view.request = request
        return view

    def open(self, volume_name: str, size: int) -> base.Writer:
        partial = self._begin(volume_name)
        publish = functools.partial(self._publish, volume_name)
        return file_sinks.VolumeSink(self.backend, partial, size, publish)

    def read(self, source: str | image_location.Location) -> base.Reader:
        with self._translated(), overlay.translated(self.backend):
            if not isinstance(source, str):
                image = self._bases.check(source).image
                return file_reader.RawReader(image, self.backend)
            path = self._path(source)
            if path.suffix == '.raw':
                return file_reader.RawReader(path, self.backend)
            backing = self._layout.root / qcow2.read_header(path).backing
            return overlay.OverlayReader(path, backing, self.backend)

    def exists(self, volume_name: str) -> bool:
        common.check_volume_name(volume_name)
        return self._find(volume_name) is not None

    def show(self, volume_name: str) -> base.VolumeInfo:
        path = self._path(volume_name)
        parent = None
        with self._translated():
            try:
                status = path.stat()
                size = status.st_size
                if path.suffix == '.qcow2':
                    header = qcow2.read_header(path)
                    size = header.size
                    parent = pathlib.Path(header.backing).parent.name
            except FileNotFoundError:
                raise self._not_found(volume_name) from None
        return base.VolumeInfo(
            name=volume_name,
            size=size,
            allocated=status.st_blocks * 512,
            format=path.suffix[1:],
            path=str(path),
            parent=parent,
        )

    def extend(self, volume_name: str, size: int) -> None:
        path = self._path(volume_name)
        with (
            self._translated(),
            overlay.translated(self.backend),
            path.open('r+b') as file,
        ):
            # Two at once: the one that comes second must see the first's.
            if not file_locks.wait_lock(
                file.fileno(), fcntl.LOCK_EX, _EXTEND_SECONDS
            ):
                raise file_reader.in_use(_EXTEND_SECONDS)
            volume = self.show(volume_name)
            if size < volume.size:
                raise exception.RequestError.because(
                    refusal.Reason.SHRINK,
                    volume=volume_name,
                    size=volume.size,
                    new_size=size,
                )
            if path.suffix == '.qcow2':
                qemu_img.resize(path, size)
            else:
                file.truncate(size)

    def delete(self, volume_name: str) -> None:
        common.check_volume_name(volume_name)
        with self._translated():
            for image_format in _FORMATS:
                path = self._layout.root / f'{volume_name}.{image_format}'
                path.unlink(missing_ok=True)
            file_layout.sync_directory(self._layout.root)

    def list(self) -> Iterator[base.VolumeInfo]:
        with self._translated():
            names = {
                pathlib.Path(name).stem
                for name in os.listdir(self._layout.root)
                if pathlib.Path(name).suffix[1:] in _FORMATS
            }
        for name in sorted(names):
            try:
                yield self.show(name)
            except exception.RequestError:
                continue  # deleted meanwhile
            except exception.BackendError as error:
                # One damaged file must not hide the others.
                LOG.warning('Volume %s: %s', name, error)

    # Cloner

    def cloneable(self, image_info: images.ImageInfo) -> refusal.Verdict:
        (location,) = image_info.locations
        try:
            self._bases.check(location)
        except exception.BackendError as error:
            return refusal.Verdict(error.refusal)
        return refusal.YES

    def clone(
        self, image_info: images.ImageInfo, volume_name: str
    ) -> base.VolumeInfo:
        (location,) = image_info.locations
        name = common.own_base(location, self.backend)
        with self._bases.held(name, fcntl.LOCK_SH) as (found, descriptor):
            parent = self._bases.sound(name, found)
            content_size = parent.published.facts.content_size
            size = common.clone_size(
                self.request, content_size, image_info.label
            )
            partial = self._begin(volume_name)
            try:
                path = self._copy_on_write(descriptor, parent, partial, size)
                # The base is held until its child can be seen.
                self._publish(volume_name, path)
            finally:
                partial.remove()
        return self.show(volume_name)

    def _copy_on_write(
        self,
        descriptor: int,
        parent: file_bases.StoredBase,
        partial: file_layout.Partial,
        size: int,
    ) -> pathlib.Path:
        """Make the clone's file, durable, in the partial."""
        with self._translated(), overlay.translated(self.backend):
            raw = partial.path / 'image.raw'
            raw.touch(mode=0o600, exist_ok=False)
            with raw.open('r+b') as file:
                if file_sinks.share_blocks(descriptor, file.fileno()):
                    file.truncate(size)
                    os.fsync(file.fileno())
                    return raw
            raw.unlink()
            path = partial.path / 'image.qcow2'
            path.touch(mode=0o600)
            backing = parent.image.relative_to(self._layout.root)
            qemu_img.create_overlay(path, str(backing), size)
            with path.open('rb') as file:
                os.fsync(file.fileno())
            return path

    # BaseKeeper

    def find_base(self, key: bases.BaseKey) -> bases.Base | None:
        found = self._bases.find(key.name)
        return found.published if found else None

    def begin_base(self, key: bases.BaseKey, size: int) -> bases.Begun:
        self.sweep()
        self._check_can_clone()
        return self._bases.begin(key.name, size)

    def list_bases(self) -> Iterator[bases.Base]:
        return self._bases.list()

    def children(self, base: bases.Base, limit: int) -> Sequence[str]:
        # A reflinked volume holds its blocks itself: overlays only.
        with self._translated():
            overlays = overlay.overlays_of(self._layout.root, base.name)
            return tuple(itertools.islice(overlays, limit))

    def set_base_facts(self, name: str, **changes: Any) -> None:  # noqa: ANN401
        self._bases.set_facts(name, changes)

    def base_manifest(self, name: str) -> bytes:
        return self._bases.manifest(name)

    def set_base_manifest(self, name: str, manifest: bytes) -> None:
        self._bases.set_manifest(name, manifest)

    def retire_base(self, name: str) -> None:
        with self._bases.held(name, fcntl.LOCK_EX) as (found, _descriptor):
            if found is None:
                return
            children = self.children(found.published, _CHILDREN + 1)
            if children:
                names = ', '.join(children[:_CHILDREN])
                raise exception.RequestError.because(
                    refusal.Reason.BASE_IN_USE,
                    base=name,
                    children=names
                    + (' and more' if children[_CHILDREN:] else ''),
                )
            self._bases.remove(found)

    # BaseLinker

    def link_base(
        self, key: bases.BaseKey, size: int, volume_name: str
    ) -> bases.Begun:
        path = self._path(volume_name)
        with self._translated(), path.open('rb') as file:
            file_linking.check(path, file.fileno(), size)
            self.sweep()
            begun = self._bases.begin(key.name, size)
            if isinstance(begun, file_sinks.BaseSink):
                file_linking.link(path, file.fileno(), begun)
            return begun

    # Checker

    def sweep(self) -> None:
        with self._translated():
            self._layout.sweep()

    def orphans(self) -> Iterator[bases.Orphan]:
        return self._orphans.list()

    def remove_orphans(self) -> Iterator[bases.Orphan]:
        return self._orphans.remove()

    # Private

    def _check_can_clone(self) -> None:
        """Refuse to make a base where no clone could be made of it.

        :raises BackendError: TOOL_MISSING
        """
        missing = qemu_img.missing_tool()
        if missing is None:
            return
        with self._translated():
            if not file_sinks.can_share(self._layout.root):
                raise exception.BackendError(missing)

    def _begin(self, volume_name: str) -> file_layout.Partial:
        """Hold a name that is free."""
        common.check_volume_name(volume_name)
        with self._translated():
            self._layout.sweep()
            partial = self._layout.hold(volume_name)
        if partial is None:
            owner = self._layout.owner(volume_name)
            raise self._exists(volume_name, f'is being made by {owner}')
        with contextlib.ExitStack() as undo:
            undo.callback(partial.remove)
            if self.exists(volume_name):
                raise self._exists(volume_name, 'exists already')
            undo.pop_all()
        return partial

    def _publish(self, volume_name: str, path: pathlib.Path) -> None:
        """Give a finished file its final name; a link never overwrites."""
        with self._translated():
            target = self._layout.root / f'{volume_name}{path.suffix}'
            try:
                os.link(path, target)
            except FileExistsError:
                raise self._exists(volume_name, 'exists already') from None
            try:
                file_layout.sync_directory(self._layout.root)
            except OSError:
                target.unlink()
                raise

    def _find(self, volume_name: str) -> pathlib.Path | None:
        paths = [
            self._layout.root / f'{volume_name}.{image_format}'
            for image_format in _FORMATS
        ]
        found = [path for path in paths if path.is_file()]
        if len(found) > 1:
            # Not of our making: which of them is the volume?
            raise exception.BackendError.because(
                refusal.Reason.BACKEND_ERROR,
                backend=self.backend,
                problem=f'{found[0]} and {found[1]} are one volume',
            )
        return found[0] if found else None

    def _path(self, volume_name: str) -> pathlib.Path:
        common.check_volume_name(volume_name)
        path = self._find(volume_name)
        if path is None:
            raise self._not_found(volume_name)
        return path

    def _not_found(self, volume_name: str) -> exception.RequestError:
        return exception.RequestError.because(
            refusal.Reason.VOLUME_NOT_FOUND,
            volume=volume_name,
            backend=self.backend,
        )

    def _exists(self, volume_name: str, state: str) -> exception.RequestError:
        return exception.RequestError.because(
            refusal.Reason.VOLUME_EXISTS, volume=volume_name, state=state
        )
