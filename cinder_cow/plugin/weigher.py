# SPDX-License-Identifier: Apache-2.0
"""A weigher for Cinder's scheduler: where an image is, its volumes go.

``scheduler_default_weighers`` names it, beside the others. What it goes by
the back ends tell: see :mod:`.capabilities`.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from cinder import context as cinder_context
from cinder.image import glance as cinder_glance
from cinder.scheduler import host_manager
from cinder.scheduler import weights
from oslo_config import cfg

from cinder_cow import image_info
from cinder_cow import opts
from cinder_cow.plugin import base_digest
from cinder_cow.plugin import image_places
from cinder_cow.plugin import images

CONF = cfg.CONF
CONF.register_opts(opts.SCHEDULER_OPTS)

# A clone at once; a base that is made without a download; neither.
_CLONE, _NEAR, _NOTHING = 1.0, 0.5, 0.0

# A weigher is made for each request.
_PLACES = image_places.ImagePlaces()


class ImageLocalityWeigher(weights.BaseHostWeigher):
    """Prefers back ends that can clone the image of a volume.

    Of a request that is about no image all are equal.
    """

    # Weights count as they are: of two back ends that both have the image,
    # none is preferred.
    minval = _NOTHING
    maxval = _CLONE

    def weight_multiplier(self) -> float:
        multiplier: float = CONF.cow_image_locality_weight_multiplier
        return multiplier

    def weigh_objects(
        self,
        weighed_obj_list: Sequence[weights.WeighedHost],
        weight_properties: Mapping[str, Any],
    ) -> list[float]:
        told = [_told(weighed.obj) for weighed in weighed_obj_list]
        image_id = _image_id(weight_properties)
        if image_id is None:
            return [_NOTHING] * len(told)
        place = None
        if any(one.get('cow_places') for one in told):
            place = _place(image_id, weight_properties)
        return [_weight(one, image_id, place) for one in told]

    def _weigh_object(
        self,
        host_state: host_manager.BackendState,
        weight_properties: Mapping[str, Any],
    ) -> float:
        """Weigh one; the base class asks for it, and nobody else does."""
        one = weights.WeighedHost(host_state, 0.0)
        (weight,) = self.weigh_objects([one], weight_properties)
        return weight


def _told(host_state: host_manager.BackendState) -> Mapping[str, Any]:
    """Return what a back end tells, if it makes clones."""
    told: Mapping[str, Any] = host_state.capabilities or {}
    return told if told.get('cow_clone') is True else {}


def _image_id(properties: Mapping[str, Any]) -> str | None:
    spec = properties.get('request_spec')
    try:
        image_id = spec.get('image_id')  # type: ignore[union-attr]
    except AttributeError:
        return None  # of a group, which has none
    return image_id if isinstance(image_id, str) else None


def _place(
    image_id: str, properties: Mapping[str, Any]
) -> image_places.ImagePlace | None:
    if not CONF.cow_image_locality_ask_glance:
        return None
    ask = functools.partial(_ask, properties.get('context'), image_id)
    patience = CONF.cow_image_locality_glance_timeout
    return _PLACES.find(image_id, ask, patience)


def _ask(
    context: cinder_context.RequestContext, image_id: str
) -> image_info.ImageInfo:
    """Ask Glance as the volume service will, for who wants the volume."""
    service = cinder_glance.get_default_image_service()
    record = service.show(context, image_id)
    return images.describe(record, service.get_location(context, image_id))


def _weight(
    told: Mapping[str, Any],
    image_id: str,
    place: image_places.ImagePlace | None,
) -> float:
    if base_digest.holds(told.get('cow_bases'), image_id):
        return _CLONE
    if place is None or not _is_near(told.get('cow_places'), place):
        return _NOTHING
    return _NEAR if place.converted else _CLONE


def _is_near(prefixes: object, place: image_places.ImagePlace) -> bool:
    if not isinstance(prefixes, list | tuple):
        return False
    starts = tuple(text for text in prefixes if text and isinstance(text, str))
    return any(url.startswith(starts) for url in place.urls)
