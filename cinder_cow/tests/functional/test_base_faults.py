# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while a base is made of an image on an HTTP server.

On a real Ceph, and on files with and without shared blocks. Each time there
is a clear error, nothing is published, nothing is left but what can be gone
on with; and then a good request makes a clone that has the right bytes.
"""

from concurrent import futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any
from unittest import mock

from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import http_source
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow.drivers import bases
from cinder_cow.drivers import file
from cinder_cow.drivers import file_sinks
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_writer
from cinder_cow.handlers import waiting
from cinder_cow.refusal import Reason
from cinder_cow.tests import base_requests
from cinder_cow.tests import forks
from cinder_cow.tests import green
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server
from cinder_cow.tests import rbd_case
from cinder_cow.tests import rbd_place
from cinder_cow.tests import storage
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break

SIZE = 8 * units.Mi
# Of it, what is there before something goes wrong.
LATE = 5 * units.Mi
# Of an image of which most has come.
LARGE = 64 * units.Mi
MOST = LARGE * 9 // 10
TIMEOUT = http_place.TIMEOUT
# As in test_http: all that an image is asked for, with two attempts each.
LIMIT = 4 * (2 * 2 * TIMEOUT + 1)
# Cases at once; they wait more than they work.
THREADS = 8
# A look at an image, with what the kernel holds for a client.
LOOK = 8 * units.Mi
KINDS = ('raw', 'qcow2')

image = functools.partial(http_place.image, size=SIZE)


class Requests(manager.CreateVolumeFromImageMixin):
    """Makes volumes of images at URLs."""

    def __init__(self, driver, scratch: pathlib.Path, **settings) -> None:
        self.driver = driver
        self.scratch = scratch
        self.settings = opts.Settings(
            **{
                'backend': driver.backend,
                'scratch_dir': str(scratch),
                'fetch_timeout': TIMEOUT,
                'fetch_attempts': http_place.ATTEMPTS,
                **settings,
            }
        )

    @contextlib.contextmanager
    def described(self, url, kind, hash_):
        location = image_location.parse(url)
        assert isinstance(location, image_location.HttpLocation)
        with http_source.HttpSource(
            location, self.settings, bool(hash_)
        ) as source:
            yield image_source.describe(source, kind, hash_), source

    def create(self, url, name='v1', kind='raw', hash_=None, progress=None):
        with self.described(url, kind, hash_) as (info, source):
            return self.create_volume_from_image(
                name, info, source, progress=progress
            )

    def key(self, url, kind='raw', hash_=None) -> bases.BaseKey:
        with self.described(url, kind, hash_) as (info, _source):
            key = bases.BaseKey.of(info)
        assert key is not None
        return key

    def is_right(self, name, expected):
        """Tell whether a volume has these bytes, and zeros behind them."""
        digest = hashlib.sha256()
        with self.driver.read(name) as reader:
            for start in range(0, len(expected), units.Mi):
                length = min(units.Mi, len(expected) - start)
                digest.update(reader.read(start, length))
            behind = reader.read(len(expected), units.Mi)
        return digest.digest() == hashlib.sha256(
            expected
        ).digest() and not behind.strip(b'\0')


@dataclasses.dataclass(frozen=True)
class Fault:
    """A server that misbehaves.

    :param serves: makes of an image, and another one, what it serves
    :param reason: that is told; None: the volume is made all the same
    :param hashed: the hash of the image is given, or that of the other one
    """

    name: str
    serves: Any
    reason: Reason | None = None
    hashed: str = ''


def after(later, **now):
    """Break the first answer, and answer otherwise from then on."""
    return lambda content, other: Behaviour(
        content,
        break_after=LATE,
        becomes=later(content, other),
        becomes_after=LATE,
        **now,
    )


def status(number, **options):
    return lambda content, other: Behaviour(
        content, statuses=(number,), ranges=False, **options
    )


def gone(number):
    return lambda content, other: Behaviour(status=number)


def changed(**options):
    return lambda content, other: Behaviour(other, etag='"two"', **options)


FAULTS = (
    Fault('a_range_ignored', after(status(0))),
    Fault('a_range_ignored_hashed', after(status(0)), hashed='its'),
    Fault('a_range_refused_400', after(status(400))),
    Fault('a_range_refused_416', after(status(416))),
    Fault(
        'wrong_hash',
        lambda content, other: content,
        Reason.HASH_MISMATCH,
        'another',
    ),
    Fault('changed', after(changed()), Reason.IMAGE_CHANGED),
    Fault('changed_hashed', after(changed()), Reason.IMAGE_CHANGED, 'its'),
    Fault(
        'changed_if_range_ignored',
        after(changed(if_range=False)),
        Reason.IMAGE_CHANGED,
    ),
    Fault(
        'changed_without_ranges',
        after(changed(ranges=False)),
        Reason.IMAGE_CHANGED,
    ),
    Fault(
        'changed_behind_one_etag',
        after(lambda content, other: Behaviour(other)),
        Reason.HASH_MISMATCH,
        'its',
    ),
    Fault(
        'body_cut_short',
        lambda content, other: Behaviour(
            content[:LATE],
            content_length=lambda _sent: str(len(content)),
            ranges=False,
        ),
        Reason.SOURCE_FAILED,
    ),
    Fault(
        'image_cut_short',
        lambda content, other: Behaviour(content[:LATE]),
        Reason.HASH_MISMATCH,
        'its',
    ),
    Fault(
        'one_byte_at_a_time',
        lambda content, other: Behaviour(
            content, break_after=LATE, break_how=Break.DRIP, ranges=False
        ),
        Reason.SOURCE_FAILED,
    ),
    Fault('deleted_404', after(gone(404)), Reason.IMAGE_NOT_FOUND),
    Fault('deleted_410', after(gone(410)), Reason.IMAGE_NOT_FOUND),
    Fault('denied', after(gone(403)), Reason.SOURCE_DENIED),
    Fault('down', after(gone(503)), Reason.SOURCE_FAILED),
)


class FaultsCase(test_base.BaseTestCase):
    """Has a back end; see ``Files`` and ``Rbd``."""

    kind = ''

    def set_up(self):
        self.top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, self.top)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        (self.top / 'scratch').mkdir()
        self.requests = self.requests_with()

    def requests_with(self, driver=None, **settings):
        return Requests(
            driver or self.driver, self.top / 'scratch', **settings
        )

    def serve(self, content=b''):
        self.server = self.stack.enter_context(
            http_server.Server({'/image': content})
        )
        return self.server.url('/image')

    def failed(self, reason, call, *args, **options):
        try:
            call(*args, **options)
        except exception.CowError as error:
            self.assertIs(reason, error.reason, str(error))
            return error
        raise AssertionError(f'{reason} was not raised')

    def scratch(self):
        """Name what is kept of images that are converted."""
        return sorted(
            path.name for path in self.requests.scratch.glob('*/*.part')
        )

    def assert_cloned(self, outcome, expected):
        self.assertEqual('base', outcome.method.value)
        name = outcome.volume.name
        self.assertIs(True, self.requests.is_right(name, expected))
        if self.has_parents:
            self.assertIn(outcome.volume.parent, outcome.location.split())

    def assert_nothing_published(self):
        # As the next command does.
        self.driver.sweep()
        self.assertEqual([], list(self.driver.list()))
        self.assertEqual([], list(self.driver.list_bases()))


class Files:
    """The file driver on a real file system; of ext4 clones are overlays."""

    def setUp(self: Any):
        super().setUp()  # type: ignore[misc]
        self.root = storage.directory(self.kind)
        self.addCleanup(shutil.rmtree, self.root)
        self.driver = file.FileDriver(self.root)
        self.has_parents = self.kind == 'ext4'
        self.set_up()

    def drafts(self: Any):
        """Name the bases that are half-made."""
        return sorted(os.listdir(self.root / 'cow-partial'))

    def others(self: Any):
        """Name what is left beside volumes, bases and drafts."""
        return [
            one.what
            for one in self.driver.orphans()
            if 'half-made' not in one.what
        ]

    def configured(self: Any):
        conf = self.top / 'cinder.conf'
        conf.write_text(
            f'[files]\ncow_driver = file\ncow_file_dir = {self.root}\n'
            f'cow_scratch_dir = {self.requests.scratch}\n'
            f'cow_fetch_attempts = 1\n'
        )
        return conf, 'files'


class Rbd:
    """The RBD driver, with objects that are smaller than the images."""

    kind = 'rbd'
    has_parents = True

    def setUp(self: Any):
        super().setUp()  # type: ignore[misc]
        settings = dataclasses.replace(self.driver._settings, order=20)
        self.driver = rbd.RbdDriver(settings, 'rbd1')
        self.set_up()

    def drafts(self: Any):
        with self.ioctx() as ioctx:
            return sorted(rbd_place._omap(ioctx, rbd_leases.OBJECT))

    def others(self: Any):
        volumes = [one.name for one in self.driver.list()]
        there = [one.name for one in self.driver.list_bases()]
        drafts = self.drafts()
        found = self.left(*volumes, *there, *drafts)
        return [one for one in found if not any(n in one for n in drafts)]

    def configured(self: Any):
        conf = self.top / 'cinder.conf'
        conf.write_text(
            f'[rbd1]\ncow_driver = rbd\nrbd_pool = {self.pool}\n'
            f'rbd_ceph_conf = {self.cluster.conf}\nrbd_user = admin\n'
            'rbd_store_chunk_size = 1\ncow_rbd_op_timeout = 5\n'
            f'cow_scratch_dir = {self.requests.scratch}\n'
            'cow_fetch_attempts = 1\n'
        )
        return conf, 'rbd1'


class Servers:
    """Each fault of a server, with a raw and with a qcow2 image."""

    def check(self: Any, kind):
        image(kind), image(kind, 1)
        with futures.ThreadPoolExecutor(THREADS) as pool:
            verdicts = list(
                pool.map(lambda fault: self.verdict(fault, kind), FAULTS)
            )
        wrong = {
            fault.name: verdict
            for fault, verdict in zip(FAULTS, verdicts, strict=True)
            if verdict
        }
        self.assertEqual({}, wrong)
        self.assertEqual([], self.drafts())
        self.assertEqual([], self.others())
        self.assertEqual([], self.scratch())

    def test_raw(self: Any):
        self.check('raw')

    def test_qcow2(self: Any):
        self.check('qcow2')

    def verdict(self: Any, fault, kind):
        """Tell what is wrong with what becomes of an image; '' if nothing."""
        content, other = image(kind), image(kind, 1)
        claims = {
            '': None,
            'its': http_place.sha256(content),
            'another': http_place.sha256(other),
        }
        claim = claims[fault.hashed]
        path = f'/{fault.name}'
        files = {path: fault.serves(content, other)}
        with http_server.Server(files) as server:
            url = server.url(path)
            begun = time.monotonic()
            reason: Reason | None = None
            said = 'it was made'
            try:
                made = self.requests.create(url, fault.name, kind, claim)
            except exception.CowError as error:
                reason, said = error.reason, str(error)
            except Exception as error:  # noqa: BLE001 - it is told
                return f'no error of ours: {error!r}'
            if reason is not fault.reason:
                return said
            if time.monotonic() - begun > LIMIT:
                return f'it took {time.monotonic() - begun:.1f} s'
            if reason:
                server.put(path, content)
                if wrong := self.left_wrong(url, fault, kind, claim):
                    return wrong
                if fault.hashed == 'another':
                    claim = http_place.sha256(content)
                made = self.requests.create(url, fault.name, kind, claim)
        if made.method.value != 'base' or not made.base_made:
            return f'then it was made by {made.candidate}'
        if self.has_parents and not made.volume.parent:
            return 'then it was no clone'
        right = self.requests.is_right(fault.name, image('raw'))
        return '' if right else 'other bytes'

    def left_wrong(self: Any, url, fault, kind, claim):
        """Tell what is there of what was refused, and must not be."""
        if self.driver.exists(fault.name):
            return 'there is a volume'
        key = self.requests.key(url, kind, claim)
        if self.driver.find_base(key):
            return 'there is a base'
        is_kept = kind == 'raw' and fault.reason is Reason.SOURCE_FAILED
        if is_kept is not (key.name in self.drafts()):
            return f'kept: {not is_kept}'
        return ''


class TestServersRbd(Servers, Rbd, FaultsCase, rbd_case.FaultCase):
    pass


class TestServersXfs(Servers, Files, FaultsCase):
    kind = 'xfs'


class TestServersExt4(Servers, Files, FaultsCase):
    kind = 'ext4'


class Deaths:
    """A server, or a maker, dies where most of an image has come."""

    def setUp(self: Any):
        super().setUp()  # type: ignore[misc]
        self.content = http_place.image('raw', 7, LARGE)
        self.hash = http_place.sha256(self.content)

    def serve_most(self: Any, how=Break.RESET):
        return self.serve(
            Behaviour(
                self.content,
                break_after=MOST,
                break_how=how,
                becomes=Behaviour(status=503),
                becomes_after=MOST,
            )
        )

    def ordered(self: Any, children, url, **options):
        conf, backend = self.configured()
        return children.order(
            base_requests.Request(
                str(conf), backend, url, self.hash, 'raw', 'v1', units.Gi,
                **options,
            )
        )  # fmt: skip

    def go_on(self: Any, url, lost=0):
        """Have the server back; the next request takes what is missing.

        :param lost: bytes that had come and were not kept, at most
        """
        sent = self.server.bytes_sent('/image')
        self.assert_nothing_published()
        key = self.info(url)
        self.assertEqual([key.name], self.drafts())
        self.server.put('/image', self.content)
        with self.requests.described(url, 'raw', self.hash) as (_, source):
            info = self.request_info(url)
            outcome = self.requests.create_volume_from_image(
                'v1', info, source, units.Gi
            )
        sent = self.server.bytes_sent('/image')
        self.assert_cloned(outcome, self.content)
        self.assertLess(sent, LARGE * 1.2 + lost)
        self.assertEqual([], self.drafts())
        self.assertEqual([], self.others())

    def request_info(self: Any, url) -> images.ImageInfo:
        request = base_requests.Request(
            '', '', url, self.hash, 'raw', '', units.Gi
        )
        return request.info()

    def info(self: Any, url) -> bases.BaseKey:
        key = bases.BaseKey.of(self.request_info(url))
        assert key is not None
        return key

    def test_the_server_dies(self: Any):
        url = self.serve_most()
        with self.requests.described(url, 'raw', self.hash) as (_, source):
            self.failed(
                Reason.SOURCE_FAILED,
                self.requests.create_volume_from_image,
                'v1',
                self.request_info(url),
                source,
                units.Gi,
            )
        self.go_on(url)

    def test_the_server_of_another_process_dies(self: Any):
        url = self.serve_most()
        with forks.Forks('cinder_cow.tests.base_requests') as children:
            told = children.told(self.ordered(children, url))
        self.assertEqual(Reason.SOURCE_FAILED.value, told['reason'], told)
        self.go_on(url)

    def test_no_ranges_afterwards(self: Any):
        """What is kept is of use only where the server gives the rest."""
        content = image('raw')
        hash_ = http_place.sha256(content)
        for number, status_ in enumerate((0, 400, 416, 501)):
            path = f'/{number}'
            url = self.serve().removesuffix('/image') + path
            self.server.put(path, after(gone(503))(content, b''))
            create = functools.partial(
                self.requests.create, url, f'v{number}', 'raw', hash_
            )
            self.failed(Reason.SOURCE_FAILED, create)
            self.assertEqual(1, len(self.drafts()))
            # The first request is for its head.
            self.server.put(
                path, Behaviour(content, statuses=(0, status_), ranges=False)
            )
            self.assert_cloned(create(), content)
            asked = [
                request.headers.get('Range')
                for request in self.server.requests_for(path)
            ]
            self.assertNotEqual([None] * len(asked), asked)
            self.assertEqual([], self.drafts())

    def test_another_process_is_killed(self: Any):
        url = self.serve_most(Break.STALL)
        with forks.Forks('cinder_cow.tests.base_requests') as children:
            child = self.ordered(children, url, pause=self.pause)
            self.wait_until_it_waits(url)
            child.send(signal.SIGKILL)
            child.wait()
            self.go_on(url, self.lost)

    def wait_until_it_waits(self: Any, url):
        deadline = time.monotonic() + 60
        done, since = 0, time.monotonic()
        while not done or time.monotonic() < since + 2:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.2)
            if (now := self.done(url)) != done:
                done, since = now, time.monotonic()

    def done(self: Any, url):
        """Tell how far the other process is, as it tells."""
        begun = self.driver.begin_base(self.info(url), LARGE)
        if isinstance(begun, bases.Making):
            return begun.progress.done
        begun.abort()  # it has not begun yet
        return 0


class TestDeathsRbd(Deaths, Rbd, FaultsCase, rbd_case.FaultCase):
    pause = 0.08
    # What is under way, or is none of a whole object; and what is kept is
    # told twice a second.
    lost = 4 * rbd_writer.PIECE


class TestDeathsXfs(Deaths, Files, FaultsCase):
    kind = 'xfs'
    pause = 0.01
    # Storage is slow to say that it has something for good.
    lost = file_sinks.SYNC_STEP


class TestDeathsExt4(TestDeathsXfs):
    kind = 'ext4'


class Full:
    """No space is left while a base is made, or anything else of its kind."""

    def check(self: Any, kind, phase, **settings):
        content = image(kind)
        url = self.serve(content)
        self.requests = self.requests_with(**settings)
        filled = self.stack.enter_context(contextlib.ExitStack())

        def fill(now, done, total):
            if now == phase and done > total / 4 and not self.is_filled:
                self.is_filled = True
                filled.enter_context(self.full())

        self.is_filled = False
        error = self.assertRaises(
            exception.CowError, self.requests.create, url, 'v1', kind,
            progress=fill,
        )  # fmt: skip
        self.assertTrue(self.is_filled)
        self.assertIn(f'({Reason.NO_SPACE.value})', str(error))
        filled.close()
        self.assert_nothing_published()
        self.assertEqual([], self.drafts())
        self.assertEqual([], self.others())
        outcome = self.requests_with().create(url, 'v1', kind)
        self.assert_cloned(outcome, image('raw'))
        return error

    def test_raw(self: Any):
        error = self.check('raw', 'streaming')
        self.assertIs(Reason.NO_SPACE, error.reason)

    def test_qcow2(self: Any):
        error = self.check('qcow2', 'fetching')
        self.assertIs(Reason.NO_SPACE, error.reason)

    def test_a_copy_is_forbidden(self: Any):
        error = self.check('raw', 'streaming', cow_fallback='refuse')
        self.assertIn(f'({Reason.FALLBACK_REFUSED.value})', str(error))


class TestFullRbd(Full, Rbd, FaultsCase, rbd_case.FaultCase):
    def setUp(self):
        super().setUp()
        self.driver = self.quick()
        self.requests = self.requests_with()

    def quick(self):
        settings = self.driver._settings
        cluster = dataclasses.replace(settings.cluster, op_timeout=2)
        return rbd.RbdDriver(
            dataclasses.replace(settings, cluster=cluster), 'rbd1'
        )


class FullFiles(Files):
    """A file system that is not larger than it need be."""

    def setUp(self: Any):
        with mock.patch.object(storage, 'directory', self.mounted):
            super().setUp()

    def mounted(self: Any, kind):
        mounted = contextlib.ExitStack()
        self.addCleanup(mounted.close)
        size = {'ext4': 64, 'xfs': 320}[kind] * units.Mi
        self.mount = mounted.enter_context(storage.mounted(kind, size))
        root = self.mount / 'volumes'
        root.mkdir()
        return root

    @contextlib.contextmanager
    def full(self: Any):
        filler = self.mount / 'filler'
        with filler.open('wb', buffering=0) as file_:
            for size in (units.Mi, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        self.fill(file_, size)
        try:
            yield
        finally:
            filler.unlink()

    def fill(self, file_, size):
        if file_.write(bytes(size)) < size:
            raise OSError(errno.ENOSPC, 'full')


class TestFullExt4(Full, FullFiles, FaultsCase):
    kind = 'ext4'


class TestFullXfs(Full, FullFiles, FaultsCase):
    kind = 'xfs'


class Policy:
    """What follows where a base cannot be made."""

    def setUp(self: Any):
        super().setUp()  # type: ignore[misc]
        self.url = self.serve(image('raw'))

    @contextlib.contextmanager
    def held(self: Any):
        """Have another maker at the base, who goes on for long."""
        key = self.requests.key(self.url)
        with self.driver.begin_base(key, SIZE) as writer:
            yield writer

    def test_a_copy_follows_and_says_why(self: Any):
        with self.held():
            outcome = self.requests_with(base_wait=0.3).create(self.url)
        self.assertEqual('stream', outcome.method.value)
        (failed,) = [one for one in outcome.failures if one.tried]
        self.assertIs(Reason.BUSY, failed.refusal.reason)
        self.assertIs(True, self.requests.is_right('v1', image('raw')))
        self.assertEqual([], list(self.driver.list_bases()))
        self.assertEqual([], self.drafts())
        self.assertEqual([], self.others())

    def test_no_copy_where_it_is_forbidden(self: Any):
        requests = self.requests_with(base_wait=0.3, cow_fallback='refuse')
        with self.held():
            error = self.assertRaises(
                exception.CowError, requests.create, self.url
            )
        for reason in Reason.BUSY, Reason.FALLBACK_REFUSED:
            self.assertIn(f'({reason.value})', str(error))
        self.assert_nothing_published()
        self.assertEqual([], self.drafts())

    def test_a_bad_image_is_not_copied(self: Any):
        self.failed(
            Reason.HASH_MISMATCH,
            self.requests.create,
            self.url,
            hash_=http_place.sha256(image('raw', 1)),
        )
        self.assertEqual(1, self.downloads())
        self.assert_nothing_published()
        self.assertEqual([], self.drafts())

    def downloads(self: Any):
        """Count the requests by which all of it was sent."""
        requests = self.server.requests_for('/image')
        return sum(one.sent >= SIZE for one in requests)


class TestPolicyRbd(Policy, Rbd, FaultsCase, rbd_case.FaultCase):
    pass


class TestPolicyExt4(Policy, Files, FaultsCase):
    kind = 'ext4'


class Waiting:
    """Who is at a base, and who waits for it, in one process."""

    def setUp(self: Any):
        super().setUp()  # type: ignore[misc]
        self.url = self.serve(image('raw'))
        self.threads = futures.ThreadPoolExecutor(16)
        self.addCleanup(self.threads.shutdown)
        self.addCleanup(lambda: self.assertEqual({}, waiting._queues))

    def assert_made(self: Any, requests=None, **options):
        outcome = (requests or self.requests).create(self.url, **options)
        self.assert_cloned(outcome, image('raw'))
        self.assertEqual([], self.drafts())
        self.assertEqual([], self.others())
        return outcome

    @contextlib.contextmanager
    def stopped(self: Any, url=None):
        """Have a thread at the base of an image; it goes on at the end."""
        begun, go_on = threading.Event(), threading.Event()

        def report(phase, done, total):
            if done > SIZE / 2:
                begun.set()
                assert go_on.wait(60)

        made = self.threads.submit(
            self.requests.create, url or self.url, 'first', progress=report
        )
        self.assertIs(True, begun.wait(60))
        try:
            yield made
        finally:
            go_on.set()
            made.exception()

    def test_a_report_that_raises(self: Any):
        for error in (RuntimeError, KeyboardInterrupt):

            def report(phase, done, total, error=error):
                if done > SIZE / 2:
                    raise error

            self.assertRaises(
                error, self.requests.create, self.url, progress=report
            )
            self.assert_nothing_published()
            # What was written is kept.
            key = self.requests.key(self.url)
            self.assertEqual([key.name], self.drafts())
        sent = self.server.bytes_sent('/image')
        self.assert_made()
        self.assertLess(self.server.bytes_sent('/image') - sent, LOOK + SIZE)

    def test_a_report_that_raises_while_it_waits(self: Any):
        def report(phase, done, total):
            self.assertIn('waiting', phase)
            raise KeyboardInterrupt

        with self.stopped() as first:
            self.assertRaises(
                KeyboardInterrupt,
                self.requests.create,
                self.url,
                progress=report,
            )
        self.assertTrue(first.result().base_made)
        self.assertFalse(self.assert_made().base_made)

    def publishing(self: Any, wrap):
        begin = self.driver.begin_base

        def begun(key, size):
            writer = begin(key, size)
            writer.publish = functools.partial(wrap, writer.publish)
            return writer

        return mock.patch.object(self.driver, 'begin_base', begun)

    def test_an_interrupt_before_it_is_published(self: Any):
        def publish(publish, facts):
            raise KeyboardInterrupt

        with self.publishing(publish):
            self.assertRaises(
                KeyboardInterrupt, self.requests.create, self.url
            )
        self.assert_nothing_published()
        self.assertTrue(self.assert_made().base_made)

    def test_an_interrupt_when_it_was_published(self: Any):
        def publish(publish, facts):
            publish(facts)
            raise KeyboardInterrupt

        with self.publishing(publish):
            self.assertRaises(
                KeyboardInterrupt, self.requests.create, self.url
            )
        self.assertEqual([], list(self.driver.list()))
        self.assertFalse(self.assert_made().base_made)

    def test_leaving_that_fails_hides_no_error(self: Any):
        raised: list[str] = []

        def report(phase, done, total):
            if done > SIZE / 2 and not raised:
                raised.append(phase)
                raise KeyboardInterrupt

        begin = self.driver.begin_base

        def begun(key, size):
            writer = begin(key, size)
            leave = writer.leave

            def fail():
                leave()
                raise exception.BackendError.because(
                    Reason.BACKEND_ERROR, backend='x', problem='y'
                )

            writer.leave = fail
            return writer

        with mock.patch.object(self.driver, 'begin_base', begun):
            self.assertRaises(
                KeyboardInterrupt,
                self.requests.create,
                self.url,
                progress=report,
            )
        self.assert_made()

    def test_a_driver_that_fails_to_begin(self: Any):
        errors = [
            RuntimeError('a bug'),
            exception.BackendError.because(
                Reason.BACKEND_ERROR, backend='x', problem='y'
            ),
        ]
        begin = self.driver.begin_base

        def begun(key, size):
            time.sleep(0.05)
            if errors:
                raise errors.pop()
            return begin(key, size)

        requests = self.requests_with(cow_fallback='refuse')
        with mock.patch.object(self.driver, 'begin_base', begun):
            made = [
                self.threads.submit(requests.create, self.url, f'w{number}')
                for number in range(4)
            ]
            failed = [one.exception() for one in made if one.exception()]
        self.assertEqual(2, len(failed), failed)
        self.assertEqual(2, len(list(self.driver.list())))
        self.assert_made()

    def test_who_waits_has_no_fetch(self: Any):
        # The other one fetches nothing, for it is of another process.
        requests = self.requests_with(max_fetches=1)
        self.server.put('/other', image('raw', 1))
        key = self.requests.key(self.url)
        with self.driver.begin_base(key, SIZE):
            told = threading.Event()
            waits = self.threads.submit(
                requests.create, self.url, progress=lambda *_: told.set()
            )
            self.assertIs(True, told.wait(60))
            other = requests.create(self.server.url('/other'), 'other')
            self.assertIs(False, waits.done())
        self.assertTrue(other.base_made)
        self.assertTrue(waits.result().base_made)
        self.assertIs(True, self.requests.is_right('other', image('raw', 1)))

    def test_what_was_kept_outlives_one_who_gets_no_fetch(self: Any):
        content = image('raw')
        self.server.put(
            '/image',
            Behaviour(
                content,
                break_after=LATE,
                becomes=Behaviour(status=503),
                becomes_after=LATE,
            ),
        )
        self.failed(Reason.SOURCE_FAILED, self.requests.create, self.url)
        drafts = self.drafts()
        self.assertEqual(1, len(drafts))
        self.server.put('/image', content)
        self.server.put('/other', image('raw', 1))
        requests = self.requests_with(
            max_fetches=1, fetch_wait=0.2, cow_fallback='refuse'
        )
        with self.stopped_fetch(requests):
            error = self.assertRaises(
                exception.CowError, requests.create, self.url
            )
            self.assertIn(f'({Reason.BUSY.value})', str(error))
            self.assertIs(True, set(drafts) < set(self.drafts()))
        self.assert_made()

    def test_a_bad_image_is_fetched_once_for_all_who_wait(self: Any):
        # Of a small one, the kernel holds all for those who only look.
        content = http_place.image('raw', 3, LARGE)
        self.server.put('/large', content)
        url = self.server.url('/large')
        waiting_ = set()
        all_wait = threading.Event()

        def report(phase, done, total):
            if 'waiting' not in phase:
                if done > LARGE / 2:
                    assert all_wait.wait(60)
                return
            waiting_.add(threading.get_ident())
            if len(waiting_) == 7:
                all_wait.set()

        hash_ = http_place.sha256(image('raw', 1))
        made = [
            self.threads.submit(
                self.requests.create, url, f'v{number}', 'raw', hash_,
                report,
            )
            for number in range(8)
        ]  # fmt: skip
        for one in made:
            self.failed(Reason.HASH_MISMATCH, one.result)
        sent = [
            one.sent
            for one in self.server.requests_for('/large')
            if one.sent > LARGE / 2
        ]
        self.assertEqual([LARGE], sent)
        self.assert_nothing_published()
        # Who asks anew has it fetched anew.
        made = self.requests.create(
            url, 'v1', 'raw', http_place.sha256(content)
        )
        self.assert_cloned(made, content)

    @contextlib.contextmanager
    def stopped_fetch(self: Any, requests):
        usual, self.requests = self.requests, requests
        try:
            with self.stopped(self.server.url('/other')):
                self.requests = usual
                yield
        finally:
            self.requests = usual

    def test_many_images_at_once(self: Any):
        requests = self.requests_with(max_fetches=2)
        numbers = range(12)
        for number in numbers:
            self.server.put(f'/{number}', image('raw', number % 2))

        def make(number):
            url = self.server.url(f'/{number}')
            return requests.create(url, f'v{number}')

        outcomes = list(self.threads.map(make, numbers))
        for number, outcome in zip(numbers, outcomes, strict=True):
            self.assertTrue(outcome.base_made)
            self.assert_cloned(outcome, image('raw', number % 2))
        self.assertEqual([], self.drafts())
        self.assertEqual([], self.others())

    def test_a_fork_waits_for_no_thread_of_its_parent(self: Any):
        with self.stopped():
            child = os.fork()
            if not child:
                status = 1
                with contextlib.suppress(BaseException):
                    key = bases.BaseKey('of the fork', 'x')
                    there = list(waiting._queues)
                    with waiting.turn(
                        self.driver.backend,
                        self.requests.key(self.url).name,
                        lambda: self.driver.begin_base(key, SIZE),
                        10,
                        lambda _who: None,
                    ) as turn:
                        found: Any = turn.found
                        found.abort()
                    status = len(there) + len(waiting._queues)
                os._exit(status)
            _pid, status = os.waitpid(child, 0)
        self.assertEqual(0, os.waitstatus_to_exitcode(status))


class TestWaitingRbd(Waiting, Rbd, FaultsCase, rbd_case.FaultCase):
    pass


class TestWaitingExt4(Waiting, Files, FaultsCase):
    kind = 'ext4'

    def test_two_back_ends_do_not_wait_for_each_other(self):
        root = storage.directory('xfs')
        self.addCleanup(shutil.rmtree, root)
        other = self.requests_with(file.FileDriver(root, 'other'))
        with self.stopped() as first:
            made = self.threads.submit(other.create, self.url, 'other')
            self.assertTrue(made.result(30).base_made)
            self.assertIs(False, first.done())


class TestGreen(Rbd, FaultsCase, rbd_case.FaultCase):
    """One base for many green threads, as those of cinder-volume are."""

    THREADS = 20

    def test_raw(self):
        self.check('raw')

    def test_qcow2(self):
        self.check('qcow2')

    def check(self, kind):
        content = http_place.image(kind, 3, LARGE)
        url = self.serve(content)
        conf, backend = self.configured()
        facts = {
            'conf': str(conf),
            'backend': backend,
            'url': url,
            'hash': http_place.sha256(content),
            'kind': kind,
            'threads': self.THREADS,
        }
        done = subprocess.run(
            [sys.executable, '-c', GREEN, json.dumps(facts)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PYTHONPATH': os.pathsep.join(sys.path),
                'PYTHONWARNINGS': 'ignore',
            },
            timeout=green.LIMIT,
            check=False,
        )
        self.assertEqual(0, done.returncode, done.stderr[-5000:])
        answer = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual(
            ['found'] * (self.THREADS - 1) + ['made'], answer['answers']
        )
        # Others had their turns all the time.
        self.assertLess(answer['longest'], 1.0, answer)
        self.assertGreater(answer['ticks'], answer['seconds'], answer)
        downloads = [
            one.sent
            for one in self.server.requests_for('/image')
            if one.sent > LARGE / 2
        ]
        self.assertEqual([len(content)], downloads)
        (made,) = self.driver.list_bases()
        names = [f'v{number}' for number in range(self.THREADS)]
        self.assertEqual(sorted(names), sorted(self.driver.children(made, 99)))
        for name in names[:3]:
            disk = http_place.image('raw', 3, LARGE)
            self.assertIs(True, self.requests.is_right(name, disk))
        self.assertEqual([], self.left(made.name, *names))


# As oslo.service does, before anything else is imported.
GREEN = f"""
import eventlet
eventlet.monkey_patch()
import json, sys
from {__name__} import green_requests
print(json.dumps(green_requests(**json.loads(sys.argv[1]))), flush=True)
"""


def green_requests(conf, backend, url, hash, kind, threads):
    """Make volumes of one image by green threads, all at once."""

    def work(number: int) -> str:
        request = base_requests.Request(
            conf, backend, url, hash, kind, f'v{number}', units.Gi
        )
        told = base_requests.do(request)
        assert told['method'] == 'base', told
        return 'made' if told['made'] else 'found'

    return green._ticking(work, threads)
