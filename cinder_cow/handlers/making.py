# SPDX-License-Identifier: Apache-2.0
"""Make a base as the only one, or wait for the one who does."""

from collections.abc import Callable
import dataclasses
import time

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import streaming
from cinder_cow.drivers import bases
from cinder_cow.handlers import base
from cinder_cow.handlers import keeping
from cinder_cow.handlers import waiting
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

# A base that was lost to another maker is there soon, or is ours to make.
_ATTEMPTS = 3

# No fetch was begun: what an earlier maker left is as it was.
_NOT_BEGUN = {Reason.BUSY, Reason.SCRATCH_UNUSABLE}

Begin = Callable[[], bases.Begun]
# Fills a base, and tells what was put into it.
Fill = Callable[[bases.BaseWriter, streaming.Progress], streaming.Filled]


@dataclasses.dataclass(frozen=True, slots=True)
class Maker:
    """Makes the base of one image.

    :param source: of it; None: it has none, and is made here
    :param size: bytes of the disk in it
    """

    driver: bases.BaseKeeper
    settings: opts.Settings
    image: images.ImageInfo
    source: image_source.ImageSource | None
    key: bases.BaseKey
    size: int
    report: streaming.Progress

    def make(self, begin: Begin, fill: Fill) -> base.Fetched:
        """Return the base; see ``fetch_image`` of :mod:`.base`.

        :param begin: asks the driver for it, or for a writer
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._make(begin, fill)
            except exception.BackendError as error:
                if error.reason is not Reason.BASE_LOST:
                    raise
                if attempt == _ATTEMPTS:
                    raise
                LOG.warning('Image %s: %s', self.image.label, error)
        raise AssertionError('the last attempt returns or raises')

    def _make(self, begin: Begin, fill: Fill) -> base.Fetched:
        with waiting.turn(
            self.driver.backend,
            self.key.name,
            begin,
            self.settings.base_wait,
            self._wait,
        ) as turn:
            if isinstance(turn.found, bases.Base):
                return base.Fetched(turn.found)
            made = self._publish(turn, turn.found, fill)
        keeping.keep_within_limits(self.driver, self.settings)
        return made

    def _wait(self, who: bases.Making | None) -> None:
        """Tell how far another maker is, and hold no connection meanwhile."""
        if isinstance(self.source, image_source.Resumable):
            self.source.release()
        if who is None:
            self.report('waiting', 0, 0)
            return
        done = who.progress
        phase = f' ({done.phase})' if done.phase else ''
        self.report(f'waiting for {who.owner}{phase}', done.done, done.total)

    def _publish(
        self, turn: waiting.Turn, writer: bases.BaseWriter, fill: Fill
    ) -> base.Fetched:
        def report(phase: str, done: int, total: int) -> None:
            self.report(phase, done, total)
            turn.tell(bases.Progress(phase, done, total))

        with writer:
            try:
                filled = fill(writer, report)
            except BaseException as error:
                if _is_worth_keeping(error):
                    _leave(writer, error)
                raise
            made = writer.publish(self._facts(filled))
        return base.Fetched(made, True, filled.bytes_copied)

    def _facts(self, filled: streaming.Filled) -> bases.BaseFacts:
        signature = self.image.signature
        return bases.BaseFacts(
            key=self.key,
            image_name=self.image.label,
            source_format=self.image.disk_format,
            content_size=self.size,
            hash=filled.hash,
            made_at=time.time(),
            verified=filled.verified.value,
            # It was compared where the bytes were hashed.
            signature=signature.identity if signature and filled.hash else '',
        )


def _leave(writer: bases.BaseWriter, error: BaseException) -> None:
    """Leave a base to the next maker; that this fails hides no error."""
    try:
        writer.leave()
    except exception.CowError as second:
        error.add_note(str(second))


def _is_worth_keeping(error: BaseException) -> bool:
    """Tell whether the next maker can go on; not where the image is bad."""
    if isinstance(error, exception.ImageError):
        return error.reason is Reason.SOURCE_FAILED
    if isinstance(error, exception.BackendError):
        # Of the back end it is not known what it has written.
        return error.reason in _NOT_BEGUN
    return True
