# SPDX-License-Identifier: Apache-2.0
"""Every remedy that the RBD driver prints is carried out on a real cluster.

One test a reason, named after its code, as in :mod:`.test_remedies`.
"""

import argparse
import dataclasses
import re
import shutil
import subprocess
import sys
from unittest import mock
import uuid

from cinder_cow import exception
from cinder_cow.cli import backend as backends
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_parents
from cinder_cow.drivers import rbd_undo
from cinder_cow.refusal import Reason
from cinder_cow.tests import ceph_config
from cinder_cow.tests.functional import test_rbd_locations

# From ceph.conf: ours, for an empty one.
_SETTING = re.compile(r'set (\w+) = (.+?) in section \[(\w+)\]')
_CAPS = r'(ceph auth caps .*)\.$'


class TestRbdRemedies(test_rbd_locations.LocationTestCase):
    def setUp(self):
        super().setUp()
        self.conf = self.top / 'cinder.conf'

    def backend(self, **options):
        """Open the back end of a cinder.conf, as the program does."""
        settings = {
            'volume_driver': 'cinder.volume.drivers.rbd.RBDDriver',
            'rbd_ceph_conf': self.cluster.conf,
            'rbd_pool': self.pool,
            'rbd_user': 'admin',
            'rados_connect_timeout': 2,
            'cow_rbd_op_timeout': 2,
            **options,
        }
        lines = [f'{name} = {value}' for name, value in settings.items()]
        self.conf.write_text('\n'.join(['[rbd1]', *lines, '']))
        arguments = argparse.Namespace(
            config_file=[str(self.conf)], backend='rbd1'
        )
        return backends.from_arguments(arguments)

    def not_opened(self, reason, **options):
        """Check why a back end cannot be opened; return the remedy."""
        error = self.assertRaises(
            exception.BackendError, self.backend, **options
        )
        self.assertIs(reason, error.reason, str(error))
        return error.refusal.remedy

    def not_deleted(self, reason, driver, name):
        error = self.assertRaises(exception.RequestError, driver.delete, name)
        self.assertIs(reason, error.reason)
        self.assertTrue(driver.exists(name))
        return error.refusal

    # The configuration

    def test_ceph_unavailable_without_a_configuration(self):
        path = self.top / 'ceph.conf'
        remedy = self.not_opened(Reason.CEPH_UNAVAILABLE, rbd_ceph_conf=path)
        self.assertIn(f'Look at rbd_ceph_conf and rbd_user: {path}', remedy)
        shutil.copy(self.cluster.conf, path)
        self.backend(rbd_ceph_conf=path)

    def test_ceph_unavailable_with_a_wrong_key(self):
        user = self.add_user([self.pool])
        right = self.cluster.keyring(user).read_text()
        entity = f'client.{user}'
        ceph_config.write_keyring(
            self.cluster.keyring(user), entity, ceph_config._new_key()
        )
        remedy = self.not_opened(Reason.CEPH_UNAVAILABLE, rbd_user=user)
        self.assertIn(f'Put the right key of {entity} into its key', remedy)
        found = self.run_line(remedy, r'(ceph auth get-or-create [^ )]+)')
        self.assertEqual(right.split(), found.split())
        self.cluster.keyring(user).write_text(found)
        self.backend(rbd_user=user)

    def test_ceph_unavailable_for_an_unknown_user(self):
        user = f'test-{uuid.uuid4().hex}'
        self.addCleanup(self.cluster.remove_user, user)
        for _ in 'without a keyring', 'with one':
            remedy = self.not_opened(Reason.CEPH_UNAVAILABLE, rbd_user=user)
            found = self.run_line(remedy, r'(ceph auth get-or-create [^ )]+)')
            self.cluster.keyring(user).write_text(found)
        # It is known now, and may nothing yet.
        self.run_line(remedy, _CAPS)
        self.backend(rbd_user=user)

    def test_ceph_unavailable(self):
        cluster = test_rbd_locations.second()
        options = {'rbd_ceph_conf': cluster.conf, 'rbd_pool': 'volumes'}
        self.backend(**options)
        ceph.disconnect()
        cluster.kill('mon')
        self.addCleanup(cluster.up)
        remedy = self.not_opened(Reason.CEPH_UNAVAILABLE, **options)
        (line,) = re.findall(r'(ceph -s -c .*)\.$', remedy)
        self.assertRaises(
            subprocess.TimeoutExpired,
            subprocess.run,
            line.split(),
            capture_output=True,
            timeout=0.5,
        )
        cluster.start('mon')
        subprocess.run(line.split(), capture_output=True, check=True)
        self.backend(**options)

    def test_ceph_unavailable_without_its_modules(self):
        self.backend()
        main = 'import sys; from cinder_cow.cli import app; '
        main += 'sys.exit(app.main(sys.argv[1:]))'
        for hidden, status in (('rados', 1), ('other', 0)):
            done = subprocess.run(
                [
                    sys.executable,
                    '-c',
                    f'import sys; sys.modules["{hidden}"] = None; {main}',
                    *('--config-file', self.conf, '--backend', 'rbd1'),
                    *('volume', 'list'),
                ],
                capture_output=True,
                text=True,
            )
            self.assertEqual(status, done.returncode, done.stderr)
            if status:
                self.assertIn(
                    'apt-get install python3-rados python3-rbd', done.stderr
                )

    def test_no_pool(self):
        pool = f'{self.pool}-new'
        remedy = self.not_opened(Reason.NO_POOL, rbd_pool=pool)
        self.assertIn('Set rbd_pool to one that is there', remedy)
        self.backend(rbd_pool=self.pool)
        self.addCleanup(self.cluster.remove_pool, pool)
        self.run_line(remedy, r'(ceph osd pool create [^;]+);')
        self.run_line(remedy, r'(rbd pool init .+)\.$')
        driver = self.backend(rbd_pool=pool).driver
        driver.clone(self.info(self.upload()), 'v1')

    # The location

    def test_no_snapshot(self):
        driver = self.rbd_driver()
        good = self.upload()
        bad = test_rbd_locations._one_part(self, good)
        remedy = self.refused(driver, self.info(bad), Reason.NO_SNAPSHOT)
        self.assertIn('upload the image again', remedy)
        driver.clone(self.info(self.upload()), 'v1')

    def test_other_cluster(self):
        good = self.upload()
        image = self.info(good)
        here = self.cluster
        other = test_rbd_locations.second()
        driver = self.backend(
            rbd_ceph_conf=other.conf, rbd_pool='volumes'
        ).driver
        remedy = self.refused(driver, image, Reason.OTHER_CLUSTER)
        (fsid,) = re.findall(r'a Glance store in cluster (\S+) too', remedy)
        self.assertEqual(other.fsid, fsid)
        self.cluster = other
        copy = self.upload(image_id=good.image)
        self.assertEqual(fsid, copy.fsid)
        name = f'v-{uuid.uuid4()}'
        driver.clone(self.info(copy), name)
        self.assert_content(driver, name)
        driver.delete(name)
        self.cluster = here

    def test_not_raw(self):
        driver = self.rbd_driver()
        location = self.upload(test_rbd_locations.QCOW2)
        image = self.info(location, disk_format='qcow2')
        remedy = self.refused(driver, image, Reason.NOT_RAW)
        (line,) = re.findall(r'(qemu-img convert -O raw) OLD NEW', remedy)
        old, new = self.top / 'old', self.top / 'new'
        subprocess.run(
            ['qemu-img', 'create', '-q', '-f', 'qcow2', old, '1M'], check=True
        )
        subprocess.run([*line.split(), old, new], check=True)
        driver.clone(self.info(self.upload(new.read_bytes())), 'v1')

    def untrusted(self, location, image_id=None):
        """Check that it is not trusted; do what the remedy says."""
        image = self.info(location, id=image_id or location.image)
        driver = self.backend().driver
        remedy = self.refused(driver, image, Reason.LOCATION_UNTRUSTED)
        ((option, value, section),) = _SETTING.findall(remedy)
        self.assertEqual('rbd1', section)
        driver = self.backend(**{option: value}).driver
        driver.clone(image, 'v1')
        self.assert_content(driver, 'v1')
        # What was trusted before still is.
        if option != 'cow_rbd_snapshot':
            driver.clone(self.info(self.upload()), 'v2')

    def test_location_untrusted(self):
        self.untrusted(self.upload(pool='volumes2'))

    def test_location_untrusted_for_its_name(self):
        self.untrusted(self.upload(), 'another id')

    def test_location_untrusted_for_its_snapshot(self):
        self.untrusted(self.upload(snapshot='other'))

    def test_pool_denied(self):
        user = self.add_user([self.pool], [])
        images = self.info(self.upload())
        others = self.info(self.upload(pool='volumes2'))
        options = {
            'rbd_user': user,
            'cow_rbd_trusted_pools': 'images, volumes2',
        }
        driver = self.backend(**options).driver
        remedy = self.refused(driver, images, Reason.POOL_DENIED)
        self.run_line(remedy, _CAPS)
        ceph.disconnect()
        driver.clone(images, 'v1')
        # The line is for all that is trusted, and it took nothing away.
        driver.clone(others, 'v2')
        self.create(driver, images)

    def test_pool_denied_its_own(self):
        user = self.add_user(['volumes'])
        image = self.info(self.upload())
        remedy = self.not_opened(Reason.POOL_DENIED, rbd_user=user)
        self.run_line(remedy, _CAPS)
        ceph.disconnect()
        self.backend(rbd_user=user).driver.clone(image, 'v1')

    def test_pool_denied_its_data_pool(self):
        data = f'{self.pool}-data'
        self.cluster.make_pool(data)
        self.addCleanup(self.cluster.remove_pool, data)
        options = {
            'rbd_user': self.add_user([self.pool]),
            'cow_rbd_data_pool': data,
        }
        driver = self.backend(**options).driver
        error = self.assertRaises(
            exception.CowError, self.write_volume, driver
        )
        self.assertIs(Reason.POOL_DENIED, error.reason)
        self.run_line(error.refusal.remedy, _CAPS)
        ceph.disconnect()
        self.write_volume(driver)

    def write_volume(self, driver):
        with driver.open('v1', test_rbd_locations.SIZE) as writer:
            writer.write(self.content)
            writer.close()

    def test_pool_not_found(self):
        trust = rbd_parents.Trust(frozenset({'images', 'gone'}))
        driver = self.rbd_driver(trust=trust)
        good = self.upload()
        bad = test_rbd_locations._changed(pool='gone')(self, good)
        remedy = self.refused(driver, self.info(bad), Reason.POOL_NOT_FOUND)
        self.assertIn('Correct the location in the image record', remedy)
        driver.clone(self.info(good), 'v1')

    def test_location_not_found(self):
        driver = self.rbd_driver()
        location = self.upload()
        self.drop(location)
        remedy = self.refused(
            driver, self.info(location), Reason.LOCATION_NOT_FOUND
        )
        self.assertIn('Upload the image again', remedy)
        driver.clone(self.info(self.upload()), 'v1')

    def test_snapshot_not_found(self):
        driver = self.rbd_driver()
        location = test_rbd_locations._no_snapshot(self, self.upload())
        image = self.info(location)
        remedy = self.refused(driver, image, Reason.SNAPSHOT_NOT_FOUND)
        self.run_line(remedy, r'(rbd snap create [^;]+);')
        self.run_line(remedy, r'(rbd snap protect [^;]+);')
        driver.clone(image, 'v1')

    def test_snapshot_unprotected(self):
        driver = self.rbd_driver()
        location = self.upload(protected=False)
        image = self.info(location)
        remedy = self.refused(driver, image, Reason.SNAPSHOT_UNPROTECTED)
        self.run_line(remedy, r'(rbd snap protect [^;]+);')
        driver.clone(image, 'v1')

    def test_snapshot_unprotected_with_version_2(self):
        driver = self.rbd_driver()
        image = self.info(self.upload(protected=False))
        remedy = self.refused(driver, image, Reason.SNAPSHOT_UNPROTECTED)
        self.addCleanup(
            self.cluster.mon,
            prefix='osd set-require-min-compat-client',
            version='luminous',
        )
        self.run_line(remedy, r'(ceph osd set-require-min-.+)\.$')
        # Over the connection that is open.
        driver.clone(image, 'v1')

    # Volumes

    def test_volume_in_use(self):
        driver = self.rbd_driver()
        driver.clone(self.info(self.upload()), 'v1')
        self.enterContext(mock.patch.object(rbd_undo, '_BUSY_SECONDS', 0.5))
        with (
            self.opened(self.pool) as pool,
            pool.image('v1', write=True) as image,
        ):
            image.write(b'x', 0)
            address = pool.connection.address
            refusal = self.not_deleted(Reason.VOLUME_IN_USE, driver, 'v1')
        # As it is told, "ceph osd blocklist" takes it.
        (client,) = re.findall(r'is open in (\S+)$', refusal.detail)
        self.assertIn(client, address)
        self.assertIn('end these clients', refusal.remedy)
        driver.delete('v1')
        self.assertFalse(driver.exists('v1'))

    def test_volume_has_snapshots(self):
        driver = self.rbd_driver()
        driver.clone(self.info(self.upload()), 'v1')
        with self.opened(self.pool) as pool:
            with pool.image('v1', write=True) as image:
                image.create_snap('s1')
                image.protect_snap('s1')
            pool.clone(pool, 'v1', 's1', 'child')
        refusal = self.not_deleted(Reason.VOLUME_HAS_SNAPSHOTS, driver, 'v1')
        self.assertIn(
            f'has the snapshots s1; cloned of them: {self.pool}/child',
            refusal.detail,
        )
        self.assertIn('Delete what was cloned of it and its', refusal.remedy)
        child = dataclasses.replace(
            self.upload(), image='child', pool=self.pool
        )
        self.trash(child)
        refusal = self.not_deleted(Reason.VOLUME_HAS_SNAPSHOTS, driver, 'v1')
        self.assertIn('/child (in the trash)', refusal.detail)
        self.run_line(f'rbd trash purge {self.pool}', '(.+)$')
        refusal = self.not_deleted(Reason.VOLUME_HAS_SNAPSHOTS, driver, 'v1')
        self.assertIn('cloned of them: nothing', refusal.detail)
        with (
            self.opened(self.pool) as pool,
            pool.image('v1', write=True) as image,
        ):
            image.unprotect_snap('s1')
            image.remove_snap('s1')
        driver.delete('v1')
        self.assertEqual(([], []), self.left_in_pool())

    # The back end, while at work

    def test_ceph_timed_out(self):
        driver = self.backend(cow_rbd_op_timeout=1).driver
        image = self.info(self.upload())
        self.cluster.pause('osd')
        self.addCleanup(self.cluster.resume, 'osd')
        verdict = driver.cloneable(image)
        self.assertIs(Reason.CEPH_TIMED_OUT, verdict.refusal.reason)
        self.assertIn('within 1 s', verdict.refusal.detail)
        self.run_line(verdict.refusal.remedy, r'"(ceph -s)"')
        self.cluster.resume('osd')
        driver.clone(image, 'v1')
