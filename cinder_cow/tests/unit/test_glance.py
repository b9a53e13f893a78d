# SPDX-License-Identifier: Apache-2.0
"""What answers is not always the Glance that it should be."""

import contextlib
import http.server
import json
import os
import threading
import time

import ddt
import fixtures
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import glance as glances
from cinder_cow import opts
from cinder_cow.refusal import Reason

IMAGE = '5c8f1a6e-7c0b-4bb0-8b6e-0f8a6d3c1b11'
RECORD = {'id': IMAGE, 'name': 'image', 'disk_format': 'raw',
          'status': 'active', 'size': 1024}  # fmt: skip
JSON = 'application/json'
TOKEN = 'sesame'


class _Handler(http.server.BaseHTTPRequestHandler):
    server: '_Server'

    def do_GET(self):
        answers = self.server.answers
        status, body = answers.get(self.path, answers.get('*', (404, b'')))
        self.send_response(status)
        self.send_header('Content-Type', self.server.content_type)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            for start in range(0, len(body), self.server.step):
                self.wfile.write(body[start : start + self.server.step])
                time.sleep(self.server.pause)

    def log_message(self, *_arguments):
        pass


class _Server(http.server.ThreadingHTTPServer):
    """Stands where a Glance should stand.

    :ivar answers: status and body of each path; '*': of all others
    """

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.headers: dict[str, str] = {}
        self.content_type = JSON
        self.step = 2**20
        self.pause = 0.0
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def end(self):
        self.shutdown()
        self.thread.join()
        self.server_close()


class OddTestCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.server = _Server()
        self.addCleanup(self.server.end)
        for name in [n for n in os.environ if n.startswith('OS_')]:
            self.useFixture(fixtures.EnvironmentVariable(name))
        self.point_to(self.server.url)

    def point_to(self, url, token=TOKEN):
        for name, value in {
            'AUTH_TYPE': 'admin_token',
            'ENDPOINT': url,
            'TOKEN': token,
            'IMAGE_ENDPOINT_OVERRIDE': url,
        }.items():
            self.useFixture(fixtures.EnvironmentVariable(f'OS_{name}', value))

    def answer(self, **more):
        """Answer as a Glance does that has the image."""
        record = json.dumps({**RECORD, **more}).encode()
        versions = {'versions': [{'id': 'v2.17', 'status': 'CURRENT'}]}
        schema = {'name': 'image', 'properties': {}}
        self.server.answers = {
            f'/v2/images/{IMAGE}': (200, record),
            '/v2/schemas/image': (200, json.dumps(schema).encode()),
            '/versions': (200, json.dumps(versions).encode()),
        }

    def image(self):
        settings = opts.Settings(fetch_timeout=0.5)
        with glances.Glance.of_cloud(None, settings) as glance:
            return glance.image(IMAGE)

    def unavailable(self):
        error = self.assertRaises(exception.RequestError, self.image)
        self.assertIs(Reason.GLANCE_UNAVAILABLE, error.reason)
        self.assertNotIn(TOKEN, str(error))
        self.assertNotIn('\n', str(error))
        return str(error)


@ddt.ddt
class TestNoGlance(OddTestCase):
    @ddt.data(
        b'', b'<html>', b'{', b'[1]', b'null', b'"x"', b'1', b'{}',
        b'{"id":"\xff"}', b'[' * 100_000,
    )  # fmt: skip
    def test_garbage(self, body):
        for self.server.content_type in (JSON, 'text/html'):
            self.server.answers = {'*': (200, body)}
            self.assertIn('is not a Glance', self.unavailable())

    def test_garbage_but_the_record(self):
        self.answer()
        self.server.answers['/v2/schemas/image'] = (200, b'<html>')
        self.assertIn('is not a Glance', self.unavailable())

    @ddt.data(400, 401, 429, 500, 503)
    def test_a_status(self, status):
        self.server.answers = {'*': (status, b'{}')}
        error = self.unavailable()
        if status != 429:  # the client does not tell
            self.assertIn(str(status), error)

    @ddt.data('/elsewhere', 'ftp://host/', '')
    def test_a_redirect(self, target):
        self.server.answers = {'*': (302, b'')}
        self.server.headers = {'Location': target} if target else {}
        self.unavailable()

    def test_a_trickle(self):
        self.server.answers = {'*': (200, b'x' * 1000)}
        self.server.step, self.server.pause = 1, 0.05
        begun = time.monotonic()
        self.assertIn('no answer within 0.5 s', self.unavailable())
        self.assertLess(time.monotonic() - begun, 10)

    @ddt.data('http://[', 'http://a b/', 'http://host:99999999', 'odd')
    def test_a_bad_url(self, url):
        self.point_to(url)
        self.unavailable()

    @ddt.data(f'{TOKEN}\n', f' {TOKEN}', f'{TOKEN}\u20ac')
    def test_a_bad_token(self, token):
        self.point_to(self.server.url, token)
        self.assertIn('has a form that cannot be sent', self.unavailable())

    def test_https_of_http(self):
        self.point_to(self.server.url.replace('http', 'https'))
        self.assertIn('SSL', self.unavailable())


@ddt.ddt
class TestLocations(OddTestCase):
    """What the locations call may answer."""

    def setUp(self):
        super().setUp()
        self.answer()

    def locate(self, status, body=b'{}'):
        path = f'/v2/images/{IMAGE}/locations'
        self.server.answers[path] = (status, body)

    def hidden(self):
        image = self.image()
        self.assertEqual(((), ''), (image.locations, image.locations_told_by))
        refusal = image.locations_hidden
        assert refusal is not None
        self.assertIs(Reason.LOCATIONS_HIDDEN, refusal.reason)
        self.assertIn('show_image_direct_url = true', refusal.remedy)
        return refusal

    def test_a_glance_before_2_17(self):
        versions = {'versions': [{'id': 'v2.16', 'status': 'CURRENT'}]}
        body = json.dumps(versions).encode()
        self.server.answers['/versions'] = (200, body)
        refusal = self.hidden()
        self.assertIn('it has no locations call', refusal.detail)
        self.assertIn('Upgrade Glance to one with API 2.17', refusal.remedy)

    @ddt.data(404, 405)
    def test_no_call(self, status):
        self.locate(status)
        self.assertIn('it has no locations call', self.hidden().detail)

    @ddt.data(
        (401, 'Try again'),
        (403, 'role service'),
        (500, 'Try again'),
        (503, 'Try again'),
    )
    @ddt.unpack
    def test_a_status(self, status, remedy):
        self.locate(status)
        refusal = self.hidden()
        self.assertIn(f'answers with status {status}', refusal.detail)
        self.assertIn(remedy, refusal.remedy)

    def test_no_json(self):
        self.locate(200, b'{')
        self.assertIn('call is not answered', self.hidden().detail)

    def test_the_record_tells_instead(self):
        self.locate(403)
        for field, value in (
            ('locations', [{'url': 'file:///a', 'metadata': {}}]),
            ('direct_url', 'file:///a'),
        ):
            self.answer(**{field: value})
            image = self.image()
            self.assertEqual(f'{field} of the record', image.locations_told_by)
            self.assertEqual(['file:///a'], list(map(str, image.locations)))
            self.assertIsNone(image.locations_hidden)

    @ddt.data(b'{}', b'"abc"', b'7', b'[1]', b'[{"url": 5}]')
    def test_odd_locations(self, body):
        self.locate(200, body)
        error = self.assertRaises(exception.ImageError, self.image)
        self.assertIs(Reason.IMAGE_RECORD_INVALID, error.reason)

    def test_none(self):
        for body in (b'[]', b'null'):
            self.locate(200, body)
            self.assertEqual((), self.image().locations)
