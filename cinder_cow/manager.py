# SPDX-License-Identifier: Apache-2.0
"""Make a volume from an image: plan, try each candidate, tell what was done.

Whoever mixes this in gives ``driver`` and ``settings``.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
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
from cinder_cow import reader_source
from cinder_cow import streaming
from cinder_cow.drivers import base
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)


class CreateVolumeFromImageMixin:
    """Create volumes from images, copy-on-write wherever that can be."""

    driver: base.Driver
    settings: opts.Settings

    def plan_volume_from_image(
        self,
        image: images.ImageInfo,
        source: image_source.ImageSource,
        size: int | None = None,
    ) -> plans.Plan:
        """Tell how a volume could be made; changes nothing.

        :param size: bytes; None: as the image, in whole GiB
        """
        return plans.make(image, source, self.driver, self.settings, size)

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
        if candidate.kind is plans.Kind.PREPARE_BASE:
            location, base_made = self._prepare_base()
        volume = self._clone(location) if location else self._stream()
        return outcomes.Outcome(
            volume=volume,
            candidate=candidate,
            base_made=base_made,
            location=str(location or ''),
            verified=self._verified(candidate),
            phases=tuple(self._phases),
            failures=failures,
        )

    def _verified(self, candidate: plans.Candidate) -> str:
        """Tell the claimed hash: no base has it in its key and another one."""
        claimed = hashing.expected(self._image)
        if claimed is None or candidate.kind is plans.Kind.CLONE_LOCATION:
            return ''
        return ':'.join(claimed)

    def _clone(self, location: image_location.Location) -> base.VolumeInfo:
        assert isinstance(self._driver, base.Cloner)
        image = self._image.at(location)
        with self._phase('clone'):
            return self._driver.clone(image, self._volume_name)

    def _stream(self) -> base.VolumeInfo:
        with self._phase('stream') as phase:
            size = self._plan.size
            with self._driver.open(self._volume_name, size) as writer:
                phase.bytes = self._fill(writer).bytes_copied
                writer.close()
        return self._driver.show(self._volume_name)

    def _prepare_base(self) -> tuple[image_location.Location, bool]:
        """Make the base, or wait for whoever is making it already."""
        key = base.BaseKey.of(self._image)
        assert isinstance(self._driver, base.BaseKeeper)
        assert key is not None
        with self._phase('base') as phase:
            begun = self._driver.begin_base(key, self._plan.content_size)
            if isinstance(begun, base.Base):
                return begun.location, False
            with begun as writer:
                filled = self._fill(writer)
                facts = base.BaseFacts(
                    key=key,
                    image_name=self._image.label,
                    source_format=self._image.disk_format,
                    content_size=self._plan.content_size,
                    hash=filled.hash,
                    made_at=time.time(),
                )
                made = writer.publish(facts)
            phase.bytes = filled.bytes_copied
        return made.location, True

    def _fill(self, sink: base.Sink) -> streaming.Filled:
        with reader_source.nearest(
            self._image, self._source, self._driver
        ) as source:
            return filling.fill(
                sink, self._image, source, self._settings, self._report
            )

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
