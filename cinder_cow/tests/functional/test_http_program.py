# SPDX-License-Identifier: Apache-2.0
"""The program and images at URLs: secrets, hashes, and large ones."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import ddt
from oslo_utils import units

from cinder_cow.refusal import Reason
from cinder_cow.tests import corpus
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server
from cinder_cow.tests import http_table
from cinder_cow.tests import http_tls
from cinder_cow.tests import program
from cinder_cow.tests.http_behaviour import Behaviour

USER, PASSWORD, QUERY = 'an-user', 'a-password', 'a-signature'
SECRETS = (USER, PASSWORD, QUERY)


def compare(raw, made):
    """Compare a volume with a raw disk; behind its end it has zeros.

    :raises CalledProcessError: they differ
    """
    subprocess.run(
        ['qemu-img', 'compare', '-f', 'raw', '-F', made['format'], raw,
         made['path']], check=True, capture_output=True,
    )  # fmt: skip


class UrlTestCase(program.ProgramTestCase):
    """Has a back end whose fetches do not wait long."""

    def setUp(self):
        super().setUp()
        for name in http_place.ENVIRONMENT:
            self.environment.pop(name, None)
        self.scratch = self.top / 'scratch'
        self.scratch.mkdir()
        self.conf = self.top / 'cinder.conf'
        self.conf.write_text(
            '[files]\n'
            f'cow_file_dir = {self.volumes}\n'
            f'cow_scratch_dir = {self.scratch}\n'
            f'cow_fetch_timeout = {http_place.TIMEOUT}\n'
            f'cow_fetch_attempts = {http_place.ATTEMPTS}\n'
        )
        self.options = ('--config-file', self.conf, '--backend', 'files')

    def create(self, url, *options, name='v1'):
        return (
            *self.options, 'volume', 'create', name, '--image', url, *options
        )  # fmt: skip

    def kept(self):
        """Tell what of images is in the scratch directory."""
        return list(self.scratch.glob('cow-scratch-*/*.part'))


@ddt.ddt
class TestSecrets(UrlTestCase):
    """User, password and query of a URL are nowhere but in its requests."""

    def setUp(self):
        super().setUp()
        self.seen = set()

    def watch(self, stop):
        """Note the command lines of all processes, but that with the URL."""
        while not stop.wait(0.001):
            for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
                try:
                    words = path.read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if b'volume\0create' not in words:
                    self.seen.add(words)

    def said(self, url):
        """Run the program, as verbose as it can be."""
        stop = threading.Event()
        watch = threading.Thread(target=self.watch, args=(stop,))
        watch.start()
        try:
            process = self.start('-vv', '--debug', *self.create(url))
            return self.finish(process)
        finally:
            stop.set()
            watch.join()

    def files(self):
        """Give names and contents of all that the program made."""
        for directory in (self.volumes, self.scratch):
            for path in directory.rglob('*'):
                yield os.fsencode(path)
                if path.is_file() and path.stat().st_size < units.Mi:
                    yield path.read_bytes()

    def check(self, url, status=1, expected='source_failed'):
        parts = url.partition('//')
        url = f'{parts[0]}//{USER}:{PASSWORD}@{parts[2]}?sign={QUERY}'
        ended, output, errors = self.said(url)
        self.assertEqual(status, ended, errors)
        self.assertIn(expected, output + errors)
        for secret in SECRETS:
            self.assertNotIn(secret, output + errors)
        found = b'\n'.join([*self.files(), *self.seen])
        for secret in SECRETS:
            self.assertNotIn(secret.encode(), found)
        return found

    def serve(self, **options):
        return http_server.Server(
            {
                '/image': Behaviour(
                    http_place.image('qcow2'),
                    auth=(USER, PASSWORD),
                    **options,
                )
            }
        )

    def test_made(self):
        headers = (('No\r\nX', 'x'),)
        with self.serve(headers=headers) as server:
            found = self.check(server.url('/image'), 0, 'v1')
            asked = server.requests[0].target
        self.assertIn(QUERY, asked)
        self.assertIn(b'qemu-img', found)
        self.assertIn(b'"source_format"', found)

    def test_kept(self):
        later = Behaviour(status=503)
        with self.serve(
            break_after=http_table.LATE,
            becomes=later,
            becomes_after=http_table.LATE,
        ) as server:
            found = self.check(server.url('/image'))
        self.assertEqual(1, len(self.kept()))
        # The file beside it says which image it is.
        self.assertIn(server.url('/image').replace('//', '//***@'),
                      found.decode(errors='replace'))  # fmt: skip

    @ddt.data(
        {'status': 403},
        {'raw': b'nonsense'},
        {'headers': (('Content-Length', '1'),)},
        {'status': 302, 'headers': (('Location', 'http://[/?a-signature'),)},
        {'break_after': 0},
    )
    def test_failed(self, fields):
        expected = 'denied' if fields.get('status') == 403 else 'failed'
        with self.serve(**fields) as server:
            self.check(server.url('/image'), expected=f'source_{expected}')

    def test_refused(self):
        with self.serve() as server:
            url = server.url('/image')
        self.check(url)

    def test_tls(self):
        certificate = http_tls.self_signed(self.top)
        with http_server.Server({}, certificate) as server:
            self.check(server.url('/image'))
            self.environment['REQUESTS_CA_BUNDLE'] = str(certificate.path)
            self.check(server.url('/image'), expected='image_not_found')


@ddt.ddt
class TestHash(UrlTestCase):
    def setUp(self):
        super().setUp()
        self.content = http_place.image('qcow2')
        self.hash = http_place.sha256(self.content)

    def serve(self):
        return http_server.Server({'/image': self.content})

    @ddt.data(str.lower, str.upper)
    def test_right(self, case):
        with self.serve() as server:
            made = self.cow(
                *self.create(server.url('/image'), '--hash', case(self.hash))
            )
        self.assertEqual(self.hash, made['verified'])

    def test_wrong(self):
        wrong = http_place.sha256(b'other')
        with self.serve() as server:
            said = self.refused(
                Reason.HASH_MISMATCH,
                *self.create(server.url('/image'), '--hash', wrong),
            )
        self.assertIn(wrong.partition(':')[2], said)
        self.assertEqual([], self.kept())
        self.assert_nothing_left()

    @ddt.data('sha3:00', 'sha256:00', 'shake_128:')
    def test_none(self, text):
        with self.serve() as server:
            status, _output, errors = self.finish(
                self.start(*self.create(server.url('/image'), '--hash', text))
            )
            self.assertEqual([], server.requests)
        self.assertEqual(2, status)
        self.assertIn('--hash', errors)


class TestAtOnce(UrlTestCase):
    def test_one_image_for_two_back_ends(self):
        with self.conf.open('a') as conf:
            conf.write('cow_max_fetches = 1\n')
        other = self.top / 'other.conf'
        text = self.conf.read_text()
        other.write_text(text.replace(str(self.volumes), f'{self.top}/other'))
        content = http_place.image('qcow2')
        with http_server.Server({'/image': content}) as server:
            created = self.create(server.url('/image'), '-f', 'json')
            others = ('--config-file', other, *created[2:])
            started = [self.start(*created), self.start(*others)]
            answers = [self.finish(process) for process in started]
        raw = self.top / 'image.raw'
        raw.write_bytes(http_place.image('raw'))
        for status, output, errors in answers:
            self.assertEqual((0, ''), (status, errors))
            made = json.loads(output)
            self.assertTrue(made['base_made'])
            compare(raw, made)
        self.assertEqual([], self.kept())


class TestLarge(UrlTestCase):
    """An image of 1 GiB; what was fetched is not fetched again."""

    SIZE = units.Gi
    BLOCK = 32 * units.Mi

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        cls.addClassCleanup(shutil.rmtree, top)
        cls.raw = pathlib.Path(top, 'image.raw')
        block = corpus.noise(cls.BLOCK)
        with cls.raw.open('wb') as file:
            for number in range(cls.SIZE // cls.BLOCK):
                # Each is another one, so that none can stand for another.
                file.write(block[number:] + block[:number])
        cls.converted = pathlib.Path(top, 'image.qcow2')
        http_place.convert(cls.raw, cls.converted)

    def served(self, path):
        """Break the first answer at 90 %; return behaviour and size."""
        size = path.stat().st_size
        return Behaviour(path, break_after=size * 9 // 10, breaks=1), size

    def assert_sent_once(self, server, size):
        again = server.bytes_sent('/image') / size - 1
        self.assertLess(again, 0.15)
        self.assertGreaterEqual(again, 0)

    def test_raw(self):
        behaviour, size = self.served(self.raw)
        with http_server.Server({'/image': behaviour}) as server:
            process = self.start(
                *self.create(server.url('/image')), '-f', 'json'
            )
            peak = program.peak_memory(process)
            status, output, errors = self.finish(process)
            self.assertEqual((0, ''), (status, errors))
            self.assert_sent_once(server, size)
        self.assertLess(peak, 200 * units.Mi)
        self.assertGreater(peak, units.Mi)
        compare(self.raw, json.loads(output))

    def test_qcow2_over_two_commands(self):
        behaviour, size = self.served(self.converted)
        with http_server.Server({'/image': behaviour}) as server:
            process = self.start(*self.create(server.url('/image')))
            self.wait_sent(server, size * 9 // 10)
            process.send_signal(signal.SIGKILL)
            self.finish(process)
            (kept,) = self.kept()
            # It says that it removed what the first one was making.
            answer = self.finish(
                self.start(*self.create(server.url('/image')), '-f', 'json')
            )
            self.assert_sent_once(server, size)
        made = json.loads(answer[1])
        self.assertFalse(kept.exists())
        compare(self.raw, made)

    def wait_sent(self, server, count):
        """Wait until a client has taken so many bytes.

        The next attempt of it is a second away.
        """
        deadline = time.monotonic() + program.LIMIT
        while server.bytes_sent('/image') < count:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        time.sleep(0.3)
