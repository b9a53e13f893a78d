# SPDX-License-Identifier: Apache-2.0
"""What stands between Cinder and a real Glance, and fails as tests want it.

Faults of a Glance that serves others well cannot be had from Glance itself.
"""

import contextlib
import dataclasses
import http.client
import http.server
import re
import threading
import urllib.parse

_PIECE = 65536
# Seconds that an answer stalls, whatever a test forgets.
_LONGEST = 300
# Of one hop alone; see section 7.6.1 of RFC 9110.
_HOP = {'connection', 'keep-alive', 'transfer-encoding'}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What becomes of an answer.

    :param status: given in its place
    :param cut_after: bytes of the body after which the connection ends
    :param stall_after: bytes after which nothing more comes
    :param times: how often it happens; 0 for always
    """

    status: int = 0
    cut_after: int | None = None
    stall_after: int | None = None
    times: int = 0


class Proxy:
    """Passes on what Glance is asked; a context manager.

    :param glance: as ``services.Glance``
    :ivar url: what Cinder takes for Glance's
    """

    def __init__(self, glance):
        self._place = urllib.parse.urlsplit(glance.url).netloc
        self._faults = {}
        self._stalled = threading.Event()
        self._released = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self):
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), Handler
        )
        # Threads that stall are released before they are waited for.
        self._server.daemon_threads = False
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_exc_info):
        self.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, request, fault):
        """Have requests fail.

        :param request: a regular expression of "METHOD /path", its end
        """
        self._stalled.clear()
        self._released.clear()
        with self._lock:
            self._faults[request] = fault

    def clear(self):
        """Have no request fail any more; what stalls is cut."""
        with self._lock:
            self._faults.clear()
        self._released.set()

    def wait_stalled(self, seconds=60):
        """Wait until an answer stalls.

        :raises AssertionError: none does
        """
        if not self._stalled.wait(seconds):
            raise AssertionError(f'no answer stalled in {seconds} s')

    def stall(self):
        self._stalled.set()
        self._released.wait(_LONGEST)

    def fault(self, request):
        """Take the fault of a request."""
        with self._lock:
            for pattern, fault in self._faults.items():
                if not re.search(f'{pattern}$', request):
                    continue
                if fault.times == 1:
                    del self._faults[pattern]
                elif fault.times:
                    self._faults[pattern] = dataclasses.replace(
                        fault, times=fault.times - 1
                    )
                return fault
        return Fault()

    def connection(self):
        return http.client.HTTPConnection(self._place, timeout=60)


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = 'HTTP/1.1'
    # Else one that keeps its connection open holds up the end.
    timeout = 5

    def log_message(self, *_args):
        pass

    def __getattr__(self, name):
        if not name.startswith('do_'):
            raise AttributeError(name)
        return self._pass_on

    def _pass_on(self):
        path = self.path.partition('?')[0]
        fault = self.owner.fault(f'{self.command} {path}')
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if fault.status:
            self.send_response(fault.status)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        with contextlib.closing(self.owner.connection()) as connection:
            connection.request(
                self.command, self.path, body or None, dict(self.headers)
            )
            self._answer(connection.getresponse(), fault)

    def _answer(self, answer, fault):
        self.close_connection = True
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header('Connection', 'close')
        self.end_headers()
        ends = (fault.cut_after, fault.stall_after)
        left = min(one for one in (*ends, float('inf')) if one is not None)
        with contextlib.suppress(ConnectionError):
            while piece := answer.read(int(min(_PIECE, left))):
                self.wfile.write(piece)
                left -= len(piece)
            if fault.stall_after is not None:
                self.owner.stall()
