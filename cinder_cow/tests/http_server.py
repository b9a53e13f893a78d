# SPDX-License-Identifier: Apache-2.0
"""A real HTTP server for tests, as hostile as they want it.

::

    files = {'/image': http_behaviour.Behaviour(content, break_after=1000)}
    with http_server.Server(files) as server:
        requests.get(server.url('/image'))
    self.assertEqual(1000, server.bytes_sent('/image'))

It answers on 127.0.0.1, in threads of this process. All have ended and all
sockets are closed when the block is left, whatever clients do.
"""

from collections.abc import Mapping
import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

from cinder_cow.tests import http_answer
from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_tls
from cinder_cow.tests import http_wire
from cinder_cow.tests.http_behaviour import Behaviour

HOST = '127.0.0.1'
# Seconds in which all threads end; they take some milliseconds.
END = 20
NOTHING = Behaviour(status=404)

Files = Mapping[str, Behaviour | http_behaviour.Content]


class Server:
    """Serves files by their paths, or by whole URLs as a proxy does.

    A proxy is asked for a URL: it is looked up in the files, then its path
    is. CONNECT is looked up by host and port. Nothing is ever passed on.

    :param certificate: speak TLS with it; no TLS if None
    :param silent: accept connections and never say a word, not of TLS either
    :ivar requests: all requests, in the order in which they came
    :ivar connections: how many were accepted
    """

    def __init__(
        self,
        files: Files,
        certificate: http_tls.Certificate | None = None,
        *,
        silent: bool = False,
    ) -> None:
        self.requests: list[http_answer.Request] = []
        self.connections = 0
        self.closing = threading.Event()
        self._silent = silent
        self._tls = certificate.context() if certificate else None
        self._paths: dict[str, _Path] = {}
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._failures: list[Exception] = []
        for path, behaviour in files.items():
            self.put(path, behaviour)

    def __enter__(self) -> Self:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all threads.

        :raises Exception: what went wrong in one, a mistake of the server
        """
        deadline = time.monotonic() + END
        self.closing.set()
        # This wakes accept, and recv and send below; a mere close does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(END)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                _shut_down(sock)
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        alive = [thread for thread in self._threads if thread.is_alive()]
        if alive:
            raise AssertionError(f'after {END} s there still are {alive}')
        if self._failures and not kind:
            raise self._failures[0]

    def put(
        self, path: str, behaviour: Behaviour | http_behaviour.Content
    ) -> None:
        """Have something else at a path, of which nothing is counted yet."""
        if not isinstance(behaviour, Behaviour):
            behaviour = Behaviour(behaviour)
        self._paths[path] = _Path(behaviour)

    def url(self, path: str = '', host: str = HOST) -> str:
        scheme = 'https' if self._tls else 'http'
        return f'{scheme}://{host}:{self.port}{path}'

    def requests_for(self, path: str) -> list[http_answer.Request]:
        return [request for request in self.requests if request.path == path]

    def bytes_sent(self, path: str) -> int:
        """Tell how many bytes of bodies went out from a path."""
        return sum(request.sent for request in self.requests_for(path))

    def turn(
        self, request: http_answer.Request
    ) -> tuple['_Path', Behaviour, int]:
        """Log a request; return what it is answered from, and its number."""
        with self._lock:
            self.requests.append(request)
        found = self._paths.get(request.target)
        found = found or self._paths.get(request.path) or _Path(NOTHING)
        return found, *found.turn()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _address = self._listener.accept()
            except OSError:
                if self.closing.is_set():
                    return
                raise
            # An answer is a few small writes; none waits for the others.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(sock)
            number = self.connections
            self.connections += 1
            self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            sock = self._wrapped(sock)
            connection = http_wire.Connection(self, sock, number)
            if self._silent:
                connection.stall()
            connection.serve()
        except http_wire.OverError:
            pass
        except OSError as error:
            # The client may leave at any time, and so do we. A file that is
            # not there is a mistake of the test.
            if error.filename is not None:
                raise
        finally:
            # Locked, lest a number that is in use again is shut down.
            with self._lock:
                self._open.discard(sock)
                sock.close()

    def _wrapped(self, sock: socket.socket) -> socket.socket:
        """Speak TLS, if we do; the handshake is still to come."""
        if self._tls is None or self._silent:
            return sock
        with self._lock:
            self._open.discard(sock)
            wrapped = self._tls.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            )
            self._open.add(wrapped)
        return wrapped

    def _start(self, call, *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                call(*arguments)
            except Exception as error:  # noqa: BLE001 - raised at the end
                self._failures.append(error)

        thread = threading.Thread(target=run, name='http-server', daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread


def _shut_down(sock: socket.socket) -> None:
    # That of SSLSocket would pull the state away from its thread.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Path:
    """What is at a path, and what was done with it so far."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._first = behaviour
        self._lock = threading.Lock()
        self._turns = 0
        self._broken = 0
        self._sent = 0

    def turn(self) -> tuple[Behaviour, int]:
        """Return what it is now, and the number of this request, from 0."""
        with self._lock:
            self._turns += 1
            return self._now(), self._turns - 1

    def _now(self) -> Behaviour:
        now = self._first
        while now.becomes and self._sent >= now.becomes_after:
            now = now.becomes
        return now

    def window(
        self, behaviour: Behaviour
    ) -> tuple[http_behaviour.Content, int]:
        """Return the content as it is now, and how much to send of it."""
        if not behaviour.mid_answer:
            return behaviour.content, behaviour.chunk
        with self._lock:
            now = self._now()
            if not now.becomes:
                return now.content, behaviour.chunk
            room = now.becomes_after - self._sent
            return now.content, min(behaviour.chunk, room)

    def may_break(self, behaviour: Behaviour) -> bool:
        """Tell whether one more answer goes wrong, and count it."""
        with self._lock:
            if self._broken == behaviour.breaks:
                return False
            self._broken += 1
            return True

    def add(self, count: int) -> None:
        """Count bytes of bodies."""
        with self._lock:
            self._sent += count
