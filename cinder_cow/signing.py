# SPDX-License-Identifier: Apache-2.0
"""See that what is cloned has the signature of its image.

What is fetched is compared with it in the pass that hashes it, and a base
keeps which signature it has. The bytes of what is there already are read, once
for each signature.
"""

from collections.abc import Callable

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import fetching
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import reader_source
from cinder_cow import single_flight
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)


def require_of_base(
    found: bases.Base,
    image: images.ImageInfo,
    source: image_source.ImageSource,
    driver: bases.BaseKeeper,
    settings: opts.Settings,
) -> None:
    """Let a base pass that has the signature of its image, if that has one.

    :raises ImageError: SIGNATURE_INVALID, HASH_MISMATCH, or it cannot be read
    """
    signature = image.signature
    if not signature or found.facts.signature == signature.identity:
        return

    def read() -> None:
        with (
            reader_source.nearest(image, source, driver) as near,
            fetching.turn(near, settings),
        ):
            fetching.hashed(image, near)

    # The hash is that of the bytes that were fetched.
    algorithm, _, digest = found.facts.hash.partition(':')
    if algorithm == signature.algorithm:
        signature.check(bytes.fromhex(digest))
    else:
        _once(found.name, image, driver, read)
    try:
        driver.set_base_facts(found.name, signature=signature.identity)
    except exception.CowError as error:
        LOG.info('Base %s is verified again next time: %s', found.name, error)


def require_of_location(
    location: image_location.Location,
    image: images.ImageInfo,
    driver: base.Driver,
) -> None:
    """Let a location pass that has the signature of its image.

    :raises ImageError: SIGNATURE_INVALID, HASH_MISMATCH
    :raises BackendError: what is there cannot be read
    """
    if not image.signature:
        return
    here, identity = image.at(location), image.signature.identity
    if not isinstance(driver, bases.SignatureKeeper):
        raise exception.BackendError.because(
            Reason.LOCATION_UNTRUSTED,
            location=str(location),
            problem='its signature cannot be verified there',
            remedy='Nothing need be done: the image is copied instead.',
        )
    if driver.has_signature(here, identity):
        return

    def read() -> None:
        # There, and nowhere else: that is what is cloned.
        with (
            driver.read_image(here) as reader,
            reader_source.of_reader(reader, image.label) as source,
        ):
            fetching.hashed(image, source)

    _once(str(location), image, driver, read)
    driver.keep_signature(here, identity)


def _once(
    what: str,
    image: images.ImageInfo,
    driver: base.Driver,
    read: Callable[[], None],
) -> None:
    """Read all bytes of an image; once for all who ask for it now."""
    assert image.signature
    identity = image.signature.identity
    single_flight.share((driver.backend, image.id, what, identity), read)
