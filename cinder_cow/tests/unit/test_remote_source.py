# SPDX-License-Identifier: Apache-2.0
"""What is asked of a server, and how often."""

import contextlib
import socket
import threading
import time
from unittest import mock

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import http_source
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow.refusal import Reason
from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server
from cinder_cow.tests import storage
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break

SIZE = 3 * units.Mi
DATA = http_place.image('raw', size=SIZE)
LATE = 2 * units.Mi + 9


class SourceTestCase(http_place.HttpTestCase):
    def setUp(self):
        super().setUp()
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)

    def open(self, url, hashed=False, **settings):
        settings = {'fetch_timeout': 2, 'fetch_attempts': 2, **settings}
        location = image_location.parse(url)
        assert isinstance(location, image_location.HttpLocation)
        source = http_source.HttpSource(
            location, opts.Settings(**settings), hashed
        )
        return self.stack.enter_context(source)

    def serve(self, hashed=False, /, **options):
        behaviour = Behaviour(DATA, **options)
        self.server = self.stack.enter_context(
            http_server.Server({'/image': behaviour})
        )
        return self.open(self.server.url('/image'), hashed)

    def ranges(self):
        return [request.headers.get('Range') for request in self.asked()]

    def asked(self):
        return self.server.requests_for('/image')

    def assert_all(self, pieces, start=0):
        self.assertTrue(storage.same(DATA[start:], b''.join(pieces)))

    def refused(self, reason, call, *arguments):
        error = self.assertRaises(exception.ImageError, call, *arguments)
        self.assertIs(reason, error.reason, str(error))
        return str(error)


@ddt.ddt
class TestRequests(SourceTestCase):
    def test_nothing_is_asked_beforehand(self):
        self.serve().close()
        self.assertEqual(0, self.server.connections)

    def test_no_byte_is_asked_for_twice(self):
        source = self.serve()
        self.assertEqual(DATA[:9], source.head(9))
        self.assertEqual(DATA[: 2 * units.Mi], source.head(2 * units.Mi))
        self.assertEqual(SIZE, source.size)
        self.assertIn('"one"', source.content_id)
        self.assert_all(source.pieces())
        self.assertEqual([None], self.ranges())
        self.assertEqual(SIZE, self.server.bytes_sent('/image'))

    def test_the_size_is_known_while_it_is_read(self):
        source = self.serve()
        for _piece in source.pieces():
            self.assertEqual(SIZE, source.size)
        self.assertEqual([None], self.ranges())

    def test_the_end_is_one_small_request(self):
        source = self.serve()
        for length in (1000, 1000, 1):
            self.assertEqual(DATA[-length:], source.tail(length))
        self.assertEqual([None, f'bytes={SIZE - 1000}-'], self.ranges())
        self.assert_all(source.pieces())
        self.assertEqual(2, len(self.asked()))

    @ddt.data({'ranges': False}, {'etag': None, 'last_modified': None})
    def test_the_end_cannot_be_had(self, options):
        source = self.serve(**options)
        self.assertEqual(b'', source.tail(1))
        # But that of a small image was read with its head.
        source.head(SIZE)
        self.assertEqual(DATA[-9:], source.tail(9))

    @ddt.data(0, 5, units.Mi, LATE, SIZE - 1)
    def test_from_any_byte(self, offset):
        source = self.serve()
        source.head(2 * units.Mi)
        self.assert_all(source.pieces_from(offset), offset)
        is_behind = offset > 2 * units.Mi
        expected = [None, f'bytes={offset}-'] if is_behind else [None]
        self.assertEqual(expected, self.ranges())

    def test_from_any_byte_of_a_server_without_ranges(self):
        source = self.serve(ranges=False)
        self.assert_all(source.pieces_from(LATE), LATE)

    @ddt.data(
        ({}, '"one"'),
        ({'etag': '"\x1b"'}, http_behaviour.BEFORE),
        ({'etag': None, 'last_modified': '\x1b'}, None),
    )
    @ddt.unpack
    def test_goes_on_with_the_same(self, options, validator):
        source = self.serve(True, break_after=LATE, breaks=1, **options)
        self.assert_all(source.pieces())
        first, second = self.asked()
        self.assertIsNone(first.headers.get('If-Range'))
        self.assertEqual(validator, second.headers.get('If-Range'))
        # What came of the chunk that broke is asked for again.
        self.assertEqual(f'bytes={2 * units.Mi}-', second.headers['Range'])

    def test_identity(self):
        source = self.serve()
        source.head(1)
        (request,) = self.asked()
        self.assertEqual('identity', request.headers['Accept-Encoding'])
        self.assertEqual('close', request.headers['Connection'])

    @ddt.data((True, 0), (False, 1))
    @ddt.unpack
    def test_checked_at_the_end(self, hashed, count):
        source = self.serve(hashed)
        self.assert_all(source.pieces())
        source.check_unchanged()
        expected = [None, *[f'bytes={SIZE - 1}-'] * count]
        self.assertEqual(expected, self.ranges())

    def test_changed_at_the_end(self):
        source = self.serve()
        self.assert_all(source.pieces())
        self.server.put('/image', Behaviour(DATA, etag='"two"'))
        self.refused(Reason.IMAGE_CHANGED, source.check_unchanged)

    def test_all_is_closed(self):
        before = http_place.held()
        source = self.serve(break_after=LATE, break_how=Break.STALL)
        source.head(9)
        source.tail(9)
        pieces = source.pieces()
        next(pieces)
        source.close()
        del pieces
        self.stack.close()
        self.assertEqual(before, http_place.held())


@ddt.ddt
class TestTime(SourceTestCase):
    """Nothing takes longer than a server was given."""

    def refused_within(self, seconds, call, *arguments):
        begun = time.monotonic()
        self.refused(Reason.SOURCE_FAILED, call, *arguments)
        self.assertLess(time.monotonic() - begun, seconds)

    @ddt.data('0', '7')
    def test_as_the_server_asks(self, wait):
        source = self.serve(
            statuses=(503, 503), headers=(('Retry-After', wait),)
        )
        # Three attempts, and not the seconds between them that we would take.
        source = self.open(self.server.url('/image'), fetch_attempts=3)
        with mock.patch.object(time, 'sleep', autospec=True) as sleep:
            source.head(1)
        self.assertEqual([mock.call(int(wait))] * 2, sleep.mock_calls)

    def test_the_body_of_a_redirect(self):
        self.serve()
        self.server.put(
            '/there',
            Behaviour(
                status=302,
                headers=(('Location', '/image'),),
                endless=http_behaviour.Endless.BODY,
                content_length=lambda length: None,
            ),
        )
        source = self.open(self.server.url('/there'))
        self.assertEqual(DATA[:9], source.head(9))
        # No more than the kernel takes.
        self.assertLess(self.server.bytes_sent('/there'), 32 * units.Mi)

    def test_a_connection_that_is_kept(self):
        """A second answer on it would drip for ever."""
        listener = self.stack.enter_context(
            socket.create_server(('127.0.0.1', 0))
        )
        thread = threading.Thread(target=self.keep, args=(listener,))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        port = listener.getsockname()[1]
        source = self.open(f'http://127.0.0.1:{port}/', fetch_timeout=1)
        self.assertEqual(b'x' * 512, source.head(512))
        self.assertEqual([b'x' * 512], list(source.pieces()))
        self.refused_within(9, source.check_unchanged)

    def keep(self, listener):
        """Answer a request in full, and drip from then on."""
        answer = b'HTTP/1.1 200 OK\r\nContent-Length: 512\r\nETag: "1"\r\n\r\n'
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            count = 0
            while True:
                sock = stack.enter_context(listener.accept()[0])
                sock.settimeout(5)
                while sock.recv(65536):
                    count += 1
                    if count == 1:
                        sock.sendall(answer + b'x' * 512)
                        continue
                    with contextlib.suppress(OSError):
                        for _turn in range(100):
                            sock.sendall(b'H')
                            time.sleep(0.1)
                    break
