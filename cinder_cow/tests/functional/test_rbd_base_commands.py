# SPDX-License-Identifier: Apache-2.0
"""The commands about bases and blank volumes, in a real pool."""

import json
import subprocess

from cinder_cow.tests import program
from cinder_cow.tests.functional import test_rbd_locations

CONF = """
[DEFAULT]
enabled_backends = rbd1
[rbd1]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
rbd_ceph_conf = {conf}
rbd_pool = {pool}
rbd_user = admin
"""


class TestRbdBaseCommands(test_rbd_locations.LocationTestCase):
    def setUp(self):
        super().setUp()
        self.conf = self.top / 'cinder.conf'
        self.conf.write_text(
            CONF.format(conf=self.cluster.conf, pool=self.pool)
        )

    def cow(self, *arguments):
        """Run a command that must succeed, quietly; return its answer."""
        return json.loads(self.do(*arguments, '-f', 'json'))

    def do(self, *arguments):
        """Run a command that must succeed, quietly; return its output."""
        done = subprocess.run(
            [
                program.PROGRAM,
                *('--config-file', self.conf),
                *map(str, arguments),
            ],
            capture_output=True,
            text=True,
            timeout=program.LIMIT,
        )
        self.assertEqual((0, ''), (done.returncode, done.stderr))
        return done.stdout

    def test_an_image_that_is_cloned_where_it_is(self):
        location = self.upload().url
        (row,) = self.cow('base', 'prepare', location)
        self.assertEqual('cloned from its location', row['state'])
        self.assertEqual([], self.cow('base', 'list'))
        (row,) = self.cow('base', 'prepare', location, '--force')
        self.assertEqual((True, 'ok'), (row['made'], row['state']))
        self.assertEqual('ok', self.cow('base', 'scrub')[0]['state'])

    def test_prepare_scrub_and_pin(self):
        path = self.top / 'image.raw'
        path.write_bytes(b'X' * 2**20 + bytes(15 * 2**20))
        (row,) = self.cow('base', 'prepare', path)
        self.assertEqual((True, 'ok'), (row['made'], row['state']))
        (scrubbed,) = self.cow('base', 'scrub')
        self.assertEqual('ok', scrubbed['state'])
        self.assertLess(scrubbed['bytes_read'], 8 * 2**20)
        made = self.cow('volume', 'create', 'v1', '--image', path)
        self.assertEqual(('base', False), (made['method'], made['base_made']))
        shown = self.cow('base', 'show', row['base'])
        self.assertEqual(['v1'], shown['children'])
        self.do('base', 'pin', row['base'])
        self.assertTrue(self.cow('base', 'list')[0]['pinned'])
        known = self.top / 'known'
        known.write_text('v1\n')
        self.assertEqual([], self.cow('fsck', '--known-volumes', known))

    def test_blank(self):
        for name, is_first in (('v1', True), ('v2', False)):
            made = self.cow(
                *('volume', 'create', name),
                *('--blank', 'ext4', '--size', 1),
            )
            self.assertEqual(
                ('base', is_first), (made['method'], made['base_made'])
            )
            self.assertIn('tune2fs -U random DEV', made['uuid'])
