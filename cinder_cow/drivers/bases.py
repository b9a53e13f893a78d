# SPDX-License-Identifier: Apache-2.0
"""The driver contract for bases: how they are made once, kept, and removed.

A maker calls :meth:`BaseKeeper.begin_base` and is given a writer, or else the
base that is there already, or a :class:`Making` that tells who else is at it:
then it asks again later. What it writes has no final name until
:meth:`BaseWriter.publish`, after which the base is read-only until it is
retired.

A maker that dies, or is cut off from the back end, is found out by the next
one that asks, which takes its place. What it had written then is either gone,
or, where it was written through the writer and in order, is there to go on
with: :attr:`Resumable.kept`.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import enum
import hashlib
import json
from typing import Any, Protocol, runtime_checkable, Self, TypeAlias

from cinder_cow import formats
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import refusal
from cinder_cow.drivers import base


@dataclasses.dataclass(frozen=True, slots=True)
class BaseKey:
    """What makes two bases the same: the image, its content, how it is read.

    A base is found by both, never by a hash alone: a claimed hash must give
    nobody the bytes of another's image.

    :param image_id: Glance id, or the real path of a file
    :param content_id: 'sha512:...' or what identifies a file's content
    :param read_as: the format that was converted; 'raw' for bytes as they
        are. A fixed VHD read as raw is another disk than itself.
    """

    image_id: str
    content_id: str
    read_as: str = 'raw'

    @classmethod
    def of(cls, image: images.ImageInfo) -> Self | None:
        """Return the key of an image, if something identifies its content."""
        content_id = image.content_id
        if image.os_hash_algo and image.os_hash_value:
            content_id = f'{image.os_hash_algo}:{image.os_hash_value}'
        elif image.checksum:
            content_id = f'md5:{image.checksum}'
        if not content_id:
            return None
        read_as = image.disk_format
        if read_as not in formats.CONVERTED:
            read_as = 'raw'
        return cls(image.id, content_id, read_as)

    @property
    def name(self) -> str:
        """The base's name in any back end."""
        text = json.dumps(dataclasses.astuple(self))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f'{base.RESERVED_PREFIX}base-{digest[:40]}'


class Verified(enum.Enum):
    """What the bytes of a base were compared with; the value is kept."""

    CLAIM = 'hash'
    OWN_HASH = 'own hash'
    LOCATION = 'location'
    NOTHING = ''


@dataclasses.dataclass(frozen=True, slots=True)
class BaseFacts:
    """What is kept with a base.

    :param image_name: for people
    :param source_format: what the image's bytes were before ('qcow2', ...)
    :param content_size: bytes of the disk in it; what lies behind is zeros
    :param hash: 'algorithm:value' over the fetched bytes, empty if none
    :param made_at: seconds since the epoch
    :param verified: a value of :class:`Verified`
    :param last_used: when it was cloned last, to the hour; 0: never
    :param pinned: it stays, whatever the limits say
    :param damaged: a scrub found other bytes than were published
    :param missing_since: when Glance first said that there is no such image;
        0: it did not
    :param signature: which one the image was found to have; empty: none was
        asked for
    """

    key: BaseKey
    image_name: str
    source_format: str
    content_size: int
    hash: str
    made_at: float
    verified: str = ''
    last_used: float = 0
    pinned: bool = False
    damaged: bool = False
    missing_since: float = 0
    signature: str = ''

    def packed(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def unpacked(cls, record: dict[str, Any]) -> Self:
        """Read what was kept, by this release or another one.

        :param record: as JSON has it
        :raises ValueError: it is not what was written
        """
        try:
            key = BaseKey(**record['key'])
            known = {field.name for field in dataclasses.fields(cls)}
            told = {name: record[name] for name in known & record.keys()}
            facts = cls(**{**told, 'key': key})
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(str(error)) from None
        if not (_is_typed(key) and _is_typed(facts)):
            raise ValueError('a field is of another kind')
        times = (facts.made_at, facts.last_used, facts.missing_since)
        if facts.content_size < 0 or not all(
            0 <= time < _LAST_TIME for time in times
        ):
            raise ValueError('a number is out of its range')
        return facts


# What the fields may hold; JSON writes a float without a fraction as it is.
_KINDS: dict[Any, Any] = {
    str: str,
    int: int,
    bool: bool,
    float: (int, float),
    BaseKey: BaseKey,
}
# Of the year 9999, after which dates cannot be told.
_LAST_TIME = 253_370_764_800


def _is_typed(record: BaseKey | BaseFacts) -> bool:
    return all(
        isinstance(getattr(record, field.name), _KINDS[field.type])
        for field in dataclasses.fields(record)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    """A published base."""

    facts: BaseFacts
    location: image_location.BaseLocation
    allocated: int

    @property
    def name(self) -> str:
        return self.location.name


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a maker is, as it tells.

    :param phase: what it does ('streaming', 'fetching', 'converting', ...)
    :param done: bytes of ``total``
    """

    phase: str = ''
    done: int = 0
    total: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Making:
    """Another maker is at the base.

    :param owner: who, for people
    :param since: when it began, in seconds since the epoch; 0: not known
    """

    owner: str
    since: float = 0
    progress: Progress = Progress()


@runtime_checkable
class Resumable(Protocol):
    """A sink that may have what an earlier maker wrote, to go on with.

    :ivar kept: so many bytes from the start; the first write goes behind
        them. 0 after ``restart``.
    """

    @property
    def kept(self) -> int: ...

    def kept_pieces(self) -> Iterator[bytes | int]:
        """Read what was kept, in order: data, or the length of a hole."""

    def restart(self) -> None:
        """Begin again, as if nothing had been kept or written."""


class BaseWriter(base.Sink, Resumable, Protocol):
    """A sink for a base."""

    def tell(self, progress: Progress) -> None:
        """Let those who wait know; may be called often, and never fails."""

    def publish(self, facts: BaseFacts) -> Base:
        """Flush and publish the base with its facts, in one step.

        Where it fails nothing is published, and ``abort`` leaves nothing.

        :raises BackendError: NO_SPACE, BACKEND_ERROR; BASE_LOST: another
            maker has taken over meanwhile
        :raises ValueError: it is finished already
        """

    def leave(self) -> None:
        """Give up, but let what was written be kept for the next maker.

        Instead of ``abort``; the same where the driver keeps nothing, or
        where something other than ``write`` and ``skip`` wrote.
        """


Begun: TypeAlias = BaseWriter | Base | Making


@runtime_checkable
class BaseKeeper(base.Driver, base.Cloner, Protocol):
    """Keeps bases, each a location that :meth:`Cloner.clone` takes."""

    def find_base(self, key: BaseKey) -> Base | None:
        """Return the published base of that key."""

    def begin_base(self, key: BaseKey, size: int) -> Begun:
        """Begin a base of that size, as the only maker; never waits.

        :returns: a writer; the base, if there is one; who makes it, if
            somebody does
        """

    def list_bases(self) -> Iterator[Base]: ...

    def children(self, base: Base, limit: int) -> Sequence[str]:
        """Names of volumes that cannot live without the base, some or all."""

    def set_base_facts(self, name: str, **changes: Any) -> None:  # noqa: ANN401
        """Change facts of a published base: those that are no identity.

        :param changes: last_used, pinned, damaged, missing_since, signature
        :raises BackendError: BASE_NOT_FOUND
        """

    def base_manifest(self, name: str) -> bytes:
        """Return what was kept with :meth:`set_base_manifest`; or b''.

        :raises BackendError: BASE_NOT_FOUND
        """

    def set_base_manifest(self, name: str, manifest: bytes) -> None:
        """Keep the hashes of a base's pieces with it; it goes with it.

        :raises BackendError: BASE_NOT_FOUND, NO_SPACE
        """

    def retire_base(self, name: str) -> None:
        """Remove a base; one that is gone already is removed.

        :raises RequestError: BASE_IN_USE with the names of its children
        """


@runtime_checkable
class BaseLinker(Protocol):
    """Makes a base of a volume's content, without copying a byte."""

    def link_base(self, key: BaseKey, size: int, volume_name: str) -> Begun:
        """Begin a base that has a volume's content; see ``begin_base``.

        Of what is given back nothing more need be written, only published.

        :param size: bytes of the content; the volume may be longer
        :raises RequestError: VOLUME_NOT_FOUND
        :raises BackendError: NOT_LINKABLE, with nothing changed: it would
            have to be copied
        """


@runtime_checkable
class SignatureKeeper(base.ImageReader, Protocol):
    """Remembers which images, where they are, were found to have what.

    Of an image that is replaced nothing is remembered, even where its
    location stays the same.
    """

    def has_signature(
        self, image_info: images.ImageInfo, identity: str
    ) -> bool:
        """Tell whether it is remembered that an image has a signature.

        :param image_info: narrowed to one location that is cloneable
        :raises BackendError: it is not
        """

    def keep_signature(
        self, image_info: images.ImageInfo, identity: str
    ) -> None:
        """Remember that all bytes were compared with a signature."""


@dataclasses.dataclass(frozen=True, slots=True)
class Orphan:
    """Something with one of our names that nobody needs.

    :param what: what it is, and its name in the back end
    :param problem: why it is an orphan
    :param remedy: what ``remove_orphan`` does about it
    :param removable: whether it can be removed now; else the remedy says
        what a person can do
    """

    what: str
    problem: str
    remedy: str
    removable: bool = True


@runtime_checkable
class Checker(Protocol):
    """Finds what dead makers left."""

    def sweep(self) -> None:
        """Finish or undo what makers left that live no more.

        What can be gone on with is left alone for a time.
        """

    def orphans(self) -> Iterator[Orphan]:
        """Name all that is left, changing nothing.

        That which ``sweep`` would finish or undo, and what a sweep does not
        know of.
        """

    def remove_orphans(self) -> Iterator[Orphan]:
        """Remove them, and name each as it was; what fails is told too."""


def check_state(keeper: BaseKeeper, found: Base) -> refusal.Verdict:
    """Tell whether a base can be cloned; what is cheap to mend is mended."""
    if found.facts.damaged:
        refused = refusal.refuse(
            refusal.Reason.BASE_CHANGED,
            base=found.name,
            problem='a scrub found it damaged',
        )
        return refusal.Verdict(refused)
    image = images.ImageInfo(
        id=found.facts.key.image_id,
        name=found.facts.image_name,
        disk_format='',
    )
    return keeper.cloneable(image.at(found.location))
