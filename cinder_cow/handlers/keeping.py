# SPDX-License-Identifier: Apache-2.0
"""Which bases stay: limits, images that are gone, and what a restart left.

A base on which a volume hangs always stays, and so does one that is pinned.
"""

from collections.abc import Callable
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
# Between the two times that Glance must say that an image is gone.
GONE_SECONDS = 3600


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
        # A base that was published and not protected is protected by it.
        if refused := bases.check_state(driver, found).refusal:
            LOG.warning('Base %s: %s', found.name, refused)
    keep_within_limits(driver, settings)


def keep_within_limits(
    driver: bases.BaseKeeper, settings: opts.Settings
) -> None:
    """Remove bases beyond the limits, those first that nobody used longest.

    Never fails: what cannot be removed stays.
    """
    if not (
        settings.max_bases or settings.max_bases_size or settings.max_base_idle
    ):
        return
    try:
        found = sorted(driver.list_bases(), key=_last_used)
    except exception.BackendError as error:
        LOG.warning('The bases cannot be listed: %s', error)
        return
    total = _Total(len(found), sum(one.allocated for one in found))
    for one in found:
        why = _too_much(one, total, settings)
        if why and _removed(driver, one, why):
            total = _Total(total.count - 1, total.size - one.allocated)


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
    if idle < _FRESH_SECONDS:
        return ''
    if settings.max_base_idle and idle > settings.max_base_idle:
        return f'it was not used for {idle / 86400:.0f} days'
    if settings.max_bases and total.count > settings.max_bases:
        return f'there are {total.count} bases'
    if settings.max_bases_size and total.size > settings.max_bases_size:
        return f'all bases take {total.size} bytes'
    return ''


def forget_missing(
    driver: bases.BaseKeeper, exists: Callable[[str], bool | None]
) -> int:
    """Remove the bases of images that are gone; see ``note_missing``.

    :param exists: asks Glance about an id; None: it cannot tell
    :returns: how many were removed
    :raises BackendError: the back end does not answer
    """
    removed = 0
    for found in list(driver.list_bases()):
        image_id = found.facts.key.image_id
        if not uuidutils.is_uuid_like(image_id):
            continue  # no image of Glance
        answer = exists(image_id)
        if answer is not None:
            removed += note_missing(driver, found, is_missing=not answer)
    return removed


def note_missing(
    driver: bases.BaseKeeper, found: bases.Base, is_missing: bool
) -> bool:
    """Note what Glance says of a base's image; remove it if it is gone.

    It is when Glance said so twice, an hour apart, to someone who may see all
    images. Then the base goes, or when its last child has gone.

    :param is_missing: Glance answered that there is no such image
    :returns: the base was removed
    """
    since = found.facts.missing_since
    if not is_missing:
        if since:
            driver.set_base_facts(found.name, missing_since=0)
        return False
    if not since:
        driver.set_base_facts(found.name, missing_since=time.time())
        return False
    if time.time() - since < GONE_SECONDS:
        return False
    return _removed(driver, found, 'its image is gone')


def _removed(driver: bases.BaseKeeper, found: bases.Base, why: str) -> bool:
    """Remove a base if it may go; tell whether it did."""
    if found.facts.pinned:
        return False
    try:
        driver.retire_base(found.name)
    except exception.CowError as error:
        level = LOG.debug
        if error.reason is not Reason.BASE_IN_USE:
            level = LOG.warning
        level('Base %s stays: %s', found.name, error)
        return False
    LOG.info('Base %s was removed: %s', found.name, why)
    return True
