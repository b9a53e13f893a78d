# SPDX-License-Identifier: Apache-2.0
"""Glance as Cinder itself, for work that no user has asked for.

There is no user's token then: the credentials are those of the section
[glance] of cinder.conf, with which Cinder asks for locations too.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import itertools
from typing import Any

from cinder import context as cinder_context
from cinder.image import glance as cinder_glance
from keystoneauth1 import adapter as ksa_adapter
from keystoneauth1 import exceptions as ksa_errors
from keystoneauth1 import loading as ksa_loading
from keystoneauth1 import noauth
from keystoneauth1 import session as ksa_session
from oslo_config import cfg
from oslo_utils import uuidutils

from cinder_cow import exception
from cinder_cow import glance
from cinder_cow import opts
from cinder_cow.refusal import Reason

CONF = cfg.CONF
_SECTION = 'glance'
# Records in one answer, each of perhaps 2 KiB.
_PAGE = 100

_Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class OwnGlance:
    """A Glance, and a way to list what is in it."""

    client: glance.Glance
    _adapter: ksa_adapter.Adapter

    def public_images(self, most: int, name: str) -> Sequence[tuple[str, str]]:
        """Tell the images that everybody may use and that have a property.

        Who may publish an image is an administrator, so no one else can have
        us make bases.

        :param most: images that are looked at
        :param name: of the property
        :returns: id and value
        :raises RequestError: GLANCE_UNAVAILABLE
        """
        try:
            return [
                (record['id'], record[name])
                for record in itertools.islice(self._records(), most)
                if isinstance(record.get(name), str)
                and uuidutils.is_uuid_like(record['id'])
            ]
        except ksa_errors.ClientException as error:
            raise _unavailable(str(error)) from None
        except (AttributeError, LookupError, TypeError, ValueError):
            raise _unavailable('what answers is not a Glance') from None

    def _records(self) -> Iterator[_Record]:
        """Give records of images, page by page."""
        query: dict[str, object] = {
            'visibility': 'public',
            'status': 'active',
            'limit': _PAGE,
        }
        while True:
            answer = self._adapter.get('/v2/images', params=query)
            page: list[_Record] = answer.json()['images']
            yield from page
            if len(page) < _PAGE:
                return
            query['marker'] = page[-1]['id']


@contextlib.contextmanager
def opened(settings: opts.Settings) -> Iterator[OwnGlance]:
    """Give Glance with Cinder's own rights.

    :raises RequestError: GLANCE_UNAVAILABLE: nothing says who we are
    """
    endpoint = _endpoint()
    session = ksa_session.Session(
        auth=_auth(endpoint), split_loggers=CONF.split_loggers
    )
    authority = CONF.glance_ca_certificates_file or True
    session.verify = authority if not CONF.glance_api_insecure else False
    if CONF.glance_certfile and CONF.glance_keyfile:
        session.cert = (CONF.glance_certfile, CONF.glance_keyfile)
    _type, _name, interface = CONF.glance_catalog_info.split(':')
    target = glance.Target(endpoint, interface, _region())
    with glance.Glance(session, target, settings) as client:
        adapter = ksa_adapter.Adapter(
            session, service_type='image', **dataclasses.asdict(target)
        )
        yield OwnGlance(client, adapter)


def _endpoint() -> str | None:
    """Tell where a Glance is; None: as the catalogue says."""
    if not CONF.glance_api_servers:
        return None
    context = cinder_context.get_admin_context()
    place, encrypted = next(iter(cinder_glance.get_api_servers(context)))
    return f'{"https" if encrypted else "http"}://{place}'


def _region() -> str | None:
    """Tell the region, where this release of Cinder has an option for it."""
    region: str | None = getattr(CONF[_SECTION], 'region_name', None)
    return region


def _auth(endpoint: str | None) -> Any:  # noqa: ANN401 - of any kind
    if CONF.auth_strategy != 'keystone':
        return noauth.NoAuth(endpoint=endpoint)
    auth = None
    with contextlib.suppress(ksa_errors.ClientException):
        auth = ksa_loading.load_auth_from_conf_options(CONF, _SECTION)
    if auth is None:
        raise _unavailable('the section [glance] names no user')
    return auth


def _unavailable(problem: str) -> exception.RequestError:
    return exception.RequestError.because(
        Reason.GLANCE_UNAVAILABLE,
        problem=problem,
        remedy='Set glance_api_servers, and in the section [glance] of'
        ' cinder.conf auth_type and the credentials of a user with the role'
        ' admin.',
    )
