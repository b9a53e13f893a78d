# SPDX-License-Identifier: Apache-2.0
"""What tests of images share that Glance keeps in the same Ceph as ours."""

import atexit
import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
from typing import Any

import fixtures
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import glance as glances
from cinder_cow import opts
from cinder_cow.drivers import ceph
from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import ceph_config
from cinder_cow.tests import corpus
from cinder_cow.tests import rbd_place
from cinder_cow.tests import storage
from cinder_cow.tests.functional import test_glance
from cinder_cow.tests.functional import test_rbd

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251


@functools.cache
def shared():
    """Return a Glance whose store is in the cluster of this process.

    Who has the role of a reader alone may see images there, and not get them.
    """
    ceph_client.needed()
    with contextlib.ExitStack() as stack:
        started = test_glance.started(
            ceph=ceph_cluster.shared(),
            policy={'download_image': 'role:admin or role:member'},
        )
        glance = stack.enter_context(started)
        # It ends before the cluster does.
        atexit.register(stack.pop_all().close)
    return glance


class RbdGlanceCase(test_rbd.RbdTestCase):
    """Has Glance, and a pool of ours whose user may only read its images."""

    def setUp(self):
        super().setUp()
        self.glance = shared()
        self.top = pathlib.Path(
            tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        )
        self.addCleanup(shutil.rmtree, self.top)
        self.user = f'of-{self.pool}'
        caps = ceph_config.caps([self.pool], ['images'])
        self.cluster.add_user(self.user, caps)
        self.addCleanup(self.cluster.remove_user, self.user)
        self.driver = self.rbd_driver(self.user)
        self.scratch = self.top / 'scratch'
        self.scratch.mkdir()
        self.options = {}
        self.count = 0
        self.image_ids = []
        # Before its pool and its user go.
        self.addCleanup(self.remove_all)

    def remove_all(self):
        """Remove what was made; Glance must be able to remove its images."""
        for volume in list(self.driver.list()):
            self.driver.delete(volume.name)
        for image_id in self.image_ids:
            answer = self.glance.request('DELETE', f'/v2/images/{image_id}')
            self.assertIn(answer.status_code, {204, 404}, answer.text)

    # Glance

    def stored(self, disk_format='raw', *, data=None, path=None, **options):
        """Upload an image into the cluster."""
        claims = {'visibility': 'public', **options}
        image_id = self.glance.create(
            disk_format, data=data, path=path, **claims
        )
        self.image_ids.append(image_id)
        return image_id

    def made_file(self, image):
        """Make an image of the corpus, or one of what ``image`` tells."""
        self.count += 1
        path = self.top / f'image-{self.count}'
        image.make(path)
        return path

    def qcow2(self, data=None, **options):
        data = corpus.holey(units.Mi) if data is None else data
        made = corpus.Image('qcow2', corpus.converted(data))
        return self.stored('qcow2', path=self.made_file(made), **options)

    def unprotect(self, image_id):
        """Do what Glance never does."""
        with (
            rbd_place.opened(self.cluster, 'images') as ioctx,
            rbd.Image(ioctx, image_id) as image,
        ):
            image.unprotect_snap('snap')

    def wrong_hash(self, image_id):
        self.glance.set_hash(
            image_id, os_hash_algo='sha512', os_hash_value='0' * 128
        )

    def assert_no_download(self, image_id):
        self.assertEqual([], self.glance.downloads(image_id))

    def images(self):
        """Tell the names of images in Glance's pool, and in its trash."""
        calls: Any = rbd.RBD()
        with rbd_place.opened(self.cluster, 'images') as ioctx:
            trash = {one['name'] for one in calls.trash_list(ioctx)}
            return set(calls.list(ioctx)), trash

    def purge(self):
        """Empty the trash of Glance's pool; return the names."""
        calls: Any = rbd.RBD()
        with rbd_place.opened(self.cluster, 'images') as ioctx:
            found = list(calls.trash_list(ioctx))
            for one in found:
                calls.trash_remove(ioctx, one['id'], True)
        return {one['name'] for one in found}

    def assert_glance_can_delete(self, image_id):
        """Check that no clone of ours hangs on an image."""
        self.glance.delete(image_id)
        names, trash = self.images()
        self.assertNotIn(image_id, names | trash)

    # Us

    @contextlib.contextmanager
    def opened(self, image_id, token=None):
        """Give the manager, the image and its source, as a command does."""
        for name in [name for name in os.environ if name.startswith('OS_')]:
            self.useFixture(fixtures.EnvironmentVariable(name))
        for name, value in self.glance.environment(token).items():
            self.useFixture(fixtures.EnvironmentVariable(name, value))
        settings = opts.Settings(
            backend='rbd1', scratch_dir=str(self.scratch), **self.options
        )
        with glances.Glance.of_cloud(None, settings) as client:
            image = client.image(image_id)
            with client.source(image) as source:
                ours = test_glance.Manager(self.driver, settings)
                yield ours, image, source

    def create(self, image_id, token=None, progress=None):
        self.count += 1
        with self.opened(image_id, token) as (ours, image, source):
            return ours.create_volume_from_image(
                f'v{self.count}', image, source, progress=progress
            )

    def refused(self, reason, image_id, **options):
        """Create; it must be refused, and leave nothing. Return the error."""
        try:
            self.create(image_id, **options)
        except exception.CowError as error:
            self.assertIs(reason, error.reason, str(error))
            self.assert_clean()
            return error
        raise AssertionError(f'{reason} was not raised')

    def base(self):
        (made,) = self.driver.list_bases()
        return made

    def assert_content(self, outcome, expected):
        """Check what a guest sees of a volume: that, and zeros."""
        with self.driver.read(outcome.volume.name) as reader:
            found = reader.read(0, len(expected))
            rest = min(units.Mi, reader.size - len(expected))
            end = reader.read(len(expected), rest)
        self.assertTrue(storage.same(expected, found))
        self.assertFalse(any(end))

    def assert_clean(self):
        """Check that nothing is left but volumes and bases."""
        names = [volume.name for volume in self.driver.list()]
        names += [made.name for made in self.driver.list_bases()]
        self.assertEqual([], rbd_place.left(self.cluster, self.pool, names))
        self.assertEqual([], list(self.scratch.glob('*/*.part')))

    def clones(self, version):
        """Have all who connect from now on make clones of a version."""
        name = 'rbd_default_clone_format'
        self.cluster.set_config('client', name, version)
        self.addCleanup(
            self.cluster.mon, prefix='config rm', who='client', name=name
        )
        ceph.disconnect()
