# SPDX-License-Identifier: Apache-2.0
"""The reference driver: volumes in memory. Copy this to begin your own.

A volume is a size and its blocks; blocks are immutable, so a clone shares
them by copying the table. Nothing outlives the process.
"""

from collections.abc import Iterator, Sequence
import copy
import dataclasses
import threading
import time
from typing import Any, ClassVar, Self

from oslo_config import cfg

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import sparse
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import common

BLOCK = 64 * 1024


@dataclasses.dataclass(slots=True)
class _Disk:
    """A size in bytes, and the blocks that are not zeros, by number."""

    size: int
    blocks: dict[int, bytes] = dataclasses.field(default_factory=dict)
    parent: str | None = None

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray()
        while length:
            number, start = divmod(offset, BLOCK)
            count = min(BLOCK - start, length)
            block = self.blocks.get(number, b'')
            data += block[start : start + count].ljust(count, b'\0')
            offset, length = offset + count, length - count
        return bytes(data)

    def cut(self, size: int) -> dict[int, bytes]:
        """Return the blocks of the first bytes, with zeros behind them."""
        last, rest = divmod(size, BLOCK)
        found = {n: block for n, block in self.blocks.items() if n <= last}
        if last in found:
            found[last] = found[last][:rest].ljust(BLOCK, b'\0')
        return found

    def write(self, offset: int, data: bytes) -> None:
        while data:
            number, start = divmod(offset, BLOCK)
            part, data = data[: BLOCK - start], data[BLOCK - start :]
            block = bytearray(self.blocks.get(number, b'').ljust(BLOCK, b'\0'))
            block[start : start + len(part)] = part
            self.blocks[number] = bytes(block)
            offset += len(part)


@dataclasses.dataclass(slots=True)
class _KeptBase:
    """A published base, and all that is kept with it."""

    base: bases.Base
    disk: _Disk
    manifest: bytes = b''


class MemoryDriver:
    """Volumes and bases in two dictionaries; see the contract in base.

    :param capacity: bytes one volume or base may hold; None: no limit
    """

    OPTS: ClassVar[list[cfg.Opt]] = []

    def __init__(
        self, backend: str = 'memory', capacity: int | None = None
    ) -> None:
        self.backend = backend
        self.capacity = capacity
        self.request = base.VolumeRequest()
        self._volumes: dict[str, _Disk] = {}
        self._bases: dict[str, _KeptBase] = {}
        # What makers of bases left for the next one: the disk, and how much
        # of it they wrote.
        self._kept: dict[str, tuple[_Disk, int]] = {}
        # What is being made. One lock guards them all.
        self._making: dict[str, bases.Making | None] = {}
        self._lock = threading.RLock()

    @classmethod
    def from_options(cls, options: opts.BackendOptions) -> Self:
        return cls(options.backend)

    def bound(self, request: base.VolumeRequest) -> Self:
        view = copy.copy(self)
        view.request = request
        return view

    def open(self, volume_name: str, size: int) -> base.Writer:
        return self._open(volume_name, size)

    def read(self, source: str | image_location.Location) -> base.Reader:
        if isinstance(source, str):
            return _Reader(self._disk(source))
        return _Reader(self._parent(source).disk)

    def exists(self, volume_name: str) -> bool:
        common.check_volume_name(volume_name)
        return volume_name in self._volumes

    def show(self, volume_name: str) -> base.VolumeInfo:
        disk = self._disk(volume_name)
        return base.VolumeInfo(
            name=volume_name,
            size=disk.size,
            allocated=len(disk.blocks) * BLOCK,
            format='raw',
        )

    def extend(self, volume_name: str, size: int) -> None:
        disk = self._disk(volume_name)
        if size < disk.size:
            raise self._error(
                refusal.Reason.SHRINK,
                volume=volume_name,
                size=disk.size,
                new_size=size,
            )
        disk.size = size

    def delete(self, volume_name: str) -> None:
        common.check_volume_name(volume_name)
        self._volumes.pop(volume_name, None)

    def list(self) -> Iterator[base.VolumeInfo]:
        return map(self.show, sorted(self._volumes))

    # Cloner

    def cloneable(self, image_info: images.ImageInfo) -> refusal.Verdict:
        (location,) = image_info.locations
        try:
            self._parent(location)
        except exception.BackendError as error:
            return refusal.Verdict(error.refusal)
        return refusal.YES

    def clone(
        self, image_info: images.ImageInfo, volume_name: str
    ) -> base.VolumeInfo:
        (location,) = image_info.locations
        parent = self._parent(location)
        size = common.clone_size(
            self.request, parent.base.facts.content_size, image_info.label
        )
        with self._open(volume_name, size) as writer:
            writer.disk.blocks = dict(parent.disk.blocks)
            writer.close()
        return self.show(volume_name)

    # BaseKeeper

    def find_base(self, key: bases.BaseKey) -> bases.Base | None:
        found = self._bases.get(key.name)
        return found.base if found else None

    def begin_base(self, key: bases.BaseKey, size: int) -> bases.Begun:
        with self._lock:
            if key.name in self._bases:
                return self._bases[key.name].base
            if key.name in self._making:
                making = self._making[key.name]
                return making or bases.Making('another thread')
            self._making[key.name] = bases.Making(
                'another thread', time.time()
            )
            kept = self._kept.pop(key.name, None)
        return _BaseWriter(self, key.name, size, kept)

    def list_bases(self) -> Iterator[bases.Base]:
        return (kept.base for kept in list(self._bases.values()))

    def children(self, base: bases.Base, limit: int) -> Sequence[str]:
        return ()  # clones hold the blocks themselves

    def set_base_facts(self, name: str, **changes: Any) -> None:  # noqa: ANN401
        with self._lock:
            kept = self._base(name)
            facts = dataclasses.replace(kept.base.facts, **changes)
            kept.base = dataclasses.replace(kept.base, facts=facts)

    def base_manifest(self, name: str) -> bytes:
        return self._base(name).manifest

    def set_base_manifest(self, name: str, manifest: bytes) -> None:
        self._base(name).manifest = manifest

    def retire_base(self, name: str) -> None:
        self._bases.pop(name, None)

    # BaseLinker

    def link_base(
        self, key: bases.BaseKey, size: int, volume_name: str
    ) -> bases.Begun:
        disk = self._disk(volume_name)
        begun = self.begin_base(key, size)
        if isinstance(begun, _BaseWriter):
            begun.restart()
            begun.disk.blocks = disk.cut(size)
        return begun

    # Private

    def _open(self, volume_name: str, size: int) -> '_VolumeWriter':
        common.check_volume_name(volume_name)
        with self._lock:
            if volume_name in self._volumes or volume_name in self._making:
                raise self._error(
                    refusal.Reason.VOLUME_EXISTS,
                    volume=volume_name,
                    state='exists already',
                )
            self._making[volume_name] = None
        return _VolumeWriter(self, volume_name, size)

    def _finish(self, name: str) -> None:
        with self._lock:
            self._making.pop(name, None)

    def _error(
        self,
        reason: refusal.Reason,
        **facts: Any,  # noqa: ANN401
    ) -> exception.RequestError:
        return exception.RequestError.because(
            reason, backend=self.backend, **facts
        )

    def _disk(self, volume_name: str) -> _Disk:
        if volume_name not in self._volumes:
            raise self._error(
                refusal.Reason.VOLUME_NOT_FOUND, volume=volume_name
            )
        return self._volumes[volume_name]

    def _parent(self, location: image_location.Location) -> _KeptBase:
        """Return the base at a location of ours."""
        return self._base(common.own_base(location, self.backend))

    def _base(self, name: str) -> _KeptBase:
        found = self._bases.get(name)
        if found is None:
            raise exception.BackendError.because(
                refusal.Reason.BASE_NOT_FOUND,
                base=name,
                backend=self.backend,
            )
        return found


class _MemorySink(common.SinkMixin):
    """Gathers a disk that nobody sees until it is published."""

    zeroed = True

    def __init__(self, driver: MemoryDriver, name: str, size: int) -> None:
        self.driver = driver
        self.name = name
        self.disk = _Disk(size)
        self._offset = 0
        self._done = False
        self._full = False

    def write(self, data: base.Data) -> None:
        offset = self._advance(len(data))
        self._check_capacity(len(data))
        self.disk.write(offset, bytes(data))

    def skip(self, length: int) -> None:
        self._advance(length)

    def flush(self) -> None:
        self._check_capacity(0)

    def abort(self) -> None:
        if not self._done:
            self._done = True
            self.driver._finish(self.name)

    def _check_capacity(self, more: int) -> None:
        """Refuse what does not fit; once refused, it is never published."""
        capacity = self.driver.capacity
        held = len(self.disk.blocks) * BLOCK
        if capacity is not None and held + more > capacity:
            self._full = True
        if self._full:
            raise exception.BackendError.because(
                refusal.Reason.NO_SPACE,
                backend=self.driver.backend,
                problem=f'its capacity is {capacity} bytes',
            )

    def _advance(self, length: int) -> int:
        offset = self._offset
        if self._done or offset + length > self.disk.size:
            raise ValueError('written after close, or beyond the size')
        self._offset += length
        return offset


class _VolumeWriter(_MemorySink):
    def close(self) -> None:
        if not self._done:
            self.flush()
            self.driver._volumes[self.name] = self.disk
            self.abort()  # what is left to do is the same


class _BaseWriter(_MemorySink):
    def __init__(
        self,
        driver: MemoryDriver,
        name: str,
        size: int,
        kept: tuple[_Disk, int] | None,
    ) -> None:
        super().__init__(driver, name, size)
        self.kept = 0
        if kept and kept[0].size == size:
            self.disk, self.kept = kept
            self._offset = self.kept

    def kept_pieces(self) -> Iterator[bytes | int]:
        reader = _Reader(self.disk)
        extents = sparse.between(reader.extents(), 0, self.kept)
        return sparse.pieces(extents, reader.read)

    def restart(self) -> None:
        self.disk = _Disk(self.disk.size)
        self.kept = self._offset = 0

    def tell(self, progress: bases.Progress) -> None:
        with self.driver._lock:
            making = self.driver._making.get(self.name)
            if making:
                self.driver._making[self.name] = dataclasses.replace(
                    making, progress=progress
                )

    def publish(self, facts: bases.BaseFacts) -> bases.Base:
        if self._done:
            raise ValueError('published after it was finished')
        self.flush()
        location = image_location.BaseLocation(self.driver.backend, self.name)
        allocated = len(self.disk.blocks) * BLOCK
        published = bases.Base(facts, location, allocated)
        self.driver._bases[self.name] = _KeptBase(published, self.disk)
        self.abort()  # what is left to do is the same
        return published

    def leave(self) -> None:
        if not self._done:
            self.driver._kept[self.name] = self.disk, self._offset
            self.abort()


class _Reader(common.ReaderMixin):
    def __init__(self, disk: _Disk) -> None:
        self._disk = disk
        self.size = disk.size

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise ValueError('read beyond the size')
        return self._disk.read(offset, length)

    def check_unchanged(self) -> None:
        pass  # nobody writes to a volume in memory

    def extents(self) -> Iterator[sparse.Extent]:
        for offset in range(0, self.size, BLOCK):
            length = min(BLOCK, self.size - offset)
            hole = offset // BLOCK not in self._disk.blocks
            yield sparse.Extent(offset, length, hole)

    def close(self) -> None:
        pass
