# SPDX-License-Identifier: Apache-2.0
"""The files of a Ceph for tests, and what is said where it is missing."""

import configparser
import pathlib
import tempfile
import unittest

from oslotest import base as test_base

from cinder_cow.tests import ceph_config
from cinder_cow.tests import ceph_daemons


class TestConfig(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        place = tempfile.TemporaryDirectory(prefix='cow-test-')
        self.addCleanup(place.cleanup)
        self.top = pathlib.Path(place.name)

    def write(self, **settings):
        return ceph_config.write(
            self.top, settings=settings, store='bluestore', osd_size=2**30
        )

    def read(self, name='ceph.conf'):
        found = configparser.RawConfigParser()
        found.read(self.top / name)
        return found

    def test_a_setting_is_replaced_where_it_stands(self):
        self.write(mon_max_pg_per_osd='7', osd_client_watch_timeout='5')
        found = self.read()
        self.assertEqual('7', found['mon']['mon max pg per osd'])
        self.assertNotIn('mon max pg per osd', found['global'])
        self.assertEqual('5', found['global']['osd client watch timeout'])

    def test_nobody_else_reads_the_keys(self):
        self.write()
        keys = list(self.top.glob('*.keyring'))
        # Four users, three daemons, and all of them for the monitor.
        self.assertEqual(8, len(keys))
        for path in keys:
            self.assertEqual(0o600, path.stat().st_mode & 0o777, path.name)

    def test_cinder_is_told_where_it_is(self):
        self.write()
        found = self.read('cinder.conf')
        section = found[found['DEFAULT']['enabled_backends']]
        self.assertEqual(str(self.top / 'ceph.conf'), section['rbd_ceph_conf'])
        self.assertEqual('rbd', section['cow_driver'])

    def test_caps(self):
        caps = ceph_config.caps(['one', 'two'], ['three'])
        self.assertEqual('profile rbd', caps['mon'])
        self.assertEqual(
            'profile rbd pool=one, profile rbd pool=two,'
            ' profile rbd-read-only pool=three',
            caps['osd'],
        )


class TestMissing(test_base.BaseTestCase):
    def test_a_missing_program_is_the_machine_s(self):
        error = self.assertRaises(
            unittest.SkipTest, ceph_daemons.needed, 'ceph-none'
        )
        self.assertStartsWith(str(error), 'machine: ')

    def assertStartsWith(self, text, head):
        self.assertEqual(head, text[: len(head)])
