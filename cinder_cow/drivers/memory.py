# SPDX-License-Identifier: Apache-2.0
"""The reference driver: volumes in memory. Copy this to begin your own.

A volume is a size and its blocks; blocks are immutable, so a clone shares
them by copying the table. Nothing outlives the process.
"""

from collections.abc import Iterator, Sequence
import copy
import dataclasses
import threading
from typing import Any, ClassVar, Self

from oslo_config import cfg

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import sparse
from cinder_cow.drivers import base
from cinder_cow.drivers import common

BLOCK = 64 * 1024
# How long a request waits for another's base.
BASE_WAIT_SECONDS = 600


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

    def write(self, offset: int, data: bytes) -> None:
        while data:
            number, start = divmod(offset, BLOCK)
            part, data = data[: BLOCK - start], data[BLOCK - start :]
            block = bytearray(self.blocks.get(number, b'').ljust(BLOCK, b'\0'))
            block[start : start + len(part)] = part
            self.blocks[number] = bytes(block)
            offset += len(part)


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
        self._bases: dict[str, tuple[base.Base, _Disk]] = {}
        # Names of what is being made. One lock guards all three.
        self._making: set[str] = set()
        self._changed = threading.Condition()

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
        return _Reader(self._parent(source)[1])

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
        parent, disk = self._parent(location)
        size = common.clone_size(
            self.request, parent.facts.content_size, image_info.label
        )
        with self._open(volume_name, size) as writer:
            writer.disk.blocks = dict(disk.blocks)
            writer.close()
        return self.show(volume_name)

    # BaseKeeper

    def find_base(self, key: base.BaseKey) -> base.Base | None:
        found = self._bases.get(key.name)
        return found[0] if found else None

    def begin_base(
        self, key: base.BaseKey, size: int
    ) -> base.BaseWriter | base.Base:
        with self._changed:
            if not self._changed.wait_for(
                lambda: key.name not in self._making, BASE_WAIT_SECONDS
            ):
                raise exception.BackendError.because(
                    refusal.Reason.BUSY,
                    what=f'base {key.name}',
                    owner='another thread',
                    seconds=BASE_WAIT_SECONDS,
                )
            if key.name in self._bases:
                return self._bases[key.name][0]
            self._making.add(key.name)
        return _BaseWriter(self, key.name, size)

    def list_bases(self) -> Iterator[base.Base]:
        return (found for found, disk in self._bases.values())

    def children(self, base: base.Base, limit: int) -> Sequence[str]:
        return ()  # clones hold the blocks themselves

    def retire_base(self, name: str) -> None:
        self._bases.pop(name, None)

    # Private

    def _open(self, volume_name: str, size: int) -> '_VolumeWriter':
        common.check_volume_name(volume_name)
        with self._changed:
            if volume_name in self._volumes or volume_name in self._making:
                raise self._error(
                    refusal.Reason.VOLUME_EXISTS,
                    volume=volume_name,
                    state='exists already',
                )
            self._making.add(volume_name)
        return _VolumeWriter(self, volume_name, size)

    def _finish(self, name: str) -> None:
        with self._changed:
            self._making.discard(name)
            self._changed.notify_all()

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

    def _parent(
        self, location: image_location.Location
    ) -> tuple[base.Base, _Disk]:
        """Return the base at a location of ours."""
        name = common.own_base(location, self.backend)
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
    def publish(self, facts: base.BaseFacts) -> base.Base:
        if self._done:
            raise ValueError('published after it was finished')
        self.flush()
        location = image_location.BaseLocation(self.driver.backend, self.name)
        allocated = len(self.disk.blocks) * BLOCK
        published = base.Base(facts, location, allocated)
        self.driver._bases[self.name] = (published, self.disk)
        self.abort()  # what is left to do is the same
        return published


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
