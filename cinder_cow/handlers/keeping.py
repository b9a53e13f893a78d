# SPDX-License-Identifier: Apache-2.0
"""Which bases stay: limits, images that are gone, and what a restart left.

A base on which a volume hangs always stays, and so does one that is pinned.
"""

from collections.abc import Callable, Sequence
import dataclasses
import time

from oslo_log import log as logging
from oslo_utils import uuidutils

from cinder_cow import exception
from cinder_cow import opts
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

# A clone is worth a note once an hour: it costs a write.
_NOTE_SECONDS = 3600
# One that was made or cloned since is about to be cloned, perhaps.
_FRESH_SECONDS = 600
# Bytes that tell whether a base can be read.
_LOOK = 4096
# Between the two times that Glance must say that an image is gone.
GONE_SECONDS = 3600
_GONE = 'its image is gone'


def note_use(driver: bases.BaseKeeper, found: bases.Base) -> None:
    """Note that a base was cloned; never fails."""
    now = time.time()
    if now - found.facts.last_used < _NOTE_SECONDS:
        return
    try:
        driver.set_base_facts(found.name, last_used=now)
    except exception.CowError as error:
        LOG.info('The use of %s was not noted: %s', found.name, error)


def bring_in_order(driver: bases.BaseKeeper, settings: opts.Settings) -> None:
    """Tidy up after a restart: what is half-made, and what was not finished.

    :raises BackendError: the back end does not answer
    """
    if isinstance(driver, bases.Checker):
        driver.sweep()
    for found in driver.list_bases():
        if problem := _problem_of(driver, found):
            LOG.warning('Base %s: %s', found.name, problem)
    keep_within_limits(driver, settings)


def _problem_of(driver: bases.BaseKeeper, found: bases.Base) -> str:
    """Tell why a base cannot be cloned, or read."""
    # One that was published and not protected yet is protected by it.
    if refused := bases.check_state(driver, found).refusal:
        return str(refused)
    try:
        with driver.read(found.location) as reader:
            reader.read(0, min(_LOOK, reader.size))
    except exception.CowError as error:
        return str(error)
    return ''


@dataclasses.dataclass(frozen=True, slots=True)
class Tidied:
    """A base that was removed, or stays although it should go.

    :param why: it should go
    :param stays: what keeps it; empty: it was removed
    :param error: where removing it failed
    """

    base: bases.Base
    why: str
    stays: str = ''
    error: exception.CowError | None = None

    @property
    def removed(self) -> bool:
        return not self.stays


def keep_within_limits(
    driver: bases.BaseKeeper, settings: opts.Settings
) -> Sequence[Tidied]:
    """Remove bases beyond the limits; never fails.

    See ``remove_beyond_limits``.
    """
    try:
        tidied = remove_beyond_limits(driver, settings)
    except exception.BackendError as error:
        LOG.warning('The bases cannot be listed: %s', error)
        return ()
    for one in tidied:
        if one.error:
            LOG.warning('Base %s stays: %s', one.base.name, one.error)
    return tidied


def remove_beyond_limits(
    driver: bases.BaseKeeper, settings: opts.Settings
) -> Sequence[Tidied]:
    """Remove bases beyond the limits, those first that nobody used longest.

    What cannot be removed stays.

    :returns: those that are beyond them
    :raises BackendError: they cannot be listed
    """
    if not (
        settings.max_bases or settings.max_bases_size or settings.max_base_idle
    ):
        return ()
    found = sorted(driver.list_bases(), key=_last_used)
    total = _Total(len(found), sum(one.allocated for one in found))
    tidied = []
    for one in found:
        why = _too_much(one, total, settings)
        if not why:
            continue
        tidied.append(_remove(driver, one, why))
        if tidied[-1].removed:
            total = _Total(total.count - 1, total.size - one.allocated)
    return tidied


@dataclasses.dataclass(frozen=True, slots=True)
class _Total:
    """How many bases there are, and the bytes that they take."""

    count: int
    size: int


def _last_used(found: bases.Base) -> float:
    return max(found.facts.last_used, found.facts.made_at)


def _too_much(
    found: bases.Base, total: _Total, settings: opts.Settings
) -> str:
    """Tell which limit a base is beyond; '' for none."""
    idle = time.time() - _last_used(found)
    if settings.max_base_idle and idle > settings.max_base_idle:
        return f'it was not used for {idle / 86400:.0f} days'
    if settings.max_bases and total.count > settings.max_bases:
        return f'there are {total.count} bases'
    if settings.max_bases_size and total.size > settings.max_bases_size:
        return f'all bases take {total.size} bytes'
    return ''


def forget_missing(
    driver: bases.BaseKeeper, exists: Callable[[str], bool | None]
) -> Sequence[Tidied]:
    """Remove the bases of images that are gone; see ``note_missing``.

    :param exists: asks Glance about an id; None: it cannot tell
    :returns: those whose image is gone, or is said to be
    :raises BackendError: the back end does not answer
    """
    tidied = []
    for found in of_glance(driver):
        answer = exists(found.facts.key.image_id)
        if answer is None:
            continue
        noted = note_missing(driver, found, is_missing=not answer)
        if noted:
            tidied.append(noted)
    return tidied


def of_glance(driver: bases.BaseKeeper) -> Sequence[bases.Base]:
    """Return the bases of images that are in Glance, or were."""
    return [
        found
        for found in driver.list_bases()
        if uuidutils.is_uuid_like(found.facts.key.image_id)
    ]


def note_missing(
    driver: bases.BaseKeeper, found: bases.Base, is_missing: bool
) -> Tidied | None:
    """Note what Glance says of a base's image; remove it if it is gone.

    It is when Glance said so twice, an hour apart, to someone who may see all
    images. Then the base goes, or when its last child has gone.

    :param is_missing: Glance answered that there is no such image
    :returns: None: the image is there
    """
    now, since = time.time(), found.facts.missing_since
    if not is_missing:
        if since:
            driver.set_base_facts(found.name, missing_since=0)
        return None
    if not since:
        since = now
        driver.set_base_facts(found.name, missing_since=now)
    if now - since >= GONE_SECONDS:
        return _remove(driver, found, _GONE)
    minutes = (now - since) / 60
    return Tidied(
        found,
        _GONE,
        f'Glance said so first {minutes:.0f} minutes ago; once more after'
        f' {GONE_SECONDS / 60:.0f}',
    )


def _remove(driver: bases.BaseKeeper, found: bases.Base, why: str) -> Tidied:
    """Remove a base that should go, if it may."""
    if found.facts.pinned:
        return Tidied(found, why, 'it is pinned')
    if time.time() - _last_used(found) < _FRESH_SECONDS:
        minutes = _FRESH_SECONDS // 60
        return Tidied(found, why, f'it was used in the last {minutes} minutes')
    try:
        driver.retire_base(found.name)
    except exception.CowError as error:
        LOG.debug('Base %s stays: %s', found.name, error)
        if error.reason is Reason.BASE_IN_USE:
            children = error.refusal.facts['children']
            return Tidied(found, why, f'it is the parent of {children}')
        return Tidied(found, why, error.refusal.detail, error)
    LOG.info('Base %s was removed: %s', found.name, why)
    return Tidied(found, why)
