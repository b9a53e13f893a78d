# SPDX-License-Identifier: Apache-2.0
"""Talk to the HTTP server of tests, with requests and with bare sockets."""

import contextlib
import errno
import socket
import threading
import time

from oslo_utils import units
from oslotest import base as test_base
import requests

from cinder_cow.tests import corpus
from cinder_cow.tests import http_server
from cinder_cow.tests.http_behaviour import Behaviour

DATA = corpus.noise(100_000)
OTHER = corpus.noise(100_000, seed=1)
# What the other end does at once is there after so many seconds.
LIMIT = 60
# What never comes is not there after so many.
NEVER = 0.3


class HttpTestCase(test_base.BaseTestCase):
    """Has a server, and checks that no thread of it is left."""

    def setUp(self):
        super().setUp()
        self.addCleanup(self.assert_no_thread)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.session = self.stack.enter_context(requests.Session())
        # No proxy and no bundle of the machine's.
        self.session.trust_env = False

    def assert_no_thread(self):
        self.assertNotIn('http-server', names_of_threads())

    def serve(self, behaviour=b'', /, **options):
        """Start a server that has one path, '/x', until the test ends."""
        if options:
            behaviour = Behaviour(behaviour, **options)
        return self.start({'/x': behaviour})

    def start(self, *arguments, **options):
        self.server = self.stack.enter_context(
            http_server.Server(*arguments, **options)
        )
        return self.server

    def get(self, path='/x', method='GET', **headers):
        headers = {
            name.replace('_', '-'): value for name, value in headers.items()
        }
        headers.setdefault('Accept-Encoding', 'identity')
        return self.session.request(
            method,
            self.server.url(path),
            headers=headers,
            timeout=LIMIT,
            allow_redirects=False,
        )

    def connect(self):
        sock = socket.create_connection(('127.0.0.1', self.server.port), LIMIT)
        self.stack.callback(sock.close)
        return sock

    def ask(self, target='/x', lines=''):
        """Send a request; return the socket."""
        sock = self.connect()
        sock.sendall(f'GET {target} HTTP/1.1\r\n{lines}\r\n'.encode())
        return sock

    def wait(self, condition):
        deadline = time.monotonic() + LIMIT
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.001)


def names_of_threads():
    return [thread.name for thread in threading.enumerate()]


def received(sock):
    """Return what comes, and how it ends: 'close' or the name of an error."""
    data = bytearray()
    try:
        while piece := sock.recv(units.Mi):
            data += piece
    except OSError as error:
        if isinstance(error, TimeoutError):
            return bytes(data), 'stall'
        return bytes(data), errno.errorcode[error.errno or 0]
    return bytes(data), 'close'


def body(data):
    return data.partition(b'\r\n\r\n')[2]
