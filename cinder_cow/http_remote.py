# SPDX-License-Identifier: Apache-2.0
"""What all images on an HTTP server have in common, Glance's among them.

A subclass asks, and judges the status; here the answer is compared with
what was asked for and with what the first answer said.
"""

import abc
from collections.abc import Hashable
from typing import NoReturn

import requests

from cinder_cow import exception
from cinder_cow import http_session
from cinder_cow import opts
from cinder_cow import remote_source
from cinder_cow.refusal import Reason

# A range was asked for, and refused: then all of it is asked for.
NO_RANGE = {400, 416, 501}


class HttpRemote(abc.ABC):
    """An image that is read by GET; see ``remote_source.Remote``.

    :ivar validator: what tells one state of it from another; '' if nothing
    """

    def __init__(
        self,
        label: str,
        settings: opts.Settings,
        adapter: http_session.BoundedAdapter,
    ) -> None:
        self.label = label
        self.size = -1
        self.validator = ''
        self.timeout = settings.fetch_timeout
        self.adapter = adapter

    def open(self, offset: int) -> remote_source.Body:
        response = self.ask(offset)
        try:
            if offset and response.status_code in NO_RANGE:
                response.close()
                response = self.ask(0)
            http_session.check_busy(response)
            self.check_status(response)
            self._compare(response)
            try:
                start = http_session.begin(response, offset, self.size)
            except ValueError as error:
                self.fail(Reason.SOURCE_FAILED, problem=str(error))
            if start == 0 and _length(response) != self.size:
                self.fail(Reason.IMAGE_CHANGED)
        except BaseException:
            response.close()
            raise
        return http_session.ResponseBody(response, start, self.timeout)

    @property
    @abc.abstractmethod
    def question(self) -> Hashable: ...

    @property
    def resumable(self) -> bool:
        return True

    @property
    def checkable(self) -> bool:
        return False

    def check_readable(self) -> None:
        """Make sure that the image may be read, where it was not yet.

        :raises Broken: it may be tried again
        :raises ImageError: it may not be read
        """
        if self.size < 0:
            self.open(0).close()

    @abc.abstractmethod
    def ask(self, offset: int) -> requests.Response:
        """Begin a GET of the bytes from an offset on.

        :raises Broken: it may be tried again
        :raises ImageError: it may not
        """

    @abc.abstractmethod
    def check_status(self, response: requests.Response) -> None:
        """Refuse any other status than 200 and 206.

        :raises ImageError: why
        """

    def validator_of(self, response: requests.Response) -> str:
        """Return what tells this state of the image from another."""
        return ''

    @abc.abstractmethod
    def close(self) -> None: ...

    def fail(self, reason: Reason, **facts: str) -> NoReturn:
        raise exception.ImageError.because(reason, image=self.label, **facts)

    def _compare(self, response: requests.Response) -> None:
        """Learn from the first answer, and hold the others to it."""
        validator = self.validator_of(response)
        if self.size >= 0:
            if validator != self.validator:
                self.fail(Reason.IMAGE_CHANGED)
            return
        size = _length(response)
        if size is None:
            self.fail(Reason.SIZE_UNKNOWN)
        if not size:
            self.fail(Reason.EMPTY_IMAGE)
        self.validator = validator
        self.size = size


def _length(response: requests.Response) -> int | None:
    if 'Transfer-Encoding' in response.headers:
        return None  # then the length is no more than a hint
    length = response.headers.get('Content-Length', '')
    # More digits than any disk has bytes.
    return int(length) if length.isdecimal() and len(length) < 20 else None
