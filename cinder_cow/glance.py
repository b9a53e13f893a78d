# SPDX-License-Identifier: Apache-2.0
"""Images in Glance: their records, where they live, and their bytes.

Who we are to Glance is said as to every OpenStack client: clouds.yaml or
``OS_*``; ``OS_AUTH_TYPE=none`` and ``OS_ENDPOINT`` where there is no
Keystone.
"""

import dataclasses
import re
from types import TracebackType
from typing import Any, Self

import glanceclient
from glanceclient import exc as glance_errors
from keystoneauth1 import adapter as ksa_adapter
from keystoneauth1 import exceptions as ksa_errors
from keystoneauth1 import session as ksa_session
from openstack import config as openstack_config
from openstack import exceptions as openstack_errors
import requests
import urllib3

from cinder_cow import exception
from cinder_cow import http_remote
from cinder_cow import http_session
from cinder_cow import image_info as images
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import remote_source
from cinder_cow.refusal import Reason

# The first Glance that has the locations call: API 2.17.
_NO_CALL = {404, 405}
_DENIED = 403

# What a request may raise.
_ERRORS = (
    ksa_errors.ClientException,
    glance_errors.BaseException,
    glance_errors.ClientException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Which Glance, in keystoneauth's terms; None: as its catalogue says."""

    endpoint_override: str | None = None
    interface: str | list[str] | None = None
    region_name: str | None = None


class Glance:
    """A Glance, as one user of it; a context manager."""

    def __init__(
        self,
        session: ksa_session.Session,
        target: Target,
        settings: opts.Settings,
    ) -> None:
        self._session = session
        self._settings = settings
        self._adapter = http_session.BoundedAdapter()
        session.timeout = settings.fetch_timeout
        for scheme in ('http://', 'https://'):
            session.mount(scheme, self._adapter)
        self._client = glanceclient.Client(
            '2',
            session=session,
            endpoint_override=target.endpoint_override,
            interface=target.interface,
            region_name=target.region_name,
        )
        # The client percent-encodes the "=" of a Range header; bytes are
        # asked for over its session without it.
        self._bytes = ksa_adapter.Adapter(
            session,
            service_type='image',
            endpoint_override=target.endpoint_override,
            interface=target.interface,
            region_name=target.region_name,
        )

    @classmethod
    def of_cloud(cls, name: str | None, settings: opts.Settings) -> Self:
        """Find Glance as the environment and clouds.yaml say.

        :param name: of the cloud; None: OS_CLOUD, or the other ``OS_*``
        :raises RequestError: GLANCE_UNAVAILABLE
        """
        try:
            cloud = openstack_config.OpenStackConfig().get_one(cloud=name)
            session = cloud.get_session()
            endpoint = cloud.get_endpoint('image')
        except (
            openstack_errors.ConfigException,
            ksa_errors.ClientException,
            OSError,
        ) as error:
            raise _unavailable(str(error)) from None
        target = Target(
            # The client adds the version.
            endpoint_override=endpoint and re.sub('/v2/?$', '', endpoint),
            interface=cloud.get_interface('image'),
            region_name=cloud.get_region_name('image'),
        )
        return cls(session, target, settings)

    def image(self, image_id: str) -> images.ImageInfo:
        """Ask for an image's record, and for where it lives.

        :param image_id: a UUID
        :raises ImageError: IMAGE_NOT_FOUND, SOURCE_DENIED,
            IMAGE_RECORD_INVALID
        :raises RequestError: GLANCE_UNAVAILABLE
        """
        try:
            with self._adapter.limit(self._settings.fetch_timeout):
                record = dict(self._client.images.get(image_id))
        except (http_session.Broken, *_ERRORS) as error:
            raise _refused(image_id, error) from None
        told_by, hidden = self._locate(image_id, record)
        return dataclasses.replace(
            images.ImageInfo.from_glance(record),
            locations_told_by=told_by,
            locations_hidden=hidden,
        )

    def source(self, image: images.ImageInfo) -> remote_source.RemoteSource:
        """Give the bytes of an image; nothing is asked for yet."""
        remote = _GlanceRemote(
            image, self._settings, self._adapter, self._bytes
        )
        return remote_source.RemoteSource(remote, self._settings)

    def close(self) -> None:
        self._session.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Private

    def _locate(
        self, image_id: str, record: dict[str, Any]
    ) -> tuple[str, refusal.Refusal | None]:
        """Put all that Glance tells of the image's place into its record.

        As Cinder does: the locations call first, and only where that does
        not answer the fields of the record.

        :returns: what told it, or why nothing did
        """
        status: int | None = None
        try:
            with self._adapter.limit(self._settings.fetch_timeout):
                told = self._client.images.get_image_locations(image_id)
        except (http_session.Broken, *_ERRORS) as error:
            status = _status(error)
        else:
            # The client's list is one of its own kind.
            record['locations'] = list(told)
            record['direct_url'] = None
            return 'locations call', None
        for field in ('locations', 'direct_url'):
            if record.get(field):
                return f'{field} of the record', None
        return '', _hidden(image_id, status)


class _GlanceRemote(http_remote.HttpRemote):
    """The data of an image in Glance, which never change once it is active."""

    def __init__(
        self,
        image: images.ImageInfo,
        settings: opts.Settings,
        adapter: http_session.BoundedAdapter,
        client: ksa_adapter.Adapter,
    ) -> None:
        super().__init__(image.label, settings, adapter)
        self._image_id = image.id
        self._client = client

    def ask(self, offset: int) -> requests.Response:
        headers = {'Range': f'bytes={offset}-'} if offset else {}
        try:
            with self.adapter.limit(self.timeout):
                return self._client.get(
                    f'/v2/images/{self._image_id}/file',
                    headers={'Accept-Encoding': 'identity', **headers},
                    stream=True,
                    raise_exc=False,
                )
        except ksa_errors.RetriableConnectionFailure as error:
            raise http_session.Broken(http_session.broken_why(error)) from None
        except _ERRORS as error:
            raise _refused(self.label, error) from None

    def check_status(self, response: requests.Response) -> None:
        if response.status_code not in {200, 206}:
            raise _refused(self.label, None, response.status_code)

    def close(self) -> None:
        """Nothing is ours: the session belongs to Glance."""


def _status(error: Exception) -> int | None:
    """Return the status that Glance answered, if it did."""
    for name in ('code', 'http_status'):
        status = getattr(error, name, None)
        if isinstance(status, int):
            return status
    return None


def _refused(
    image: str, error: Exception | None, status: int | None = None
) -> exception.CowError:
    """Say what became of a request, by its status or its error."""
    status = _status(error) if error else status
    if status in {204, 404, 410}:
        problem = 'Glance has no such image, or not for this project'
        if status == 204:
            problem = 'Glance has no data of it'
        return exception.ImageError.because(
            Reason.IMAGE_NOT_FOUND, image=image, problem=problem
        )
    if status == _DENIED:
        return exception.ImageError.because(
            Reason.SOURCE_DENIED,
            image=image,
            problem='Glance answers with status 403',
            remedy='Act for a project that may read it (get_image and'
            ' download_image in the policy of Glance); a deactivated image'
            ' must be activated again.',
        )
    problem = f'it answers with status {status}'
    if status is None and error is not None:
        problem = _told(error)
    elif status == requests.codes.unauthorized:
        problem = 'it does not accept these credentials (status 401)'
    return _unavailable(problem)


def _told(error: Exception) -> str:
    if isinstance(error, http_session.Broken):
        return error.problem
    if isinstance(
        error, (ksa_errors.ConnectionError, glance_errors.BaseException)
    ):
        return http_session.broken_why(error)
    return str(error) or type(error).__name__


def _unavailable(problem: str) -> exception.RequestError:
    return exception.RequestError.because(
        Reason.GLANCE_UNAVAILABLE, problem=problem
    )


def _hidden(image: str, status: int | None) -> refusal.Refusal:
    """Say why neither the locations call nor the record told anything."""
    call = f'the locations call answers with status {status}'
    remedy = (
        'Let this user have the role service (fetch_image_location in the'
        ' policy of Glance)'
    )
    if status is None:
        call = 'the locations call is not answered'
    elif status in _NO_CALL:
        call = 'it has no locations call'
        remedy = 'Upgrade Glance to one with API 2.17'
    return refusal.refuse(
        Reason.LOCATIONS_HIDDEN,
        image=image,
        problem=f'{call}, and the record has neither direct_url nor locations',
        remedy=f'{remedy}, or set show_image_direct_url = true in'
        ' glance-api.conf.',
    )
