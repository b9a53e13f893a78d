# SPDX-License-Identifier: Apache-2.0
"""HTTP in bounded time: what requests leaves open to a slow or broken server.

The time-out of requests is about one read of the socket: a server that
sends a byte now and then holds a client for ever, in the headers as in the
body. Here an answer has to begin, and to go on, at some speed.
"""

from collections.abc import Iterator
import contextlib
import logging
import re
import socket
import threading
import time
from typing import Any

from oslo_utils import units
import requests
from requests import adapters
import urllib3
from urllib3 import connection
from urllib3 import connectionpool

from cinder_cow import refusal

# Bytes given at once, and what must come within one time-out: with the
# default of 60 s, 17 KiB/s. A slower connection counts as broken.
CHUNK = units.Mi
# One recv of more takes no less time.
_RECEIVE = 256 * units.Ki

_CONTENT_RANGE = re.compile(r'bytes (\d+)-(\d+)/(\d+)')
# Worth trying again; from RFC 9110, RFC 6585 and RFC 8470.
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_RETRY_AFTER = 30

# It writes URLs with their queries (signed ones): of each request at the level
# of debug, and as a warning where a header has no colon.
logging.getLogger(urllib3.__name__).setLevel(logging.ERROR)


class Broken(Exception):
    """A connection broke or a server is busy; another try may succeed.

    :param problem: for people
    :param wait: seconds to wait before it, None where nobody said
    """

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.problem = refusal.printable(problem, 300)
        self.wait = wait


class BoundedAdapter(adapters.HTTPAdapter):
    """A transport whose requests can be given a limit of time.

    For one thread at a time. Each request has a connection of its own, so
    that no limit misses one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.timed_out = False
        super().__init__(max_retries=0)

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """End the requests made in the block when the time is over.

        :raises Broken: it was over, or a connection failed
        """
        self.timed_out = False
        # A server may keep a connection that was to be closed. Taken again,
        # it would not be watched.
        self.close()
        timer = threading.Timer(seconds, self._shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError):
            if not self.timed_out:
                raise
        finally:
            timer.cancel()
            with self._lock:
                for sock in self._sockets:
                    sock.close()
                self._sockets.clear()
        # No error: headers that end with the connection count as all.
        if self.timed_out:
            raise Broken(f'no answer within {seconds:g} s')

    def _shut(self) -> None:
        with self._lock:
            self.timed_out = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def watch(self, sock: socket.socket) -> None:
        """Keep a second handle of a connection: TLS takes the first away.

        That of the request before would keep its connection half open: a
        gunicorn waited 2 s for the end of it, and served nobody meanwhile.
        """
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()
            self._sockets.append(sock.dup())

    # Of HTTPAdapter

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - passed through
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:  # noqa: ANN401 - passed through
        if proxy.lower().startswith('socks'):
            # Its connections are of a kind of its own, that have no limit.
            raise requests.exceptions.InvalidProxyURL('SOCKS')
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _pools(self)
        return manager

    def add_headers(
        self, request: requests.PreparedRequest, **options: object
    ) -> None:
        request.headers['Connection'] = 'close'

    def build_response(
        self,
        request: requests.PreparedRequest,
        answer: Any,  # noqa: ANN401 - passed through
    ) -> requests.Response:
        response = super().build_response(request, answer)
        if response.is_redirect:
            # requests would read all of its body, which may never end: 2 GB
            # of memory were taken in 4 s.
            answer.close()
        return response


def _pools(
    adapter: BoundedAdapter,
) -> dict[str, type[connectionpool.HTTPConnectionPool]]:
    """Make pools whose connections the adapter can end."""

    class Connection(connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            adapter.watch(sock)
            return sock

    class TlsConnection(connection.HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            adapter.watch(sock)
            return sock

    class Pool(connectionpool.HTTPConnectionPool):
        ConnectionCls = Connection

    class TlsPool(connectionpool.HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    return {'http': Pool, 'https': TlsPool}


class ResponseBody:
    """The body of a response, read as fast as a server must send it.

    :ivar start: the offset in the image that it begins at
    """

    def __init__(
        self, response: requests.Response, start: int, timeout: float
    ) -> None:
        self.start = start
        self._response = response
        self._timeout = timeout

    def read(self) -> bytes:
        """Return the next bytes, a chunk at most; empty at the end.

        :raises Broken: it broke off, or came too slowly
        """
        data = bytearray()
        deadline = time.monotonic() + self._timeout
        while len(data) < CHUNK:
            piece = self._receive(min(_RECEIVE, CHUNK - len(data)))
            if not piece:
                break
            data += piece
            if time.monotonic() > deadline:
                raise Broken(f'slower than 1 MiB in {self._timeout:g} s')
        return bytes(data)

    def _receive(self, length: int) -> bytes:
        try:
            # read() would wait until it has all of the length.
            piece: bytes = self._response.raw.read1(
                length, decode_content=False
            )
        except urllib3.exceptions.ReadTimeoutError:
            raise Broken(f'silent for {self._timeout:g} s') from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Broken(broken_why(error)) from None
        return piece

    def close(self) -> None:
        self._response.close()


def begin(response: requests.Response, offset: int, size: int) -> int:
    """Return the offset at which the body of a good answer begins.

    :param offset: where it was asked to begin
    :param size: bytes of the whole image
    :raises ValueError: it is not what was asked for
    """
    encoding = response.headers.get('Content-Encoding', 'identity')
    if encoding != 'identity':
        raise ValueError(f'it is sent as {encoding}, which was not asked for')
    if 'Transfer-Encoding' in response.headers:
        # What is between chunks may come as slowly as it likes.
        raise ValueError('it is sent in chunks, and was not before')
    if response.status_code == requests.codes.ok:
        return 0
    found = _CONTENT_RANGE.fullmatch(response.headers.get('Content-Range', ''))
    if response.status_code != requests.codes.partial or not found:
        raise ValueError(f'status {response.status_code} without a range')
    first, last, total = map(int, found.groups())
    if not offset or (first, last, total) != (offset, size - 1, size):
        raise ValueError(f'another part came than bytes {offset} to {size}')
    return first


def check_busy(response: requests.Response) -> None:
    """Tell a server that may serve us later.

    :raises Broken: with the time it asks for
    """
    if response.status_code not in _BUSY:
        return
    told = response.headers.get('Retry-After', '')
    is_wait = told.isdecimal() and len(told) < 10
    raise Broken(
        f'status {response.status_code}',
        min(int(told), _MAX_RETRY_AFTER) if is_wait else None,
    )


def broken_why(error: BaseException) -> str:
    """Say in few words why a connection failed, without its URL."""
    why = 'the connection was closed too early'
    for cause in causes(error):
        why = getattr(cause, 'strerror', None) or why
        if isinstance(cause, (TimeoutError, requests.Timeout)):
            why = 'no answer in time'
    return why


def causes(error: BaseException) -> Iterator[BaseException]:
    """Tell an error of requests and those inside of it, the first one last."""
    told: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in told:
        yield cause
        told.append(cause)
        inner = [cause.__cause__, cause.__context__]
        inner += [getattr(cause, 'reason', None), *cause.args]
        cause = next((i for i in inner if isinstance(i, BaseException)), None)
