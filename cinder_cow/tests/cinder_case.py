# SPDX-License-Identifier: Apache-2.0
"""What tests of a real Cinder share: its volumes, of images in Ceph."""

import contextlib
import pathlib
import shutil
import tempfile

from oslo_utils import units
from oslotest import base as test_base

from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import cinder_service
from cinder_cow.tests import corpus
from cinder_cow.tests import rbd_glance_case
from cinder_cow.tests import rbd_place
from cinder_cow.tests import storage

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

POOL = 'volumes'


class CinderCase(test_base.BaseTestCase):
    """Has one Cinder for the tests of a class, and leaves it nothing."""

    @classmethod
    def section(cls, top):
        """Tell the back end, as ``cinder_service`` takes it.

        :param top: a directory for its files
        """
        return cinder_service.upstream_driver(cls.cluster)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.cluster = ceph_cluster.shared()
        cls.glance = rbd_glance_case.shared()
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        cls.addClassCleanup(shutil.rmtree, top)
        cls.cinder = cinder_service.Cinder(
            pathlib.Path(top) / 'cinder',
            cls.glance,
            drivers=cls.section(top),
        )
        cls.enterClassContext(cls.cinder)

    def stored(self, disk_format='raw', **options):
        image_id = self.glance.create(disk_format, **options)
        self.addCleanup(self.glance.delete, image_id)
        return image_id

    def qcow2(self, content, **options):
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, top)
        path = pathlib.Path(top) / 'image'
        corpus.Image('qcow2', corpus.converted(content)).make(path)
        return self.stored('qcow2', path=path, **options)

    def begun(self, **options):
        """Begin to make a volume of 1 GiB; it goes with the test."""
        volume = self.cinder.create_volume(1, **options)
        self.addCleanup(self.cinder.delete_volume, volume)
        return volume

    def created(self, **options):
        volume = self.begun(**options)
        self.cinder.wait(volume)
        return volume

    def assert_content(self, volume, expected, parent=None):
        """Check a volume's first bytes, that zeros follow, and its parent."""
        size = len(expected)
        with self.opened(volume) as image:
            self.assertEqual(units.Gi, image.size())
            self.assertTrue(storage.same(expected, image.read(0, size)))
            self.assertFalse(any(image.read(size, units.Mi)))
            try:
                found = tuple(image.parent_info())
            except rbd.ImageNotFound:
                found = None
            self.assertEqual(parent, found)

    @contextlib.contextmanager
    def opened(self, volume):
        with (
            rbd_place.opened(self.cluster, POOL) as ioctx,
            rbd.Image(ioctx, f'volume-{volume}', read_only=True) as image,
        ):
            yield image
