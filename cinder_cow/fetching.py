# SPDX-License-Identifier: Apache-2.0
"""Have an image as a local file, hashed: for qemu-img, which has to seek.

An image on a server is fetched once to a scratch file. A fetch that broke
off goes on where it was, and the part that is there is hashed again.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import re

from cinder_cow import exception
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import scratch
from cinder_cow import streaming
from cinder_cow.drivers import bases
from cinder_cow.drivers import native
from cinder_cow.refusal import Reason


@contextlib.contextmanager
def local(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    settings: opts.Settings,
    report: streaming.Progress,
) -> Iterator[tuple[image_source.FileSource, str]]:
    """Give the image as a local file, and its hash as ``Filled`` has it.

    :raises ImageError: its bytes are not what it claims, or do not come
    :raises BackendError: NO_SCRATCH_SPACE, SCRATCH_UNUSABLE, BUSY
    """
    if isinstance(source, image_source.FileSource):
        yield source, hashed(image, source)
        return
    directory = scratch.Scratch(settings)
    directory.sweep()
    with directory.file(_name(image), image.label) as file:
        try:
            with turn(source, settings), directory.translated():
                directory.make_room(source.size - file.size, image.label)
                digest = _fetch(image, source, file, report)
            path = f'/proc/self/fd/{file.fileno()}'
            with image_source.FileSource(path, image.label) as fetched:
                yield fetched, digest
        except BaseException as error:
            file.keep = (
                bool(file.size)
                and _is_worth_keeping(error)
                and not file.has_lost()
            )
            raise
        if file.has_lost():  # and it may have been read after that
            raise exception.BackendError.because(
                Reason.SCRATCH_UNUSABLE,
                path=str(directory.path),
                problem='its disk failed to take what was written',
            )


@contextlib.contextmanager
def turn(
    source: image_source.ImageSource, settings: opts.Settings
) -> Iterator[None]:
    """Let no more images be fetched at once than the options say."""
    if not isinstance(source, image_source.Resumable):
        yield
        return
    with scratch.Scratch(settings).turn():
        yield


def hashed(image: images.ImageInfo, source: image_source.ImageSource) -> str:
    """Read an image for its hash, if it claims one; return it or ''.

    :raises ImageError: HASH_MISMATCH, SIGNATURE_INVALID, or it cannot be read
    """
    with hashing.hasher(image) as hasher:
        if hashing.expected(image) or image.signature:
            for piece in source.pieces():
                hasher.update(piece)
        return hasher.check()


def _name(image: images.ImageInfo) -> str | None:
    """Name a scratch file by what its bytes are, if anything tells."""
    key = bases.BaseKey.of(image)
    if key is None:
        return None
    readable = re.sub(r'[^A-Za-z0-9]+', '-', key.image_id)[-60:]
    digest = hashlib.sha256(repr((key.image_id, key.content_id)).encode())
    return f'{readable}-{digest.hexdigest()[:32]}'


def _fetch(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    file: scratch.ScratchFile,
    report: streaming.Progress,
) -> str:
    """Append what is missing, and return the hash over all of it."""
    kept = file.size
    if kept > source.size or not isinstance(source, image_source.Seekable):
        file.cut(0)
        kept = 0
    try:
        return _append(image, source, file, report)
    except exception.ImageError as error:
        if not kept or error.reason not in hashing.OTHER_BYTES:
            raise
        # The part that was there may be at fault, and not the image.
        file.cut(0)
        return _append(image, source, file, report)


def _append(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    file: scratch.ScratchFile,
    report: streaming.Progress,
) -> str:
    # The server sends on meanwhile: of 500 MiB it took 0.5 s to write.
    append = native.threaded(file.append)
    with hashing.hasher(image, always=True) as hasher:
        for piece in file.pieces():
            hasher.update(piece)
        for piece in _missing(source, file.size):
            hasher.update(piece)
            append(piece)
            report('fetching', file.size, source.size)
        claimed = source.size if image.size is None else image.size
        if file.size != claimed:
            raise streaming.promised_otherwise(image, file.size, claimed)
        return hasher.check()


def _missing(
    source: image_source.ImageSource, offset: int
) -> Iterator[bytes | int]:
    if not isinstance(source, image_source.Seekable):
        yield from source.pieces()
    elif offset < source.size:
        yield from source.pieces_from(offset)


def _is_worth_keeping(error: BaseException) -> bool:
    """Tell whether the next fetch can go on; not where the image is bad."""
    if isinstance(error, exception.ImageError):
        return error.reason is Reason.SOURCE_FAILED
    return getattr(error, 'reason', None) is not Reason.NO_SPACE
