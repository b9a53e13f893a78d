# SPDX-License-Identifier: Apache-2.0
"""What the package promises to others: entry points and options."""

import importlib.metadata
import os
import string

import fixtures
from oslo_config import generator
from oslotest import base as test_base

from cinder_cow import opts

# By their names and with their help, so that its configuration is read as it
# is; with the cinder of the plug-in, oslo.config takes both for one.
CINDERS = {
    'rados_connect_timeout',
    'rbd_ceph_conf',
    'rbd_cluster_name',
    'rbd_pool',
    'rbd_store_chunk_size',
    'rbd_user',
}


class TestEntryPoints(test_base.BaseTestCase):
    def test_every_entry_point_loads(self):
        points = importlib.metadata.distribution('cinder-cow').entry_points
        groups = {point.group for point in points}
        self.assertLessEqual(
            {
                'console_scripts',
                'cinder_cow.cli',
                'cinder_cow.drivers',
                'oslo.config.opts',
            },
            groups,
        )
        for point in points:
            # What Cinder loads imports Cinder; test_plugin_weigher has one.
            if not point.group.startswith('cinder.'):
                self.assertTrue(callable(point.load()), point)

    def test_the_generator_finds_our_options(self):
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'conf')
        generator.main(['--namespace', 'cinder_cow', '--output-file', path])
        with open(path) as file:
            groups = file.read().split('[backend_defaults]')
        for (_group, options), sample in zip(
            opts.list_opts(), groups, strict=True
        ):
            for option in options:
                self.assertIn(f'\n#{option.name} =', sample)


class TestOptions(test_base.BaseTestCase):
    def test_every_option_is_explained(self):
        for _group, options in opts.list_opts():
            for option in options:
                if option.name in CINDERS:
                    continue
                self.assertTrue(option.name.startswith('cow_'), option.name)
                text = option.help or ''
                self.assertTrue(text.endswith('.'), option.name)
                self.assertIn(text[0], string.ascii_uppercase)
                self.assertNotIn('  ', text)

    def test_options_of_cinder_are_those_and_no_others(self):
        found = [opt.name for _, o in opts.list_opts() for opt in o]
        ours = [name for name in found if name.startswith('cow_')]
        self.assertEqual(CINDERS, set(found) - set(ours))
        self.assertEqual(len(set(found)), len(found))
