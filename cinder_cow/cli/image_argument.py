# SPDX-License-Identifier: Apache-2.0
"""The image that a command is about: a path, a URL or a Glance id."""

import argparse
from collections.abc import Iterator
import contextlib
import re
import uuid

from cinder_cow import exception
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import reader_source
from cinder_cow.cli import common
from cinder_cow.drivers import base
from cinder_cow.refusal import Reason

HELP = (
    'The image: a path, an http or https URL, a Glance id, or the location of'
    ' one in Ceph (rbd://FSID/POOL/IMAGE/SNAPSHOT).'
)

Opened = tuple[images.ImageInfo, image_source.ImageSource]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--size',
        metavar='GIB',
        type=common.gib,
        help='Size of the volume; default: that of the image, rounded up.',
    )
    add_claims(parser)


def add_claims(parser: argparse.ArgumentParser) -> None:
    """Add what is said about an image, and where it is asked for."""
    parser.add_argument(
        '--disk-format',
        metavar='FORMAT',
        help='The format that an image without a record is claimed to have '
        '(raw, qcow2, vmdk, vdi, vhd, vhdx, iso, gpt, luks); default: what '
        'its content is.',
    )
    parser.add_argument(
        '--hash',
        metavar='ALGORITHM:VALUE',
        type=_hash,
        help='The hash that an image without a record must have, for '
        'instance sha256:9f86d0... as its publisher says.',
    )
    add_cloud(parser)


def add_cloud(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--os-cloud',
        metavar='NAME',
        help='The cloud in clouds.yaml whose Glance is asked; default: '
        'OS_CLOUD, or the other OS_ variables.',
    )


def _hash(text: str) -> str:
    algorithm, _, value = text.partition(':')
    length = hashing.LENGTHS.get(algorithm.lower())
    if length is None or not re.fullmatch(f'[0-9a-fA-F]{{{length}}}', value):
        raise argparse.ArgumentTypeError(
            f'{text[:200]!r} is not an algorithm of {", ".join(hashing.USUAL)}'
            ' or their like, a colon and the hash in hexadecimal'
        )
    return f'{algorithm.lower()}:{value.lower()}'


@contextlib.contextmanager
def opened(
    arguments: argparse.Namespace, backend: manager.CreateVolumeFromImageMixin
) -> Iterator[Opened]:
    """Open the image that a command line names.

    :raises ImageError: it cannot be read, or is no image
    :raises RequestError: URL_UNSUPPORTED, GLANCE_UNAVAILABLE
    :raises BackendError: it is in another back end, or not trusted
    """
    text = arguments.image
    if '://' in text:
        location = image_location.parse(text)
        if isinstance(location, image_location.RbdLocation):
            kind = _in_backend(arguments, backend, location)
        else:
            kind = _at_url(arguments, backend.settings, location)
    elif _is_uuid(text):
        kind = _in_glance(arguments, backend.settings)
    else:
        kind = _in_file(arguments)
    with kind as (image, source):
        yield image, source


@contextlib.contextmanager
def _in_file(arguments: argparse.Namespace) -> Iterator[Opened]:
    with image_source.FileSource(arguments.image) as source:
        yield _described(source, arguments), source


@contextlib.contextmanager
def _in_backend(
    arguments: argparse.Namespace,
    backend: manager.CreateVolumeFromImageMixin,
    location: image_location.RbdLocation,
) -> Iterator[Opened]:
    """Open an image by its location, as if a record named it."""
    driver = backend.driver
    if not isinstance(driver, base.ImageReader):
        raise exception.BackendError.because(
            Reason.NOT_IN_BACKEND,
            location=str(location),
            backend=driver.backend,
        )
    unknown = images.ImageInfo(location.image, location.image, disk_format='')
    with reader_source.ReaderSource(
        driver.read_image(unknown.at(location)),
        location.image,
        location.image,
        location.url,
    ) as source:
        yield _described(source, arguments).at(location), source


@contextlib.contextmanager
def _at_url(
    arguments: argparse.Namespace,
    settings: opts.Settings,
    location: image_location.ParsedLocation,
) -> Iterator[Opened]:
    # 75 ms to import; who makes volumes of files need not pay them.
    from cinder_cow import http_source

    if not isinstance(location, image_location.HttpLocation):
        raise exception.RequestError.because(
            Reason.URL_UNSUPPORTED,
            url=str(location),
            scheme=arguments.image.partition(':')[0],
        )
    hashed = arguments.hash is not None
    with http_source.HttpSource(location, settings, hashed) as source:
        yield _described(source, arguments), source


@contextlib.contextmanager
def _in_glance(
    arguments: argparse.Namespace, settings: opts.Settings
) -> Iterator[Opened]:
    if arguments.disk_format or arguments.hash:
        raise exception.RequestError.because(
            Reason.HAS_RECORD, image=arguments.image
        )
    # 0.5 s to import.
    from cinder_cow import glance

    with glance.Glance.of_cloud(arguments.os_cloud, settings) as client:
        image = client.image(arguments.image.lower())
        with client.source(image) as source:
            yield image, source


def _described(
    source: image_source.Unregistered, arguments: argparse.Namespace
) -> images.ImageInfo:
    return image_source.describe(source, arguments.disk_format, arguments.hash)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
