# SPDX-License-Identifier: Apache-2.0
"""Requests to an HTTP server of tests, and what it answers."""

import base64
from collections.abc import Callable, Iterator
import dataclasses
from email import message
from email import utils
import http
from http import client
import re
import time
from typing import BinaryIO
from urllib import parse

from cinder_cow.tests import http_behaviour
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Endless
from cinder_cow.tests.http_behaviour import Framing
from cinder_cow.tests.http_behaviour import Header
from cinder_cow.tests.http_behaviour import Part

LINE = 64 * 1024
# Endless short lines are sent so many at once.
MANY = 1000
Parts = Iterator[tuple[Part, bytes | memoryview]]


@dataclasses.dataclass
class Request:
    """A request, as it is kept in the log.

    :param connection: the number of its connection, from 0
    :param target: as it came: a path, a URL where we are a proxy, or a host
        and port where the method is CONNECT
    :param time: when it came, of the monotonic clock, in seconds
    :param status: of the answer; 0: there was none
    :param sent: bytes of the body that were sent, without framing
    """

    connection: int
    method: str
    target: str
    version: str
    headers: message.Message
    time: float
    status: int = 0
    sent: int = 0

    @property
    def path(self) -> str:
        return parse.urlsplit(self.target).path

    @property
    def last(self) -> bool:
        """Tell whether the client wants no other on this connection."""
        said = self.headers.get('Connection', '').lower()
        return self.version != 'HTTP/1.1' or said == 'close'


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status, headers, and a body: a range of content between bytes."""

    status: int
    headers: tuple[Header, ...] = ()
    before: bytes = b''
    start: int = 0
    stop: int = 0
    after: bytes = b''

    @property
    def length(self) -> int:
        return len(self.before) + self.stop - self.start + len(self.after)


def read_request(file: BinaryIO, connection: int) -> Request | None:
    """Read the head of a request; None: there is no further one.

    :raises HTTPException, ValueError: it is not one
    """
    line = file.readline(LINE)
    if not line.endswith(b'\n'):
        return None
    method, target, version = line.decode('latin-1').split()
    now = time.monotonic()
    headers = client.parse_headers(file)
    return Request(connection, method, target, version, headers, now)


def answer(behaviour: Behaviour, request: Request, number: int) -> Answer:
    """Say what the request with that number, from 0, is answered."""
    status = _refusal(behaviour, request, number)
    if status:
        return _error(behaviour, status)
    total = http_behaviour.size(behaviour.content)
    served = _range(behaviour, request, total)
    if served is None:
        return Answer(200, _validators(behaviour), stop=total)
    start, stop = served
    if start >= total:
        return _error(behaviour, 416)
    told = behaviour.content_range(start, stop - 1, total)
    if behaviour.multipart:
        return _multipart(behaviour, start, stop, told)
    headers = _validators(behaviour, ('Content-Range', told))
    return Answer(206, headers, start=start, stop=stop)


def _refusal(behaviour: Behaviour, request: Request, number: int) -> int:
    if request.method not in behaviour.methods:
        return 405
    if behaviour.auth and not _authorised(behaviour.auth, request):
        return 401
    if number < len(behaviour.statuses):
        return behaviour.statuses[number]
    wanted = request.headers.get('If-Match')
    if behaviour.if_match and wanted not in (None, '*', _strong(behaviour)):
        return behaviour.status or 412
    return behaviour.status


def _authorised(auth: tuple[str, str], request: Request) -> bool:
    token = base64.b64encode(':'.join(auth).encode()).decode()
    return request.headers.get('Authorization') == f'Basic {token}'


def _strong(behaviour: Behaviour) -> str | None:
    """Return the ETag if it tells of each byte, which a weak one does not."""
    etag = behaviour.etag
    return None if etag is None or etag.startswith('W/') else etag


def _error(behaviour: Behaviour, status: int) -> Answer:
    total = http_behaviour.size(behaviour.content)
    more = {
        401: ('WWW-Authenticate', 'Basic realm="test"'),
        405: ('Allow', ', '.join(behaviour.methods)),
        416: ('Content-Range', f'bytes */{total}'),
    }
    headers = [('Content-Type', 'text/plain'), more.get(status)]
    # These two never have a body.
    body = b'' if status in (204, 304) else f'{_phrase(status)}\n'.encode()
    return Answer(status, tuple(filter(None, headers)), body)


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return 'Unheard Of'


def _validators(
    behaviour: Behaviour, *more: tuple[str, str | None]
) -> tuple[Header, ...]:
    headers = (
        ('Accept-Ranges', 'bytes' if behaviour.ranges else 'none'),
        ('ETag', behaviour.etag),
        ('Last-Modified', behaviour.last_modified),
        *more,
    )
    return tuple((name, value) for name, value in headers if value is not None)


def _range(
    behaviour: Behaviour, request: Request, total: int
) -> tuple[int, int] | None:
    """Return first byte and end of what is served; None: all, as a 200."""
    asked = None
    if behaviour.ranges and _as_remembered(behaviour, request):
        asked = _asked(request.headers.get('Range', ''), total)
    if asked is None:
        return behaviour.unasked
    return behaviour.serves(*asked)


def _as_remembered(behaviour: Behaviour, request: Request) -> bool:
    """Tell whether If-Range, if there, names what the path has now."""
    wanted = request.headers.get('If-Range')
    if wanted is None or not behaviour.if_range:
        return True
    return wanted in (_strong(behaviour), behaviour.last_modified)


def _asked(value: str, total: int) -> tuple[int, int] | None:
    """Parse one range; several, or nonsense, may be ignored (RFC 9110)."""
    found = re.fullmatch(r'bytes=(\d*)-(\d*)', value)
    if not found or found[0] == 'bytes=-':
        return None
    first, last = found.groups()
    if not first:
        return max(0, total - int(last)), total
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, total) if last else total


def _multipart(
    behaviour: Behaviour, start: int, stop: int, told: str | None
) -> Answer:
    kind = 'multipart/byteranges; boundary=cut'
    line = f'Content-Range: {told}\r\n' if told else ''
    before = f'--cut\r\n{line}\r\n'.encode()
    headers = _validators(behaviour, ('Content-Type', kind))
    return Answer(206, headers, before, start, stop, b'\r\n--cut--\r\n')


def parts(
    behaviour: Behaviour,
    answer: Answer,
    window: Callable[[], tuple[http_behaviour.Content, int]],
    *,
    bodiless: bool = False,
) -> Parts:
    """Yield the bytes of an answer, in order, each with what they are.

    :param window: gives the content and how many bytes of it to send next
    """
    for line in _head(behaviour, answer):
        yield Part.HEAD, line
    if bodiless:
        return
    body = _body(behaviour, answer, window)
    if behaviour.framing in (Framing.CHUNKED, Framing.BAD_CHUNKS):
        yield from _chunked(body, bad=behaviour.framing is Framing.BAD_CHUNKS)
    else:
        for piece in body:
            yield Part.BODY, piece


def _head(behaviour: Behaviour, answer: Answer) -> Iterator[bytes]:
    while behaviour.endless is Endless.CONTINUE:
        yield b'HTTP/1.1 100 Continue\r\n\r\n' * MANY
    version = '1.0' if behaviour.framing is Framing.UNTIL_CLOSE else '1.1'
    status = answer.status
    lines = [f'HTTP/{version} {status} {_phrase(status)}']
    headers = [
        ('Date', utils.formatdate(usegmt=True)),
        *answer.headers,
        *_framing_header(behaviour, answer),
        *behaviour.headers,
    ]
    lines += [f'{name}: {value}' for name, value in headers]
    yield '\r\n'.join([*lines, '']).encode('latin-1')
    while behaviour.endless is Endless.HEADERS:
        yield b'X-Endless: x\r\n' * MANY
    if behaviour.endless is Endless.HEADER:
        yield b'X-Endless: '
        while True:
            yield b'x' * LINE
    yield b'\r\n'


def _framing_header(behaviour: Behaviour, answer: Answer) -> list[Header]:
    if behaviour.framing is Framing.UNTIL_CLOSE:
        return [('Connection', 'close')]
    if behaviour.framing is not Framing.LENGTH:
        return [('Transfer-Encoding', 'chunked')]
    length = behaviour.content_length(answer.length)
    return [] if length is None else [('Content-Length', length)]


def _body(
    behaviour: Behaviour,
    answer: Answer,
    window: Callable[[], tuple[http_behaviour.Content, int]],
) -> Iterator[bytes | memoryview]:
    yield answer.before
    offset = answer.start
    while offset < answer.stop:
        content, room = window()
        length = min(room, answer.stop - offset)
        piece = http_behaviour.read(content, offset, length)
        # The content became shorter.
        if not piece:
            return
        offset += len(piece)
        yield piece
    yield answer.after
    while behaviour.endless is Endless.BODY:
        yield bytes(behaviour.chunk)


def _chunked(body: Iterator[bytes | memoryview], *, bad: bool) -> Parts:
    first = True
    for piece in body:
        # An empty chunk would be the end.
        if not piece:
            continue
        line = b'%x\r\n' % len(piece) if first or not bad else b'no size\r\n'
        yield Part.FRAMING, line
        yield Part.BODY, piece
        yield Part.FRAMING, b'\r\n'
        first = False
    yield Part.FRAMING, b'no size\r\n' if bad else b'0\r\n\r\n'
