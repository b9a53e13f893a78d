# SPDX-License-Identifier: Apache-2.0
"""Images at http and https URLs.

Proxies, CA files and credentials are those of requests: ``http_proxy``,
``REQUESTS_CA_BUNDLE``, ``~/.netrc`` or the URL itself.
"""

from collections.abc import Hashable
import hashlib
import http.client
import itertools
import json
import re
import urllib.parse

import requests
import urllib3

from cinder_cow import http_remote
from cinder_cow import http_session
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import remote_source
from cinder_cow.refusal import Reason

# More than any mirror needs.
_MAX_REDIRECTS = 5
_DENIED = {401, 403, 407}
_GONE = {404, 410}
# What else it may be, nothing good comes of printing and sending it.
_VALIDATOR = re.compile('[ -~]{1,200}')
_NOT_HTTP = 'its answer is not HTTP'
# What another try does not change.
_FOR_GOOD: tuple[tuple[type[Exception], str], ...] = (
    (
        requests.TooManyRedirects,
        f'it redirects more than {_MAX_REDIRECTS} times',
    ),
    (
        requests.exceptions.SSLError,
        '{why}; its CA can be named in REQUESTS_CA_BUNDLE',
    ),
    (requests.exceptions.ProxyError, 'the proxy: {why}'),
    # Two lengths, for instance; we send none that is invalid.
    (requests.exceptions.InvalidHeader, _NOT_HTTP),
    (
        ValueError,
        'its URL, or that of a redirect or a proxy, is none that can be used',
    ),
    (urllib3.exceptions.HTTPError, _NOT_HTTP),
)


class HttpSource(remote_source.RemoteSource):
    """An image at a URL.

    :param hashed: its hash is known and will be compared
    """

    def __init__(
        self,
        location: image_location.HttpLocation,
        settings: opts.Settings,
        hashed: bool = False,
    ) -> None:
        self._http = _HttpRemote(location, settings, hashed)
        super().__init__(self._http, settings)
        self.image_id = str(location)
        path = urllib.parse.urlsplit(self.image_id).path
        self.name = path.rpartition('/')[2]

    @property
    def content_id(self) -> str:
        """What changes with the content; empty where nothing tells.

        The URL's query may be what tells two images apart, and may be
        secret: it is hashed.
        """
        self.head(1)
        validator = self._http.validator
        if not validator:
            return ''
        split = urllib.parse.urlsplit(self._http.location.url)
        host = split.netloc.rpartition('@')[2]
        parts = (split.scheme, host, split.path, split.query)
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return f'http:{digest[:40]}:{self.size}:{validator}'


class _HttpRemote(http_remote.HttpRemote):
    """The connections to a URL."""

    def __init__(
        self,
        location: image_location.HttpLocation,
        settings: opts.Settings,
        hashed: bool,
    ) -> None:
        super().__init__(
            refusal.printable(str(location)),
            settings,
            http_session.BoundedAdapter(),
        )
        self.location = location
        self._hashed = hashed
        self._session = requests.Session()
        self._session.max_redirects = _MAX_REDIRECTS
        for scheme in ('http://', 'https://'):
            self._session.mount(scheme, self.adapter)

    @property
    def question(self) -> Hashable:
        # Who asks is told in it.
        return self.location

    @property
    def resumable(self) -> bool:
        return bool(self.validator) or self._hashed

    @property
    def checkable(self) -> bool:
        return bool(self.validator) and not self._hashed

    def ask(self, offset: int) -> requests.Response:
        headers = {'Accept-Encoding': 'identity'}
        if offset:
            headers['Range'] = f'bytes={offset}-'
            if self.validator:
                headers['If-Range'] = self.validator
        try:
            with self.adapter.limit(self.timeout):
                return self._session.get(
                    self.location.url,
                    headers=headers,
                    stream=True,
                    timeout=self.timeout,
                )
        # Also errors that are none of requests: ValueError of a URL to which
        # it redirects, OSError of a CA file that is not there.
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            why = http_session.broken_why(error)
            for_good = self._why_for_good(error, why)
        # Not in the block above: they hold the URL, and would be printed as
        # the context of ours.
        if for_good:
            self.fail(Reason.SOURCE_FAILED, problem=for_good)
        raise http_session.Broken(why)

    def _why_for_good(self, error: Exception, why: str) -> str:
        """Say why another try would fail too; '' where it might not."""
        for kind, told in _FOR_GOOD:
            if isinstance(error, kind):
                return told.format(why=why)
        if not isinstance(error, requests.RequestException):
            return 'REQUESTS_CA_BUNDLE names no file that can be read'
        for cause in http_session.causes(error):
            if isinstance(cause, urllib3.exceptions.NewConnectionError):
                # Before anything came it is most likely a wrong URL.
                return why if self.size < 0 else ''
            if isinstance(cause, http.client.HTTPException):
                is_over = isinstance(cause, http.client.RemoteDisconnected)
                return '' if is_over else _NOT_HTTP
        return ''

    def check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if _is_downgraded(response):
            self.fail(
                Reason.SOURCE_FAILED, problem='it redirects from https to http'
            )
        if status in _DENIED:
            self.fail(
                Reason.SOURCE_DENIED,
                problem=f'status {status}',
                remedy='Give credentials that the server takes, for instance'
                ' in ~/.netrc.',
            )
        if status in _GONE:
            self.fail(Reason.IMAGE_NOT_FOUND, problem=f'status {status}')
        if status not in {200, 206}:
            self.fail(Reason.SOURCE_FAILED, problem=f'status {status}')

    def validator_of(self, response: requests.Response) -> str:
        """Return the strong ETag, else the date; see RFC 9110, 13.1.5."""
        etag, date = map(response.headers.get, ('ETag', 'Last-Modified'))
        if etag and _VALIDATOR.fullmatch(etag) and not etag.startswith('W/'):
            return etag
        return date if date and _VALIDATOR.fullmatch(date) else ''

    def close(self) -> None:
        self._session.close()


def _is_downgraded(response: requests.Response) -> bool:
    secure = [
        one.url.lower().startswith('https:')
        for one in (*response.history, response)
    ]
    return any(one and not next_ for one, next_ in itertools.pairwise(secure))
