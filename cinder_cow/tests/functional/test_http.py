# SPDX-License-Identifier: Apache-2.0
"""Images from a hostile HTTP server, through the whole way to a volume.

The volume has the right bytes, or there is a reason and nothing is left.
"""

from concurrent import futures
import contextlib
import itertools
import pathlib
import time

import ddt
import fixtures

from cinder_cow import exception
from cinder_cow.refusal import Reason
from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server
from cinder_cow.tests import http_table
from cinder_cow.tests import http_tls
from cinder_cow.tests.http_behaviour import Behaviour

# Two attempts for each of head, tail, data and the last look; one takes two
# time-outs at most (one for the answer), and a second lies between them.
LIMIT = 4 * (2 * 2 * http_place.TIMEOUT + 1)
KINDS = ('raw', 'qcow2')
# Cases at once; they wait more than they work.
THREADS = 24


@ddt.ddt
class TestBehaviours(http_place.HttpTestCase):
    """Each behaviour of a server, with a raw and with a qcow2 image."""

    @ddt.data(*KINDS)
    def test_all(self, kind):
        http_place.image(kind, 1)
        before = http_place.held()
        with futures.ThreadPoolExecutor(THREADS) as pool:
            verdicts = list(
                pool.map(lambda c: self.verdict(c, kind), http_table.CASES)
            )
        wrong = {
            case.name: verdict
            for case, verdict in zip(http_table.CASES, verdicts, strict=True)
            if verdict
        }
        self.assertEqual({}, wrong)
        self.assertEqual(before, http_place.held())

    def verdict(self, case, kind):
        """Tell what is wrong with what becomes of an image; '' if nothing."""
        content = http_place.image(kind)
        files = case.files(content, http_place.image(kind, 1))
        place = http_place.Place(self.top / f'{kind}-{case.name}')
        reason: Reason | None = None
        said = 'made'
        begun = time.monotonic()
        with http_server.Server(files) as server:
            try:
                place.create(
                    server.url('/image'),
                    claimed='raw' if case.claimed and kind == 'raw' else None,
                    hash_=http_place.sha256(content) if case.hashed else None,
                )
            except exception.CowError as error:
                reason, said = error.refusal.reason, str(error)
            except Exception as error:  # noqa: BLE001 - it is told
                return f'no error of ours: {error!r}'
        seconds = time.monotonic() - begun
        if reason is not case.reason(kind):
            return said
        if seconds > LIMIT:
            return f'{seconds:.1f} s'
        return self.left(case, kind, place)

    def left(self, case, kind, place):
        """Tell what is wrong with what is left."""
        if not case.reason(kind):
            right = place.is_right(http_place.image('raw'))
            return '' if right else 'other bytes'
        if place.made():
            return f'left {place.made()}'
        kept = place.kept()
        if case.kept and kind == 'qcow2':
            return '' if kept.get('.part', 0) >= http_table.LATE else 'lost'
        return f'left {kept}' if kept else ''


@ddt.ddt
class TestIdentity(http_place.HttpTestCase):
    """What makes two images one, and what does not."""

    def setUp(self):
        super().setUp()
        self.place = http_place.Place(self.top)
        self.content = http_place.image('qcow2')
        self.files = {'/a': self.content, '/b': self.content}

    def create(self, server, path, name, **options):
        return self.place.create(server.url(path), name, **options)

    def bases(self):
        return len(list(self.place.files.list_bases()))

    def test_of_one_url_there_is_one_base(self):
        with http_server.Server(self.files) as server:
            self.create(server, '/a', 'v1')
            sent = server.bytes_sent('/a')
            outcome = self.create(server, '/a', 'v2')
            # No more than its head, and what the kernel holds for a client.
            more = server.bytes_sent('/a') - sent
        self.assertFalse(outcome.base_made)
        self.assertEqual(1, self.bases())
        self.assertLess(more, 2 * len(self.content))
        for name in ('v1', 'v2'):
            self.assertTrue(self.place.is_right(http_place.image('raw'), name))

    def test_two_urls_of_equal_content_are_two_images(self):
        with http_server.Server(self.files) as server:
            for path in ('/a', '/b', '/a?signed', '/a?otherwise'):
                name = f'v{self.bases()}'
                self.assertTrue(self.create(server, path, name).base_made)
        self.assertEqual(4, self.bases())

    def test_a_new_etag_is_a_new_image(self):
        other = http_place.image('qcow2', 1)
        with http_server.Server(self.files) as server:
            self.create(server, '/a', 'v1')
            server.put('/a', Behaviour(other, etag='"two"'))
            self.assertTrue(self.create(server, '/a', 'v2').base_made)
        self.assertTrue(self.place.is_right(http_place.image('raw'), 'v1'))
        self.assertTrue(self.place.is_right(http_place.image('raw', 1), 'v2'))

    @ddt.data(*KINDS)
    def test_nothing_identifies_it(self, kind):
        behaviour = Behaviour(
            http_place.image(kind), etag=None, last_modified=None
        )
        with http_server.Server({'/a': behaviour}) as server:
            outcome = self.create(server, '/a', 'v1', claimed=kind)
        self.assertEqual('stream', outcome.method.value)
        reasons = {failure.refusal.reason for failure in outcome.failures}
        self.assertIn(Reason.NO_IDENTITY, reasons)
        self.assertEqual(0, self.bases())
        self.assertTrue(self.place.is_right(http_place.image('raw')))

    @ddt.data(*KINDS)
    def test_a_hash_identifies_it(self, kind):
        content = http_place.image(kind)
        behaviour = Behaviour(content, etag=None, last_modified=None)
        hash_ = http_place.sha256(content)
        with http_server.Server({'/a': behaviour}) as server:
            made = self.create(server, '/a', 'v1', hash_=hash_)
            found = self.create(server, '/a', 'v2', hash_=hash_)
        self.assertEqual([True, False], [made.base_made, found.base_made])
        self.assertEqual(hash_, made.verified)


@ddt.ddt
class TestTransport(http_place.HttpTestCase):
    """TLS and proxies, and servers that do not come so far."""

    def setUp(self):
        super().setUp()
        self.place = http_place.Place(self.top)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.files = {'/image': http_place.image('qcow2')}

    def serve(self, *arguments, **options):
        server = http_server.Server(*arguments, **options)
        return self.stack.enter_context(server)

    def set(self, name, value):
        self.useFixture(fixtures.EnvironmentVariable(name, str(value)))

    def certificate(self):
        return http_tls.self_signed(self.top)

    def failed(self, url):
        error = self.assertRaises(exception.ImageError, self.place.create, url)
        self.assertIs(Reason.SOURCE_FAILED, error.reason, str(error))
        self.assertEqual([], self.place.made())
        return str(error)

    def assert_made(self, url):
        self.place.create(url)
        self.assertTrue(self.place.is_right(http_place.image('raw')))

    def test_ca(self):
        certificate = self.certificate()
        url = self.serve(self.files, certificate).url('/image')
        said = self.failed(url)
        self.assertIn('certificate verify failed', said)
        self.assertIn('REQUESTS_CA_BUNDLE', said)
        self.set('REQUESTS_CA_BUNDLE', self.top / 'not-there')
        self.assertIn('REQUESTS_CA_BUNDLE names no file', self.failed(url))
        self.set('REQUESTS_CA_BUNDLE', certificate.path)
        self.assert_made(url)

    def test_tls_that_never_answers(self):
        server = self.serve({}, self.certificate(), silent=True)
        begun = time.monotonic()
        self.failed(server.url('/image'))
        # Two attempts and the second between them, on a slow machine.
        self.assertLess(time.monotonic() - begun, 20 * http_place.TIMEOUT)

    def test_redirects_between_http_and_https(self):
        certificate = self.certificate()
        self.set('REQUESTS_CA_BUNDLE', certificate.path)
        plain, secure = self.serve({}), self.serve({}, certificate)
        to_plain = http_behaviour.redirect(plain.url('/image'))
        to_secure = http_behaviour.redirect(secure.url('/image'))
        for server in (plain, secure):
            server.put('/image', self.files['/image'])
            server.put('/to-plain', to_plain)
            server.put('/to-secure', to_secure)
        plain.put('/back', to_secure)
        secure.put('/there', http_behaviour.redirect(plain.url('/back')))
        for path in ('/to-plain', '/there'):
            said = self.failed(secure.url(path))
            self.assertIn('from https to http', said)
        self.assert_made(plain.url('/to-secure'))

    def test_proxy(self):
        proxy = self.serve(self.files)
        self.set('http_proxy', proxy.url())
        self.assert_made('http://nowhere.invalid/image')
        targets = {request.target for request in proxy.requests}
        self.assertEqual({'http://nowhere.invalid/image'}, targets)
        self.set('no_proxy', 'nowhere.invalid')
        asked = len(proxy.requests)
        error = self.assertRaises(
            exception.ImageError,
            self.place.create,
            'http://nowhere.invalid/image',
            'v2',
        )
        self.assertIs(Reason.SOURCE_FAILED, error.reason)
        self.assertEqual(asked, len(proxy.requests))

    @ddt.data(
        'socks5://127.0.0.1:1', 'http://[', 'http://127.0.0.1:1', 'x://y'
    )
    def test_no_proxy_that_works(self, proxy):
        server = self.serve(self.files)
        self.set('http_proxy', proxy)
        self.assertIn('proxy', self.failed(server.url('/image')))
        self.assertEqual([], server.requests)


class TestAtOnce(http_place.HttpTestCase):
    """Several fetch, as processes do: locks are of open files."""

    def places(self, **settings):
        common = str(self.top / 'common')
        pathlib.Path(common).mkdir()
        for number in range(4):
            yield http_place.Place(
                self.top / f'{number}', scratch_dir=common, **settings
            )

    def create(self, places, paths, progress=None):
        content = http_place.image('qcow2')
        with (
            http_server.Server(dict.fromkeys(paths, content)) as server,
            futures.ThreadPoolExecutor(len(places)) as pool,
        ):
            made = [
                pool.submit(
                    place.create, server.url(path),
                    progress=progress(number) if progress else None,
                )
                for number, (place, path) in enumerate(
                    zip(places, paths * len(places), strict=False)
                )
            ]  # fmt: skip
            for one in made:
                one.result()
        for place in places:
            self.assertTrue(place.is_right(http_place.image('raw')))
        self.assertEqual([], list(self.top.rglob('*.part')))

    def test_one_image_for_several_back_ends(self):
        self.create([*self.places()], ['/image'])

    def test_one_at_a_time(self):
        times: dict[int, list[float]] = {}

        def progress(number):
            def report(phase, done, total):
                if phase == 'fetching':
                    times.setdefault(number, []).append(time.monotonic())
                    time.sleep(0.02)

            return report

        places = [*self.places(max_fetches=1)]
        self.create(places, ['/a', '/b', '/c', '/d'], progress)
        spans = sorted((min(told), max(told)) for told in times.values())
        self.assertEqual(4, len(spans))
        for (_begun, ended), (begun, _ended) in itertools.pairwise(spans):
            self.assertGreater(begun, ended)
