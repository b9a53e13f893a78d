# SPDX-License-Identifier: Apache-2.0
"""What a volume service does beside its requests, each step in one line.

All of it can be ended at any moment: what was begun then is swept by the next
start, and done by the next round.
"""

from collections.abc import Callable, Sequence
import contextlib
import threading
from typing import Protocol, TypeAlias

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import glance as glances
from cinder_cow import manager
from cinder_cow import plan as plans
from cinder_cow import scrubbing
from cinder_cow.drivers import bases
from cinder_cow.handlers import keeping

LOG = logging.getLogger(__name__)

# A property of images: 'true', or names of back ends.
PREPARE = 'cow_prepare'

Backend: TypeAlias = manager.CreateVolumeFromImageMixin


class Glance(Protocol):
    """Glance with the rights to see all images."""

    @property
    def client(self) -> glances.Glance: ...

    def public_images(
        self, most: int, name: str
    ) -> Sequence[tuple[str, str]]: ...


Opened: TypeAlias = Callable[[], contextlib.AbstractContextManager[Glance]]


class Rounds:
    """Does things in the background, each never beside itself.

    Cinder calls its periodic tasks one after the other in one thread; one
    that makes a base would keep it from telling its scheduler that it lives.
    """

    def __init__(self) -> None:
        self._running: dict[str, threading.Thread] = {}

    def begin(self, name: str, work: Callable[[], None]) -> bool:
        """Begin a round.

        :returns: False: the one before has not ended
        """
        before = self._running.get(name)
        if before is not None and before.is_alive():
            return False
        thread = threading.Thread(
            target=_logged, args=[name, work], name=name, daemon=True
        )
        self._running[name] = thread
        thread.start()
        return True


def _logged(name: str, work: Callable[[], None]) -> None:
    try:
        work()
    except exception.CowError as error:
        LOG.warning('%s: %s', name, error)
    except Exception:
        # Whatever it was, the next round begins from the start.
        LOG.exception('%s failed', name)


def tidy(backend: Backend, opened: Opened) -> None:
    """Remove what dead makers left, and bases that should go.

    Those are beyond the limits, or their image is gone.
    """
    keeper = backend.driver
    if not isinstance(keeper, bases.BaseKeeper):
        return
    # At the start the lease of one that had just died may count still.
    if isinstance(keeper, bases.Checker):
        keeper.sweep()
    try:
        missing = _forget_missing(keeper, opened)
    except exception.CowError as error:
        LOG.warning('Back end %s: %s', backend.settings.backend, error)
        missing = ()
    limits = keeping.remove_beyond_limits(keeper, backend.settings)
    for one in (*missing, *limits):
        if one.stays:
            LOG.info(
                'Base %s stays, although %s: %s',
                one.base.name,
                one.why,
                one.stays,
            )


def _forget_missing(
    keeper: bases.BaseKeeper, opened: Opened
) -> Sequence[keeping.Tidied]:
    if not keeping.of_glance(keeper):
        return ()
    with opened() as glance:
        return keeping.forget_missing(keeper, glance.client.exists)


def prepare(backend: Backend, opened: Opened, most: int) -> None:
    """Make the bases of images that are to have one here.

    :param most: images of Glance that are looked at
    """
    if not (
        backend.settings.cow_enabled
        and isinstance(backend.driver, bases.BaseKeeper)
    ):
        return
    with opened() as glance:
        for image_id, value in glance.public_images(most, PREPARE):
            if _is_meant(value, backend.settings.backend):
                _prepare_one(backend, glance.client, image_id)


def _is_meant(value: str, backend: str) -> bool:
    words = {word.strip() for word in value.split(',')}
    return backend in words or value.strip().lower() == 'true'


def _prepare_one(
    backend: Backend, glance: glances.Glance, image_id: str
) -> None:
    """Make the base of one image; what fails keeps no other from its own."""
    try:
        made = _prepared(backend, glance, image_id)
    except exception.CowError as error:
        LOG.warning('Image %s was not prepared: %s', image_id, error)
        return
    except Exception:
        LOG.exception('Image %s was not prepared', image_id)
        return
    if made:
        LOG.info('Image %s was prepared: base %s', image_id, made)


def _prepared(backend: Backend, glance: glances.Glance, image_id: str) -> str:
    """Make a base; tell its name, '' if none was needed or it was there."""
    keeper = backend.driver
    assert isinstance(keeper, bases.BaseKeeper)
    image = glance.image(image_id)
    key = bases.BaseKey.of(image)
    # Cheaper than a plan, which looks at the image itself.
    if key and keeper.find_base(key):
        return ''
    with glance.source(image) as source:
        plan = backend.plan_volume_from_image(image, source)
        if plan.base is None and _is_cloned(plan):
            return ''
        fetched = backend.prepare_base(image, source, plan=plan)
    if not fetched.made:
        return ''
    # As "base prepare" does: nobody waits, and a scrub has to know.
    scrubbed = scrubbing.record(keeper, fetched.base, _unheard)
    if scrubbed.error:
        raise scrubbed.error
    return fetched.base.name


def _unheard(phase: str, done: int, total: int) -> None:
    """Hear how far it is, and tell nobody."""


def _is_cloned(plan: plans.Plan) -> bool:
    return any(
        candidate.possible and candidate.kind is plans.Kind.CLONE_LOCATION
        for candidate in plan.candidates
    )
