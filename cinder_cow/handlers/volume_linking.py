# SPDX-License-Identifier: Apache-2.0
"""Make a base of the Cinder volume in which an image lives, uncopied.

A location is untrusted: that of a volume is believed only where Cinder says
that the volume belongs to Glance, holds this image, cannot be written to and
is in this back end.
"""

from collections.abc import Sequence
import functools

from cinder_cow import exception
from cinder_cow import fetching
from cinder_cow import formats
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import refusal
from cinder_cow import streaming
from cinder_cow import volume_records
from cinder_cow.drivers import bases
from cinder_cow.handlers import base
from cinder_cow.handlers import making
from cinder_cow.refusal import Reason
from cinder_cow.refusal import refuse


class VolumeLinking:
    """The handler for images in volumes; see the contract in :mod:`.base`."""

    name = 'volume_linking'
    title = 'linking its volume'

    def __init__(self, backend: base.Backend) -> None:
        self._driver = backend.driver
        self._settings = backend.settings
        self._volumes = backend.volumes

    def concerns(self, image: images.ImageInfo) -> bool:
        return bool(_volumes_of(image))

    def refuse(
        self, image: images.ImageInfo, source: image_source.ImageSource
    ) -> Sequence[refusal.Refusal]:
        if image.disk_format in formats.CONVERTED:
            return (
                refuse(
                    Reason.NOT_RAW,
                    image=image.label,
                    format=image.disk_format,
                ),
            )
        if not isinstance(self._driver, bases.BaseLinker):
            location = _volumes_of(image)[0]
            error = self._no(location, 'the driver links no volumes')
            return (error.refusal,)
        try:
            self._record(image)
        except exception.BackendError as error:
            return (error.refusal,)
        return ()

    def init(self) -> None:
        pass  # a base that was linked is one as the others

    def fetch_image(
        self,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        size: int,
        report: streaming.Progress,
    ) -> base.Fetched:
        def vouch(
            writer: bases.BaseWriter, report: streaming.Progress
        ) -> streaming.Filled:
            streaming.check_head(image, source.head(formats.HEAD))
            if self._settings.verify_linked or image.signature:
                digest = fetching.hashed(image, source)
                if digest:
                    return streaming.Filled.of(image, 0, digest)
            return streaming.Filled(0, verified=bases.Verified.LOCATION)

        driver = self._driver
        assert isinstance(driver, bases.BaseLinker)
        key = bases.BaseKey.of(image)
        assert key is not None
        maker = making.Maker(
            driver, self._settings, image, source, key, size, report
        )
        volume = self._record(image)
        begin = functools.partial(driver.link_base, key, size, volume.name)
        return maker.make(begin, vouch)

    def remove_image(self, image: images.ImageInfo) -> None:
        key = bases.BaseKey.of(image)
        if key is not None:
            self._driver.retire_base(key.name)

    def _record(self, image: images.ImageInfo) -> volume_records.VolumeRecord:
        """Return the first volume of an image that is to be believed.

        :raises BackendError: none is, with what is wrong with the first
        """
        errors: list[exception.BackendError] = []
        for location in _volumes_of(image):
            try:
                return self._trusted(image, location)
            except exception.BackendError as error:
                errors.append(error)
        raise errors[0]

    def _trusted(
        self,
        image: images.ImageInfo,
        location: image_location.CinderLocation,
    ) -> volume_records.VolumeRecord:
        if self._volumes is None:
            raise self._no(location, 'nobody can ask Cinder about it here')
        project = self._settings.glance_project
        if not project:
            raise self._no(
                location,
                'whose volumes are those of Glance is not known',
                'Set cow_glance_project_id in section'
                f' [{self._settings.backend}].',
            )
        volume = self._volumes.volume(location.volume_id)
        if volume is None:
            raise self._no(location, 'there is no such volume')
        if volume.project_id != project:
            raise self._no(location, 'the volume is not that of Glance')
        if volume.image_id != image.id:
            raise self._no(location, 'the volume holds another image')
        if not volume.readonly:
            raise self._no(location, 'the volume can be written to')
        if volume.attached:
            raise self._no(location, 'the volume is attached')
        if volume.backend != self._settings.backend:
            raise exception.BackendError.because(
                Reason.NOT_IN_BACKEND,
                location=str(location),
                backend=self._settings.backend,
            )
        return volume

    def _no(
        self,
        location: image_location.Location,
        problem: str,
        remedy: str = 'Nothing need be done: the image is copied instead.',
    ) -> exception.BackendError:
        return exception.BackendError.because(
            Reason.LOCATION_UNTRUSTED,
            location=str(location),
            problem=problem,
            remedy=remedy,
        )


def _volumes_of(
    image: images.ImageInfo,
) -> Sequence[image_location.CinderLocation]:
    return tuple(
        location
        for location in image.locations
        if isinstance(location, image_location.CinderLocation)
    )
