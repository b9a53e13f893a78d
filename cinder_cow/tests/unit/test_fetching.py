# SPDX-License-Identifier: Apache-2.0
"""Images on a server, as local files: kept, gone on with, in turn."""

import contextlib
import dataclasses
import os

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import fetching
from cinder_cow import image_source
from cinder_cow import scratch
from cinder_cow.refusal import Reason
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server
from cinder_cow.tests import storage
from cinder_cow.tests.http_behaviour import Behaviour

SIZE = 4 * units.Mi
DATA = http_place.image('raw', size=SIZE)
OTHER = http_place.image('raw', 1, SIZE)
LATE = 3 * units.Mi
GONE = Behaviour(DATA, status=503)
NOTHING_TELLS = {'etag': None, 'last_modified': None}


def later(becomes, **options):
    """Break the first answer after 3 MiB, and be another from then on."""
    return Behaviour(
        DATA,
        break_after=LATE,
        becomes=becomes,
        becomes_after=LATE,
        **options,
    )


@ddt.ddt
class TestLocal(http_place.HttpTestCase):
    def setUp(self):
        super().setUp()
        self.place = http_place.Place(self.top, fetch_attempts=1)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)

    def serve(self, behaviour):
        self.server = self.stack.enter_context(
            http_server.Server({'/image': behaviour})
        )

    @contextlib.contextmanager
    def local(self, hash_=None, path='/image'):
        url = self.server.url(path)
        with self.place.source(url, hashed=hash_ is not None) as source:
            described = image_source.describe(source, 'raw', hash_)
            with fetching.local(
                described, source, self.place.settings, lambda *told: None
            ) as found:
                yield found

    def fetch(self, hash_=None):
        with self.local(hash_) as (file, digest):
            found = b''.join(file.pieces())
        self.assertTrue(storage.same(DATA, found))
        self.assertEqual(http_place.sha256(DATA), digest)

    def refused(self, reason, *arguments):
        try:
            self.fetch(*arguments)
        except exception.CowError as error:
            self.assertIs(reason, error.reason, str(error))
            return
        raise AssertionError('it was fetched')

    def ranges(self):
        return [
            request.headers.get('Range') for request in self.server.requests
        ]

    def test_is_gone_afterwards(self):
        self.serve(DATA)
        with self.local():
            self.assertEqual(SIZE, self.place.kept()['.part'])
        self.assertEqual({}, self.place.kept())

    def lose(self, error=None):
        """Fetch to a disk that then fails to take what was written."""
        with storage.failing_disk() as (mount, fill):
            self.place = http_place.Place(mount)
            try:
                with self.local():
                    fill()
                    (part,) = self.place.scratch.rglob('*.part')
                    with contextlib.suppress(OSError), part.open('ab') as file:
                        os.fsync(file)
                    if error:
                        raise error
            finally:
                self.assertEqual({}, self.place.kept())

    def test_the_disk_loses_it(self):
        self.serve(DATA)
        error = self.assertRaises(exception.BackendError, self.lose)
        self.assertIs(Reason.SCRATCH_UNUSABLE, error.reason)

    def test_the_disk_loses_what_would_be_kept(self):
        self.serve(DATA)
        self.assertRaises(SystemExit, self.lose, SystemExit(130))

    @ddt.data({}, NOTHING_TELLS)
    def test_goes_on_with_what_was_kept(self, tells):
        hash_ = http_place.sha256(DATA) if tells else None
        self.serve(later(GONE, **tells))
        self.refused(Reason.SOURCE_FAILED, hash_)
        self.assertEqual(LATE, self.place.kept()['.part'])
        self.server.put('/image', Behaviour(DATA, **tells))
        self.fetch(hash_)
        # The head is looked at, and then what is missing comes.
        self.assertEqual([None, f'bytes={LATE}-'], self.ranges()[-2:])
        self.assertEqual({}, self.place.kept())

    def test_nothing_tells_that_it_is_the_same(self):
        self.serve(later(GONE, **NOTHING_TELLS))
        self.refused(Reason.SOURCE_FAILED)
        self.assertEqual({}, self.place.kept())

    def test_another_state_is_not_gone_on_with(self):
        self.serve(later(GONE, etag='"two"'))
        self.refused(Reason.SOURCE_FAILED)
        self.server.put('/image', DATA)
        self.fetch()
        # It may be that the first one comes back.
        self.assertEqual(LATE, self.place.kept()['.part'])

    def test_what_was_kept_is_wrong(self):
        hash_ = http_place.sha256(DATA)
        self.serve(later(GONE))
        self.refused(Reason.SOURCE_FAILED, hash_)
        (part,) = self.place.scratch.rglob('*.part')
        with part.open('r+b') as file:
            file.write(b'rotten')
        self.server.put('/image', DATA)
        self.fetch(hash_)

    def test_what_was_kept_is_too_long(self):
        self.serve(later(GONE))
        self.refused(Reason.SOURCE_FAILED)
        (part,) = self.place.scratch.rglob('*.part')
        with part.open('ab') as file:
            file.write(DATA)
        (lock,) = self.place.scratch.rglob('*.lock')
        with lock.open('r+b') as file:
            file.write(b'%020d' % part.stat().st_size)
        self.server.put('/image', DATA)
        self.fetch()

    def test_the_image_is_wrong(self):
        self.serve(OTHER)
        self.refused(Reason.HASH_MISMATCH, http_place.sha256(DATA))
        self.assertEqual({}, self.place.kept())

    def test_the_image_changed(self):
        self.serve(later(Behaviour(OTHER, etag='"two"')))
        self.place = http_place.Place(self.top, fetch_attempts=2)
        self.refused(Reason.IMAGE_CHANGED)
        self.assertEqual({}, self.place.kept())

    def test_is_kept_where_what_follows_fails(self):
        self.serve(DATA)
        for error, kept in (
            (exception.BackendError.because(
                Reason.CONVERSION_FAILED, image='', problem=''), True),
            (exception.BackendError.because(
                Reason.NO_SPACE, backend='', problem=''), False),
            (exception.ImageError.because(
                Reason.IMAGE_CORRUPT, image='', problem=''), False),
            (SystemExit(130), True),
        ):  # fmt: skip
            with contextlib.suppress(type(error)), self.local():
                raise error
            self.assertEqual(kept, bool(self.place.kept()), str(error))

    def test_no_turn(self):
        self.serve(DATA)
        settings = dataclasses.replace(
            self.place.settings, max_fetches=1, fetch_wait=0.3
        )
        self.place.settings = settings
        with scratch.Scratch(settings).turn():
            self.refused(Reason.BUSY)
            self.assertEqual({}, self.place.kept())
        self.fetch()

    def test_no_room(self):
        size = 2**62
        self.serve(Behaviour(DATA, content_length=lambda length: str(size)))
        self.refused(Reason.NO_SCRATCH_SPACE)
        self.assertEqual({}, self.place.kept())

    @ddt.data('/..%2F..%2Fetc', '/x%00%0A', '/' + 'y' * 1000, '/%FF')
    def test_a_hostile_path_is_no_path(self, path):
        self.serve(DATA)
        self.server.put(path, DATA)
        with self.local(path=path):
            (part,) = self.place.scratch.glob('cow-scratch-*/*.part')
            self.assertRegex(part.stem, '^[A-Za-z0-9-]{1,100}$')
