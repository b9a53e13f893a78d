# SPDX-License-Identifier: Apache-2.0
"""Images in Glance: their records, where they live, and their bytes.

Who we are to Glance is said as to every OpenStack client: clouds.yaml or
``OS_*``; ``OS_AUTH_TYPE=none`` and ``OS_ENDPOINT`` where there is no
Keystone.
"""

from collections.abc import Hashable, Iterator
import contextlib
import dataclasses
import logging
import re
from typing import Any, Self

import glanceclient
from glanceclient import exc as glance_errors
from keystoneauth1 import adapter as ksa_adapter
from keystoneauth1 import exceptions as ksa_errors
from keystoneauth1 import identity as ksa_identity
from keystoneauth1 import noauth as ksa_noauth
from keystoneauth1 import session as ksa_session
from openstack import config as openstack_config
from openstack import exceptions as openstack_errors
from oslo_log import log as oslo_logging
import requests
import urllib3

from cinder_cow import exception
from cinder_cow import handles
from cinder_cow import http_remote
from cinder_cow import http_session
from cinder_cow import image_info as images
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import remote_source
from cinder_cow.refusal import Reason

LOG = oslo_logging.getLogger(__name__)

# A Glance before API 2.17; the client answers 501 itself, by the versions
# that Glance tells.
_NO_CALL = {404, 405, 501}
_DENIED = 403

# What a request may raise.
_ERRORS = (
    ksa_errors.ClientException,
    glance_errors.BaseException,
    glance_errors.ClientException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
)
_CONNECTION = (
    ksa_errors.ConnectionError,
    glance_errors.BaseException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
)
# What the client makes of an answer that is not what Glance would send:
# HTML, a list, JSON of 100,000 brackets; and of a token that is no ASCII.
_GARBAGE = (AttributeError, KeyError, TypeError, ValueError, RecursionError)

# That a Keystone is not reached is told by the error too; in one line.
logging.getLogger('keystoneauth.identity').setLevel(logging.ERROR)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Which Glance, in keystoneauth's terms; None: as its catalogue says.

    :param global_request_id: what the logs of all services tell of a request
    """

    endpoint_override: str | None = None
    interface: str | list[str] | None = None
    region_name: str | None = None
    global_request_id: str | None = None


class _Adapter(http_session.BoundedAdapter):
    """A bounded transport for clients that wrap errors and ask twice."""

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        with super().limit(seconds):
            try:
                yield
            except (*_ERRORS, *_GARBAGE):
                if self.timed_out:
                    raise http_session.Broken(
                        f'no answer within {seconds:g} s'
                    ) from None
                raise


class Glance(handles.Closing):
    """A Glance, as one user of it; a context manager."""

    def __init__(
        self,
        session: ksa_session.Session,
        target: Target,
        settings: opts.Settings,
    ) -> None:
        self._session = session
        self._settings = settings
        self._adapter = _Adapter()
        session.timeout = settings.fetch_timeout
        for scheme in ('http://', 'https://'):
            session.mount(scheme, self._adapter)
        place = dataclasses.asdict(target)
        self._client = glanceclient.Client('2', session=session, **place)
        # The client percent-encodes the "=" of a Range header; bytes are
        # asked for over its session without it.
        self._bytes = ksa_adapter.Adapter(
            session, service_type='image', **place
        )

    @classmethod
    def of_cloud(cls, name: str | None, settings: opts.Settings) -> Self:
        """Find Glance as the environment and clouds.yaml say.

        :param name: of the cloud; None: OS_CLOUD, or the other ``OS_*``
        :raises RequestError: GLANCE_UNAVAILABLE
        """
        with _told_by_libraries() as told:
            try:
                cloud = openstack_config.OpenStackConfig().get_one(cloud=name)
                session = cloud.get_session()
                endpoint = cloud.get_endpoint('image')
            except (
                openstack_errors.ConfigException,
                ksa_errors.ClientException,
                OSError,
            ) as error:
                raise _unavailable('; '.join([*told, str(error)])) from None
            except _GARBAGE:
                told.append('clouds.yaml has not the form of such a file')
                raise _unavailable('; '.join(told)) from None
        for text in told:
            LOG.warning('%s', text)
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
        except (http_session.Broken, *_ERRORS, *_GARBAGE) as error:
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

    def exists(self, image_id: str) -> bool | None:
        """Tell whether there is an image; None: that cannot be known.

        Glance says also of an image that this user may not see that there is
        none; so its word counts where the user may see all.
        """
        try:
            with self._adapter.limit(self._settings.fetch_timeout):
                self._client.images.get(image_id)
        except (http_session.Broken, *_ERRORS, *_GARBAGE) as error:
            is_missing = _status(error) == requests.codes.not_found
            return False if is_missing and self._sees_all() else None
        return True

    def close(self) -> None:
        self._session.session.close()

    # Private

    def _sees_all(self) -> bool:
        """Whether this user is shown the images of every project."""
        auth = self._session.auth
        if isinstance(auth, ksa_noauth.NoAuth):
            return True  # nobody is told apart there
        if not isinstance(auth, ksa_identity.BaseIdentityPlugin):
            return False
        try:
            roles = auth.get_access(self._session).role_names
        except (ksa_errors.ClientException, *_GARBAGE) as error:
            LOG.info('The roles are not known: %s', _told(error))
            return False
        return 'admin' in (roles or ())

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
                told: Any = self._client.images.get_image_locations(image_id)
        except (http_session.Broken, *_ERRORS, *_GARBAGE) as error:
            status = _status(error)
        else:
            # The client's list is one of its own kind; it may be no list.
            record['locations'] = told.wrapped
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
        self._size_told = image.size or 0
        self._client = client

    @property
    def question(self) -> Hashable:
        # Who asks is the client.
        return self._client, self._image_id

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
            raise http_session.Broken(_told(error)) from None
        except _ERRORS as error:
            raise _refused(self.label, error) from None

    def check_readable(self) -> None:
        # Its last byte, so that no more is sent than is asked for.
        response = self.ask(max(0, self._size_told - 1))
        try:
            http_session.check_busy(response)
            if response.status_code not in http_remote.NO_RANGE:
                self.check_status(response)
        finally:
            response.close()

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
    """Say what went wrong; never a token, which some errors quote."""
    if isinstance(error, http_session.Broken):
        return error.problem
    if isinstance(error, _GARBAGE) and not isinstance(error, UnicodeError):
        return 'what answers there is not a Glance'
    for cause in http_session.causes(error):
        if isinstance(cause, requests.exceptions.InvalidProxyURL):
            return 'its proxy is not one for HTTP'
        if isinstance(cause, ValueError):
            return 'its URL or the token has a form that cannot be sent'
    if isinstance(error, _CONNECTION):
        return http_session.broken_why(error)
    return str(error) or type(error).__name__


def _unavailable(problem: str) -> exception.RequestError:
    return exception.RequestError.because(
        Reason.GLANCE_UNAVAILABLE, problem=problem
    )


@contextlib.contextmanager
def _told_by_libraries() -> Iterator[list[str]]:
    """Collect warnings, for instance that clouds.yaml is no YAML.

    They tell more than the error that follows, and it is told in one line.
    """
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in ('openstack', 'stevedore')]
    for logger in loggers:
        logger.addHandler(collector)
        logger.propagate = False
    try:
        yield collector.told
    finally:
        for logger in loggers:
            logger.removeHandler(collector)
            logger.propagate = True


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(' '.join(record.getMessage().split()))


def _hidden(image: str, status: int | None) -> refusal.Refusal:
    """Say why neither the locations call nor the record told anything."""
    call = f'the locations call answers with status {status}'
    remedy = 'Try again'
    if status is None:
        call = 'the locations call is not answered'
    elif status == _DENIED:
        remedy = (
            'Let this user have the role service too (fetch_image_location in'
            ' the policy of Glance)'
        )
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
