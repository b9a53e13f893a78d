# SPDX-License-Identifier: Apache-2.0
"""Volumes from images of a real Glance, and what Glance may do to us.

One Glance serves all tests of a process. Where something is to happen in the
middle of a download, a forwarder of the test stands before it.
"""

import atexit
from concurrent import futures
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from unittest import mock
from urllib import parse
import uuid

import ddt
import fixtures
from keystoneauth1 import exceptions as ksa_errors
from keystoneauth1 import identity
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import glance as glances
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import plan as plans
from cinder_cow.drivers import file
from cinder_cow.refusal import Reason
from cinder_cow.tests import corpus
from cinder_cow.tests import program
from cinder_cow.tests import services
from cinder_cow.tests import storage

MEMBER = 'alice:p1:member'
READER = 'rita:p1:reader'
OTHER = 'bob:p2:member'
ADMIN = 'root:p0:admin'
MEMBER_AND_SERVICE = 'cinder:p1:member,service'
# Of no Glance.
NOWHERE = '5c8f1a6e-7c0b-4bb0-8b6e-0f8a6d3c1b11'
# More than Glance, a forwarder and two kernels hold in their buffers.
LARGE = 32 * units.Mi
SECRET = 'sesame'
_STAMPS = itertools.count(10, 10)
# The rules that tests change, as they are without a file: Glance keeps one
# that goes from the file until it is started again.
_POLICY = {
    'download_image': 'role:admin or role:member',
    'fetch_image_location': 'role:admin or role:service',
}


@functools.cache
def shared():
    """Return a Glance, started once per process (3 s)."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(started())


@contextlib.contextmanager
def started(**options):
    with (
        tempfile.TemporaryDirectory(prefix='cow-test-', dir='/var/tmp') as top,
        services.Glance(pathlib.Path(top) / 'glance', **options) as found,
    ):
        yield found


def start_again(glance):
    """Start a Glance that was killed, on the port that it had."""
    port = parse.urlsplit(glance.url).port
    with _listener(port) as listener:
        glance._start(services.environment_of_services(), listener.fileno())
    glance._wait()


def _listener(port):
    deadline = time.monotonic() + program.LIMIT
    while True:
        try:
            return socket.create_server(('127.0.0.1', port))
        except OSError:
            # Its worker dies a little later than what was waited for.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def set_record(glance, image_id, **fields):
    """Set what Glance lets nobody set."""
    database = sqlite3.connect(glance.directory / 'glance.sqlite')
    with contextlib.closing(database), database:
        for name, value in fields.items():
            database.execute(
                f'UPDATE images SET {name} = ? WHERE id = ?',
                (value, image_id),
            )


class Forwarder:
    """Stands before Glance; a context manager.

    :param steps: for each download in turn, after how many of its bytes
        something is done, and what; it ends the connection by returning true
    :ivar sizes: the bytes of each download that were passed on
    """

    def __init__(self, glance, *steps):
        self._address = ('127.0.0.1', parse.urlsplit(glance.url).port)
        self._steps = list(steps)
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.url = f'http://127.0.0.1:{self._listener.getsockname()[1]}'
        self.sizes: list[int] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_exc_info):
        # A thread that waits in accept() is woken by this alone.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client):
        # Where Glance or its client is gone, so is the connection.
        with client, contextlib.suppress(OSError):
            request = client.recv(64 * units.Ki)
            with socket.create_connection(self._address) as server:
                server.sendall(request)
                self._pass_on(request, server.makefile('rb'), client)

    def _pass_on(self, request, answer, client):
        head = b''.join(iter(answer.readline, b'\r\n')) + b'\r\n'
        client.sendall(head)
        if b'/file ' not in request.partition(b'\r\n')[0]:
            client.sendall(answer.read())
            return
        number = len(self.sizes)
        self.sizes.append(0)
        limit, act = self._steps.pop(0) if self._steps else (None, None)
        while piece := answer.read1(
            units.Mi if limit is None else min(units.Mi, limit)
        ):
            client.sendall(piece)
            self.sizes[number] += len(piece)
            if limit is None:
                continue
            limit -= len(piece)
            if not limit:
                if act and act():
                    return
                limit = None


def held():
    """Tell the threads of this process, and what it has open."""
    files = set()
    for number in os.listdir('/proc/self/fd'):
        # That of the listing itself is gone.
        with contextlib.suppress(FileNotFoundError):
            files.add(os.readlink(f'/proc/self/fd/{number}'))
    return set(threading.enumerate()), files


class GlanceTestCase(test_base.BaseTestCase):
    """Has a Glance, a back end on files, and nothing left after it."""

    def setUp(self):
        super().setUp()
        self.glance = shared()
        self.top = pathlib.Path(
            tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        )
        self.addCleanup(shutil.rmtree, self.top)
        # Of tests before: of a cluster, for instance.
        self.addCleanup(self.assert_nothing_held, *held())
        self.driver = file.FileDriver(self.top / 'volumes')
        self.settings = opts.Settings(
            backend='file',
            scratch_dir=str(self.top),
            fetch_timeout=5,
            fetch_attempts=2,
        )
        self.count = 0

    def assert_nothing_held(self, threads, files):
        """Check for connections to Glance and threads: all had their time."""
        deadline = time.monotonic() + program.LIMIT
        while held()[0] - threads and time.monotonic() < deadline:
            time.sleep(0.01)
        now, open_now = held()
        self.assertEqual(set(), now - threads)
        for found in open_now - files:
            self.assertNotIn(str(self.top), found)
            self.assertFalse(found.startswith('socket:'), found)

    # Glance

    def private(self, data=None, disk_format='raw', **options):
        return self.glance.create(
            disk_format,
            data=data,
            token=MEMBER,
            visibility='private',
            **options,
        )

    def image_file(self, disk_format, data, *options):
        """Make an image file of another format."""
        self.count += 1
        raw = self.top / f'{self.count}.raw'
        raw.write_bytes(data)
        path = raw.with_suffix(f'.{disk_format}')
        subprocess.run(
            ['qemu-img', 'convert', '-f', 'raw', '-O', disk_format, *options,
             raw, path], check=True,
        )  # fmt: skip
        return path

    def set_policy(self, **rules):
        """Change rules of Glance for the rest of the test."""
        self.addCleanup(self.write_policy, json.dumps(_POLICY))
        self.write_policy(json.dumps({**_POLICY, **rules}))

    def write_policy(self, text):
        path = self.glance.directory / 'policy.json'
        path.write_text(text)
        # Glance reads it again where its time is later than it was.
        stamp = path.stat().st_mtime + next(_STAMPS)
        os.utime(path, (stamp, stamp))

    def lose(self, image_id, store='file1'):
        self.glance.data_path(image_id, store).unlink()

    def sizes(self, image_id):
        return [d.size for d in self.glance.downloads(image_id)]

    # Us

    def set_user(self, token, url=None):
        environment = self.glance.environment(token)
        if url:
            environment = {
                name: value.replace(self.glance.url, url)
                for name, value in environment.items()
            }
        self.set_environment(environment)

    def set_environment(self, environment):
        for name in [n for n in os.environ if n.startswith('OS_')]:
            self.useFixture(fixtures.EnvironmentVariable(name))
        for name, value in environment.items():
            self.useFixture(fixtures.EnvironmentVariable(name, value))

    @contextlib.contextmanager
    def opened(self, image_id, token=MEMBER, url=None):
        """Give the manager, the image and its source, as a command does."""
        self.set_user(token, url)
        with glances.Glance.of_cloud(None, self.settings) as client:
            image = client.image(image_id)
            with client.source(image) as source:
                yield Manager(self.driver, self.settings), image, source

    def image(self, image_id, token=MEMBER):
        with self.opened(image_id, token) as (_, image, _):
            return image

    def plan(self, image_id, token=MEMBER):
        with self.opened(image_id, token) as (ours, image, source):
            return ours.plan_volume_from_image(image, source)

    def create(self, image_id, token=MEMBER, url=None):
        self.count += 1
        with self.opened(image_id, token, url) as (ours, image, source):
            return ours.create_volume_from_image(
                f'v{self.count}', image, source
            )

    def set(self, **settings):
        known = {
            name: getattr(self.settings, name)
            for name in self.settings.__slots__
        }
        self.settings = opts.Settings(**{**known, **settings})

    def refused(self, reason, *arguments, **options):
        return self.refused_as({reason}, *arguments, **options)

    def refused_as(self, reasons, image_id, *arguments, **options):
        """Create; it must be refused, and leave nothing. Return the error."""
        before = self.left()
        try:
            self.create(image_id, *arguments, **options)
        except exception.CowError as error:
            self.assertIn(error.reason, reasons, str(error))
            self.assertNotIn('\n', str(error))
            left = self.left()
            if error.reason is Reason.SOURCE_FAILED:
                # The next maker goes on with that.
                draft = '/cow-partial/cow-base-'
                left = [one for one in left if draft not in one]
            self.assertEqual(before, left)
            return str(error)
        raise AssertionError(f'none of {reasons} was raised')

    def left(self):
        """Tell what lies in the back end and in the scratch directory."""
        found = [*(self.top / 'volumes').rglob('*')]
        found += self.top.glob('cow-scratch-*/*.part')
        return sorted(map(str, found))

    def assert_holds(self, data, outcome):
        with self.driver.read(outcome.volume.name) as reader:
            found = reader.read(0, len(data))
            end = min(units.Mi, reader.size - len(data))
            rest = reader.read(len(data), end)
        self.assertTrue(storage.same(data, found))
        self.assertFalse(any(rest))


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver, settings):
        self.driver = driver
        self.settings = settings


@ddt.ddt
class TestVolumes(GlanceTestCase):
    def test_the_record(self):
        data = corpus.noise(units.Mi)
        image_id = self.private(data, min_disk=2, cow='yes')
        image = self.image(image_id)
        record = self.glance.record(image_id)
        self.assertEqual(
            (image_id, 'image', 'raw', units.Mi, 2 * units.Gi, 'active', 'p1'),
            (image.id, image.name, image.disk_format, image.size,
             image.min_disk, image.status, image.owner),
        )  # fmt: skip
        self.assertEqual('yes', image.properties['cow'])
        self.assertEqual('sha512', image.os_hash_algo)
        digest = hashlib.sha512(data).hexdigest()
        self.assertEqual(digest, image.os_hash_value)
        self.assertEqual(f'glance:{record["created_at"]}', image.content_id)

    @ddt.data('raw', 'qcow2', 'vmdk', 'iso')
    def test_volumes(self, disk_format):
        data = corpus.noise(5 * units.Mi)
        if disk_format in {'raw', 'iso'}:
            if disk_format == 'iso':
                corpus._iso(self.top / 'iso')
                data = (self.top / 'iso').read_bytes()
            image_id = self.private(data, disk_format)
        else:
            options = ['-o', 'subformat=streamOptimized']
            path = self.image_file(
                disk_format, data, *options[: 2 * (disk_format == 'vmdk')]
            )
            image_id = self.private(path.read_bytes(), disk_format)
        first = self.create(image_id)
        self.assertTrue(first.base_made)
        self.assertTrue(first.verified.startswith('sha512:'))
        self.assert_holds(data, first)
        second = self.create(image_id)
        told = (second.candidate.kind, second.base_made, second.bytes_copied)
        self.assertEqual((plans.Kind.CLONE_BASE, False, 0), told)
        self.assertEqual(first.verified, second.verified)
        self.assert_holds(data, second)

    def test_one_download(self):
        image_id = self.private(corpus.noise(LARGE))
        self.create(image_id)
        # What the plan saw is not asked for again.
        self.assertEqual([LARGE], self.sizes(image_id))

    def test_the_second_volume_downloads_one_byte(self):
        image_id = self.private(corpus.noise(2 * units.Mi))
        self.create(image_id)
        known = self.sizes(image_id)
        self.plan(image_id)
        self.create(image_id)
        # To see whether it may be read; by the plan, and by the volume.
        self.assertEqual([*known, 1, 1], self.sizes(image_id))

    def test_it_takes_no_time_to_ask(self):
        # A connection of ours that was half open made Glance wait for 2 s,
        # each time.
        image_id = self.private(b'\0' * units.Mi)
        times = []
        for _ in range(5):
            begun = time.monotonic()
            self.image(image_id)
            times.append(time.monotonic() - begun)
        self.assertLess(min(times), 2)

    def test_a_virtual_size_is_no_fact(self):
        path = self.image_file('qcow2', corpus.noise(units.Mi))
        image_id = self.private(path.read_bytes(), 'qcow2')
        set_record(self.glance, image_id, virtual_size=7 * units.Gi)
        outcome = self.create(image_id)
        self.assertEqual(units.Gi, outcome.volume.size)

    def test_min_disk(self):
        image_id = self.private(corpus.noise(units.Mi), min_disk=3)
        self.assertEqual(3 * units.Gi, self.create(image_id).volume.size)

    @ddt.data(units.Mi - 512, 2 * units.Mi)
    def test_a_size_that_is_wrong(self, size):
        image_id = self.private(corpus.noise(units.Mi))
        set_record(self.glance, image_id, size=size)
        # Glance promises the size of its record, and sends the file.
        error = self.refused_as(
            {Reason.IMAGE_CORRUPT, Reason.SOURCE_FAILED, Reason.HASH_MISMATCH},
            image_id,
        )
        self.assertIn("image 'image'", error)

    def test_a_qcow2_uploaded_as_raw(self):
        path = self.image_file('qcow2', corpus.noise(units.Mi))
        image_id = self.private(path.read_bytes(), 'raw')
        error = self.refused(Reason.FORMAT_MISMATCH, image_id)
        self.assertIn('its content is qcow2', error)


@ddt.ddt
class TestHashes(GlanceTestCase):
    def setUp(self):
        super().setUp()
        self.data = corpus.noise(units.Mi)
        self.image_id = self.private(self.data)
        self.md5 = hashlib.md5(self.data, usedforsecurity=False).hexdigest()
        self.sha256 = hashlib.sha256(self.data).hexdigest()

    def base_hash(self):
        (made,) = self.driver.list_bases()
        return made.facts.hash

    def test_a_right_one(self):
        digest = hashlib.sha512(self.data).hexdigest()
        outcome = self.create(self.image_id)
        self.assertEqual(f'sha512:{digest}', outcome.verified)
        self.assertEqual(f'sha512:{digest}', self.base_hash())

    @ddt.data('raw', 'qcow2')
    def test_a_wrong_one(self, disk_format):
        if disk_format == 'qcow2':
            path = self.image_file('qcow2', self.data)
            self.image_id = self.private(path.read_bytes(), 'qcow2')
        self.glance.set_hash(self.image_id, self.md5, 'sha512', '00' * 64)
        error = self.refused(Reason.HASH_MISMATCH, self.image_id)
        self.assertIn('00' * 64, error)

    def test_a_checksum_alone(self):
        self.glance.set_hash(self.image_id, self.md5)
        outcome = self.create(self.image_id)
        self.assertEqual(f'md5:{self.md5}', outcome.verified)
        self.assertEqual(f'md5:{self.md5}', self.base_hash())
        self.set(require_hash=True)
        self.assertEqual(outcome.verified, self.create(self.image_id).verified)

    def test_a_wrong_checksum(self):
        self.glance.set_hash(self.image_id, '0' * 32)
        self.refused(Reason.HASH_MISMATCH, self.image_id)

    def test_none(self):
        self.glance.set_hash(self.image_id)
        outcome = self.create(self.image_id)
        self.assertEqual('', outcome.verified)
        self.assert_holds(self.data, outcome)
        # What came is kept, so that it can be compared some day.
        self.assertEqual(f'sha256:{self.sha256}', self.base_hash())
        self.assertFalse(self.create(self.image_id).base_made)

    def test_one_is_required(self):
        self.glance.set_hash(self.image_id)
        self.set(require_hash=True)
        error = self.refused(Reason.HASH_REQUIRED, self.image_id)
        self.assertIn('upload the image again', error)
        self.glance.set_hash(self.image_id, None, 'sha256', self.sha256)
        self.create(self.image_id)

    @ddt.data('whirlpool', 'shake_256')
    def test_an_unknown_one(self, algorithm):
        self.glance.set_hash(self.image_id, self.md5, algorithm, '00' * 64)
        error = self.refused(Reason.HASH_UNKNOWN, self.image_id)
        self.assertIn(algorithm, error)


@ddt.ddt
class TestWho(GlanceTestCase):
    """Who may see an image, its data, and where it is."""

    def setUp(self):
        super().setUp()
        self.data = corpus.noise(units.Mi)
        self.image_id = self.private(self.data)
        self.path = self.glance.data_path(self.image_id)

    def first(self, token):
        """Return the first candidate, and what refuses it."""
        first = self.plan(self.image_id, token).candidates[0]
        return first, [refusal.reason for refusal in first.refusals]

    @ddt.data(None, ADMIN, MEMBER_AND_SERVICE)
    def test_the_locations_call(self, token):
        first, reasons = self.first(token)
        self.assertEqual(f'file://{self.path}', str(first.location))
        self.assertEqual('locations call', first.told_by)
        self.assertEqual([Reason.NOT_IN_BACKEND], reasons)

    def test_a_member_is_not_told(self):
        first, reasons = self.first(MEMBER)
        self.assertEqual([Reason.LOCATIONS_HIDDEN], reasons)
        self.assertEqual((None, ''), (first.location, first.told_by))
        (refusal,) = first.refusals
        for words in ('status 403', 'neither direct_url nor locations'):
            self.assertIn(words, refusal.detail)
        for words in (
            'the role service too (fetch_image_location in the policy',
            'or set show_image_direct_url = true in glance-api.conf.',
        ):
            self.assertIn(words, refusal.remedy)
        # It stands in the way of nothing else.
        self.assert_holds(self.data, self.create(self.image_id))

    def test_a_policy_lets_members(self):
        self.set_policy(fetch_image_location='role:member')
        first, _ = self.first(MEMBER)
        self.assertEqual('locations call', first.told_by)

    def test_a_base_lets_nobody_in(self):
        self.create(self.image_id)
        self.refused(Reason.IMAGE_NOT_FOUND, self.image_id, OTHER)

    def test_a_claimed_hash_gives_no_base_of_another(self):
        self.create(self.image_id)
        digest = hashlib.sha512(self.data).hexdigest()
        other = self.glance.create(
            data=corpus.noise(units.Mi, seed=1),
            token=OTHER,
            visibility='private',
        )
        self.glance.set_hash(other, None, 'sha512', digest)
        kinds = {
            str(c): c.possible for c in self.plan(other, OTHER).candidates
        }
        self.assertFalse(kinds['clone of its base'])
        self.refused(Reason.HASH_MISMATCH, other, OTHER)

    def test_a_reader_gets_no_data(self):
        error = self.refused(Reason.SOURCE_DENIED, self.image_id, READER)
        self.assertIn('download_image in the policy', error)
        self.set_policy(download_image='role:reader')
        self.create(self.image_id, READER)

    def test_a_reader_gets_no_data_from_a_base_either(self):
        self.create(self.image_id)
        self.refused(Reason.SOURCE_DENIED, self.image_id, READER)

    def exists(self, image_id, token):
        self.set_user(token)
        with glances.Glance.of_cloud(None, self.settings) as client:
            return client.exists(image_id)

    @ddt.data(None, ADMIN, MEMBER)
    def test_an_image_that_exists(self, token):
        self.assertIs(True, self.exists(self.image_id, token))

    def test_an_image_that_is_gone(self):
        nothing = str(uuid.uuid4())
        self.assertIs(False, self.exists(nothing, None))
        # Of a bare token it is not known whose it is.
        for token in (ADMIN, MEMBER, OTHER, 'expired'):
            self.assertIsNone(self.exists(nothing, token))

    def test_an_image_that_is_hidden_is_not_gone(self):
        self.assertIsNone(self.exists(self.image_id, OTHER))

    @ddt.data((['admin', 'reader'], False), (['member'], None), (None, None))
    @ddt.unpack
    def test_an_image_that_is_gone_by_the_roles(self, roles, answer):
        self.set_user(None)
        nothing = str(uuid.uuid4())
        with glances.Glance.of_cloud(None, self.settings) as client:
            plugin = mock.Mock(spec=identity.BaseIdentityPlugin)
            plugin.get_access.return_value.role_names = roles
            get = mock.Mock(side_effect=ksa_errors.NotFound())
            with (
                mock.patch.object(client._client.images, 'get', get),
                mock.patch.object(client._session, 'auth', plugin),
            ):
                self.assertIs(answer, client.exists(nothing))

    def test_an_expired_token(self):
        error = self.refused(
            Reason.GLANCE_UNAVAILABLE, self.image_id, 'expired'
        )
        self.assertIn('does not accept these credentials (status 401)', error)

    def test_two_stores(self):
        self.glance.copy(self.image_id, 'file2')
        paths = [
            self.glance.data_path(self.image_id, store)
            for store in services.STORES
        ]
        clones = [
            str(candidate.location)
            for candidate in self.plan(self.image_id, ADMIN).candidates
            if candidate.kind is plans.Kind.CLONE_LOCATION
        ]
        self.assertEqual([f'file://{path}' for path in paths], clones)
        self.lose(self.image_id, 'file1')
        self.assert_holds(self.data, self.create(self.image_id))


class TestExposed(GlanceTestCase):
    """A Glance that shows locations in its records."""

    def test_the_record_tells(self):
        options = {'show_direct_url': True, 'show_locations': True}
        self.glance = self.useFixture(_Entered(started(**options))).it
        image_id = self.private(corpus.noise(units.Mi))
        self.glance.copy(image_id, 'file2')
        told = [
            (str(candidate.location), candidate.told_by)
            for candidate in self.plan(image_id).candidates
            if candidate.kind is plans.Kind.CLONE_LOCATION
        ]
        expected = [
            (f'file://{self.glance.data_path(image_id, store)}',
             'locations of the record')
            for store in services.STORES
        ]  # fmt: skip
        self.assertEqual(expected, told)
        # The call is asked first, as Cinder does.
        first = self.plan(image_id, MEMBER_AND_SERVICE).candidates[0]
        self.assertEqual('locations call', first.told_by)


@ddt.ddt
class TestStates(GlanceTestCase):
    def test_no_such_image(self):
        error = self.refused(Reason.IMAGE_NOT_FOUND, NOWHERE)
        self.assertIn('no such image, or not for this project', error)

    def test_a_deleted_image(self):
        image_id = self.private(b'x' * 512)
        self.glance.delete(image_id)
        self.refused(Reason.IMAGE_NOT_FOUND, image_id, None)

    def test_a_queued_image(self):
        image_id = self.private()
        error = self.refused(Reason.IMAGE_NOT_ACTIVE, image_id)
        self.assertIn("has the status 'queued'", error)
        self.assertEqual([], self.sizes(image_id))
        self.glance.upload(image_id, corpus.noise(units.Mi), token=MEMBER)
        self.create(image_id)

    @ddt.data(MEMBER, ADMIN)
    def test_a_deactivated_image(self, token):
        image_id = self.private(corpus.noise(units.Mi))
        self.glance.deactivate(image_id)
        error = self.refused(Reason.IMAGE_NOT_ACTIVE, image_id, token)
        self.assertIn("has the status 'deactivated'", error)
        self.assertEqual([], self.sizes(image_id))

    def test_deactivated_between(self):
        image_id = self.private(corpus.noise(units.Mi))
        with self.opened(image_id) as (ours, image, source):
            self.glance.deactivate(image_id)
            error = self.assertRaises(
                exception.ImageError,
                ours.create_volume_from_image, 'v', image, source,
            )  # fmt: skip
        self.assertIs(Reason.SOURCE_DENIED, error.reason)
        self.assertIn('must be activated again', str(error))

    def test_no_data_in_the_store(self):
        image_id = self.private(corpus.noise(units.Mi))
        self.lose(image_id)
        error = self.refused(Reason.IMAGE_NOT_FOUND, image_id)
        self.assertIn('Glance has no data of it', error)

    def test_a_glance_that_fails(self):
        image_id = self.private(corpus.noise(units.Mi))
        self.set_policy()
        self.write_policy('{')
        error = self.refused(Reason.GLANCE_UNAVAILABLE, image_id)
        self.assertIn('answers with status 500', error)

    def test_a_store_that_fails(self):
        image_id = self.private(corpus.noise(units.Mi))
        path = self.glance.data_path(image_id)
        path.unlink()
        path.mkdir()
        self.addCleanup(path.rmdir)
        self.refused_as(
            {Reason.SOURCE_FAILED, Reason.IMAGE_NOT_FOUND}, image_id
        )


class TestHalfWay(GlanceTestCase):
    """What happens in the middle of a download."""

    def setUp(self):
        super().setUp()
        self.data = corpus.noise(LARGE)
        self.image_id = self.private(self.data)
        self.killed = threading.Event()

    def forward(self, *steps):
        return self.useFixture(_Entered(Forwarder(self.glance, *steps))).it

    def ranges(self):
        return [d.range for d in self.glance.downloads(self.image_id)]

    def test_a_connection_breaks(self):
        at = LARGE * 9 // 10
        forwarder = self.forward((at, lambda: True))
        outcome = self.create(self.image_id, url=forwarder.url)
        self.assert_holds(self.data, outcome)
        self.assertEqual(2, len(self.ranges()))
        # What was not yet a whole piece of 1 MiB came again, and no more.
        again = sum(forwarder.sizes) - LARGE
        self.assertLess(again, units.Mi)

    def test_deleted_and_read_on(self):
        forwarder = self.forward((LARGE // 2, self.delete))
        outcome = self.create(self.image_id, url=forwarder.url)
        self.assert_holds(self.data, outcome)

    def test_deleted_and_broken(self):
        forwarder = self.forward((LARGE // 2, lambda: self.delete() or True))
        self.refused(Reason.IMAGE_NOT_FOUND, self.image_id, url=forwarder.url)

    def delete(self):
        self.glance.delete(self.image_id)

    def test_another_token_is_wanted(self):
        # A token may expire while an image comes.
        forwarder = self.forward((LARGE // 2, self.revoke))
        error = self.refused(
            Reason.SOURCE_DENIED, self.image_id, url=forwarder.url
        )
        self.assertIn('status 403', error)

    def revoke(self):
        self.set_policy(download_image='role:admin')
        return True

    def test_started_again(self):
        self.set(fetch_attempts=5)
        forwarder = self.forward((LARGE // 2, self.kill))
        # Glance ends with the thread that starts it: not with one of ours.
        with futures.ThreadPoolExecutor(1) as pool:
            creating = pool.submit(
                self.create, self.image_id, url=forwarder.url
            )
            self.killed.wait(program.LIMIT)
            start_again(self.glance)
            self.assert_holds(self.data, creating.result())
        self.assertLess(sum(forwarder.sizes) - LARGE, units.Mi)

    def test_not_started_again(self):
        self.addCleanup(start_again, self.glance)
        forwarder = self.forward((LARGE // 2, self.kill))
        error = self.refused(
            Reason.SOURCE_FAILED, self.image_id, url=forwarder.url
        )
        self.assertIn(f'at byte {LARGE // 2}, after 2 attempts', error)

    def kill(self):
        self.glance.kill()
        self.killed.set()
        return True

    def test_the_next_command_goes_on(self):
        path = self.image_file('qcow2', self.data)
        size = path.stat().st_size
        self.image_id = self.private(path.read_bytes(), 'qcow2')
        self.set(fetch_attempts=1)
        at = size * 9 // 10
        forwarder = self.forward((at, lambda: True))
        try:
            self.create(self.image_id, url=forwarder.url)
        except exception.ImageError as error:
            self.assertIs(Reason.SOURCE_FAILED, error.reason)
        outcome = self.create(self.image_id, url=forwarder.url)
        self.assert_holds(self.data, outcome)
        # What had come is not asked for again.
        (last,) = [int(r[6:-1]) for r in self.ranges() if r]
        self.assertLess(at - last, units.Mi)
        self.assertEqual([], list(self.top.glob('cow-scratch-*/*.part')))


class _Entered(fixtures.Fixture):
    """A context manager as a fixture, left before the checks at the end."""

    def __init__(self, manager):
        super().__init__()
        self._manager = manager

    def _setUp(self):
        self.it = self._manager.__enter__()
        self.addCleanup(self._manager.__exit__, None, None, None)


@ddt.ddt
class TestProgram(program.ProgramTestCase):
    """Who we are to Glance, as a user says it."""

    def setUp(self):
        super().setUp()
        self.glance = shared()
        self.config = self.top / 'clouds.yaml'
        self.free_port = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(self.free_port.close)
        self.nowhere = f'http://127.0.0.1:{self.free_port.getsockname()[1]}'

    def say(self, **variables):
        """Set the variables of OpenStack, and no other."""
        self.environment = {
            name: value
            for name, value in self.environment.items()
            if not name.startswith('OS_')
        }
        # No file of this machine's.
        self.environment |= {
            'HOME': str(self.top),
            'XDG_CONFIG_HOME': str(self.top),
            'OS_CLIENT_CONFIG_FILE': str(self.config),
            **variables,
        }

    def unavailable(self, *arguments):
        return self.refused(
            Reason.GLANCE_UNAVAILABLE, 'image', 'plan', NOWHERE, *arguments
        )

    def private(self, project='p1'):
        return self.glance.create(
            data=corpus.noise(units.Mi),
            token=f'alice:{project}:member',
            visibility='private',
        )

    def test_a_session(self):
        image_id = self.private()
        self.say(**self.glance.environment(MEMBER))
        first = self.cow('volume', 'create', 'v1', '--image', image_id)
        self.assertTrue(first['base_made'])
        digest = hashlib.sha512(corpus.noise(units.Mi)).hexdigest()
        self.assertEqual(f'sha512:{digest}', first['verified'])
        self.assertEqual(
            ['locations_hidden', 'no_base'],
            [refusal['reason'] for refusal in first['refusals']],
        )
        second = self.cow('volume', 'create', 'v2', '--image', image_id)
        self.assertEqual(
            ('base', False, 0),
            (second['method'], second['base_made'], second['bytes_copied']),
        )

    def test_none(self):
        image_id = self.private()
        self.say(**self.glance.environment())
        first, *_ = self.cow('image', 'plan', image_id)
        self.assertEqual('locations call', first['told_by'])

    def test_clouds_yaml(self):
        image_id = self.private()
        self.config.write_text(
            f"""
            clouds:
              ours:
                auth_type: admin_token
                auth: {{endpoint: '{self.glance.url}', token: '{MEMBER}'}}
                image_endpoint_override: '{self.glance.url}/v2'
            """
        )
        self.say()
        self.cow('image', 'plan', image_id, '--os-cloud', 'ours')
        self.say(OS_CLOUD='ours')
        self.cow('image', 'plan', image_id)
        error = self.unavailable('--os-cloud', 'other')
        self.assertIn('Cloud other was not found', error)

    def test_a_broken_clouds_yaml(self):
        self.say()
        for text, told in (
            ('clouds: [open', 'while parsing a flow sequence'),
            ('clouds: [a, b]', 'has not the form of such a file'),
        ):
            self.config.write_text(text)
            self.assertIn(told, self.unavailable('--os-cloud', 'ours'))

    @ddt.data(
        ({}, 'requires parameters which were not given: auth_url'),
        ({'OS_AUTH_TYPE': 'odd'}, 'The plugin odd could not be found'),
        ({'OS_AUTH_TYPE': 'none'}, 'Could not find requested endpoint'),
    )
    @ddt.unpack
    def test_nobody(self, variables, told):
        self.say(**variables)
        self.assertIn(told, self.unavailable())

    @ddt.data('http://glance.invalid:9292', None)
    def test_no_server(self, endpoint):
        self.free_port.close()
        endpoint = endpoint or self.nowhere
        self.say(OS_AUTH_TYPE='none', OS_ENDPOINT=endpoint)
        self.unavailable()

    @ddt.data('', '/v3')
    def test_a_dead_keystone(self, path):
        self.free_port.close()
        self.say(
            OS_AUTH_URL=self.nowhere + path,
            OS_USERNAME='alice',
            OS_PASSWORD=SECRET,
            OS_PROJECT_NAME='p1',
        )
        self.assertIn('onnection refused', self.unavailable())
        self.assert_no_secret('image', 'plan', NOWHERE)

    def test_a_silent_server(self):
        conf = self.top / 'cinder.conf'
        conf.write_text(
            f'[files]\ncow_file_dir = {self.volumes}\ncow_fetch_timeout = 1\n'
        )
        self.say(OS_AUTH_TYPE='none', OS_ENDPOINT=self.nowhere)
        begun = time.monotonic()
        error = self.refused(
            Reason.GLANCE_UNAVAILABLE,
            '--config-file', conf, '--backend', 'files',
            'image', 'plan', NOWHERE,
        )  # fmt: skip
        # By our timer, or by that of requests, which may be faster.
        self.assertIn('no answer ', error)
        self.assertLess(time.monotonic() - begun, program.LIMIT / 2)

    def test_no_secret_is_told(self):
        token = f'alice:{SECRET}:member'
        self.say(**self.glance.environment(token))
        image_id = self.private(SECRET)
        self.assert_no_secret('image', 'plan', image_id, told='sha512')
        self.assert_no_secret('image', 'plan', NOWHERE)
        self.say(**self.glance.environment(SECRET))
        self.assertIn('status 401', self.unavailable())
        self.assert_no_secret('image', 'plan', image_id)

    def assert_no_secret(self, *arguments, told=''):
        """Run a command that tells all it can."""
        _, output, errors = self.finish(
            self.start('-vv', '--debug', *arguments)
        )
        for text in (output, errors):
            # The record of an image tells its owner, which is no secret.
            text = text.replace(f'"owner": "{SECRET}"', '')
            self.assertNotIn(SECRET, text)
        self.assertIn(told, errors)
