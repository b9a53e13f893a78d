# SPDX-License-Identifier: Apache-2.0
"""One connection of an HTTP server of tests: it sends, and goes wrong."""

import contextlib
import fcntl
from http import client
import socket
import ssl
import struct
import termios
import threading
from typing import BinaryIO, Protocol

from cinder_cow.tests import http_answer
from cinder_cow.tests import http_behaviour
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break
from cinder_cow.tests.http_behaviour import Framing
from cinder_cow.tests.http_behaviour import Part

# An RST follows what a client did not read after so many seconds.
PATIENCE = 5


class OverError(Exception):
    """The connection is to end here."""


class Path(Protocol):
    """What a server remembers of a path."""

    def window(
        self, behaviour: Behaviour
    ) -> tuple[http_behaviour.Content, int]:
        """Return the content as it is now, and how much to send of it."""

    def may_break(self, behaviour: Behaviour) -> bool:
        """Tell whether one more answer goes wrong, and count it."""

    def add(self, count: int) -> None:
        """Count bytes of bodies."""


class Server(Protocol):
    closing: threading.Event

    def turn(
        self, request: http_answer.Request
    ) -> tuple[Path, Behaviour, int]:
        """Log a request; return what it is answered from, and its number."""


class Connection:
    """Answers requests until either side ends it."""

    def __init__(
        self, server: Server, sock: socket.socket, number: int
    ) -> None:
        self.server = server
        self.sock = sock
        self.number = number

    def serve(self) -> None:
        """Answer all requests.

        :raises OSError: the client left, or the server does
        """
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()
        with (
            self.sock.makefile('rb') as file,
            contextlib.suppress(OverError),
        ):
            while self._serve_one(file):
                pass
            self._end()

    def _serve_one(self, file: BinaryIO) -> bool:
        """Answer one request; tell whether there may be another."""
        try:
            request = http_answer.read_request(file, self.number)
        except (client.HTTPException, ValueError):
            return False
        if request is None:
            return False
        path, behaviour, number = self.server.turn(request)
        if behaviour.silent:
            self.stall()
        sender = _Sender(self, request, path, behaviour)
        if behaviour.raw is not None:
            sender.put(Part.HEAD, behaviour.raw)
            return False
        answer = http_answer.answer(behaviour, request, number)
        return sender.answer(answer) and not request.last

    def _end(self) -> None:
        """End in good order: the client is told that this was all."""
        if isinstance(self.sock, ssl.SSLSocket):
            # Not blocking: our alert is sent, that of the client not awaited.
            self.sock.setblocking(False)
            with contextlib.suppress(OSError):
                self.sock.unwrap()

    def stall(self) -> None:
        """Be silent until the client leaves, or the server does."""
        while self.sock.recv(http_answer.LINE):
            pass
        raise OverError

    def reset(self) -> None:
        """Send an RST, once the client's kernel has all that was sent.

        Sooner, it would take bytes along that are still in our kernel.
        """
        for _turn in range(PATIENCE * 1000):
            left = fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4))
            if left == bytes(4) or self.server.closing.wait(0.001):
                break
        linger = struct.pack('ii', 1, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise OverError


class _Sender:
    """Sends one answer, and breaks it where it is to break."""

    def __init__(
        self,
        connection: Connection,
        request: http_answer.Request,
        path: Path,
        behaviour: Behaviour,
    ) -> None:
        self._connection = connection
        self._request = request
        self._path = path
        self._behaviour = behaviour
        self._left = behaviour.break_after
        self._dripping = False

    def answer(self, answer: http_answer.Answer) -> bool:
        """Send it; tell whether the client knows where it ended."""
        behaviour, request = self._behaviour, self._request
        request.status = answer.status
        bodiless = request.method == 'HEAD'
        for part, data in http_answer.parts(
            behaviour,
            answer,
            lambda: self._path.window(behaviour),
            bodiless=bodiless,
        ):
            self.put(part, data)
        if behaviour.framing is Framing.LENGTH:
            told = behaviour.content_length(answer.length)
            return bodiless or told == str(request.sent)
        return behaviour.framing is Framing.CHUNKED

    def put(self, part: Part, data: bytes | memoryview) -> None:
        """Send bytes of one part.

        :raises OverError: this went wrong, as it was to
        """
        if self._left is None or part is not self._behaviour.break_in:
            self._send(part, data)
            return
        now = min(self._left, len(data))
        self._send(part, data[:now])
        self._left -= now
        if not self._left:
            self._break()
            self._send(part, data[now:])

    def _break(self) -> None:
        self._left = None
        if not self._path.may_break(self._behaviour):
            return
        how = self._behaviour.break_how
        if how is Break.DRIP:
            self._dripping = True
            return
        if how is Break.STALL:
            self._connection.stall()
        if how is Break.RESET:
            self._connection.reset()
        raise OverError

    def _send(self, part: Part, data: bytes | memoryview) -> None:
        if not self._dripping:
            self._send_now(part, data)
            return
        for offset in range(len(data)):
            wait = self._behaviour.drip_seconds
            if self._connection.server.closing.wait(wait):
                raise OverError
            self._send_now(part, data[offset : offset + 1])

    def _send_now(self, part: Part, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            # Counted beforehand, so that a client that has it all sees it
            # all counted; what was not sent is taken back.
            self._count(part, len(view))
            sent = 0
            try:
                sent = self._connection.sock.send(view)
            finally:
                self._count(part, sent - len(view))
            view = view[sent:]

    def _count(self, part: Part, count: int) -> None:
        if part is Part.BODY:
            self._request.sent += count
            self._path.add(count)
