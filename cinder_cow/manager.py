# SPDX-License-Identifier: Apache-2.0
"""Make a volume from an image: plan, try each candidate, tell what was done.

Whoever mixes this in gives ``driver`` and ``settings``.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import threading
import time

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import filling
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import outcome as outcomes
from cinder_cow import plan as plans
from cinder_cow import signing
from cinder_cow import streaming
from cinder_cow import volume_records as records
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.handlers import base as image_handlers
from cinder_cow.handlers import keeping
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)


class NoBaseError(outcomes.NoCandidateError):
    """No way is left to make a base; named after the image."""

    def __str__(self) -> str:
        reasons = ' Also: '.join(map(str, self._telling))
        return f"A base of '{self.volume_name}' cannot be made: {reasons}"


class CreateVolumeFromImageMixin:
    """Create volumes from images, copy-on-write wherever that can be."""

    driver: base.Driver
    settings: opts.Settings
    # Asks Cinder about volumes that hold images, where there is a Cinder.
    volume_records: records.VolumeRecords | None = None

    def init_handlers(self) -> threading.Thread:
        """Bring in order what a restart left, in the background.

        What fails is logged: requests that it concerns are told themselves.

        :returns: the thread that does it
        """

        def init() -> None:
            for handler in self.handlers:
                try:
                    handler.init()
                except exception.CowError as error:
                    LOG.warning('Image handler %s: %s', handler.name, error)

        thread = threading.Thread(target=init, name='cow-init', daemon=True)
        thread.start()
        return thread

    def plan_volume_from_image(
        self,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        size: int | None = None,
    ) -> plans.Plan:
        """Tell how a volume could be made; changes nothing.

        :param size: bytes; None: as the image, in whole GiB
        """
        means = plans.Means(self.driver, self.settings, self.handlers)
        return plans.make(image, source, means, size)

    @property
    def handlers(self) -> Sequence[image_handlers.ImageHandler]:
        """What makes the bases of this back end, in the order to try."""
        if not isinstance(self.driver, bases.BaseKeeper):
            return ()
        return image_handlers.load(
            image_handlers.Backend(
                self.driver, self.settings, self.volume_records
            )
        )

    def prepare_base(
        self,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        progress: streaming.Progress | None = None,
        plan: plans.Plan | None = None,
    ) -> image_handlers.Fetched:
        """Make the base of an image, or return the one that is there.

        :param plan: of a volume from it, where there is one already
        :raises ImageError: the image turned out not to be what it claims
        :raises NoBaseError: with all refusals and failures
        """
        plan = plan or self.plan_volume_from_image(image, source)
        report = progress or (lambda phase, done, total: None)
        failures: list[outcomes.Failure] = []
        for candidate in plan.candidates:
            is_there = candidate.kind is plans.Kind.CLONE_BASE
            if not is_there and candidate.kind is not plans.Kind.PREPARE_BASE:
                continue
            failures += [
                outcomes.Failure(candidate, refusal)
                for refusal in candidate.refusals
            ]
            if not candidate.possible:
                continue
            if is_there and plan.base:
                return image_handlers.Fetched(plan.base)
            assert candidate.handler is not None
            try:
                return candidate.handler.fetch_image(
                    plan.image, source, plan.content_size, report
                )
            except exception.BackendError as error:
                LOG.info('%s: %s failed: %s', image.label, candidate, error)
                failures.append(outcomes.Failure.of(candidate, error))
        raise NoBaseError(image.label, tuple(failures))

    def create_volume_from_image(
        self,
        volume_name: str,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        size: int | None = None,
        progress: streaming.Progress | None = None,
    ) -> outcomes.Outcome:
        """Make a volume, by the first candidate of the plan that works.

        :param size: bytes; None: as the image, in whole GiB
        :raises RequestError: INVALID_NAME, VOLUME_EXISTS
        :raises ImageError: the image turned out not to be what it claims
        :raises NoCandidateError: with all refusals and failures
        """
        # Before a base is made for nothing.
        if self.driver.exists(volume_name):
            raise exception.RequestError.because(
                Reason.VOLUME_EXISTS,
                volume=volume_name,
                state='exists already',
            )
        plan = self.plan_volume_from_image(image, source, size)
        attempt = _Attempt(self, volume_name, plan, source, progress)
        failures: list[outcomes.Failure] = []
        for candidate in plan.candidates:
            failures += [
                outcomes.Failure(candidate, refusal)
                for refusal in candidate.refusals
            ]
            if not candidate.possible:
                continue
            try:
                return attempt.carry_out(candidate, tuple(failures))
            except exception.BackendError as error:
                LOG.info(
                    'Volume %s: %s failed: %s', volume_name, candidate, error
                )
                failures.append(outcomes.Failure.of(candidate, error))
        raise outcomes.NoCandidateError(volume_name, tuple(failures))


class _Attempt:
    """Carries candidates out, until one of them gives the volume.

    A candidate that fails has undone itself: sinks abort, clones publish
    last. A base that was made is kept, it will serve the next.
    """

    def __init__(
        self,
        manager: CreateVolumeFromImageMixin,
        volume_name: str,
        plan: plans.Plan,
        source: image_source.ImageSource,
        progress: streaming.Progress | None,
    ) -> None:
        self._driver = manager.driver.bound(base.VolumeRequest(plan.size))
        self._settings = manager.settings
        self._volume_name = volume_name
        self._plan = plan
        self._image = plan.image
        self._source = source
        self._report = progress or (lambda phase, done, total: None)
        self._phases: list[outcomes.Phase] = []

    def carry_out(
        self,
        candidate: plans.Candidate,
        failures: tuple[outcomes.Failure, ...],
    ) -> outcomes.Outcome:
        location, base_made = candidate.location, False
        found: bases.Base | None = None
        if candidate.kind is plans.Kind.CLONE_BASE:
            found = self._plan.base
        if candidate.handler is not None:
            fetched = self._prepare_base(candidate.handler)
            found, base_made = fetched.base, fetched.made
            location = found.location
        digest = found.facts.hash if found else ''
        if location:
            self._require_signature(found, location)
            volume = self._clone(location)
        else:
            volume, digest = self._stream()
        return outcomes.Outcome(
            volume=volume,
            candidate=candidate,
            base_made=base_made,
            location=str(location or ''),
            verified=self._verified(digest),
            phases=tuple(self._phases),
            failures=failures,
        )

    def _verified(self, digest: str) -> str:
        """Tell the hash that was compared: one of our own proves nothing."""
        claimed = ':'.join(hashing.expected(self._image) or ())
        return digest if digest == claimed else ''

    def _require_signature(
        self,
        found: bases.Base | None,
        location: image_location.Location,
    ) -> None:
        """Let nothing be cloned that has not the signature of its image."""
        if self._image.signature is None:
            return
        with self._phase('verify'):
            if found and isinstance(self._driver, bases.BaseKeeper):
                signing.require_of_base(
                    found,
                    self._image,
                    self._source,
                    self._driver,
                    self._settings,
                )
            else:
                signing.require_of_location(
                    location, self._image, self._driver
                )

    def _clone(self, location: image_location.Location) -> base.VolumeInfo:
        assert isinstance(self._driver, base.Cloner)
        image = self._image.at(location)
        with self._phase('clone'):
            volume = self._driver.clone(image, self._volume_name)
        found = self._plan.base
        if found and isinstance(self._driver, bases.BaseKeeper):
            keeping.note_use(self._driver, found)
        return volume

    def _stream(self) -> tuple[base.VolumeInfo, str]:
        with self._phase('stream') as phase:
            size = self._plan.size
            with self._driver.open(self._volume_name, size) as writer:
                filled = filling.fill_from_nearest(
                    writer,
                    self._image,
                    self._source,
                    self._driver,
                    self._settings,
                    self._report,
                )
                phase.bytes = filled.bytes_copied
                writer.close()
        return self._driver.show(self._volume_name), filled.hash

    def _prepare_base(
        self, handler: image_handlers.ImageHandler
    ) -> image_handlers.Fetched:
        """Have the base made, unless somebody is making it already."""
        with self._phase('base') as phase:
            fetched = handler.fetch_image(
                self._image,
                self._source,
                self._plan.content_size,
                self._report,
            )
            phase.bytes = fetched.bytes_copied
        return fetched

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator['_Running']:
        """Measure a step, also one that fails: its time was spent."""
        running = _Running()
        begun = time.monotonic()
        try:
            yield running
        finally:
            seconds = time.monotonic() - begun
            self._phases.append(outcomes.Phase(name, seconds, running.bytes))


@dataclasses.dataclass(slots=True)
class _Running:
    """A phase that has not ended yet."""

    bytes: int = 0
