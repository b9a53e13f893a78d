# SPDX-License-Identifier: Apache-2.0
"""Which images in Ceph are cloned, on real clusters: the four criteria."""

import atexit
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
import time
import uuid

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow.drivers import base
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_parents
from cinder_cow.refusal import Reason
from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import ceph_config
from cinder_cow.tests.functional import test_rbd
from cinder_cow.tests.unit import test_docs

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

_numbers = itertools.count()
SIZE = 1024 * 1024
# The header of a qcow2 of 1 GiB that has no data.
QCOW2 = struct.pack('>4sIQIIQ', b'QFI\xfb', 3, 0, 0, 16, units.Gi)
FSID = '00000000-0000-4000-8000-000000000000'


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver, **settings):
        self.driver = driver
        self.settings = opts.Settings(**settings)


@functools.cache
def second():
    """Return another cluster of this process; it ends with it."""
    with contextlib.ExitStack() as stack:
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        stack.callback(shutil.rmtree, top)
        cluster = stack.enter_context(
            ceph_cluster.Cluster(
                pathlib.Path(top) / 'ceph', ceph_cluster.SHARED_SETTINGS
            )
        )
        atexit.register(stack.pop_all().close)
    return cluster


class LocationTestCase(test_rbd.RbdTestCase):
    """Has images in Ceph, as Glance stores them, and users of Ceph."""

    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(
            tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        )
        self.addCleanup(shutil.rmtree, self.top)
        self.content = os.urandom(SIZE)
        self.count = 0
        self._clients = {}

    def admin(self):
        """Return the administrator's connection, one for a test."""
        if self.cluster not in self._clients:
            stack = contextlib.ExitStack()
            self.addCleanup(stack.close)
            client = stack.enter_context(self.cluster.connect())
            self._clients[self.cluster] = client
        return self._clients[self.cluster]

    @contextlib.contextmanager
    def opened(self, name, namespace=''):
        """Open a pool as the administrator."""
        cluster = ceph.Cluster(conf=str(self.cluster.conf), user='admin')
        with (
            ceph.connected(cluster) as connection,
            connection.pool(name, namespace) as pool,
        ):
            yield pool

    @contextlib.contextmanager
    def image(self, location, **options):
        with (
            self.opened(location.pool) as pool,
            pool.image(location.image, **options) as image,
        ):
            yield image

    def upload(
        self,
        content=None,
        image_id=None,
        pool='images',
        snapshot='snap',
        protected=True,
        **options,
    ):
        """Store an image as Glance does; return its location."""
        content = self.content if content is None else content
        location = image_location.RbdLocation(
            image_id or str(uuid.uuid4()), pool, self.cluster.fsid, snapshot
        )
        size = options.pop('size', len(content))
        with self.opened(pool) as opened:
            opened.create(
                location.image, size, options.pop('order', 22), **options
            )
        self.addCleanup(self.drop, location)
        with self.image(location, write=True) as image:
            image.write(content, 0)
            image.create_snap(snapshot)
            if protected:
                image.protect_snap(snapshot)
        return location

    def drop(self, location):
        """Remove an image, if it is there, and what was cloned of it."""
        with contextlib.suppress(ceph.CephError):
            with self.image(location, write=True) as image:
                children = list(image.list_children2())
            for child in children:
                with (
                    contextlib.suppress(ceph.CephError),
                    self.opened(child['pool'], child['pool_namespace']) as p,
                ):
                    p.remove(child['image'])
            with self.image(location, write=True) as image:
                for snapshot in list(image.list_snaps()):
                    if image.is_protected_snap(snapshot['name']):
                        image.unprotect_snap(snapshot['name'])
                    image.remove_snap(snapshot['name'])
            with self.opened(location.pool) as pool:
                pool.remove(location.image)

    def info(self, *locations, **fields):
        """Describe an image as its record in Glance would."""
        last = locations[-1]
        return images.ImageInfo(
            **{
                'id': getattr(last, 'image', 'an id'),
                'name': 'an image',
                'disk_format': 'raw',
                'locations': locations,
                **fields,
            }
        )

    def add_user(self, writes, reads=('images',)):
        """Make a user with the usual caps; return its name."""
        name = f'test-{next(_numbers)}'
        self.cluster.add_user(name, ceph_config.caps(writes, reads))
        self.addCleanup(self.cluster.remove_user, name)
        return name

    def source(self, content=None):
        self.count += 1
        path = self.top / f'image-{self.count}'
        path.write_bytes(self.content if content is None else content)
        return image_source.FileSource(path)

    def create(self, driver, image, size=None, **settings):
        """Make a volume, as the program does; return the outcome."""
        with self.source() as source:
            return Manager(driver, **settings).create_volume_from_image(
                f'v-{self.count}', image, source, size
            )

    def assert_content(self, driver, name, content=None):
        content = self.content if content is None else content
        with driver.read(name) as reader:
            self.assertEqual(content, reader.read(0, len(content)))

    def refused(self, driver, image, reason):
        """Check what stands in the way of a clone; return the remedy."""
        verdict = driver.cloneable(image)
        self.assertFalse(verdict)
        self.assertIs(reason, verdict.refusal.reason, verdict.refusal)
        # The clone itself refuses it too, and leaves nothing.
        error = self.assertRaises(
            exception.BackendError, driver.clone, image, 'refused'
        )
        self.assertIs(reason, error.reason)
        self.assertFalse(driver.exists('refused'))
        return verdict.refusal.remedy

    def run_line(self, remedy, pattern):
        """Run a command of a remedy, as it is printed; tell its output."""
        (line,) = re.findall(pattern, remedy)
        done = subprocess.run(
            shlex.split(line),
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, 'CEPH_CONF': str(self.cluster.conf)},
        )
        return done.stdout

    def snap_anew(self, location, content):
        """Change an image, and make its snapshot again."""
        with self.image(location, write=True) as image:
            image.unprotect_snap('snap')
            image.remove_snap('snap')
            image.write(content, 0)
            image.create_snap('snap')
            image.protect_snap('snap')

    def trash(self, location):
        with self.opened(location.pool) as pool:
            rbd.RBD().trash_move(pool.ioctx, location.image)

    def left_in_pool(self):
        """Tell what is in our pool: images, and rows of leases."""
        with self.opened(self.pool) as pool:
            return pool.names(), list(pool.rows('cow_leases').all())


def _one_part(case, good):
    return image_location.RbdLocation(good.image)


def _two_parts(case, good):
    return image_location.RbdLocation(good.image, good.pool)


def _unprotected(case, good):
    with case.image(good, write=True) as image:
        image.unprotect_snap('snap')
    return good


def _no_snapshot(case, good):
    _unprotected(case, good)
    with case.image(good, write=True) as image:
        image.remove_snap('snap')
    return good


def _in_trash(case, good):
    case.trash(good)
    return good


def _deleted(case, good):
    case.drop(good)
    return good


def _qcow2_inside(case, good):
    case.drop(good)
    return case.upload(QCOW2 + case.content, good.image)


def _changed(**fields):
    return lambda case, good: dataclasses.replace(good, **fields)


def _elsewhere(url):
    return lambda case, good: image_location.parse(url)


# How the location of an image in the pool "images" becomes a bad one, and
# why it is refused then. The pool "gone" is trusted, and not there.
BAD = [
    ['one_part', _one_part, Reason.NO_SNAPSHOT],
    ['two_parts', _two_parts, Reason.NO_SNAPSHOT],
    ['other_fsid', _changed(fsid=FSID), Reason.OTHER_CLUSTER],
    ['no_fsid', _changed(fsid='cluster'), Reason.OTHER_CLUSTER],
    ['other_pool', _changed(pool='volumes'), Reason.LOCATION_UNTRUSTED],
    ['other_image', _changed(image='volume-1'), Reason.LOCATION_UNTRUSTED],
    ['other_snapshot', _changed(snapshot='s1'), Reason.LOCATION_UNTRUSTED],
    ['no_pool', _changed(pool='gone'), Reason.POOL_NOT_FOUND],
    ['deleted', _deleted, Reason.LOCATION_NOT_FOUND],
    ['in_trash', _in_trash, Reason.LOCATION_NOT_FOUND],
    ['no_snapshot', _no_snapshot, Reason.SNAPSHOT_NOT_FOUND],
    ['unprotected', _unprotected, Reason.SNAPSHOT_UNPROTECTED],
    ['qcow2_inside', _qcow2_inside, Reason.FORMAT_MISMATCH],
    ['http', _elsewhere('http://host/image'), Reason.NOT_IN_BACKEND],
]


@ddt.ddt
class TestBadLocations(LocationTestCase):
    @ddt.unpack
    @ddt.named_data(*BAD)
    def test_is_refused_and_the_next_way_is_gone(self, spoil, reason):
        pools = frozenset({'images', 'volumes2', 'gone'})
        driver = self.rbd_driver(trust=rbd_parents.Trust(pools))
        good = self.upload()
        bad = spoil(self, good)
        image = self.info(bad, id=good.image)
        self.refused(driver, image, reason)
        self.assertEqual(([], []), self.left_in_pool())

        if reason is not Reason.FORMAT_MISMATCH:
            # That is in the way of a copy, too.
            made = self.create(driver, image)
            self.assertEqual('stream', made.method.value)
            self.check_told(made, reason)
            self.assert_content(driver, made.volume.name)

        other = self.upload(image_id=good.image, pool='volumes2')
        both = self.info(bad, other)
        made = self.create(driver, both)
        self.assertEqual('clone', made.method.value)
        self.assertEqual(other.url, made.location)
        self.check_told(made, reason)
        self.assert_content(driver, made.volume.name)

    def check_told(self, made, reason):
        """Check that the plan said so, before anything was tried."""
        self.assertIs(reason, made.failures[0].refusal.reason)
        self.assertFalse(any(failure.tried for failure in made.failures))

    def test_is_of_another_kind(self):
        for location in (
            image_location.parse('file:///image'),
            image_location.parse(f'cinder://{FSID}'),
            image_location.BaseLocation('another', 'cow-base-1'),
        ):
            image = self.info(location)
            self.refused(self.rbd_driver(), image, Reason.NOT_IN_BACKEND)

    def test_in_a_pool_that_does_not_answer(self):
        dead = f'{self.pool}-dead'
        self.cluster.make_pool(dead)
        self.addCleanup(self.cluster.remove_pool, dead)
        first = self.upload(pool=dead)
        second = self.upload(image_id=first.image)
        self.active(dead, False)
        self.addCleanup(self.active, dead, True)
        driver = self.rbd_driver(
            cluster=ceph.Cluster(conf=str(self.cluster.conf), op_timeout=1),
            trust=rbd_parents.Trust(frozenset({'images', dead})),
        )
        begun = time.monotonic()
        made = self.create(driver, self.info(first, second))
        self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual(second.url, made.location)
        (failure,) = made.failures
        self.assertIs(Reason.CEPH_TIMED_OUT, failure.refusal.reason)
        self.assert_content(driver, made.volume.name)

    def active(self, pool, wanted):
        """Have a pool serve, or wait for an OSD that there is not."""
        for name in ('size', 'min_size')[:: -1 if wanted else 1]:
            self.cluster.mon(
                prefix='osd pool set',
                pool=pool,
                var=name,
                val='1' if wanted else '2',
                yes_i_really_mean_it=True,
            )

    def test_a_format_that_is_converted(self):
        driver = self.rbd_driver()
        image = self.info(self.upload(), disk_format='qcow2')
        self.refused(driver, image, Reason.NOT_RAW)

    def test_of_two_faults_the_place_is_told_first(self):
        image = self.info(
            image_location.parse('http://host/image'), disk_format='qcow2'
        )
        self.refused(self.rbd_driver(), image, Reason.NOT_IN_BACKEND)

    def test_bytes_that_are_not_what_is_claimed_are_not_copied_either(self):
        driver = self.rbd_driver()
        location = self.upload(QCOW2 + self.content)
        self.assertRaises(
            exception.CowError, self.create, driver, self.info(location)
        )
        self.assertEqual(([], []), self.left_in_pool())

    def test_no_bytes_at_all(self):
        location = self.upload(b'', size=0)
        self.refused(
            self.rbd_driver(), self.info(location), Reason.EMPTY_IMAGE
        )

    def test_a_data_pool_that_is_not_there(self):
        driver = self.rbd_driver(data_pool='gone')
        image = self.info(self.upload())
        error = self.assertRaises(
            exception.BackendError, driver.clone, image, 'v1'
        )
        self.assertIs(Reason.BACKEND_ERROR, error.reason, str(error))
        self.assertEqual(([], []), self.left_in_pool())

    def test_names_are_quoted_for_a_shell(self):
        trust = rbd_parents.Trust(frozenset({'images'}), False, '')
        driver = self.rbd_driver(trust=trust)
        location = self.upload(
            image_id="a $(b) 'c'", snapshot='s 1', protected=False
        )
        remedy = self.refused(
            driver, self.info(location), Reason.SNAPSHOT_UNPROTECTED
        )
        self.run_line(remedy, r'(rbd snap protect .*?);')
        driver.clone(self.info(location), 'v1')


@ddt.ddt
class TestTrust(LocationTestCase):
    def test_any_name_and_any_snapshot(self):
        trust = rbd_parents.Trust(frozenset({'images'}), False, '')
        driver = self.rbd_driver(trust=trust)
        location = self.upload(snapshot='s1')
        driver.clone(self.info(location, id='an id'), 'v1')
        self.assert_content(driver, 'v1')

    def test_a_volume_of_somebody_is_not_cloned(self):
        """What OSSN-0065 tells: a record that names the pool of volumes."""
        driver = self.rbd_driver()
        secret = self.upload(pool=self.pool)
        image = self.info(secret)
        self.refused(driver, image, Reason.LOCATION_UNTRUSTED)
        # Nor is it read.
        error = self.assertRaises(
            exception.BackendError, driver.read_image, image
        )
        self.assertIs(Reason.LOCATION_UNTRUSTED, error.reason)


class TestAbilities(LocationTestCase):
    def test_are_those_of_the_reference(self):
        if not test_docs.DOCS.is_dir():
            self.skipTest('machine: installed without doc/')
        self.assertEqual(
            test_docs.told_abilities('rbd'),
            test_docs.abilities(self.rbd_driver()),
        )


class TestUsers(LocationTestCase):
    def test_read_only_rights_on_images_are_enough(self):
        driver = self.rbd_driver(self.add_user([self.pool]))
        made = self.create(driver, self.info(self.upload()))
        self.assertEqual('clone', made.method.value)
        self.assert_content(driver, made.volume.name)
        driver.delete(made.volume.name)
        self.assertEqual(([], []), self.left_in_pool())

    def test_without_rights_on_images_the_bytes_are_copied(self):
        user = self.add_user([self.pool], [])
        driver = self.rbd_driver(user)
        made = self.create(driver, self.info(self.upload()))
        self.assertEqual('stream', made.method.value)
        refusal = made.failures[0].refusal
        self.assertIs(Reason.POOL_DENIED, refusal.reason)
        self.assertIn(
            f"ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd"
            f" pool={self.pool}, profile rbd-read-only pool=images'",
            refusal.remedy,
        )
        self.assert_content(driver, made.volume.name)

    def test_what_is_closed_is_not_told_from_what_is_not_there(self):
        driver = self.rbd_driver(self.add_user([self.pool], []))
        location = self.upload()
        self.drop(location)
        self.refused(driver, self.info(location), Reason.POOL_DENIED)


class TestBytes(LocationTestCase):
    def test_iso(self):
        content = bytearray(self.content)
        content[: 40 * 1024] = bytes(40 * 1024)
        content[32769:32774] = b'CD001'
        driver = self.rbd_driver()
        location = self.upload(bytes(content))
        driver.clone(self.info(location, disk_format='iso'), 'v1')
        self.assert_content(driver, 'v1', bytes(content))

    def test_a_claim_of_iso_that_is_none(self):
        image = self.info(self.upload(), disk_format='iso')
        self.refused(self.rbd_driver(), image, Reason.FORMAT_MISMATCH)

    def test_are_looked_at_once_for_each_image(self):
        image = self.info(self.upload())
        before = self.objects('images')
        first = self.bytes_read(self.rbd_driver(), image, 'v1')
        self.assertGreaterEqual(first, SIZE)
        with self.opened(self.pool) as pool:
            (row,) = pool.rows('cow_verdicts').all()
        self.assertIn('"raw"', row)
        # Another driver, as after a restart; its memory is empty.
        again = self.bytes_read(self.rbd_driver(), image, 'v2')
        self.assertLess(again, SIZE / 10)
        # Of the images' pool, only what librbd keeps of children is changed.
        new = self.objects('images') - before
        self.assertLessEqual(new, {'rbd_children', 'rbd_trash'})

    def test_are_looked_at_again_for_another_claim(self):
        location = self.upload()
        driver = self.rbd_driver()
        driver.clone(self.info(location), 'v1')
        iso = self.info(location, disk_format='iso')
        self.refused(self.rbd_driver(), iso, Reason.FORMAT_MISMATCH)

    def test_are_looked_at_again_in_another_snapshot_of_that_name(self):
        location = self.upload()
        self.assertTrue(self.rbd_driver().cloneable(self.info(location)))
        self.snap_anew(location, QCOW2)
        self.refused(
            self.rbd_driver(), self.info(location), Reason.FORMAT_MISMATCH
        )

    def bytes_read(self, driver, image, name):
        """Return how many bytes the OSD reads for clients for a clone."""
        before = self.osd_counter('op_r_out_bytes')
        driver.clone(image, name)
        return self.osd_counter('op_r_out_bytes') - before

    def osd_counter(self, name):
        counters = ceph_client.run_command(
            self.cluster._osd_command, prefix='perf dump'
        )
        return counters['osd'][name]

    def objects(self, pool):
        with self.opened(pool) as opened:
            return {one.key for one in opened.ioctx.list_objects()}


class TestSizes(LocationTestCase):
    def test_is_that_in_ceph_whatever_the_record_says(self):
        location = self.upload(size=2 * units.Gi + 512)
        image = self.info(location, size=SIZE, virtual_size=SIZE)
        driver = self.rbd_driver()
        made = driver.clone(image, 'v0')
        self.assertEqual(2 * units.Gi + 512, made.size)
        made = self.create(driver, image)
        self.assertEqual('clone', made.method.value)
        self.assertEqual(3 * units.Gi, made.volume.size)
        with driver.read(made.volume.name) as reader:
            end = reader.read(2 * units.Gi, SIZE)
        self.assertEqual(bytes(SIZE), end)

    def test_is_never_less(self):
        image = self.info(self.upload(size=units.Gi + 512), size=SIZE)
        driver = self.rbd_driver()
        error = self.assertRaises(
            exception.CowError, self.create, driver, image, units.Gi
        )
        self.assertIs(Reason.VOLUME_TOO_SMALL, error.reason)
        bound = driver.bound(base.VolumeRequest(units.Gi))
        error = self.assertRaises(
            exception.RequestError, bound.clone, image, 'v1'
        )
        self.assertIs(Reason.VOLUME_TOO_SMALL, error.reason)
        self.assertEqual(([], []), self.left_in_pool())

    def test_objects_and_features_are_those_of_the_parent(self):
        for order, features in ((20, 1), (23, 61)):
            location = self.upload(order=order, features=features)
            driver = self.rbd_driver()
            driver.clone(self.info(location), f'v{order}')
            with (
                self.opened(self.pool) as pool,
                pool.image(f'v{order}') as image,
            ):
                self.assertEqual(order, image.stat()['order'])
                self.assertEqual(features, image.features() & 61)

    def test_a_data_pool(self):
        data = f'{self.pool}-data'
        self.cluster.make_pool(data)
        self.addCleanup(self.cluster.remove_pool, data)
        driver = self.rbd_driver(data_pool=data)
        driver.clone(self.info(self.upload()), 'v1')
        with driver.open('v2', SIZE) as writer:
            writer.write(self.content)
            writer.close()
        for name in ('v1', 'v2'):
            self.assert_content(driver, name)
            with self.opened(self.pool) as pool, pool.image(name) as image:
                self.assertEqual(self.pool_id(data), image.data_pool_id())

    def pool_id(self, name):
        pools = self.cluster.mon(prefix='osd dump')['pools']
        (found,) = [p['pool'] for p in pools if p['pool_name'] == name]
        return found


class TestChanges(LocationTestCase):
    """Images that change between the plan and the clone."""

    def test_recreated_under_its_name(self):
        driver = self.rbd_driver()
        location = self.upload()
        image = self.info(location)
        self.assertTrue(driver.cloneable(image))
        self.drop(location)
        new = os.urandom(SIZE)
        self.upload(new, location.image)
        error = self.assertRaises(
            exception.BackendError, driver.clone, image, 'v1'
        )
        self.assertIs(Reason.LOCATION_NOT_FOUND, error.reason)
        self.assertEqual(([], []), self.left_in_pool())
        # It is found anew at once.
        driver.clone(image, 'v1')
        self.assert_content(driver, 'v1', new)

    def test_deleted(self):
        driver = self.rbd_driver()
        location = self.upload()
        image = self.info(location)
        self.assertTrue(driver.cloneable(image))
        self.drop(location)
        self.refused_clone(driver, image, Reason.LOCATION_NOT_FOUND)

    def test_into_the_trash(self):
        driver = self.rbd_driver()
        location = self.upload()
        image = self.info(location)
        self.assertTrue(driver.cloneable(image))
        self.trash(location)
        self.refused_clone(driver, image, Reason.LOCATION_NOT_FOUND)

    def test_its_snapshot_deleted(self):
        driver = self.rbd_driver()
        location = self.upload()
        image = self.info(location)
        self.assertTrue(driver.cloneable(image))
        _no_snapshot(self, location)
        self.refused_clone(driver, image, Reason.SNAPSHOT_NOT_FOUND)

    def test_its_snapshot_made_anew(self):
        driver = self.rbd_driver()
        location = self.upload()
        image = self.info(location)
        self.assertTrue(driver.cloneable(image))
        self.snap_anew(location, QCOW2)
        error = self.assertRaises(
            exception.BackendError, driver.clone, image, 'v1'
        )
        self.assertIs(Reason.LOCATION_NOT_FOUND, error.reason)
        self.assertEqual(([], []), self.left_in_pool())
        self.refused(driver, image, Reason.FORMAT_MISMATCH)

    def test_its_snapshot_unprotected(self):
        driver = self.rbd_driver()
        location = self.upload()
        image = self.info(location)
        self.assertTrue(driver.cloneable(image))
        _unprotected(self, location)
        self.refused_clone(driver, image, Reason.SNAPSHOT_UNPROTECTED)

    def test_rights_taken_away(self):
        user = self.add_user([self.pool])
        driver = self.rbd_driver(user)
        image = self.info(self.upload())
        self.assertTrue(driver.cloneable(image))
        caps = ceph_config.caps([self.pool])
        self.cluster.mon(
            prefix='auth caps',
            entity=f'client.{user}',
            caps=[word for pair in caps.items() for word in pair],
        )
        # An open connection keeps what it had; a new one does not.
        ceph.disconnect()
        self.refused_clone(driver, image, Reason.POOL_DENIED)

    def refused_clone(self, driver, image, reason):
        error = self.assertRaises(
            exception.BackendError, driver.clone, image, 'v1'
        )
        self.assertIs(reason, error.reason, str(error))
        self.assertEqual(([], []), self.left_in_pool())
        verdict = driver.cloneable(image)
        self.assertIs(reason, verdict.refusal.reason)


class TestCloneVersions(LocationTestCase):
    """A cluster that makes clones of version 2, and settings of one."""

    def setUp(self):
        super().setUp()
        self.cluster = second()
        self.min_compat('mimic')
        self.cluster.make_pool(self.pool)
        self.addCleanup(self.cluster.remove_pool, self.pool)
        self.addCleanup(ceph.disconnect)

    def min_compat(self, release):
        self.cluster.mon(
            prefix='osd set-require-min-compat-client', version=release
        )

    def test_of_version_2(self):
        location = self.upload(protected=False)
        driver = self.rbd_driver()
        made = self.create(driver, self.info(location))
        self.assertEqual('clone', made.method.value)
        self.assert_content(driver, made.volume.name)

    def test_a_snapshot_in_the_trash(self):
        location = self.upload(protected=False)
        driver = self.rbd_driver()
        image = self.info(location)
        driver.clone(image, 'v1')
        with self.image(location, write=True) as opened:
            opened.remove_snap('snap')
        again = self.rbd_driver()
        self.refused(again, image, Reason.SNAPSHOT_NOT_FOUND)
        # The clone lives on.
        self.assert_content(driver, 'v1')
        self.assertIn(location.image, driver.show('v1').parent)

    def test_version_1_by_the_client(self):
        self.min_compat('luminous')
        location = self.upload(protected=False)
        self.refused(
            self.rbd_driver(), self.info(location), Reason.SNAPSHOT_UNPROTECTED
        )
        self.cluster.set_config('client', 'rbd_default_clone_format', '2')
        self.addCleanup(
            self.cluster.mon,
            prefix='config rm',
            who='client',
            name='rbd_default_clone_format',
        )
        ceph.disconnect()
        self.rbd_driver().clone(self.info(location), 'v1')

    def test_a_namespace(self):
        with self.opened(self.pool) as pool:
            rbd.RBD().namespace_create(pool.ioctx, 'ours')
        driver = self.rbd_driver(namespace='ours')
        image = self.info(self.upload())
        made = self.create(driver, image)
        self.assertEqual('clone', made.method.value)
        self.assert_content(driver, made.volume.name)
        self.assertEqual(([], []), self.left_in_pool())
        driver.delete(made.volume.name)
        # Clones of version 1 cannot be in another namespace.
        self.min_compat('luminous')
        ceph.disconnect()
        made = self.create(self.rbd_driver(namespace='ours'), image)
        self.assertEqual('stream', made.method.value)
        self.assertIn(
            'only clones of version 2 can be in a namespace',
            made.failures[0].refusal.detail,
        )
