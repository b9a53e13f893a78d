# SPDX-License-Identifier: Apache-2.0
"""Tell whether the bytes of a base are those that were put into it.

A manifest is kept with each base: a hash of every piece of its content. What
is a hole counts as zeros, and is not read. A base that is found damaged is
not cloned any more, until a scrub finds it whole.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import struct
from typing import TypeAlias
import zlib

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import sparse
from cinder_cow import streaming
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

# An object of Ceph, usually: so a damaged one is one damaged piece.
PIECE = 4 * units.Mi
OK, RECORDED, DAMAGED = 'ok', 'recorded', 'damaged'

_MAGIC = b'cow-manifest'
_VERSION = 1
# What it is, its version, bytes of a piece and of the content.
_HEADER = struct.Struct('>12sHIQ')
_DIGEST = 16
_ZEROS = bytes(units.Mi)
# Offsets that are told in a sentence; all of them are in the answer.
_TOLD = 8
_UNKNOWN = 'an earlier scrub found it damaged, and its manifest is gone since'


@dataclasses.dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub found.

    :param state: OK; RECORDED: there was no manifest, and now there is;
        DAMAGED
    :param damaged: offsets of the pieces that are not as they were
    :param bytes_read: holes are not among them
    :param error: of one that is damaged, with its remedy
    """

    name: str
    state: str
    damaged: tuple[int, ...] = ()
    bytes_read: int = 0
    error: exception.CowError | None = None


Scrub: TypeAlias = Callable[
    [bases.BaseKeeper, bases.Base, streaming.Progress], Scrubbed
]


def record(
    driver: bases.BaseKeeper, base: bases.Base, report: streaming.Progress
) -> Scrubbed:
    """Make the manifest of a base, of its bytes as they are.

    Those of a base that has the hash of all its bytes must have that hash.

    :raises BackendError: it is gone, or cannot be read
    """
    try:
        digests, count = _read(driver, base, report, _hashed_image(base))
    except exception.ImageError as error:
        return _damaged(driver, base, (), str(error.refusal.detail))
    driver.set_base_manifest(base.name, _packed(base, digests))
    _note(driver, base, damaged=False)
    return Scrubbed(base.name, RECORDED, bytes_read=count)


def scrub(
    driver: bases.BaseKeeper, base: bases.Base, report: streaming.Progress
) -> Scrubbed:
    """Compare a base with its manifest, or record one where there is none.

    :raises BackendError: it is gone, or cannot be read; MANIFEST_DAMAGED
    """
    manifest = driver.base_manifest(base.name)
    if not manifest:
        if base.facts.damaged and not _hashed_image(base).os_hash_value:
            # What is there now must not become what it should be.
            return _damaged(driver, base, (), _UNKNOWN)
        return record(driver, base, report)
    expected = _unpacked(base, manifest)
    digests, count = _read(driver, base, report)
    found = tuple(
        number * PIECE
        for number, (one, other) in enumerate(
            zip(_cut(digests), _cut(expected), strict=True)
        )
        if one != other
    )
    if found:
        return _damaged(driver, base, found, _told(found), count)
    _note(driver, base, damaged=False)
    return Scrubbed(base.name, OK, bytes_read=count)


def _note(driver: bases.BaseKeeper, base: bases.Base, damaged: bool) -> None:
    """Have the base tell whether it is damaged."""
    if base.facts.damaged is not damaged:
        driver.set_base_facts(base.name, damaged=damaged)


def _damaged(
    driver: bases.BaseKeeper,
    base: bases.Base,
    found: tuple[int, ...],
    problem: str,
    count: int = 0,
) -> Scrubbed:
    _note(driver, base, damaged=True)
    error = exception.BackendError.because(
        Reason.BASE_CHANGED, base=base.name, problem=problem
    )
    return Scrubbed(base.name, DAMAGED, found, count, error)


def _told(found: tuple[int, ...]) -> str:
    offsets = ', '.join(map(str, found[:_TOLD]))
    more = f' and {len(found) - _TOLD} more' if found[_TOLD:] else ''
    return f'the pieces of 4 MiB at {offsets}{more} are not as they were'


def _hashed_image(base: bases.Base) -> images.ImageInfo:
    """Give the image with the hash that all bytes of its base must have.

    Of a base that was converted the hash is that of other bytes.
    """
    facts = base.facts
    algorithm, _, value = facts.hash.partition(':')
    is_raw = facts.source_format not in formats.CONVERTED
    is_known = is_raw and algorithm in hashing.LENGTHS
    return images.ImageInfo(
        id=facts.key.image_id,
        name=facts.image_name,
        disk_format='raw',
        os_hash_algo=algorithm if is_known else None,
        os_hash_value=value if is_known else None,
    )


def _read(
    driver: bases.BaseKeeper,
    base: bases.Base,
    report: streaming.Progress,
    image: images.ImageInfo | None = None,
) -> tuple[bytes, int]:
    """Hash all pieces; return the hashes and how many bytes were read.

    :param image: whose hash they must have together, if it has one
    :raises ImageError: HASH_MISMATCH
    """
    size = base.facts.content_size
    pieces = _Pieces()
    whole = image or images.ImageInfo('', '', 'raw')
    with driver.read(base.location) as reader, hashing.hasher(whole) as hasher:
        if reader.size < size:
            raise exception.BackendError.because(
                Reason.BASE_CHANGED,
                base=base.name,
                problem=f'it has {reader.size} bytes of {size}',
            )
        extents = sparse.between(reader.extents(), 0, size)
        for piece in sparse.pieces(extents, reader.read):
            pieces.update(piece)
            hasher.update(piece)
            report('scrubbing', pieces.size, size)
        hasher.check()
        reader.check_unchanged()
    return pieces.finish(), pieces.bytes_read


class _Pieces:
    """Hashes bytes, piece by piece, however they come.

    :ivar size: bytes that came, holes among them
    :ivar bytes_read: bytes that came, without holes
    """

    def __init__(self) -> None:
        self.size = 0
        self.bytes_read = 0
        self._digests = bytearray()
        self._hash = _new()
        self._zeros = _hash_of_zeros(PIECE)

    def update(self, piece: bytes | int) -> None:
        is_hole = isinstance(piece, int)
        view = memoryview(b'' if isinstance(piece, int) else piece)
        length = piece if isinstance(piece, int) else len(piece)
        self.bytes_read += len(view)
        offset = 0
        while offset < length:
            part = min(length - offset, PIECE - self.size % PIECE)
            if is_hole:
                self._skip(part)
            else:
                self._hash.update(view[offset : offset + part])
            offset += part
            self.size += part
            if self.size % PIECE == 0:
                self._end()

    def finish(self) -> bytes:
        if self.size % PIECE:
            self._end()
        return bytes(self._digests)

    def _skip(self, length: int) -> None:
        if length == PIECE:
            self._hash = self._zeros
        else:
            _add_zeros(self._hash, length)

    def _end(self) -> None:
        self._digests += self._hash.digest()
        self._hash = _new()


def _new() -> 'hashlib.blake2b':
    return hashlib.blake2b(digest_size=_DIGEST)


def _hash_of_zeros(length: int) -> 'hashlib.blake2b':
    made = _new()
    _add_zeros(made, length)
    return made


def _add_zeros(target: 'hashlib.blake2b', length: int) -> None:
    for start in range(0, length, len(_ZEROS)):
        target.update(memoryview(_ZEROS)[: length - start])


def _cut(digests: bytes) -> Iterator[bytes]:
    return (
        digests[start : start + _DIGEST]
        for start in range(0, len(digests), _DIGEST)
    )


def _header(base: bases.Base) -> bytes:
    size = base.facts.content_size
    return _HEADER.pack(_MAGIC, _VERSION, PIECE, size)


def _packed(base: bases.Base, digests: bytes) -> bytes:
    return _header(base) + zlib.compress(digests)


def _unpacked(base: bases.Base, manifest: bytes) -> bytes:
    """Return the hashes in a manifest.

    :raises BackendError: MANIFEST_DAMAGED
    """
    header, packed = manifest[: _HEADER.size], manifest[_HEADER.size :]
    if header != _header(base):
        raise _unusable(base, 'it does not begin as ours of this base')
    length = -(-base.facts.content_size // PIECE) * _DIGEST
    unpacker = zlib.decompressobj()
    try:
        # No more than that, whatever it would become.
        digests = unpacker.decompress(packed, length + 1)
    except zlib.error as error:
        raise _unusable(base, str(error)) from error
    if len(digests) != length or not unpacker.eof or unpacker.unused_data:
        raise _unusable(base, 'it has not as many hashes as the base pieces')
    return digests


def _unusable(base: bases.Base, problem: str) -> exception.BackendError:
    return exception.BackendError.because(
        Reason.MANIFEST_DAMAGED, base=base.name, problem=problem
    )
