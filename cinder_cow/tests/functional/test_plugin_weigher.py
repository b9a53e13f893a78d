# SPDX-License-Identifier: Apache-2.0
"""What back ends tell Cinder's scheduler, and where it puts volumes then."""

import pathlib
import time
from typing import ClassVar
import uuid

from oslo_utils import units

from cinder_cow.plugin import base_digest
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import cinder_case
from cinder_cow.tests import cinder_service
from cinder_cow.tests import corpus
from cinder_cow.tests import volume_api

DRIVER = 'cinder_cow.plugin.rbd.CowRBDDriver'
NEAR, FAR, PLAIN = 'near', 'far', 'plain'
# Each time the same, so that it is no chance.
TIMES = 3


class WeigherTestCase(cinder_case.CinderCase):
    """Has back ends in two clusters; images are in the first one.

    The last one is Cinder's own driver, in the first cluster too.
    """

    weigher: ClassVar[dict[str, object]] = {}
    # What GoodnessWeigher goes by: the other one is better.
    goodness: ClassVar = {PLAIN: 0, NEAR: 60, FAR: 100}

    @classmethod
    def setUpClass(cls):
        # A back end is known with what it has a moment ago.
        periods = {'periodic_interval': 1, 'backend_stats_polling_interval': 3}
        cls.settings = {
            'DEFAULT': {
                'scheduler_default_weighers': 'GoodnessWeigher,'
                'ImageLocalityWeigher',
                **periods,
                **cls.weigher,
            }
        }
        super().setUpClass()

    @classmethod
    def section(cls, top):
        directory = pathlib.Path(top) / 'ceph'
        other = ceph_cluster.Cluster(directory, store='memstore')
        cls.enterClassContext(other)
        ours = {'volume_driver': DRIVER, 'cow_scratch_dir': top}
        places = {
            FAR: (other, ours),
            NEAR: (cls.cluster, ours),
            PLAIN: (cls.cluster, {}),
        }
        return {
            name: {
                **cinder_service.upstream_driver(ceph, **options)[
                    cinder_service.BACKEND
                ],
                'volume_backend_name': name,
                'goodness_function': cls.goodness[name],
            }
            for name, (ceph, options) in places.items()
        }

    def type(self, **extra_specs):
        claims = {'name': str(uuid.uuid4()), 'extra_specs': extra_specs}
        answer = self.cinder.do('POST', '/types', json={'volume_type': claims})
        kind = answer.json()['volume_type']['id']
        self.addCleanup(self.cinder.do, 'DELETE', f'/types/{kind}')
        return kind

    def places(self, **options):
        """Make volumes; tell the back ends that they are in."""
        volumes = [self.created(**options) for _ in range(TIMES)]
        return {self.backend(volume) for volume in volumes}

    def backend(self, volume):
        place = self.cinder.show(volume)['os-vol-host-attr:host']
        return place.partition('@')[2].partition('#')[0]

    def told(self, backend):
        (told,) = (
            capabilities
            for name, capabilities in self.cinder.pools().items()
            if name.partition('@')[2].partition('#')[0] == backend
        )
        return told

    def base_in(self, backend, image_id):
        """Have the base of an image made in a back end, and told."""
        kind = self.type(volume_backend_name=backend)
        self.created(image_id=image_id, volume_type=kind)
        deadline = time.monotonic() + volume_api.LIMIT
        while not base_digest.holds(self.told(backend)['cow_bases'], image_id):
            if time.monotonic() > deadline:
                raise AssertionError(self.cinder.end_of_log())
            time.sleep(0.1)


class TestWeigher(WeigherTestCase):
    def test_where_its_base_is(self):
        content = corpus.noise(units.Mi)
        for backend in (FAR, NEAR):
            image_id = self.qcow2(content, store='file1')
            self.base_in(backend, image_id)
            self.assertEqual({backend}, self.places(image_id=image_id))

    def test_where_it_is_cloned_from_its_location(self):
        image_id = self.stored(data=corpus.noise(units.Mi))
        self.assertEqual({NEAR}, self.places(image_id=image_id))

    def test_where_its_base_is_made_without_a_download(self):
        for _ in range(TIMES):
            image_id = self.qcow2(corpus.noise(units.Mi))
            volume = self.created(image_id=image_id)
            self.assertEqual(NEAR, self.backend(volume))
            self.assertEqual([], self.glance.downloads(image_id))

    def test_a_type_asks_for_clones(self):
        kind = self.type(cow_clone='<is> True', volume_backend_name=PLAIN)
        volume = self.begun(volume_type=kind)
        self.assertRaises(RuntimeError, self.cinder.wait, volume)
        kind = self.type(cow_clone='<is> True')
        self.assertLessEqual(self.places(volume_type=kind), {NEAR, FAR})

    def test_what_back_ends_tell(self):
        fsid = self.cluster.fsid
        near, far, plain = map(self.told, (NEAR, FAR, PLAIN))
        self.assertIs(True, near['cow_clone'])
        self.assertEqual([f'rbd://{fsid}/images/'], near['cow_places'])
        self.assertNotEqual(near['cow_places'], far['cow_places'])
        self.assertNotIn('cow_clone', plain)


class TestWeigherNative(WeigherTestCase):
    """It asks Glance in the scheduler's own threads."""

    native = True

    def test_it_is_native(self):
        self.assertIn('with native threading', self.cinder.log)

    def test_where_it_is_cloned_from_its_location(self):
        image_id = self.stored(data=corpus.noise(units.Mi))
        self.assertEqual({NEAR}, self.places(image_id=image_id))


class TestWithoutGlance(WeigherTestCase):
    """It goes by bases alone; and here, to where they are not."""

    weigher: ClassVar = {
        'cow_image_locality_ask_glance': 'false',
        'cow_image_locality_weight_multiplier': '-2',
    }
    goodness: ClassVar = {PLAIN: 0, NEAR: 100, FAR: 60}

    def test_it_is_not_asked(self):
        image_id = self.stored(data=corpus.noise(units.Mi))
        self.assertEqual({NEAR}, self.places(image_id=image_id))

    def test_where_its_base_is_not(self):
        image_id = self.qcow2(corpus.noise(units.Mi), store='file1')
        self.base_in(NEAR, image_id)
        self.assertNotIn(NEAR, self.places(image_id=image_id))
