# SPDX-License-Identifier: Apache-2.0
"""Stream a raw image into a sink, in one pass.

Read, inspect, hash, skip zeros, write: there is no temporary file, and
memory is bounded by a few pieces. What is not as claimed stops the stream
before its first byte is written.
"""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
from typing import Self

from cinder_cow import exception
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import sparse
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

# Called with the phase, and the bytes done of all bytes.
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Filled:
    """What was put into a sink.

    :param bytes_copied: bytes written; zeros that were skipped and blocks
        that are shared are not in it
    :param hash: 'algorithm:value' over the image's bytes, or empty
    """

    bytes_copied: int
    hash: str = ''
    verified: bases.Verified = bases.Verified.NOTHING

    @classmethod
    def of(cls, image: images.ImageInfo, written: int, digest: str) -> Self:
        """Tell what a hash over all bytes says, which was compared."""
        if not digest:
            return cls(written)
        claimed = hashing.expected(image)
        verified = bases.Verified.CLAIM if claimed else bases.Verified.OWN_HASH
        return cls(written, digest, verified)


def stream(
    sink: base.Sink,
    image: images.ImageInfo,
    source: image_source.ImageSource,
    report: Progress,
) -> Filled:
    """Write the bytes of an image as they are.

    Where a sink has some of them from an earlier maker, and the source can,
    this goes on behind these; they are read again for the hash.

    :raises ImageError: it is not what it claims; nothing may be published
    :raises BackendError: reading or writing failed
    """
    if not isinstance(sink, bases.Resumable) or not sink.kept:
        return _stream(sink, image, source, report)
    if isinstance(source, image_source.Seekable) and sink.kept <= source.size:
        try:
            return _stream(sink, image, source, report, sink)
        except exception.ImageError as error:
            if error.reason not in hashing.OTHER_BYTES:
                raise
            # What was kept may be at fault, and not the image.
    sink.restart()
    return _stream(sink, image, source, report)


def _stream(
    sink: base.Sink,
    image: images.ImageInfo,
    source: image_source.ImageSource,
    report: Progress,
    earlier: bases.Resumable | None = None,
) -> Filled:
    """Write an image, or what is missing behind what an earlier maker kept."""
    done = written = kept = 0
    pieces = source.pieces()
    if earlier and isinstance(source, image_source.Seekable):
        kept = earlier.kept
        pieces = itertools.chain(
            earlier.kept_pieces(), source.pieces_from(kept)
        )
    # Of a remote image we keep a hash of our own, where it has none.
    remote = isinstance(source, image_source.Resumable)
    with hashing.hasher(image, always=remote) as hasher:
        for piece in _inspected(image, pieces):
            done += piece if isinstance(piece, int) else len(piece)
            if done > source.size:
                raise promised_otherwise(image, done, source.size)
            hasher.update(piece)
            if done > kept:
                written += sparse.put(sink, piece)
            report('streaming', done, source.size)
        digest = hasher.check()
    claimed = source.size if image.size is None else image.size
    if done != claimed:
        raise promised_otherwise(image, done, claimed)
    return Filled.of(image, written, digest)


def promised_otherwise(
    image: images.ImageInfo, done: int, promised: int
) -> exception.ImageError:
    """Tell that an image has not the size that was promised."""
    return exception.ImageError.because(
        Reason.IMAGE_CORRUPT,
        image=image.label,
        problem=f'{done} bytes came, {promised} were promised',
    )


def check_head(image: images.ImageInfo, head: bytes) -> None:
    """Compare the first bytes of an image with what it claims to be.

    :raises ImageError: EMPTY_IMAGE, FORMAT_MISMATCH and its like
    """
    if not head:
        raise exception.ImageError.because(
            Reason.EMPTY_IMAGE, image=image.label
        )
    formats.require_claim(image, formats.inspect(head))


def _inspected(
    image: images.ImageInfo, pieces: Iterator[bytes | int]
) -> Iterator[bytes | int]:
    """Pass pieces on once the head they begin with was checked."""
    held: list[bytes | int] = []
    head = bytearray()
    for piece in pieces:
        held.append(piece)
        wanted = formats.HEAD - len(head)
        if isinstance(piece, int):
            head += bytes(min(piece, wanted))
        else:
            head += piece[:wanted]
        if len(head) == formats.HEAD:
            break
    check_head(image, bytes(head))
    yield from held
    yield from pieces
