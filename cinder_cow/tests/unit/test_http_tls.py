# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of tests speaks TLS, with certificates of its own."""

import contextlib
import pathlib
import select
import ssl
import tempfile

import fixtures
from oslo_utils import units
import requests

from cinder_cow.tests import http_case
from cinder_cow.tests import http_tls
from cinder_cow.tests import storage
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break
from cinder_cow.tests.http_behaviour import Framing
from cinder_cow.tests.http_case import body
from cinder_cow.tests.http_case import DATA
from cinder_cow.tests.http_case import LIMIT
from cinder_cow.tests.http_case import received


class TestTls(http_case.HttpTestCase):
    def setUp(self):
        super().setUp()
        top = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.top = pathlib.Path(top)

    def serve_tls(self, behaviour, **options):
        certificate = http_tls.self_signed(self.top, **options)
        self.start({'/x': behaviour}, certificate)
        return certificate

    def test_its_certificate_is_wanted(self):
        certificate = self.serve_tls(DATA)
        self.assertRaises(requests.exceptions.SSLError, self.get)
        self.assertEqual([], self.server.requests)
        self.session.verify = str(certificate.path)
        self.assertTrue(storage.same(DATA, self.get().content))

    def test_the_environment_can_name_it(self):
        certificate = self.serve_tls(DATA)
        with requests.Session() as session, self.environment(certificate):
            answer = session.get(self.server.url('/x'), timeout=LIMIT)
        self.assertTrue(storage.same(DATA, answer.content))

    @contextlib.contextmanager
    def environment(self, certificate):
        with contextlib.ExitStack() as stack:
            for name, value in (
                ('REQUESTS_CA_BUNDLE', str(certificate.path)),
                ('NO_PROXY', '127.0.0.1'),
            ):
                fixture = fixtures.EnvironmentVariable(name, value)
                stack.enter_context(fixture)
            yield

    def test_another_host(self):
        certificate = self.serve_tls(DATA, names=('elsewhere.invalid',))
        self.session.verify = str(certificate.path)
        self.assertRaises(requests.exceptions.SSLError, self.get)

    def test_expired(self):
        certificate = self.serve_tls(DATA, days=-1)
        self.session.verify = str(certificate.path)
        error = self.assertRaises(requests.exceptions.SSLError, self.get)
        self.assertIn('expired', str(error))

    def secure(self, certificate):
        context = ssl.create_default_context(cafile=str(certificate.path))
        # Python 3.13 does so by itself.
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        sock = context.wrap_socket(
            self.connect(),
            server_hostname='127.0.0.1',
            suppress_ragged_eofs=False,
        )
        self.stack.callback(sock.close)
        sock.sendall(b'GET /x HTTP/1.1\r\n\r\n')
        return sock

    def test_the_end_is_told(self):
        made = self.serve_tls(Behaviour(DATA, framing=Framing.UNTIL_CLOSE))
        data, end = received(self.secure(made))
        self.assertEqual('close', end)
        self.assertTrue(storage.same(DATA, body(data)))

    def test_the_end_is_not_told_when_it_breaks(self):
        how = Break.CLOSE
        made = self.serve_tls(Behaviour(DATA, break_after=9, break_how=how))
        sock = self.secure(made)
        error = self.assertRaises(ssl.SSLEOFError, self.read_all, sock)
        self.assertIn('EOF', str(error))
        self.assertEqual(9, self.server.bytes_sent('/x'))

    def test_reset(self):
        made = self.serve_tls(Behaviour(DATA, break_after=9))
        sock = self.secure(made)
        # Python 3.11 takes an RST for an end of file, the kernel does not.
        poll = select.poll()
        poll.register(sock, 0)
        ((_number, event),) = poll.poll(LIMIT * 1000)
        self.assertTrue(event & select.POLLERR)
        self.assertEqual(DATA[:9], body(received(sock)[0]))

    def read_all(self, sock):
        while sock.recv(units.Mi):
            pass
