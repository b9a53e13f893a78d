# SPDX-License-Identifier: Apache-2.0
"""The driver contract: what a back end must do, and what it may do.

A driver knows its back end; it knows neither Glance nor Cinder. It is made
from its options, and :meth:`Driver.bound` gives a view of it for one create.

The life of a volume: :meth:`Driver.open` gives a writer on something that
has no final name yet; ``close()`` publishes it under its name in one step,
``abort()`` (or leaving the ``with`` block) leaves nothing. A clone goes the
same way in one call. How bases live is told in :mod:`.bases`.

Words: *volume_name* is checked by :func:`.common.check_volume_name`; sizes,
offsets and lengths are bytes.

Optional abilities are the separate protocols :class:`Cloner`,
:class:`ImagePlaces`, :class:`ImageReader`, :class:`QemuTarget`,
:class:`FileTarget` and :class:`QemuSource`, and those of :mod:`.bases`: a
driver, or a handle of it, has one when it has its methods. Ask with
``isinstance``.

What drivers share, and may take from :mod:`cinder_cow.drivers.common`, is no
part of the contract.

Errors a driver lets through: :class:`~cinder_cow.exception.RequestError` and
:class:`~cinder_cow.exception.BackendError`, with the reasons named below.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from types import TracebackType
from typing import ClassVar, Protocol, runtime_checkable, Self, TypeAlias

from oslo_config import cfg

from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import qemu_img
from cinder_cow import refusal
from cinder_cow import sparse

# The names of our own objects begin so; no volume's name may.
RESERVED_PREFIX = 'cow-'

Data: TypeAlias = bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeRequest:
    """What belongs to one create.

    :param size: bytes the volume shall have; None: as its content
    """

    size: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeInfo:
    """What a back end tells of a volume.

    :param size: bytes a guest sees
    :param allocated: bytes of storage that it holds itself, what it shares
        with others counted in where the back end cannot tell
    :param format: 'raw' or 'qcow2', to be given to QEMU as it is
    :param path: what QEMU opens; empty where there is no such thing
    :param parent: name of the base it cannot live without, if any
    """

    name: str
    size: int
    allocated: int
    format: str
    path: str = ''
    parent: str | None = None


class Sink(Protocol):
    """Takes the bytes of a volume or a base, in order, from the start.

    :ivar zeroed: bytes neither written nor skipped, and bytes skipped, read
        as zeros without work
    """

    @property
    def zeroed(self) -> bool: ...

    def write(self, data: Data) -> None:
        """Append data. The caller may change the buffer afterwards.

        :raises BackendError: NO_SPACE, BACKEND_ERROR; also for an earlier
            write that failed meanwhile
        :raises ValueError: beyond the size given at the start
        """

    def skip(self, length: int) -> None:
        """Append zeros; they take no space where the back end can."""

    def flush(self) -> None:
        """Return when all that was written is on stable storage."""

    def abort(self) -> None:
        """Leave nothing behind. After close, publish or abort: no-op."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Abort, unless it was closed or published."""


class Writer(Sink, Protocol):
    """A sink for a volume."""

    def close(self) -> None:
        """Flush and publish the volume under its name, in one step.

        What was not written reads as zeros. A second call does nothing.

        Where it fails nothing is published, and ``abort`` leaves nothing.

        :raises RequestError: VOLUME_EXISTS if the name was taken meanwhile
        :raises BackendError: NO_SPACE, BACKEND_ERROR
        """


class Reader(Protocol):
    """Reads a volume or a base; a context manager."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly that many bytes.

        :raises ValueError: beyond the size
        :raises BackendError: BACKEND_ERROR
        """

    def extents(self) -> Iterator[sparse.Extent]:
        """All extents in order; together they are the size."""

    def check_unchanged(self) -> None:
        """Make sure that what was read is one state of the volume.

        :raises BackendError: BUSY: it was written to meanwhile
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Driver(Protocol):
    """What every driver does.

    :ivar OPTS: the options it adds to those of every back end
    :ivar backend: the name of the back end, for messages
    """

    OPTS: ClassVar[list[cfg.Opt]]
    backend: str

    @classmethod
    def from_options(cls, options: opts.BackendOptions) -> Self:
        """Make the driver of a configured back end.

        :raises RequestError: BACKEND_UNKNOWN for options that do not do
        """

    def bound(self, request: VolumeRequest) -> Self:
        """Return a view of this driver for one create; cheap."""

    def open(self, volume_name: str, size: int) -> Writer:
        """Begin a volume of that size.

        :raises RequestError: INVALID_NAME; VOLUME_EXISTS, also while another
            process is making it
        """

    def read(self, source: str | image_location.Location) -> Reader:
        """Open a volume (by name) or a base (by location) for reading.

        :raises RequestError: INVALID_NAME, VOLUME_NOT_FOUND
        :raises BackendError: NOT_IN_BACKEND, BASE_NOT_FOUND
        """

    def exists(self, volume_name: str) -> bool:
        """Tell whether there is a published volume of that name.

        :raises RequestError: INVALID_NAME
        """

    def show(self, volume_name: str) -> VolumeInfo:
        """Tell of one volume.

        :raises RequestError: VOLUME_NOT_FOUND
        """

    def extend(self, volume_name: str, size: int) -> None:
        """Make a volume larger; what is new reads as zeros.

        :raises RequestError: VOLUME_NOT_FOUND, SHRINK
        """

    def delete(self, volume_name: str) -> None:
        """Remove a volume; one that is gone already is deleted.

        :raises RequestError: INVALID_NAME
        """

    def list(self) -> Iterator[VolumeInfo]:
        """Tell of all published volumes, by name."""


@runtime_checkable
class Cloner(Protocol):
    """Makes copy-on-write volumes of an image's location."""

    def cloneable(self, image_info: images.ImageInfo) -> refusal.Verdict:
        """Whether the one location of image_info can be cloned here.

        A driver whose clones begin with bytes that nobody has looked at
        compares them with the claim itself, and tells the size.
        """

    def clone(
        self, image_info: images.ImageInfo, volume_name: str
    ) -> VolumeInfo:
        """Make a volume that shares the blocks of image_info's one location.

        Its size is that of the bound request, or of the parent's content.
        Nothing is left where it fails.

        :raises RequestError: INVALID_NAME, VOLUME_EXISTS, VOLUME_TOO_SMALL
        :raises BackendError: NO_SPACE, BACKEND_ERROR, and what ``cloneable``
            refuses
        """


@runtime_checkable
class ImagePlaces(Protocol):
    """Can tell where images must be for it to clone them."""

    def image_places(self) -> Sequence[str]:
        """Tell how the URLs of locations begin that may be cloned here.

        :raises BackendError: the back end does not answer
        """


@runtime_checkable
class ImageReader(Protocol):
    """Reads images where they are, if that is where its volumes are."""

    def read_image(self, image_info: images.ImageInfo) -> Reader:
        """Open the one location of image_info for reading.

        :raises BackendError: it is not here, not trusted or not readable
        """


@runtime_checkable
class QemuTarget(Protocol):
    """A sink that qemu-img can write to, instead of write and skip."""

    def qemu_target(self) -> qemu_img.QemuNode:
        """Return what qemu-img shall open; valid until it is finished."""


@runtime_checkable
class FileTarget(Protocol):
    """A sink that can share the blocks of a local file."""

    def share_file(self, descriptor: int) -> bool:
        """Take the whole content of an open file without copying it.

        :returns: False, with nothing changed, where it cannot be shared
        """


@runtime_checkable
class QemuSource(Protocol):
    """A reader whose bytes qemu-img can read itself, where they are."""

    def qemu_source(self) -> qemu_img.QemuNode:
        """Return what qemu-img shall open; valid until it is closed."""
