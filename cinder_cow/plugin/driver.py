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
from cinder.db import api as db
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import outcome as outcomes
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.plugin import capabilities
from cinder_cow.plugin import images
from cinder_cow.plugin import options as plugin_options
from cinder_cow.plugin import signatures
from cinder_cow.plugin import tasks
from cinder_cow.plugin import telling
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

CONF = cfg.CONF
# A property of an image: the key of a volume that it was made of, whose bytes
# it has as they are.
_KEY = 'cinder_encryption_key_id'

Update = dict[str, Any]


class _Backend(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver: base.Driver, settings: opts.Settings) -> None:
        self.driver = driver
        self.settings = settings


class CowDriverMixin(capabilities.CapabilitiesMixin):
    """Makes volumes from images; put in front of a driver of Cinder's."""

    # From do_setup on.
    _cow: _Backend
    _cow_rounds: tasks.Rounds

    def do_setup(self, context: cinder_context.RequestContext) -> None:
        super().do_setup(context)  # type: ignore[misc]
        group = self.configuration.config_group  # type: ignore[attr-defined]
        options = plugin_options.CinderOptions(CONF, group)
        self._cow = _Backend(
            self.cow_driver(options), opts.Settings.read(options)
        )
        self._cow_rounds = tasks.Rounds()

    def check_for_setup_error(self) -> None:
        super().check_for_setup_error()  # type: ignore[misc]
        # Thousands of them would keep the service from starting.
        self._cow_rounds.begin('Sweep', self.cow_sweep)

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
        :raises Exception: it was made, and removed again: it could not be set
            up as its type wants, nor can what Cinder would make
        """
        begun = time.monotonic()
        image_id = str(image_meta.get('id'))
        try:
            image = images.describe(image_meta, image_location)
            _check_is_ours(image)
            if signatures.are_verified():
                image = signatures.with_signature(context, image)
            outcome = self._made(context, volume, image)
        except exception.CowError as error:
            if error.reason is Reason.SIGNATURE_INVALID:
                raise _badly_signed(context, volume, image_id, error) from None
            return self._not_made(context, volume, image_id, error)
        except Exception as error:
            # A download may still do, where a fault of ours is in the way.
            LOG.exception('Volume %s could not be made', volume.name)
            problem = f'{type(error).__name__}: {error}'
            fault = exception.BackendError.because(
                Reason.UNEXPECTED, problem=problem
            )
            return self._not_made(context, volume, image_id, fault)
        LOG.info(
            'Volume %s was made in %.2f s of image %s: %s',
            volume.name,
            time.monotonic() - begun,
            image_id,
            _told(outcome),
        )
        update = self._set_up(context, volume, image)
        telling.tell(context, volume, outcome.method.value, outcome.refusal)
        return update, True

    def cow_sweep(self) -> None:
        """Finish or undo what a service that was killed left half-made.

        An image in a cluster that QEMU read just then cannot be deleted
        before.
        """
        if isinstance(self._cow.driver, bases.Checker):
            self._cow.driver.sweep()

    # Private

    def _made(
        self,
        context: cinder_context.RequestContext,
        volume: objects.Volume,
        image: image_info.ImageInfo,
    ) -> outcomes.Outcome:
        with (
            images.opened(context, self._cow.settings) as glance,
            glance.source(image) as source,
        ):
            try:
                return self._cow.create_volume_from_image(
                    volume.name, image, source, volume.size * units.Gi
                )
            except exception.CowError:
                raise  # it has undone itself
            except Exception:
                self._undo(volume)
                raise

    def _not_made(
        self,
        context: cinder_context.RequestContext,
        volume: objects.Volume,
        image_id: str,
        error: exception.CowError,
    ) -> tuple[Update, bool]:
        refusal = error.refusal
        if isinstance(error, outcomes.NoCandidateError):
            refusal = error.cause
        if self._cow.settings.cow_fallback == 'refuse':
            telling.tell(context, volume, telling.REFUSED, refusal)
            raise cinder_exception.ImageCopyFailure(reason=str(error))
        LOG.warning(
            'Volume %s is left to Cinder, of image %s: %s',
            volume.name,
            image_id,
            error,
        )
        telling.tell(context, volume, telling.CINDER, refusal)
        return {}, False

    def _set_up(
        self,
        context: cinder_context.RequestContext,
        volume: objects.Volume,
        image: image_info.ImageInfo,
    ) -> Update:
        try:
            _check_wanted(context, volume)
            update = {'provider_location': None, **self.cow_set_up(volume)}
            if signatures.are_verified():
                told = {'signature_verified': image.signature is not None}
                db.volume_glance_metadata_bulk_create(context, volume.id, told)
        except Exception:
            self._undo(volume)
            raise
        return update

    def _undo(self, volume: objects.Volume) -> None:
        """Remove a volume that is of no use; that this fails hides nothing."""
        try:
            self._cow.driver.delete(volume.name)
        except Exception:
            LOG.exception('Volume %s could not be removed', volume.name)


def _check_wanted(
    context: cinder_context.RequestContext, volume: objects.Volume
) -> None:
    """See that nobody has deleted a volume while it was made.

    Cinder deletes one whose status an administrator has reset, and would
    look for it here no more.

    :raises VolumeNotFound: somebody has
    """
    found = objects.Volume.get_by_id(context, volume.id)
    if found.status == 'deleting':
        raise cinder_exception.VolumeNotFound(volume_id=volume.id)


def _check_is_ours(image: image_info.ImageInfo) -> None:
    """Leave to Cinder the images for which it has promises of its own.

    :raises ImageError: OWN_KEY
    """
    if image.properties.get(_KEY):
        problem = 'it has an encryption key of its own'
    elif image.disk_format == 'luks':
        problem = 'it is a LUKS disk'
    else:
        return
    raise exception.ImageError.because(
        Reason.OWN_KEY, image=image.label, problem=problem
    )


def _badly_signed(
    context: cinder_context.RequestContext,
    volume: objects.Volume,
    image_id: str,
    error: exception.CowError,
) -> cinder_exception.CinderException:
    """Tell that a volume fails, and make the error that Cinder would raise.

    It would find the same, after a download.
    """
    telling.tell(context, volume, telling.REFUSED, error.refusal)
    if isinstance(error, signatures.IncompleteError):
        return cinder_exception.InvalidSignatureImage(image_id=image_id)
    return cinder_exception.ImageSignatureVerificationException(
        reason=str(error)
    )


def _told(outcome: outcomes.Outcome) -> str:
    """Tell on one line how a volume was made, and why not otherwise."""
    parts = [f'{outcome.candidate}, {outcome.bytes_copied} bytes copied']
    location = str(outcome.location or '')
    if location not in parts[0]:
        parts.append(f'of {location}')
    parts += [str(failure.refusal) for failure in outcome.failures]
    return '; '.join(parts)
