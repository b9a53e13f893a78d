# SPDX-License-Identifier: Apache-2.0
"""Our driver in a real Cinder, through its API, with a real Glance."""

import contextlib
from typing import ClassVar

from oslo_utils import units

from cinder_cow.tests import cinder_case
from cinder_cow.tests import cinder_service
from cinder_cow.tests import corpus
from cinder_cow.tests import rbd_place

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

DRIVER = 'cinder_cow.plugin.rbd.CowRBDDriver'
POOL = cinder_case.POOL
BASES = 'cow-base-'
# RBD_FEATURE_EXCLUSIVE_LOCK.
EXCLUSIVE_LOCK = 4


class PluginTestCase(cinder_case.CinderCase):
    """Has our driver.

    :cvar options: of the back end
    """

    options: ClassVar[dict[str, str]] = {}

    @classmethod
    def section(cls, top):
        return cinder_service.upstream_driver(
            cls.cluster,
            volume_driver=DRIVER,
            cow_scratch_dir=top,
            **cls.options,
        )

    def type(self, **extra_specs):
        claims = {'name': self.id()[-200:], 'extra_specs': extra_specs}
        return self.made('/types', volume_type=claims)

    def made(self, path, **claims):
        """Make something of Cinder's; it goes with the test."""
        ((kind, _claims),) = claims.items()
        found = self.cinder.do('POST', path, json=claims).json()[kind]
        path = f'{path}/{found["id"]}?force=true'
        self.addCleanup(self.cinder.do, 'DELETE', path)
        return found['id']

    def bases(self):
        with rbd_place.opened(self.cluster, POOL) as ioctx:
            found = rbd.RBD().list(ioctx)
        return [name for name in found if name.startswith(BASES)]

    def new_base(self, before):
        """Tell the one base that was not there before."""
        (base,) = set(self.bases()) - before
        return POOL, base, 'snap'

    def told(self, volume, words):
        """Tell the first line of the log that has a volume and some words."""
        for line in self.cinder.log.splitlines():
            if f'Volume volume-{volume} {words}' in line:
                return line
        raise AssertionError(self.cinder.end_of_log())


class TestImages(PluginTestCase):
    def test_raw_in_the_cluster_is_cloned_from_there(self):
        content = corpus.noise(units.Mi)
        image_id = self.stored(data=content)
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content, ('images', image_id, 'snap'))
        line = self.told(volume, 'was made in')
        self.assertIn(f'/images/{image_id}/snap', line)
        self.assertIn(' 0 bytes copied', line)
        self.assertEqual([], self.glance.downloads(image_id))

    def test_another_format_is_cloned_from_a_base(self):
        content = corpus.holey(units.Mi)
        image_id = self.qcow2(content, store='file1')
        before = set(self.bases())
        volumes = [self.created(image_id=image_id)]
        self.assertEqual(1, len(self.glance.downloads(image_id)))
        # Of the second one, only whether it may be read is asked.
        volumes.append(self.created(image_id=image_id))
        base = self.new_base(before)
        for volume in volumes:
            self.assert_content(volume, content, base)
        self.assertIn('make a base', self.told(volumes[0], 'was made in'))
        self.assertIn('of its base', self.told(volumes[1], 'was made in'))

    def test_another_format_in_the_cluster_is_not_downloaded(self):
        content = corpus.noise(units.Mi)
        image_id = self.qcow2(content)
        before = set(self.bases())
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content, self.new_base(before))
        self.assertEqual([], self.glance.downloads(image_id))

    def test_what_its_type_wants_is_set_up(self):
        kind = self.type(multiattach='<is> True')
        content = corpus.noise(units.Mi)
        image_id = self.stored(data=content)
        volume = self.created(image_id=image_id, volume_type=kind)
        self.assertTrue(self.cinder.show(volume)['multiattach'])
        self.assert_content(volume, content, ('images', image_id, 'snap'))
        with self.opened(volume) as image:
            self.assertFalse(image.features() & EXCLUSIVE_LOCK)

    def test_what_its_type_wants_fails(self):
        # Cinder's own driver then uses a handle that it has closed.
        kind = self.type()
        limits = {'consumer': 'back-end', 'total_iops_sec': 'many'}
        qos = self.made('/qos-specs', qos_specs={'name': 'bad', **limits})
        path = f'/qos-specs/{qos}/associate?vol_type_id={kind}'
        self.cinder.do('GET', path)
        image_id = self.stored(data=corpus.noise(units.Mi))
        volume = self.begun(image_id=image_id, volume_type=kind)
        self.assertRaises(RuntimeError, self.cinder.wait, volume)
        with rbd_place.opened(self.cluster, POOL) as ioctx:
            self.assertNotIn(f'volume-{volume}', rbd.RBD().list(ioctx))

    def test_what_it_does_not_make_is_told(self):
        # Cinder downloads it, and then finds the same.
        image_id = self.qcow2(corpus.noise(units.Mi), store='file1')
        self.glance.set_hash(
            image_id, os_hash_algo='sha512', os_hash_value='0' * 128
        )
        volume = self.begun(image_id=image_id)
        self.assertRaises(RuntimeError, self.cinder.wait, volume)
        line = self.told(volume, 'is left to Cinder')
        self.assertIn('sha512', line)


class TestRefusing(PluginTestCase):
    """Nothing is copied in silence."""

    options: ClassVar = {'cow_enabled': 'false', 'cow_fallback': 'refuse'}

    def test_it_is_refused(self):
        volume = self.begun(image_id=self.stored(data=corpus.noise(units.Mi)))
        error = self.assertRaises(RuntimeError, self.cinder.wait, volume)
        self.assertIn('is error', str(error))
        self.assertIn('ImageCopyFailure', self.cinder.log)
        self.assertIn('cow_enabled', self.cinder.log)
