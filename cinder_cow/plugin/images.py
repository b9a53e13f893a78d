# SPDX-License-Identifier: Apache-2.0
"""What Cinder tells of an image, and its bytes by the caller's rights."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import datetime
import re
from typing import Any

from cinder import context as cinder_context
from cinder import service_auth
from cinder.image import glance as cinder_glance
from keystoneauth1 import noauth
from keystoneauth1 import session as ksa_session
from oslo_config import cfg

from cinder_cow import exception
from cinder_cow import glance
from cinder_cow import image_info
from cinder_cow import opts
from cinder_cow.refusal import Reason

CONF = cfg.CONF

# As Glance writes a time.
_TIME = '%Y-%m-%dT%H:%M:%SZ'

Location = tuple[str | None, Sequence[Mapping[str, Any]] | None]


def describe(
    image_meta: Mapping[str, Any], location: Location | None
) -> image_info.ImageInfo:
    """Read what Cinder has read of Glance.

    :param image_meta: as Cinder's image service shows it
    :param location: a direct URL and all locations; either may be missing
    :raises ImageError: IMAGE_RECORD_INVALID
    """
    direct_url, locations = location or (None, None)
    # What a property is called is up to who made the image.
    record = dict(image_meta.get('properties') or {})
    for key, value in image_meta.items():
        record[key] = _as_glance_told(value)
    record['direct_url'] = direct_url
    record['locations'] = list(locations or ())
    return image_info.ImageInfo.from_glance(record)


def _as_glance_told(value: object) -> object:
    """Give back a text that Cinder has turned into a time.

    It is part of what a base is named after, for the programs beside Cinder
    too.
    """
    if isinstance(value, datetime.datetime):
        return value.strftime(_TIME)
    return value


@contextlib.contextmanager
def opened(
    context: cinder_context.RequestContext, settings: opts.Settings
) -> Iterator[glance.Glance]:
    """Give Glance, as who asked Cinder for a volume.

    Cinder's own client has no limit of time for an answer that has begun,
    and cannot ask for the rest of one that broke off. So the bytes come over
    a session of ours, with the address and the tokens that Cinder would use.
    """
    place, encrypted = _server(context)
    # The client adds the version.
    place = re.sub('/v2/?$', '', place)
    endpoint = f'{"https" if encrypted else "http"}://{place}'
    target = glance.Target(endpoint, global_request_id=context.global_id)
    with glance.Glance(
        _session(context, endpoint, encrypted), target, settings
    ) as client:
        yield client


def _server(context: cinder_context.RequestContext) -> tuple[str, bool]:
    """Tell where a Glance is, and whether by HTTPS; another one each time.

    :raises RequestError: GLANCE_UNAVAILABLE
    """
    for place, encrypted in cinder_glance.get_api_servers(context):
        return place, encrypted
    raise exception.RequestError.because(
        Reason.GLANCE_UNAVAILABLE,
        problem='neither glance_api_servers nor the catalogue names one',
    )


def _session(
    context: cinder_context.RequestContext, endpoint: str, encrypted: bool
) -> ksa_session.Session:
    if CONF.auth_strategy == 'keystone':
        auth = service_auth.get_auth_plugin(context)
    else:
        auth = noauth.NoAuth(endpoint=endpoint)
    session = ksa_session.Session(auth=auth, split_loggers=CONF.split_loggers)
    if encrypted:
        authority = CONF.glance_ca_certificates_file or True
        session.verify = authority if not CONF.glance_api_insecure else False
        if CONF.glance_certfile and CONF.glance_keyfile:
            session.cert = (CONF.glance_certfile, CONF.glance_keyfile)
    return session
