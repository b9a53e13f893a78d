# SPDX-License-Identifier: Apache-2.0
"""How a volume could be made from an image, and why not otherwise.

A plan is made before anything is touched. It names every candidate in the
order to try, each with all its refusals, and each refusal with its remedy.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import enum

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import filling
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import reader_source
from cinder_cow import single_flight
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.handlers import base as image_handlers
from cinder_cow.refusal import Reason
from cinder_cow.refusal import Refusal
from cinder_cow.refusal import refuse
from cinder_cow.refusal import Verdict

# What Glance says of an image that has its data.
ACTIVE = 'active'


class Method(enum.Enum):
    """How a volume was made: as printed and kept."""

    CLONE = 'clone'
    BASE = 'base'
    STREAM = 'stream'


class Kind(enum.Enum):
    """What a candidate does; the value is for people."""

    CLONE_LOCATION = 'clone of its location'
    CLONE_BASE = 'clone of its base'
    PREPARE_BASE = 'make a base, clone it'
    STREAM = 'full copy'


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One way to make the volume.

    :param location: what would be cloned, where that is known
    :param handler: that would make the base
    :param told_by: what of Glance told the location
    :param refusals: why it is not possible; empty if it is
    """

    kind: Kind
    location: image_location.Location | None = None
    refusals: tuple[Refusal, ...] = ()
    told_by: str = ''
    handler: image_handlers.ImageHandler | None = None

    @property
    def possible(self) -> bool:
        return not self.refusals

    def __str__(self) -> str:
        if self.kind is Kind.CLONE_LOCATION and self.location:
            return f'clone of {self.location}'
        if self.handler is not None:
            return f'make a base by {self.handler.title}, clone it'
        return str(self.kind.value)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All candidates, in the order to try.

    :param base: that of the image, if there is one already
    :param content_size: bytes of the image's disk
    :param size: bytes of the volume
    """

    image: images.ImageInfo
    base: bases.Base | None
    content_size: int
    size: int
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Means:
    """What volumes are made with, in one back end.

    :param handlers: make its bases, in the order to try
    """

    driver: base.Driver
    settings: opts.Settings
    handlers: Sequence[image_handlers.ImageHandler] = ()


def make(
    image: images.ImageInfo,
    source: image_source.ImageSource,
    means: Means,
    size: int | None = None,
) -> Plan:
    """Plan a volume from an image.

    :param size: bytes of the volume; None: as the image, in whole GiB
    """
    return _Planner(image, source, means, size).plan()


def forbidden(
    image: images.ImageInfo,
    size: int,
    settings: opts.Settings,
    backend: str = '',
) -> Iterator[Refusal]:
    """Tell what the options have against an image.

    :param size: bytes of it or of its disk, which of them is more
    :param backend: where they are set; by default as the settings tell
    """
    try:
        expected = hashing.expected(image)
    except exception.ImageError as error:
        yield error.refusal
    else:
        if settings.require_hash and expected is None:
            yield refuse(
                Reason.HASH_REQUIRED,
                image=image.label,
                backend=backend or settings.backend,
            )
    if size > settings.max_image_size:
        yield refuse(
            Reason.IMAGE_TOO_LARGE,
            image=image.label,
            size=size,
            size_gib=_gib(size),
            limit=settings.max_image_size,
        )


class _Planner:
    def __init__(
        self,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        means: Means,
        size: int | None,
    ) -> None:
        self._image = image
        self._driver = means.driver
        self._settings = means.settings
        self._handlers = means.handlers
        self._source = source
        self._key = bases.BaseKey.of(image)
        self._base = self._find_base()
        self._verdicts = dict(self._judge_locations())
        self._claim_refusal, self._content_size = self._look()
        needed = max(self._content_size, image.min_disk)
        self._size = _gib(needed) * units.Gi if size is None else size
        self._needed = needed
        # What is wrong with the image stands in the way of every candidate.
        self._image_refusals = tuple(self._judge_image())

    def plan(self) -> Plan:
        candidates = (
            *self._clone_locations(),
            *self._bases(),
            self._stream(),
        )
        return Plan(
            image=self._image,
            base=self._base,
            content_size=self._content_size,
            size=self._size,
            candidates=candidates,
        )

    def _find_base(self) -> bases.Base | None:
        if self._key is None or not isinstance(self._driver, bases.BaseKeeper):
            return None
        return self._driver.find_base(self._key)

    def _judge_locations(
        self,
    ) -> Iterator[tuple[image_location.Location, Verdict]]:
        """Ask the driver about each location, where that is of any use."""
        if (
            not isinstance(self._driver, base.Cloner)
            or not self._settings.cow_enabled
            or self._image.status != ACTIVE
        ):
            return
        for location in self._image.locations:
            if not isinstance(location, image_location.MalformedLocation):
                image = self._image.at(location)
                yield location, self._driver.cloneable(image)

    def _look(self) -> tuple[Refusal | None, int]:
        """Compare the image's bytes with its claim, where that is not done.

        It was, when its base was made, or by the driver where it is; then
        nothing is read, which of an image on a server takes as long as all
        the rest of a clone.

        :returns: what is wrong with them, and bytes of the disk in them
        """
        image = self._image
        if image.status != ACTIVE:
            refusal = refuse(
                Reason.IMAGE_NOT_ACTIVE, image=image.label, status=image.status
            )
            return refusal, image.virtual_size or image.size or 0
        if self._base and self._base.facts.source_format == image.disk_format:
            if isinstance(self._source, image_source.Resumable):
                # Who may not read an image gets no bytes of it from a base.
                self._source.check_readable()
            return None, self._base.facts.content_size
        for verdict in self._verdicts.values():
            if verdict and verdict.content_size is not None:
                return None, verdict.content_size
        if not isinstance(self._source, image_source.Resumable):
            return self._inspect()
        question = (
            self._driver.backend,
            self._source.question,
            image.locations,
            repr(image),
        )
        return single_flight.share(question, self._inspect)

    def _inspect(self) -> tuple[Refusal | None, int]:
        image = self._image
        with reader_source.nearest(
            image, self._source, self._driver
        ) as source:
            found = formats.inspect_source(source, image.disk_format)
            size = found.virtual_size
            return (
                formats.check_claim(image, found),
                source.size if size is None else size,
            )

    @property
    def _stored(self) -> int:
        """Bytes of the image, as it is stored."""
        claimed = self._image.size
        return self._source.size if claimed is None else claimed

    def _judge_image(self) -> Iterator[Refusal]:
        image, label = self._image, self._image.label
        if self._claim_refusal:
            yield self._claim_refusal
        if image.status != ACTIVE:
            return
        largest = max(self._needed, self._stored)
        yield from forbidden(
            image, largest, self._settings, self._driver.backend
        )
        if self._needed > self._size:
            yield refuse(
                Reason.VOLUME_TOO_SMALL,
                image=label,
                needed=self._needed,
                needed_gib=_gib(self._needed),
                size=self._size,
            )

    def _clone_locations(self) -> Iterator[Candidate]:
        hidden = self._image.locations_hidden
        if hidden and not self._image.locations:
            refusals = (*self._image_refusals, *self._cow_refusals(), hidden)
            yield Candidate(Kind.CLONE_LOCATION, None, refusals)
        yield from map(self._clone_location, self._image.locations)

    def _clone_location(self, location: image_location.Location) -> Candidate:
        refusals = [*self._image_refusals, *self._cow_refusals()]
        if isinstance(location, image_location.MalformedLocation):
            refusals.append(
                refuse(
                    Reason.LOCATION_INVALID,
                    location=str(location),
                    problem=location.problem,
                )
            )
        elif isinstance(self._driver, base.Cloner):
            verdict = self._verdicts.get(location)
            # A verdict that refuses is false.
            if verdict is not None and verdict.refusal:
                refusals.append(verdict.refusal)
        else:
            refusals.append(self._refuse(Reason.NOT_CLONEABLE))
        return Candidate(
            Kind.CLONE_LOCATION,
            location,
            tuple(refusals),
            self._image.locations_told_by,
        )

    def _bases(self) -> Iterator[Candidate]:
        """Clone the base there is; or make one, where there is none."""
        common = [*self._image_refusals, *self._cow_refusals()]
        if not isinstance(self._driver, bases.BaseKeeper) or not self._key:
            reason = self._no_base_keeping()
            for kind in (Kind.CLONE_BASE, Kind.PREPARE_BASE):
                yield Candidate(kind, None, (*common, reason))
            return
        if self._base is None:
            no_base = self._refuse(Reason.NO_BASE, image=self._image.label)
            refused: tuple[Refusal, ...] = (no_base,)
        else:
            refused = _refusals_of(self._driver, self._base)
        location = self._base.location if self._base else None
        yield Candidate(Kind.CLONE_BASE, location, (*common, *refused))
        for handler in self._handlers:
            if not handler.concerns(self._image):
                continue
            # Made anew it is only where it goes between here and the clone.
            why = refused if self._base else self._asked(handler)
            yield Candidate(
                Kind.PREPARE_BASE,
                refusals=(*common, *why),
                handler=handler,
            )

    def _asked(
        self, handler: image_handlers.ImageHandler
    ) -> tuple[Refusal, ...]:
        """Ask a handler, unless the image is not what it claims."""
        if self._claim_refusal:
            return ()
        return tuple(handler.refuse(self._image, self._source))

    def _stream(self) -> Candidate:
        refusals = [*self._image_refusals]
        if self._claim_refusal is None:
            refusals += filling.refusals(
                self._image, self._source, self._driver, self._settings
            )
        if self._settings.cow_fallback == 'refuse':
            refusals.append(self._refuse(Reason.FALLBACK_REFUSED))
        return Candidate(Kind.STREAM, None, tuple(refusals))

    def _no_base_keeping(self) -> Refusal:
        if self._key is None:
            return refuse(Reason.NO_IDENTITY, image=self._image.label)
        return self._refuse(Reason.NO_BASE_KEEPING)

    def _refuse(self, reason: Reason, **facts: str) -> Refusal:
        return refuse(reason, backend=self._driver.backend, **facts)

    def _cow_refusals(self) -> Iterator[Refusal]:
        if not self._settings.cow_enabled:
            yield self._refuse(Reason.COW_DISABLED)


def _refusals_of(
    keeper: bases.BaseKeeper, found: bases.Base
) -> tuple[Refusal, ...]:
    refused = bases.check_state(keeper, found).refusal
    return (refused,) if refused else ()


def _gib(size: int) -> int:
    """Round bytes up to whole GiB; nothing is less than one."""
    return max(1, -(-size // units.Gi))
