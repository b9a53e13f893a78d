# SPDX-License-Identifier: Apache-2.0
"""What tests of a real Cinder share: its volumes, of images in Ceph."""

import contextlib
import pathlib
import shutil
import tempfile
from typing import ClassVar

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
    """Has one Cinder for the tests of a class, and leaves it nothing.

    :cvar settings: sections of cinder.conf that differ
    :cvar native: Cinder runs in native threads
    :cvar attaches: it can attach volumes itself, as for a backup
    """

    settings: ClassVar[dict[str, dict[str, object]]] = {}
    native = False
    attaches = False

    @classmethod
    def ceph(cls):
        """Give the cluster of the back end."""
        return ceph_cluster.shared()

    @classmethod
    def asked(cls):
        """Give what Cinder takes for Glance."""
        return cls.glance

    @classmethod
    def section(cls, top):
        """Tell the back end, as ``cinder_service`` takes it.

        :param top: a directory for its files
        """
        return cinder_service.upstream_driver(cls.cluster)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.cluster = cls.ceph()
        cls.glance = rbd_glance_case.shared()
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        cls.addClassCleanup(shutil.rmtree, top)
        cls.cinder = cinder_service.Cinder(
            pathlib.Path(top) / 'cinder',
            cls.asked(),
            drivers=cls.section(top),
            settings=cls.settings,
            native=cls.native,
            keyring=cls.cluster.keyring('cinder') if cls.attaches else None,
        )
        cls.enterClassContext(cls.cinder)

    def stored(self, disk_format='raw', **options):
        image_id = self.glance.create(disk_format, **options)
        self.addCleanup(self.delete_image, image_id)
        return image_id

    def delete_image(self, image_id):
        """Delete an image, if it is still there."""
        if self.glance.request('GET', f'/v2/images/{image_id}').ok:
            self.glance.delete(image_id)

    def qcow2(self, content, **options):
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, top)
        path = pathlib.Path(top) / 'image'
        corpus.Image('qcow2', corpus.converted(content)).make(path)
        return self.stored('qcow2', path=path, **options)

    def begun(self, **options):
        """Begin to make a volume of 1 GiB; it goes with the test."""
        volume = self.cinder.create_volume(1, **options)
        self.addCleanup(self.delete, volume)
        return volume

    def delete(self, volume):
        """Delete a volume, if it is still there."""
        if self.cinder.request('GET', f'/volumes/{volume}').ok:
            self.cinder.delete_volume(volume)

    def created(self, **options):
        volume = self.begun(**options)
        self.cinder.wait(volume)
        return volume

    def uploaded(self, volume):
        """Begin to make an image of a volume; return its id."""
        action = 'os-volume_upload_image'
        claims = {'image_name': 'made', 'force': False, 'disk_format': 'raw'}
        image_id = self.cinder.act(volume, action, **claims)[action][
            'image_id'
        ]
        self.addCleanup(self.glance.delete, image_id)
        return image_id

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
