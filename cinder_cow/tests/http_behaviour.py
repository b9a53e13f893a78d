# SPDX-License-Identifier: Apache-2.0
"""What an HTTP server of tests has at a path, and how it misbehaves there.

It is data alone: ``http_answer`` makes an answer of it, ``http_server`` sends
that. What needs no field is said with ``headers``, see the helpers below.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import enum
import gzip
import os
import pathlib

# Bytes, or a file, of which one piece at a time is in memory.
Content = bytes | pathlib.Path
Header = tuple[str, str]
# Bytes that are read and sent at once.
PIECE = 256 * 1024
BEFORE = 'Wed, 01 Jan 2025 00:00:00 GMT'


class Break(enum.Enum):
    """How an answer goes wrong, where it does."""

    RESET = 'the client gets an RST once it has all bytes before'
    CLOSE = 'the connection ends in good order'
    STALL = 'the connection stays open and silent until the client leaves'
    DRIP = 'one byte every drip_seconds from there on'


class Part(enum.Enum):
    """What some bytes of an answer are."""

    HEAD = 'the status line and the headers'
    BODY = 'the body, without the framing of chunks'
    FRAMING = 'sizes and ends of chunks'


class Framing(enum.Enum):
    """How the client is told where the body ends."""

    LENGTH = 'Content-Length'
    CHUNKED = 'chunks, with a right end'
    BAD_CHUNKS = 'chunks, of which the first is right and no other line is'
    UNTIL_CLOSE = 'HTTP/1.0 without a length: until the connection ends'


class Endless(enum.Enum):
    """What never ends."""

    BODY = 'zeros after the body'
    HEADER = 'the line of one header'
    HEADERS = 'headers'
    CONTINUE = 'answers of 100 Continue before the true one'


def honest_length(length: int) -> str | None:
    return str(length)


def honest_range(start: int, last: int, total: int) -> str | None:
    return f'bytes {start}-{last}/{total}'


def as_asked(start: int, stop: int) -> tuple[int, int]:
    return start, stop


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """What is at a path, and how the server answers requests for it.

    :param ranges: False: Range is ignored, the answer is 200 with all
    :param if_range: False: If-Range is ignored, the range is served
    :param if_match: False: If-Match is ignored
    :param methods: others are answered 405
    :param auth: user and password of basic authentication
    :param headers: more headers of every answer, also a second
        Content-Length, Retry-After or Location
    :param statuses: of the first requests, in order; 0: as if it were none
    :param status: of all later requests; 0: the content
    :param chunk: bytes of a chunk, and of what is sent at once
    :param content_length: tells the length of a body of so many bytes; None:
        there is no such header
    :param content_range: tells the range of a first byte, a last byte and a
        total; None: there is no such header
    :param serves: makes of a range that was asked for the one that is served
    :param unasked: the range that is served where none was asked for
    :param multipart: ranges are served as multipart/byteranges
    :param break_after: bytes of an answer after which it goes wrong, also
        when it is an error; None: none does
    :param break_how: how it goes wrong
    :param break_in: which bytes are counted; HEAD and 0: before the first
    :param breaks: so many answers go wrong; None: every one
    :param drip_seconds: seconds between two bytes of DRIP
    :param endless: what never ends
    :param silent: the request is read and never answered
    :param raw: these bytes are sent instead of HTTP, then it ends
    :param becomes: what the path is later, of which all fields count
    :param becomes_after: bytes of bodies that were sent by then, of all
        answers from this path
    :param mid_answer: an answer that is being sent goes on with the content
        of what the path becomes; only that, its headers are sent already
    """

    content: Content = b''
    ranges: bool = True
    etag: str | None = '"one"'
    last_modified: str | None = BEFORE
    if_range: bool = True
    if_match: bool = True
    methods: tuple[str, ...] = ('GET', 'HEAD')
    auth: tuple[str, str] | None = None
    headers: tuple[Header, ...] = ()
    statuses: tuple[int, ...] = ()
    status: int = 0
    framing: Framing = Framing.LENGTH
    chunk: int = PIECE
    content_length: Callable[[int], str | None] = honest_length
    content_range: Callable[[int, int, int], str | None] = honest_range
    serves: Callable[[int, int], tuple[int, int]] = as_asked
    unasked: tuple[int, int] | None = None
    multipart: bool = False
    break_after: int | None = None
    break_how: Break = Break.RESET
    break_in: Part = Part.BODY
    breaks: int | None = None
    drip_seconds: float = 0.05
    endless: Endless | None = None
    silent: bool = False
    raw: bytes | None = None
    becomes: Behaviour | None = None
    becomes_after: int = 0
    mid_answer: bool = False


def redirect(location: str, status: int = 302) -> Behaviour:
    """Send a client elsewhere: relative, or to any scheme and host."""
    return Behaviour(status=status, headers=(('Location', location),))


def chain(path: str, count: int, location: str) -> dict[str, Behaviour]:
    """Make paths that redirect count times, from path to location."""
    paths = [path, *(f'{path}-{turn}' for turn in range(1, count))]
    return {
        here: redirect(there)
        for here, there in zip(paths, [*paths[1:], location], strict=True)
    }


def gzipped(content: bytes) -> Behaviour:
    """Serve it compressed, asked or not; ranges are of the compressed."""
    return Behaviour(
        gzip.compress(content), headers=(('Content-Encoding', 'gzip'),)
    )


def size(content: Content) -> int:
    if isinstance(content, bytes):
        return len(content)
    return content.stat().st_size


def read(content: Content, offset: int, length: int) -> memoryview:
    """Return at most so many bytes; none are behind its end."""
    if isinstance(content, bytes):
        return memoryview(content)[offset : offset + length]
    with content.open('rb') as file:
        return memoryview(os.pread(file.fileno(), length, offset))
