# SPDX-License-Identifier: Apache-2.0
"""What a back end tells the scheduler: that it clones, and what is near it.

``cow_clone`` can be asked for by the extra specs of a volume type. The two
others are for :mod:`.weigher`: ``cow_places``, how the URLs of locations
begin that can be cloned, and ``cow_bases``, see :mod:`.base_digest`.
"""

from collections.abc import Iterable, Iterator
import functools
import threading
from typing import Any

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.plugin import base_digest

LOG = logging.getLogger(__name__)

NAMES = ('cow_clone', 'cow_places', 'cow_bases')

# Seconds that the stats wait for a back end; later it is told with the next.
_PATIENCE = 2.0

_Told = dict[str, Any]


class Capabilities:
    """Looks at the bases of a back end beside its stats.

    A list of 10,000 bases takes longer than who waits for stats can wait,
    and a back end that is down never gives one. So a thread looks, one at a
    time, and what it found last is what is told.
    """

    def __init__(self) -> None:
        self._found: _Told = {'cow_places': [], 'cow_bases': ''}
        self._looking: threading.Thread | None = None

    def told(self, driver: base.Driver, settings: opts.Settings) -> _Told:
        """Tell the capabilities; takes two seconds at most, never fails."""
        if not settings.cow_enabled or not isinstance(driver, base.Cloner):
            return {'cow_clone': False}
        if self._looking is None or not self._looking.is_alive():
            self._looking = threading.Thread(
                target=self._look,
                args=[driver],
                name='cow-capabilities',
                daemon=True,
            )
            self._looking.start()
        self._looking.join(_PATIENCE)
        return {'cow_clone': True, **self._found}

    def _look(self, driver: base.Driver) -> None:
        try:
            # Each is told as soon as it is found.
            if isinstance(driver, base.ImagePlaces):
                places = list(driver.image_places())
                self._found = {**self._found, 'cow_places': places}
            if isinstance(driver, bases.BaseKeeper):
                digest = base_digest.of(_images(driver.list_bases()))
                self._found = {**self._found, 'cow_bases': digest}
        except exception.CowError as error:
            LOG.warning('The bases are not told to the scheduler: %s', error)


def _images(found: Iterable[bases.Base]) -> Iterator[str]:
    """Tell the images of bases that can be cloned, those used last first."""
    sound = [one.facts for one in found if not one.facts.damaged]
    sound.sort(
        key=lambda facts: max(facts.last_used, facts.made_at), reverse=True
    )
    return (facts.key.image_id for facts in sound)


class CapabilitiesMixin:
    """Adds them to the stats of a driver of Cinder's.

    Whoever mixes this in sets ``_cow`` when it is set up.
    """

    _stats: _Told
    _cow: manager.CreateVolumeFromImageMixin

    @property
    def cow_backend(self) -> manager.CreateVolumeFromImageMixin | None:
        """What makes its volumes of images; None: it is not set up."""
        return getattr(self, '_cow', None)

    def _update_volume_stats(self) -> None:
        super()._update_volume_stats()  # type: ignore[misc]
        backend = self.cow_backend
        if backend is None:
            return
        told = self._cow_capabilities.told(backend.driver, backend.settings)
        self._stats.update(told)
        # Where a driver tells of its pools itself, those are what is chosen.
        for pool in self._stats.get('pools') or ():
            pool.update(told)

    @functools.cached_property
    def _cow_capabilities(self) -> Capabilities:
        return Capabilities()
