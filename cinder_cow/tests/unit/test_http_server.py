# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of tests: honest if not told otherwise, and it ends."""

import base64
import pathlib
import resource
import socket
import ssl
import struct
import tempfile
import time

import ddt
from oslo_utils import units
import requests

from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_case
from cinder_cow.tests import http_server
from cinder_cow.tests import http_tls
from cinder_cow.tests import storage
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break
from cinder_cow.tests.http_behaviour import Endless
from cinder_cow.tests.http_case import body
from cinder_cow.tests.http_case import DATA
from cinder_cow.tests.http_case import LIMIT
from cinder_cow.tests.http_case import received


@ddt.ddt
class TestHonest(http_case.HttpTestCase):
    def test_serves_bytes(self):
        self.serve(DATA)
        answer = self.get()
        self.assertEqual(200, answer.status_code)
        self.assertTrue(storage.same(DATA, answer.content))
        self.assertEqual('100000', answer.headers['Content-Length'])
        self.assertEqual('"one"', answer.headers['ETag'])
        self.assertEqual('bytes', answer.headers['Accept-Ranges'])
        self.assertIn('Last-Modified', answer.headers)

    def test_head_has_no_body(self):
        server = self.serve(DATA)
        answer = self.get(method='HEAD')
        self.assertEqual('100000', answer.headers['Content-Length'])
        self.assertEqual(b'', answer.content)
        self.assertEqual(200, self.get().status_code)
        self.assertEqual(['HEAD', 'GET'], [r.method for r in server.requests])
        self.assertEqual([0, 100_000], [r.sent for r in server.requests])
        self.assertEqual(1, server.connections)

    @ddt.data(
        ('bytes=0-0', 0, 1),
        ('bytes=5-9', 5, 10),
        ('bytes=99990-', 99_990, 100_000),
        ('bytes=99990-200000', 99_990, 100_000),
        ('bytes=-7', 99_993, 100_000),
        ('bytes=-200000', 0, 100_000),
    )
    @ddt.unpack
    def test_range(self, asked, start, stop):
        server = self.serve(DATA)
        answer = self.get(Range=asked)
        self.assertEqual(206, answer.status_code)
        self.assertEqual(
            f'bytes {start}-{stop - 1}/100000', answer.headers['Content-Range']
        )
        self.assertTrue(storage.same(DATA[start:stop], answer.content))
        self.assertEqual(stop - start, server.bytes_sent('/x'))

    @ddt.data('bytes=100000-', 'bytes=100000-100000', 'bytes=-0')
    def test_range_behind_the_end(self, asked):
        self.serve(DATA)
        answer = self.get(Range=asked)
        self.assertEqual(416, answer.status_code)
        self.assertEqual('bytes */100000', answer.headers['Content-Range'])

    @ddt.data('bytes=9-5', 'bytes=-', 'bytes=0-1,3-4', 'lines=0-1', 'nonsense')
    def test_range_that_is_none(self, asked):
        self.serve(DATA)
        self.assertEqual(200, self.get(Range=asked).status_code)

    @ddt.data(
        ('"one"', '"one"', 206),
        ('"two"', '"one"', 200),
        ('W/"one"', 'W/"one"', 200),
        (http_behaviour.BEFORE, '"one"', 206),
        ('Wed, 01 Jan 2025 00:00:01 GMT', '"one"', 200),
    )
    @ddt.unpack
    def test_if_range(self, wanted, etag, status):
        self.serve(DATA, etag=etag)
        answer = self.get(Range='bytes=1-2', If_Range=wanted)
        self.assertEqual(status, answer.status_code)

    @ddt.data(('"one"', 206), ('*', 206), ('"two"', 412))
    @ddt.unpack
    def test_if_match(self, wanted, status):
        self.serve(DATA)
        answer = self.get(Range='bytes=1-2', If_Match=wanted)
        self.assertEqual(status, answer.status_code)

    def test_nothing_there(self):
        server = self.serve(DATA)
        self.assertEqual(404, self.get('/y').status_code)
        self.assertEqual(200, self.get('/x?query').status_code)
        self.assertEqual(
            [('/y', 404), ('/x', 200)],
            [(r.path, r.status) for r in server.requests],
        )

    def test_something_else_later(self):
        server = self.serve(DATA, status=500)
        self.assertEqual(500, self.get().status_code)
        server.put('/x', b'abc')
        self.assertEqual(b'abc', self.get().content)

    def test_headers_are_logged(self):
        server = self.serve(DATA)
        self.get(Range='bytes=1-2')
        self.assertEqual('bytes=1-2', server.requests[0].headers['range'])
        self.assertAlmostEqual(
            time.monotonic(), server.requests[0].time, delta=LIMIT
        )

    def test_http_1_0_ends_the_connection(self):
        self.serve(DATA)
        sock = self.connect()
        sock.sendall(b'GET /x HTTP/1.0\r\n\r\n')
        data, end = received(sock)
        self.assertEqual('close', end)
        self.assertTrue(storage.same(DATA, body(data)))

    def test_a_large_file_in_little_memory(self):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as top:
            path = pathlib.Path(top, 'disk')
            with path.open('wb') as file:
                file.truncate(units.Gi)
                file.seek(units.Gi - 3)
                file.write(b'end')
            server = self.serve(path)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sock = self.ask(lines='Connection: close\r\n')
            count = sum(iter(lambda: len(sock.recv(units.Mi)), 0))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self.assertGreater(count, units.Gi)
            self.assertEqual(units.Gi, server.bytes_sent('/x'))
            self.assertEqual(b'end', self.get(Range='bytes=-3').content)
        # In KiB; all of it would be a million.
        self.assertLess(after - before, 32 * units.Ki)


@ddt.ddt
class TestStatus(http_case.HttpTestCase):
    def test_by_number(self):
        self.serve(
            DATA, statuses=(503, 0, 429), headers=(('Retry-After', '7'),)
        )
        answers = [self.get() for _turn in range(4)]
        self.assertEqual(
            [503, 200, 429, 200], [answer.status_code for answer in answers]
        )
        self.assertEqual('7', answers[2].headers['Retry-After'])

    @ddt.data(401, 403, 404, 410, 416, 500, 599, 204, 304)
    def test_always(self, status):
        self.serve(DATA, status=status)
        for _turn in range(2):
            answer = self.get()
            self.assertEqual(status, answer.status_code)
            self.assertNotIn(DATA[:10], answer.content)
        self.assertEqual(1, self.server.connections)

    def test_methods(self):
        self.serve(DATA, methods=('GET',))
        answer = self.get(method='HEAD')
        self.assertEqual(405, answer.status_code)
        self.assertEqual('GET', answer.headers['Allow'])
        self.assertEqual(200, self.get().status_code)

    def test_basic_auth(self):
        self.serve(DATA, auth=('user', 'päss'))
        answer = self.get()
        self.assertEqual(401, answer.status_code)
        self.assertIn('Basic', answer.headers['WWW-Authenticate'])
        self.session.auth = ('user', 'wrong')
        self.assertEqual(401, self.get().status_code)
        right = base64.b64encode('user:päss'.encode()).decode()
        self.session.auth = None
        answer = self.get(Authorization=f'Basic {right}')
        self.assertEqual(200, answer.status_code)

    @ddt.data('/y', 'y', '//localhost/', 'file:///etc/passwd', 'ftp://h/x')
    def test_redirect(self, location):
        self.start({'/x': http_behaviour.redirect(location, 307)})
        answer = self.get()
        self.assertEqual(
            (307, location), (answer.status_code, answer.headers['Location'])
        )

    def test_chain_of_redirects(self):
        files = http_behaviour.chain('/x', 3, '/end')
        server = self.start({**files, '/end': b'abc'})
        answer = self.session.get(server.url('/x'), timeout=LIMIT)
        self.assertEqual((b'abc', 3), (answer.content, len(answer.history)))

    def test_loop(self):
        server = self.start({'/x': http_behaviour.redirect('/x')})
        self.assertRaises(
            requests.exceptions.TooManyRedirects,
            self.session.get,
            server.url('/x'),
            timeout=LIMIT,
        )

    def test_redirect_to_another_host(self):
        with http_server.Server({'/there': b'abc'}) as other:
            location = other.url('/there', host='localhost')
            server = self.start({'/x': http_behaviour.redirect(location)})
            answer = self.session.get(server.url('/x'), timeout=LIMIT)
            self.assertEqual(b'abc', answer.content)
            host = other.requests[0].headers['Host']
            self.assertEqual(f'localhost:{other.port}', host)


class TestProxy(http_case.HttpTestCase):
    def test_is_asked_for_urls(self):
        url = 'http://images.invalid/disk'
        proxy = self.start({url: b'abc', '/path': b'def'})
        proxies = {'http': proxy.url(), 'https': proxy.url()}
        answer = self.session.get(url, proxies=proxies, timeout=LIMIT)
        self.assertEqual(b'abc', answer.content)
        answer = self.session.get(
            'http://other.invalid/path', proxies=proxies, timeout=LIMIT
        )
        self.assertEqual(b'def', answer.content)
        self.assertRaises(
            requests.exceptions.ProxyError,
            self.session.get,
            'https://images.invalid/disk',
            proxies=proxies,
            timeout=LIMIT,
        )
        self.assertEqual(
            [
                ('GET', url),
                ('GET', 'http://other.invalid/path'),
                ('CONNECT', 'images.invalid:443'),
            ],
            [(r.method, r.target) for r in proxy.requests],
        )
        self.assertEqual(3, proxy.bytes_sent('/disk'))


@ddt.ddt
class TestEnd(http_case.HttpTestCase):
    """Whatever clients do, the block is left soon, and nothing stays."""

    @ddt.data(
        {'silent': True},
        {'break_after': 5, 'break_how': Break.STALL},
        {'break_after': 5, 'break_how': Break.DRIP, 'drip_seconds': 60},
        {'endless': Endless.BODY},
        {'endless': Endless.CONTINUE},
        {'break_after': 2 * units.Mi},
        {'break_after': 30 * units.Mi},
    )
    def test_soon(self, options):
        for certificate in (None, self.certificate()):
            content = bytes(30 * units.Mi)
            files = {'/x': Behaviour(content, **options)}
            with http_server.Server(files, certificate) as server:
                self.server = server
                socks = [self.ask_with(certificate) for _turn in range(5)]
                self.wait(lambda s=server: len(s.requests) == 5)
                self.connect()
                time.sleep(0.05)
                before = time.monotonic()
            self.assertLess(time.monotonic() - before, http_server.END / 2)
            self.assert_no_thread()
            for sock in socks:
                sock.settimeout(LIMIT)
                self.assertNotEqual('stall', received(sock)[1])

    def certificate(self):
        top = self.stack.enter_context(tempfile.TemporaryDirectory())
        return http_tls.self_signed(pathlib.Path(top))

    def ask_with(self, certificate):
        sock = self.connect()
        if certificate:
            context = ssl.create_default_context(cafile=certificate.path)
            sock = context.wrap_socket(sock, server_hostname='127.0.0.1')
            self.stack.callback(sock.close)
        sock.sendall(b'GET /x HTTP/1.1\r\n\r\n')
        return sock

    def test_no_handshake(self):
        with http_server.Server({}, self.certificate()) as server:
            self.server = server
            sock = self.connect()
            self.wait(lambda: server.connections == 1)
            before = time.monotonic()
        self.assertLess(time.monotonic() - before, http_server.END / 2)
        self.assertEqual(b'', received(sock)[0])

    def test_sockets_are_closed(self):
        before = descriptors()
        for _turn in range(3):
            with http_server.Server({'/x': DATA}) as server:
                self.server = server
                for _again in range(5):
                    self.ask().close()
                self.ask()
        self.stack.close()
        self.assertEqual(before, descriptors())

    def test_what_was_not_sent_is_not_counted(self):
        with http_server.Server({'/x': bytes(30 * units.Mi)}) as server:
            self.server = server
            sock = self.ask()
            time.sleep(0.05)
        sent = server.bytes_sent('/x')
        self.assertGreater(30 * units.Mi, sent)
        self.assertEqual(sent, len(body(received(sock)[0])))

    def test_clients_that_leave(self):
        server = self.serve(bytes(30 * units.Mi))
        for number in range(20):
            sock = self.ask()
            sock.recv(1000)
            linger = struct.pack('ii', number % 2, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.close()
        self.assertEqual(30 * units.Mi, len(self.get().content))
        self.assertEqual(21, server.connections)

    def test_a_mistake_is_told(self):
        server = http_server.Server({'/x': pathlib.Path('/nonexistent')})

        def use():
            with server:
                self.server = server
                self.assertEqual(b'', received(self.ask())[0])

        self.assertRaises(FileNotFoundError, use)


def descriptors():
    return len(list(pathlib.Path('/proc/self/fd').iterdir()))
