# SPDX-License-Identifier: Apache-2.0
"""Fetch images to raw disks: from files, servers and Ceph, into any."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import signal
import subprocess
import time

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import opts
from cinder_cow import outcome as outcomes
from cinder_cow import plan as plans
from cinder_cow import raw_fetch
from cinder_cow.drivers import ceph
from cinder_cow.drivers import memory
from cinder_cow.drivers import rbd as rbd_driver
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_parents
from cinder_cow.refusal import Reason
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server
from cinder_cow.tests import program
from cinder_cow.tests import rbd_images
from cinder_cow.tests import storage
from cinder_cow.tests.functional import test_rbd
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break

SIZE = 8 * units.Mi
# More than the buffers of a connection, which take 8 MiB.
LARGE = 64 * units.Mi


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class FetchTestCase(http_place.HttpTestCase):
    def setUp(self):
        super().setUp()
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.place = http_place.Place(self.top / 'home')
        self.options = self.place.settings
        self.target = self.top / 'out' / 'disk.raw'
        self.target.parent.mkdir()

    def left(self):
        return os.listdir(self.target.parent)

    def serve(self, content, **options):
        behaviour = Behaviour(content, **options)
        self.server = self.stack.enter_context(
            http_server.Server({'/x': behaviour})
        )
        return self.server.url('/x')

    def fetch(self, url, target=None, hash_=None, claimed=None, **options):
        with self.place.source(url, hashed=hash_ is not None) as source:
            image = image_source.describe(source, claimed, hash_)
            return raw_fetch.fetch_to_raw(
                image, source, target or self.target, self.options, **options
            )

    def refused(self, reason, kind, *arguments, **options):
        error = self.assertRaises(kind, self.fetch, *arguments, **options)
        self.assertIs(reason, error.reason)
        self.assertEqual([], self.left())
        return error


@ddt.ddt
class TestFile(FetchTestCase):
    """Into a local file, from a server."""

    @ddt.data('raw', 'qcow2')
    def test_a_disk(self, kind):
        content = http_place.image(kind, size=SIZE)
        algorithm, value = 'sha256', sha256(content)
        done = []
        fetched = self.fetch(
            self.serve(content),
            hash_=f'{algorithm}:{value}',
            report=lambda *step: done.append(step),
        )
        self.assertTrue(self.is_disk(http_place.image('raw', size=SIZE)))
        self.assertEqual(
            (str(self.target), SIZE), (fetched.name, fetched.size)
        )
        self.assertIs(plans.Method.STREAM, fetched.method)
        self.assertEqual(f'{algorithm}:{value}', fetched.verified)
        self.assertEqual(SIZE, fetched.bytes_copied)
        self.assertEqual(SIZE, done[-1][1])
        self.assertEqual({}, self.place.kept())

    def is_disk(self, content):
        return storage.same(content, self.target.read_bytes())

    @ddt.data('vmdk', 'vdi', 'vpc', 'vhdx')
    def test_other_formats(self, kind):
        raw, path = self.top / 'raw', self.top / f'image.{kind}'
        raw.write_bytes(http_place.image('raw', size=SIZE))
        subprocess.run(
            ['qemu-img', 'convert', '-O', kind, raw, path], check=True
        )
        with image_source.FileSource(path) as source:
            image = image_source.describe(source, None)
            fetched = raw_fetch.fetch_to_raw(
                image, source, self.target, self.options
            )
        # A VHD is rounded up to a cylinder.
        self.assertEqual(fetched.size, self.target.stat().st_size)
        content = raw.read_bytes()
        self.assertTrue(
            storage.same(content, self.target.read_bytes()[: len(content)])
        )

    @ddt.data('raw', 'qcow2')
    def test_holes(self, kind):
        raw = self.top / 'raw'
        with raw.open('wb') as file:
            file.write(b'begin')
            file.seek(64 * units.Mi + 512)
            file.write(b'end'.ljust(512))
        path = raw
        if kind == 'qcow2':
            path = self.top / 'qcow2'
            http_place.convert(raw, path)
        fetched = self.fetch(self.serve(path.read_bytes()), claimed=kind)
        # Not a whole number of the blocks that are written directly.
        self.assertEqual(64 * units.Mi + 1024, fetched.size)
        self.assertTrue(self.is_disk(raw.read_bytes()))
        self.assertLess(self.target.stat().st_blocks * 512, units.Mi)

    @ddt.data('raw', 'qcow2')
    def test_a_wrong_hash(self, kind):
        self.refused(
            Reason.HASH_MISMATCH,
            exception.ImageError,
            self.serve(http_place.image(kind)),
            hash_='sha256:' + '0' * 64,
        )

    def test_a_server_that_stops(self):
        self.refused(
            Reason.SOURCE_FAILED,
            exception.ImageError,
            self.serve(
                http_place.image('raw'), ranges=False, break_after=units.Mi
            ),
        )

    def test_a_qcow2_that_was_cut(self):
        content = http_place.image('qcow2')
        self.refused(
            Reason.IMAGE_CORRUPT,
            exception.ImageError,
            self.serve(content[: len(content) // 2]),
        )

    def test_a_wrong_claim(self):
        url = self.serve(http_place.image('qcow2'))
        with self.place.source(url) as source:
            image = images.ImageInfo('x', 'x', 'raw', size=source.size)
            error = self.assertRaises(
                exception.ImageError,
                raw_fetch.fetch_to_raw,
                image,
                source,
                self.target,
                self.options,
            )
        self.assertIs(Reason.FORMAT_MISMATCH, error.reason)
        self.assertEqual([], self.left())

    @ddt.data(
        (Reason.HASH_REQUIRED, {'require_hash': True}),
        (Reason.IMAGE_TOO_LARGE, {'max_image_size': LARGE - 1}),
    )
    @ddt.unpack
    def test_what_the_options_forbid(self, reason, options):
        self.options = dataclasses.replace(self.options, **options)
        url = self.serve(http_place.image('raw', size=LARGE))
        self.refused(reason, exception.ImageError, url)
        self.assertLess(self.server.bytes_sent('/x'), LARGE // 2)

    def test_an_image_that_is_not_active(self):
        with self.place.source(self.serve(http_place.image('raw'))) as source:
            image = images.ImageInfo('x', 'x', 'raw', status='queued')
            error = self.assertRaises(
                exception.ImageError,
                raw_fetch.fetch_to_raw,
                image,
                source,
                self.target,
                self.options,
            )
        self.assertIs(Reason.IMAGE_NOT_ACTIVE, error.reason)

    @ddt.data('file', 'link', 'directory')
    def test_what_exists_is_left_alone(self, kind):
        if kind == 'file':
            self.target.write_text('theirs')
        elif kind == 'link':
            self.target.symlink_to('nowhere')
        else:
            self.target.mkdir()
        before = self.target.lstat()
        url = self.serve(http_place.image('raw', size=LARGE))
        error = self.assertRaises(exception.RequestError, self.fetch, url)
        self.assertIs(Reason.EXPORT_EXISTS, error.reason)
        self.assertEqual(before, self.target.lstat())
        self.assertEqual(['disk.raw'], self.left())
        # It is found out before the image is fetched.
        self.assertLess(self.server.bytes_sent('/x'), LARGE // 2)

    @ddt.data('raw', 'qcow2')
    def test_a_full_disk(self, kind):
        content = http_place.image(kind, size=LARGE)
        with storage.mounted('ext4', 32 * units.Mi) as mount:
            free = os.statvfs(mount).f_bfree
            error = self.refused(
                Reason.EXPORT_FAILED,
                exception.RequestError,
                self.serve(content),
                mount / 'disk.raw',
            )
            self.assertIn(str(mount / 'disk.raw'), str(error))
            self.assertEqual(['lost+found'], os.listdir(mount))
            self.assertEqual(free, os.statvfs(mount).f_bfree)

    def test_no_such_directory(self):
        self.refused(
            Reason.EXPORT_FAILED,
            exception.RequestError,
            self.serve(http_place.image('raw')),
            self.top / 'nowhere' / 'disk.raw',
        )


class TestVolume(FetchTestCase):
    """Into a back end that has not the image."""

    def test_a_volume(self):
        content = http_place.image('qcow2')
        fetched = self.fetch(
            self.serve(content), 'v1', driver=self.place.driver
        )
        self.assertEqual(
            ('v1', units.Gi, plans.Method.BASE),
            (fetched.name, fetched.size, fetched.method),
        )
        self.assertTrue(self.place.is_right(http_place.image('raw')))
        self.assertEqual(
            units.Gi, raw_fetch.disk_size(self.place.driver, 'v1')
        )

    def test_without_a_driver(self):
        with self.place.source(self.serve(http_place.image('raw'))) as source:
            image = images.ImageInfo('x', 'x', 'raw')
            self.assertRaises(
                ValueError,
                raw_fetch.fetch_to_raw,
                image,
                source,
                'v1',
                self.options,
            )

    def test_no_volume_has_no_size(self):
        error = self.assertRaises(
            exception.RequestError,
            raw_fetch.disk_size,
            self.place.driver,
            'v1',
        )
        self.assertIs(Reason.VOLUME_NOT_FOUND, error.reason)

    def test_nothing_to_clone(self):
        location = image_location.parse('rbd://fsid/pool/image/snap')
        bad = image_location.from_record('rbd://a/b/c', {})
        nowhere = images.ImageInfo('x', 'x', 'raw')
        for image, driver, reason in (
            (nowhere, self.place.driver, Reason.NOT_IN_BACKEND),
            (nowhere.at(location), self.place.driver, Reason.NOT_IN_BACKEND),
            (nowhere.at(bad), memory.MemoryDriver(), Reason.LOCATION_INVALID),
        ):
            error = self.assertRaises(
                outcomes.NoCandidateError,
                raw_fetch.direct_fetch,
                image,
                driver,
                'v1',
            )
            self.assertIs(reason, error.reason)
            self.assertFalse(driver.exists('v1'))


@ddt.ddt
class TestCeph(test_rbd.RbdTestCase, FetchTestCase):
    """An image that is in Ceph; Glance has a server, which is not asked."""

    def setUp(self):
        super().setUp()
        self.driver = self.rbd_driver()

    @contextlib.contextmanager
    def image(self, kind='raw', size=64 * units.Mi, **fields):
        """Store an image; give its record and what it would be served from."""
        content = http_place.image(kind)
        if kind != 'raw':
            size = len(content)
        fields.setdefault('os_hash_algo', 'sha256')
        fields.setdefault('os_hash_value', sha256(content.ljust(size, b'\0')))
        with (
            rbd_images.stored(
                self.cluster, {0: content}, size, kind, **fields
            ) as record,
            self.place.source(
                self.serve(content.ljust(size, b'\0'))
            ) as source,
        ):
            # That a server answers at all it was asked just now.
            self.asked = len(self.server.requests)
            yield record, source

    def assert_not_asked(self):
        self.assertEqual(self.asked, len(self.server.requests))

    def bytes_of(self, name, length):
        with self.driver.read(name) as reader:
            return reader.read(0, length)

    def test_direct_fetch(self):
        with self.image() as (record, _source):
            made = raw_fetch.direct_fetch(record, self.driver, 'v1')
            self.assertEqual(64 * units.Mi, made.size)
            self.assertIn(f'images/{record.id}@snap', made.parent)
            made = raw_fetch.direct_fetch(
                record, self.driver, 'v2', size=units.Gi
            )
            self.assertEqual(units.Gi, raw_fetch.disk_size(self.driver, 'v2'))
            content = http_place.image('raw')
            found = self.bytes_of('v2', len(content))
            self.assertTrue(storage.same(content, found))
            least = dataclasses.replace(record, min_disk=2 * units.Gi)
            made = raw_fetch.direct_fetch(least, self.driver, 'v3')
            self.assertEqual(2 * units.Gi, made.size)
            error = self.assertRaises(
                exception.RequestError,
                raw_fetch.direct_fetch,
                record,
                self.driver,
                'v4',
                units.Mi,
            )
            self.assertIs(Reason.VOLUME_TOO_SMALL, error.reason)
            self.assertFalse(self.driver.exists('v4'))

    def test_direct_fetch_tries_each_location(self):
        with self.image() as (record, _source):
            (good,) = record.locations
            bad = dataclasses.replace(good, snapshot='other')
            both = dataclasses.replace(record, locations=(bad, good))
            made = raw_fetch.direct_fetch(both, self.driver, 'v1')
            self.assertIn(f'images/{record.id}@snap', made.parent)
            error = self.assertRaises(
                outcomes.NoCandidateError,
                raw_fetch.direct_fetch,
                dataclasses.replace(record, locations=(bad, bad)),
                self.driver,
                'v2',
            )
            self.assertEqual(
                [Reason.LOCATION_UNTRUSTED] * 2,
                [one.refusal.reason for one in error.failures],
            )

    @ddt.data('raw', 'qcow2')
    def test_a_file_is_read_in_ceph(self, kind):
        with self.image(kind) as (record, source):
            fetched = raw_fetch.fetch_to_raw(
                record, source, self.target, self.options, self.driver
            )
            self.assert_not_asked()
        self.assertEqual(f'sha256:{record.os_hash_value}', fetched.verified)
        content = http_place.image('raw')
        found = self.target.read_bytes()
        self.assertEqual(fetched.size, len(found))
        self.assertTrue(storage.same(content, found[: len(content)]))
        self.assertFalse(found[len(content) :].strip(b'\0'))
        self.assertLess(
            self.target.stat().st_blocks * 512, len(content) + units.Mi
        )

    def test_a_large_sparse_image(self):
        # 1 TiB, of which 4 MiB are read; only without a hash.
        with self.image(
            size=units.Mi * 4, os_hash_algo=None, os_hash_value=None
        ) as (_record, source):
            begun = time.monotonic()
            with rbd_images.stored(
                self.cluster, {2**39: b'x' * 4096}, units.Ti
            ) as record:
                fetched = raw_fetch.fetch_to_raw(
                    record, source, self.target, self.options, self.driver
                )
            self.assertLess(time.monotonic() - begun, 60)
        self.assertEqual(units.Ti, self.target.stat().st_size)
        self.assertLessEqual(fetched.bytes_copied, units.Mi)

    def test_a_file_of_wrong_bytes(self):
        with self.image(os_hash_value='0' * 64) as (record, source):
            error = self.assertRaises(
                exception.ImageError,
                raw_fetch.fetch_to_raw,
                record,
                source,
                self.target,
                self.options,
                self.driver,
            )
            self.assert_not_asked()
        self.assertIs(Reason.HASH_MISMATCH, error.reason)
        self.assertEqual([], self.left())

    @ddt.data(('raw', plans.Method.CLONE), ('qcow2', plans.Method.BASE))
    @ddt.unpack
    def test_a_volume(self, kind, method):
        with self.image(kind) as (record, source):
            fetched = raw_fetch.fetch_to_raw(
                record, source, 'v1', self.options, self.driver
            )
            self.assert_not_asked()
            self.assertIs(method, fetched.method)
            self.assertEqual(units.Gi, fetched.size)
            content = http_place.image('raw')
            found = self.bytes_of('v1', len(content))
            self.assertTrue(storage.same(content, found))

    def test_an_image_of_another_pool_comes_from_its_source(self):
        content = http_place.image('raw')
        with self.image(size=len(content), os_hash_value=sha256(content)) as (
            record,
            source,
        ):
            driver = rbd_driver.RbdDriver(
                rbd_options.RbdSettings(
                    cluster=ceph.Cluster(str(self.cluster.conf), 'admin'),
                    pool=self.pool,
                    trust=rbd_parents.Trust(frozenset({'others'})),
                )
            )
            raw_fetch.fetch_to_raw(
                record, source, self.target, self.options, driver
            )
        self.assertGreaterEqual(self.server.bytes_sent('/x'), len(content))
        self.assertTrue(storage.same(content, self.target.read_bytes()))


@ddt.ddt
class TestProgram(program.ProgramTestCase):
    """cinder-cow image fetch."""

    def setUp(self):
        super().setUp()
        self.target = self.top / 'out' / 'disk.raw'
        self.target.parent.mkdir()

    def test_a_file(self):
        raw = self.image()
        found = self.cow('image', 'fetch', self.qcow2(raw), self.target)
        self.assertEqual(
            (str(self.target), raw.stat().st_size, ''),
            (found['path'], found['size'], found['verified']),
        )
        self.assertTrue(
            storage.same(raw.read_bytes(), self.target.read_bytes())
        )
        self.assertLess(self.target.stat().st_blocks * 512, found['size'])

    def test_a_hash(self):
        raw = self.image()
        good = f'sha256:{sha256(raw.read_bytes())}'
        command = ('image', 'fetch', raw, self.target, '--disk-format', 'raw')
        bad = f'sha256:{"0" * 64}'
        self.refused(Reason.HASH_MISMATCH, *command, '--hash', bad)
        self.assertEqual([], os.listdir(self.target.parent))
        found = self.cow(*command, '--hash', good)
        self.assertEqual(good, found['verified'])
        self.refused(Reason.EXPORT_EXISTS, *command)

    def test_no_file_becomes_a_volume(self):
        raw = self.image()
        self.do('volume', 'delete', 'v1')  # makes the back end
        self.refused(
            Reason.EXPORT_FAILED, 'image', 'fetch', raw,
            self.volumes / 'v1.raw',
        )  # fmt: skip
        self.assertEqual([], self.cow('volume', 'list'))

    @ddt.data('sigint', 'sigterm')
    def test_a_signal(self, name):
        # Others that fetch on this machine are not waited for.
        conf = self.top / 'cinder.conf'
        conf.write_text(
            f'[files]\ncow_file_dir = {self.volumes}\n'
            f'cow_scratch_dir = {self.target.parent.parent}\n'
        )
        content = http_place.image('raw', size=8 * units.Mi)
        behaviour = Behaviour(
            content, break_after=6 * units.Mi, break_how=Break.STALL
        )
        with http_server.Server({'/x': behaviour}) as server:
            process = self.start(
                '--config-file', conf, '--backend', 'files',
                'image', 'fetch', server.url('/x'), self.target,
                '--disk-format', 'raw',
            )  # fmt: skip
            deadline = time.monotonic() + program.LIMIT
            while server.bytes_sent('/x') < 6 * units.Mi:
                self.assertLess(time.monotonic(), deadline)
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            process.send_signal(program.SIGNALS[name])
            status, output, errors = self.finish(process)
        number = signal.Signals[name.upper()]
        self.assertEqual((128 + number, ''), (status, output), errors)
        self.assertEqual([], os.listdir(self.target.parent))
        self.assertEqual([], self.processes())

    def test_an_image_in_ceph(self):
        cluster = ceph_cluster.shared()
        content = http_place.image('raw')
        with rbd_images.stored(cluster, {0: content}, units.Gi) as record:
            (location,) = record.locations
            found = self.cow(
                '--config-file', cluster.cinder_conf, '--backend', 'rbd1',
                'image', 'fetch', str(location), self.target,
            )  # fmt: skip
        self.assertEqual(units.Gi, found['size'])
        self.assertEqual(len(content), found['bytes_copied'])
        with pathlib.Path(self.target).open('rb') as file:
            self.assertTrue(storage.same(content, file.read(len(content))))
        self.assertLess(self.target.stat().st_blocks * 512, 8 * units.Mi)


class TestSettings(FetchTestCase):
    def test_no_fallback_is_no_matter_of_a_file(self):
        self.options = opts.Settings(cow_enabled=False, cow_fallback='refuse')
        self.fetch(self.serve(http_place.image('raw')))
        self.assertEqual(['disk.raw'], self.left())
