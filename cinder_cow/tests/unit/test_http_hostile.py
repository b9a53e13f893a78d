# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of tests is as hostile as it is told to be."""

import contextlib
import gzip
import socket
import time

import ddt
from oslo_utils import units
import requests

from cinder_cow.tests import corpus
from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_case
from cinder_cow.tests import storage
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break
from cinder_cow.tests.http_behaviour import Endless
from cinder_cow.tests.http_behaviour import Framing
from cinder_cow.tests.http_behaviour import Part
from cinder_cow.tests.http_case import body
from cinder_cow.tests.http_case import DATA
from cinder_cow.tests.http_case import LIMIT
from cinder_cow.tests.http_case import NEVER
from cinder_cow.tests.http_case import OTHER
from cinder_cow.tests.http_case import received


@ddt.ddt
class TestBreaks(http_case.HttpTestCase):
    @ddt.data(Framing.LENGTH, Framing.CHUNKED, Framing.UNTIL_CLOSE)
    def test_reset(self, framing):
        server = self.serve(DATA, break_after=70_000, framing=framing)
        data, end = received(self.ask())
        self.assertEqual('ECONNRESET', end)
        self.assertIn(DATA[:70_000], data)
        self.assertNotIn(DATA[:70_001], data)
        self.assertEqual(70_000, server.bytes_sent('/x'))

    def test_reset_comes_after_all_bytes_though_the_client_is_slow(self):
        size = 4 * units.Mi
        self.serve(corpus.noise(size), break_after=size)
        sock = self.ask()
        time.sleep(NEVER)
        data, end = received(sock)
        self.assertEqual('ECONNRESET', end)
        self.assertTrue(storage.same(corpus.noise(size), body(data)))

    def test_close(self):
        server = self.serve(DATA, break_after=10, break_how=Break.CLOSE)
        data, end = received(self.ask())
        self.assertIn(b'Content-Length: 100000\r\n', data)
        self.assertEqual((DATA[:10], 'close'), (body(data), end))
        self.assertEqual(10, server.bytes_sent('/x'))

    def test_a_chunk_is_cut(self):
        self.serve(
            DATA,
            break_after=1500,
            break_how=Break.CLOSE,
            framing=Framing.CHUNKED,
            chunk=1000,
        )
        data, end = received(self.ask())
        chunks = b'3e8\r\n' + DATA[:1000] + b'\r\n3e8\r\n' + DATA[1000:1500]
        self.assertEqual((chunks, 'close'), (body(data), end))

    def test_chunks_without_an_end(self):
        self.serve(
            DATA[:10],
            break_after=10,
            break_how=Break.CLOSE,
            framing=Framing.CHUNKED,
        )
        data, end = received(self.ask())
        self.assertEqual((b'a\r\n' + DATA[:10], 'close'), (body(data), end))

    def test_stall(self):
        self.serve(DATA, break_after=10, break_how=Break.STALL)
        sock = self.ask()
        sock.settimeout(NEVER)
        data, end = received(sock)
        self.assertEqual((DATA[:10], 'stall'), (body(data), end))

    def test_a_stall_ends_with_the_client(self):
        self.serve(DATA, break_after=10, break_how=Break.STALL)
        self.ask().close()
        # The one that accepts is left.
        self.wait(
            lambda: http_case.names_of_threads().count('http-server') == 1
        )

    def test_drip(self):
        self.serve(
            DATA[:110],
            break_after=100,
            break_how=Break.DRIP,
            drip_seconds=0.03,
        )
        before = time.monotonic()
        sock = self.ask(lines='Connection: close\r\n')
        data, end = received(sock)
        self.assertEqual((DATA[:110], 'close'), (body(data), end))
        self.assertGreaterEqual(time.monotonic() - before, 0.3)

    def test_the_head_drips(self):
        self.serve(
            DATA,
            break_after=0,
            break_in=Part.HEAD,
            break_how=Break.DRIP,
            drip_seconds=0.03,
        )
        before = time.monotonic()
        sock = self.ask()
        head = b''
        while len(head) < 12:
            piece = sock.recv(100)
            self.assertLessEqual(len(piece), 2)
            head += piece
        self.assertEqual(b'HTTP/1.1 200', head[:12])
        self.assertGreaterEqual(time.monotonic() - before, 0.3)

    @ddt.data(
        (0, Break.RESET, b'', 'ECONNRESET'),
        (8, Break.RESET, b'HTTP/1.1', 'ECONNRESET'),
        (8, Break.CLOSE, b'HTTP/1.1', 'close'),
        (8, Break.STALL, b'HTTP/1.1', 'stall'),
    )
    @ddt.unpack
    def test_the_head_breaks(self, count, how, expected, end):
        server = self.serve(
            DATA, break_after=count, break_in=Part.HEAD, break_how=how
        )
        sock = self.ask()
        sock.settimeout(NEVER)
        self.assertEqual((expected, end), received(sock))
        self.assertEqual(0, server.bytes_sent('/x'))

    def test_the_first_answers_break(self):
        server = self.serve(DATA, break_after=30_000, breaks=2)
        got = b''
        ends = []
        for _turn in range(3):
            lines = f'Range: bytes={len(got)}-\r\nConnection: close\r\n'
            data, end = received(self.ask(lines=lines))
            got += body(data)
            ends.append(end)
        self.assertEqual(['ECONNRESET', 'ECONNRESET', 'close'], ends)
        self.assertTrue(storage.same(DATA, got))
        self.assertEqual(
            [30_000, 30_000, 40_000], [r.sent for r in server.requests]
        )

    def test_an_answer_that_is_short_enough_does_not_break(self):
        self.serve(DATA, break_after=1000)
        for _turn in range(3):
            self.assertEqual(DATA[:999], self.get(Range='bytes=0-998').content)
        self.assertEqual(1, self.server.connections)

    def test_requests_tells_of_a_reset(self):
        self.serve(DATA, break_after=1000)
        error = self.assertRaises(
            requests.exceptions.ChunkedEncodingError, self.get
        )
        self.assertIn('Connection reset', str(error))


@ddt.ddt
class TestLies(http_case.HttpTestCase):
    def test_chunks(self):
        self.serve(DATA, framing=Framing.CHUNKED, chunk=30_000)
        for _turn in range(2):
            answer = self.get()
            self.assertNotIn('Content-Length', answer.headers)
            self.assertTrue(storage.same(DATA, answer.content))
        self.assertEqual(1, self.server.connections)

    def test_bad_chunks(self):
        self.serve(DATA[:25], framing=Framing.BAD_CHUNKS, chunk=10)
        data, _end = received(self.ask())
        first = b'a\r\n' + DATA[:10] + b'\r\nno size\r\n'
        self.assertTrue(body(data).startswith(first), data)
        self.assertRaises(requests.exceptions.ChunkedEncodingError, self.get)

    def test_one_bad_chunk(self):
        self.serve(DATA[:25], framing=Framing.BAD_CHUNKS)
        data, _end = received(self.ask())
        self.assertEqual(
            b'19\r\n' + DATA[:25] + b'\r\nno size\r\n', body(data)
        )

    def test_until_close(self):
        self.serve(DATA, framing=Framing.UNTIL_CLOSE)
        data, end = received(self.ask())
        self.assertTrue(data.startswith(b'HTTP/1.0 200 OK\r\n'))
        self.assertNotIn(b'Content-Length', data)
        self.assertEqual('close', end)
        self.assertTrue(storage.same(DATA, body(data)))

    @ddt.data(-10, 10)
    def test_length(self, more):
        self.serve(DATA, content_length=lambda length: str(length + more))
        data, end = received(self.ask())
        self.assertIn(b'Content-Length: %d\r\n' % (100_000 + more), data)
        self.assertEqual('close', end)
        self.assertEqual(100_000, len(body(data)))

    def test_two_lengths(self):
        self.serve(DATA, headers=(('Content-Length', '5'),))
        answer = self.ask(lines='Connection: close\r\n')
        self.assertEqual(2, received(answer)[0].count(b'Content-Length: '))

    def test_content_changes_for_later_answers(self):
        later = Behaviour(OTHER, etag='"two"', last_modified=None)
        self.serve(
            DATA, break_after=30_000, becomes=later, becomes_after=30_000
        )
        data, _end = received(self.ask())
        self.assertEqual(DATA[:30_000], body(data))
        answer = self.get(Range='bytes=30000-')
        self.assertEqual('"two"', answer.headers['ETag'])
        self.assertNotIn('Last-Modified', answer.headers)
        self.assertTrue(storage.same(OTHER[30_000:], answer.content))
        answer = self.get(Range='bytes=30000-', If_Range='"one"')
        self.assertEqual(200, answer.status_code)

    @ddt.data(True, False)
    def test_content_changes_in_an_answer(self, mid_answer):
        later = Behaviour(OTHER, etag='"two"')
        self.serve(
            DATA, becomes=later, becomes_after=123, mid_answer=mid_answer
        )
        answer = self.get()
        self.assertEqual('"one"', answer.headers['ETag'])
        rest = OTHER[123:] if mid_answer else DATA[123:]
        self.assertTrue(storage.same(DATA[:123] + rest, answer.content))
        self.assertEqual('"two"', self.get().headers['ETag'])

    def test_content_gets_shorter_in_an_answer(self):
        later = Behaviour(OTHER[:200])
        self.serve(DATA, becomes=later, becomes_after=123, mid_answer=True)
        data, end = received(self.ask())
        self.assertEqual(
            (DATA[:123] + OTHER[123:200], 'close'), (body(data), end)
        )

    @ddt.data(
        (lambda start, last, total: f'bytes {start + 1}-{last}/{total}'),
        (lambda start, last, total: f'bytes {start}-{last}/{total + 1}'),
        (lambda start, last, _total: f'bytes {start}-{last}/*'),
        (lambda *_range: 'nonsense'),
        (lambda *_range: None),
    )
    def test_content_range(self, lie):
        self.serve(DATA, content_range=lie)
        answer = self.get(Range='bytes=5-9')
        self.assertEqual(206, answer.status_code)
        self.assertEqual(DATA[5:10], answer.content)
        self.assertEqual(
            lie(5, 9, 100_000), answer.headers.get('Content-Range')
        )

    def test_another_range(self):
        self.serve(DATA, serves=lambda start, _stop: (start, start + 2))
        answer = self.get(Range='bytes=5-9')
        self.assertEqual(DATA[5:7], answer.content)
        self.assertEqual('bytes 5-6/100000', answer.headers['Content-Range'])

    def test_multipart(self):
        self.serve(DATA, multipart=True)
        answer = self.get(Range='bytes=5-9')
        self.assertEqual(206, answer.status_code)
        self.assertIn('multipart/byteranges', answer.headers['Content-Type'])
        self.assertNotIn('Content-Range', answer.headers)
        self.assertIn(b'Content-Range: bytes 5-9/100000', answer.content)
        self.assertIn(b'\r\n\r\n' + DATA[5:10] + b'\r\n', answer.content)

    def test_a_range_nobody_asked_for(self):
        self.serve(DATA, unasked=(5, 10))
        answer = self.get()
        self.assertEqual(
            (206, DATA[5:10]), (answer.status_code, answer.content)
        )

    @ddt.data(
        {'ranges': False, 'expected': 200},
        {'if_range': False, 'expected': 206},
        {'etag': None, 'expected': 200},
    )
    @ddt.unpack
    def test_conditions_are_ignored(self, expected, **options):
        self.serve(DATA, **options)
        answer = self.get(Range='bytes=0-1', If_Range='"two"')
        self.assertEqual(expected, answer.status_code)
        self.assertEqual(
            options.get('etag', '"one"'), answer.headers.get('ETag')
        )

    def test_if_match_is_ignored(self):
        self.serve(DATA, if_match=False)
        self.assertEqual(200, self.get(If_Match='"two"').status_code)

    def test_gzip(self):
        self.start({'/x': http_behaviour.gzipped(DATA)})
        answer = self.get()
        self.assertEqual('gzip', answer.headers['Content-Encoding'])
        self.assertTrue(storage.same(DATA, answer.content))
        data, _end = received(self.ask(lines='Connection: close\r\n'))
        self.assertTrue(storage.same(DATA, gzip.decompress(body(data))))


@ddt.ddt
class TestHostile(http_case.HttpTestCase):
    @ddt.data(*Endless)
    def test_endless(self, what):
        self.serve(DATA[:10], endless=what)
        sock = self.ask()
        data = bytearray()
        while len(data) < 4 * units.Mi:
            data += sock.recv(units.Mi)
        ends = data.count(b'\r\n\r\n')
        if what is Endless.BODY:
            self.assertEqual(1, ends)
            self.assertTrue(body(data).startswith(DATA[:10] + bytes(1000)))
        elif what is Endless.CONTINUE:
            self.assertGreater(ends, 100_000)
        else:
            self.assertEqual(0, ends)
        longest = max(map(len, data.split(b'\r\n')))
        self.assertEqual(
            what in (Endless.BODY, Endless.HEADER), longest > units.Mi
        )

    @ddt.data(Framing.CHUNKED, Framing.UNTIL_CLOSE)
    def test_endless_body_without_a_length(self, framing):
        self.serve(b'', endless=Endless.BODY, framing=framing, chunk=1000)
        answer = self.stack.enter_context(
            self.session.get(self.server.url('/x'), stream=True, timeout=LIMIT)
        )
        for _turn, piece in zip(
            range(1000), answer.iter_content(1000), strict=False
        ):
            self.assertEqual(bytes(1000), piece)

    def test_many_headers(self):
        many = tuple((f'X-{number}', 'x') for number in range(10_000))
        self.serve(DATA, headers=many)
        self.assertRaises(requests.exceptions.ConnectionError, self.get)

    def test_never_answers(self):
        server = self.serve(DATA, silent=True)
        sock = self.ask()
        sock.settimeout(NEVER)
        self.assertEqual((b'', 'stall'), received(sock))
        self.assertEqual([0], [r.status for r in server.requests])

    def test_never_even_listens(self):
        server = self.start({}, silent=True)
        sock = self.ask()
        sock.settimeout(NEVER)
        self.assertEqual((b'', 'stall'), received(sock))
        self.assertEqual([], server.requests)
        self.assertEqual(1, server.connections)

    def test_garbage(self):
        self.serve(raw=b'\0\xffgarbage\r\n')
        self.assertEqual((b'\0\xffgarbage\r\n', 'close'), received(self.ask()))
        self.assertRaises(requests.exceptions.ConnectionError, self.get)

    @ddt.data(b'nonsense\r\n\r\n', b'\n', b'\0' * 100_000, b'GET /x HTTP/1.1')
    def test_a_client_that_talks_nonsense(self, words):
        server = self.serve(DATA)
        sock = self.connect()
        # It may be gone by now.
        with contextlib.suppress(OSError):
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)
        self.assertEqual(b'', received(sock)[0])
        self.assertEqual([], server.requests)
        self.assertEqual(200, self.get().status_code)
