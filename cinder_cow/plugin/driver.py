# SPDX-License-Identifier: Apache-2.0
"""Cinder's ``clone_image``, made of our plan and one of our drivers.

Cinder asks a driver to clone an image before it downloads it. What this makes
of an image is a volume in any case, copy-on-write where that can be; what it
leaves to Cinder it says, with the reason.
"""

from collections.abc import Mapping
import time
from typing import Any

from cinder import context as cinder_context
from cinder import exception as cinder_exception
from cinder import objects
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import outcome as outcomes
from cinder_cow.drivers import base
from cinder_cow.plugin import images
from cinder_cow.plugin import options as plugin_options

LOG = logging.getLogger(__name__)

CONF = cfg.CONF
# A property of an image that has a signature.
_SIGNATURE = 'img_signature'

Update = dict[str, Any]


class _Backend(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver: base.Driver, settings: opts.Settings) -> None:
        self.driver = driver
        self.settings = settings


class CowDriverMixin:
    """Makes volumes from images; put in front of a driver of Cinder's."""

    def do_setup(self, context: cinder_context.RequestContext) -> None:
        super().do_setup(context)  # type: ignore[misc]
        group = self.configuration.config_group  # type: ignore[attr-defined]
        options = plugin_options.CinderOptions(CONF, group)
        self._cow = _Backend(
            self.cow_driver(options), opts.Settings.read(options)
        )

    def cow_driver(self, options: opts.BackendOptions) -> base.Driver:
        """Make our driver of the same back end."""
        raise NotImplementedError

    def cow_set_up(self, volume: objects.Volume) -> Update:
        """Give a new volume what its type wants, as Cinder's driver does.

        :returns: what is to be changed in its record
        """
        raise NotImplementedError

    def clone_image(
        self,
        context: cinder_context.RequestContext,
        volume: objects.Volume,
        image_location: images.Location | None,
        image_meta: Mapping[str, Any],
        image_service: object,
    ) -> tuple[Update, bool]:
        """Make a volume from an image; see ``CloneableImageVD`` of Cinder.

        :returns: what is to be changed in the volume's record, and whether it
            was made; else Cinder downloads the image
        :raises ImageCopyFailure: ``cow_fallback`` is "refuse", and it could
            not be made
        """
        begun = time.monotonic()
        if why := _left_to_cinder(image_meta):
            LOG.info('Volume %s is left to Cinder: %s', volume.name, why)
            return {}, False
        try:
            outcome = self._made(context, volume, image_location, image_meta)
        except exception.CowError as error:
            return self._not_made(volume, error)
        LOG.info(
            'Volume %s was made in %.2f s: %s',
            volume.name,
            time.monotonic() - begun,
            _told(outcome),
        )
        return self._set_up(volume), True

    # Private

    def _made(
        self,
        context: cinder_context.RequestContext,
        volume: objects.Volume,
        location: images.Location | None,
        image_meta: Mapping[str, Any],
    ) -> outcomes.Outcome:
        image = images.describe(image_meta, location)
        with (
            images.opened(context, self._cow.settings) as glance,
            glance.source(image) as source,
        ):
            return self._cow.create_volume_from_image(
                volume.name, image, source, volume.size * units.Gi
            )

    def _not_made(
        self, volume: objects.Volume, error: exception.CowError
    ) -> tuple[Update, bool]:
        if self._cow.settings.cow_fallback == 'refuse':
            raise cinder_exception.ImageCopyFailure(reason=str(error))
        LOG.warning('Volume %s is left to Cinder: %s', volume.name, error)
        return {}, False

    def _set_up(self, volume: objects.Volume) -> Update:
        try:
            return {'provider_location': None, **self.cow_set_up(volume)}
        except Exception:
            self._cow.driver.delete(volume.name)
            raise


def _left_to_cinder(image_meta: Mapping[str, Any]) -> str:
    """Tell what of Cinder's promises only its own way keeps; '' if none."""
    properties = image_meta.get('properties') or {}
    if (
        CONF.verify_glance_signatures != 'disabled'
        and _SIGNATURE in properties
    ):
        return 'the signature of the image is to be verified'
    if image_meta.get('cinder_encryption_key_id'):
        return 'the image is encrypted'
    return ''


def _told(outcome: outcomes.Outcome) -> str:
    """Tell on one line how a volume was made, and why not otherwise."""
    parts = [f'{outcome.candidate}, {outcome.bytes_copied} bytes copied']
    if outcome.location:
        parts.append(f'of {outcome.location}')
    parts += [str(failure.refusal) for failure in outcome.failures]
    return '; '.join(parts)
