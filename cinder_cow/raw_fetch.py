# SPDX-License-Identifier: Apache-2.0
"""Fetch an image as a raw disk: into a local file, or into a back end.

Where a back end has the image already nothing is copied: its location is
cloned, or at least read there, and Glance is asked for no byte of it.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import time
from typing import NoReturn

from cinder_cow import direct_io
from cinder_cow import exception
from cinder_cow import exporting
from cinder_cow import filling
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import outcome as outcomes
from cinder_cow import plan as plans
from cinder_cow import qemu_img
from cinder_cow import reader_source
from cinder_cow import streaming
from cinder_cow.drivers import base
from cinder_cow.drivers import common
from cinder_cow.drivers import file_sinks
from cinder_cow.refusal import Reason


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """A raw disk was made.

    :param name: path of the file, or name of the volume
    :param size: bytes
    :param bytes_copied: bytes that were written for it
    :param verified: 'algorithm:value' that its bytes were compared with;
        empty for nothing
    """

    name: str
    size: int
    method: plans.Method
    bytes_copied: int
    verified: str
    seconds: float


def direct_fetch(
    image: images.ImageInfo,
    driver: base.Driver,
    volume_name: str,
    size: int | None = None,
) -> base.VolumeInfo:
    """Make a volume by cloning the first location of an image that can be.

    :param size: bytes; None: as the image
    :raises RequestError: INVALID_NAME, VOLUME_EXISTS, VOLUME_TOO_SMALL
    :raises NoCandidateError: with what is wrong with each location
    """
    failures: list[outcomes.Failure] = []
    for location in image.locations or (None,):
        candidate = plans.Candidate(
            plans.Kind.CLONE_LOCATION,
            location,
            told_by=image.locations_told_by,
        )
        try:
            return _cloned(image, location, driver, volume_name, size)
        except exception.BackendError as error:
            failures.append(outcomes.Failure.of(candidate, error))
    raise outcomes.NoCandidateError(volume_name, tuple(failures))


def fetch_to_raw(  # noqa: PLR0913 - the specification's parameters, and ours
    image: images.ImageInfo,
    source: image_source.ImageSource,
    target: pathlib.Path | str,
    settings: opts.Settings,
    driver: base.Driver | None = None,
    report: streaming.Progress | None = None,
) -> Fetched:
    """Make a raw disk of an image of any format, its hash compared.

    :param target: the path of a new file, with holes where the disk has
        zeros; or the name of a volume that the driver is to have, in whole
        GiB, which is cloned where it can be
    :param driver: of the back end of that volume; with a file, of one that
        may hold the image
    :raises RequestError: EXPORT_EXISTS, EXPORT_FAILED; of a volume
        INVALID_NAME, VOLUME_EXISTS
    :raises ImageError: the image is not what it claims, or is forbidden
    :raises BackendError: reading or converting it failed
    :raises NoCandidateError: no way to make that volume is left
    """
    progress = report or (lambda phase, done, total: None)
    with reader_source.nearest(image, source, driver) as near:
        if isinstance(target, pathlib.Path):
            return _to_file(image, near, target, settings, progress)
        if driver is None:
            raise ValueError('a volume needs a driver')
        backend = _Backend(driver, settings)
        made = backend.create_volume_from_image(
            target, image, near, progress=progress
        )
    return Fetched(
        name=made.volume.name,
        size=made.volume.size,
        method=made.method,
        bytes_copied=made.bytes_copied,
        verified=made.verified,
        seconds=made.seconds,
    )


def disk_size(driver: base.Driver, volume_name: str) -> int:
    """Tell how many bytes a guest sees, wherever the disk is.

    :raises RequestError: VOLUME_NOT_FOUND
    """
    return driver.show(volume_name).size


def _cloned(
    image: images.ImageInfo,
    location: image_location.Location | None,
    driver: base.Driver,
    volume_name: str,
    size: int | None,
) -> base.VolumeInfo:
    """Clone one location.

    :raises BackendError: it cannot be
    """
    backend = driver.backend
    if not isinstance(driver, base.Cloner):
        _refuse(Reason.NOT_CLONEABLE, backend=backend)
    if image.status != plans.ACTIVE:
        _refuse(
            Reason.IMAGE_NOT_ACTIVE, image=image.label, status=image.status
        )
    if location is None:
        if image.locations_hidden:
            raise exception.BackendError(image.locations_hidden)
        _refuse(Reason.NOT_IN_BACKEND, location=image.label, backend=backend)
    if isinstance(location, image_location.MalformedLocation):
        _refuse(
            Reason.LOCATION_INVALID,
            location=str(location),
            problem=location.problem,
        )
    here = image.at(location)
    verdict = driver.cloneable(here)
    if verdict.refusal:
        raise exception.BackendError(verdict.refusal)
    least = max(verdict.content_size or 0, image.min_disk)
    wanted = common.clone_size(base.VolumeRequest(size), least, image.label)
    # Of a driver that does not tell the size, it is the parent's.
    view = driver.bound(base.VolumeRequest(wanted or None))
    assert isinstance(view, base.Cloner)
    return view.clone(here, volume_name)


def _refuse(reason: Reason, **facts: str) -> NoReturn:
    raise exception.BackendError.because(reason, **facts)


class _Backend(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver: base.Driver, settings: opts.Settings) -> None:
        self.driver = driver
        self.settings = settings


def _to_file(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    path: pathlib.Path,
    settings: opts.Settings,
    report: streaming.Progress,
) -> Fetched:
    begun = time.monotonic()
    size = _checked_size(image, source, settings)
    with (
        exporting.new_file(path) as descriptor,
        _told_of(path, settings),
        _RawFile(os.dup(descriptor), size) as sink,
    ):
        filled = filling.fill(sink, image, source, settings, report)
        sink.flush()
    return Fetched(
        name=str(path),
        size=size,
        method=plans.Method.STREAM,
        bytes_copied=filled.bytes_copied,
        verified=':'.join(hashing.expected(image) or ()),
        seconds=time.monotonic() - begun,
    )


def _checked_size(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    settings: opts.Settings,
) -> int:
    """Compare an image with its claim and the options; tell its disk's size.

    :raises ImageError: it must not be fetched
    """
    if image.status != plans.ACTIVE:
        raise exception.ImageError.because(
            Reason.IMAGE_NOT_ACTIVE, image=image.label, status=image.status
        )
    found = formats.inspect_source(source, image.disk_format)
    formats.require_claim(image, found)
    size = source.size if found.virtual_size is None else found.virtual_size
    largest = max(size, image.size or 0, source.size)
    for refusal in plans.forbidden(image, largest, settings):
        raise exception.ImageError(refusal)
    return size


@contextlib.contextmanager
def _told_of(path: pathlib.Path, settings: opts.Settings) -> Iterator[None]:
    """Have no back end blamed for the space that the file wants."""
    try:
        yield
    except exception.BackendError as error:
        facts = error.refusal.facts
        # Scratch files tell of their own directory.
        if (error.reason, facts.get('backend')) != (
            Reason.NO_SPACE,
            settings.backend,
        ):
            raise
        raise exception.RequestError.because(
            Reason.EXPORT_FAILED, path=str(path), problem=facts['problem']
        ) from error


class _RawFile(common.SinkMixin):
    """A raw file that has no name yet; errors are OSErrors.

    :param descriptor: of an empty file; closed with this
    """

    zeroed = True

    def __init__(self, descriptor: int, size: int) -> None:
        self._file = direct_io.DirectWriter(descriptor, size)

    def write(self, data: base.Data) -> None:
        self._file.write(data)

    def skip(self, length: int) -> None:
        self._file.skip(length)

    def flush(self) -> None:
        # QEMU, writing directly, ends with a whole block.
        os.ftruncate(self._file.descriptor, self._file.size)
        self._file.flush()

    def abort(self) -> None:
        self._file.close()

    def qemu_target(self) -> qemu_img.QemuNode:
        node = qemu_img.QemuNode.descriptor(self._file.descriptor)
        return dataclasses.replace(node, direct=self._file.direct)

    def share_file(self, descriptor: int) -> bool:
        return file_sinks.share_whole(descriptor, self._file)
