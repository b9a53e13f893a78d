# SPDX-License-Identifier: Apache-2.0
"""What Cinder's volume manager of ours does beside the requests."""

import contextlib
import time
from typing import ClassVar
import uuid

from oslo_utils import units

from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_parents
from cinder_cow.handlers import keeping
from cinder_cow.tests import aged_bases
from cinder_cow.tests import cinder_case
from cinder_cow.tests import cinder_service
from cinder_cow.tests import corpus
from cinder_cow.tests import glance_proxy
from cinder_cow.tests import rbd_place
from cinder_cow.tests import volume_api

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd as librbd  # noqa: TID251

DRIVER = 'cinder_cow.plugin.rbd.CowRBDDriver'
MANAGER = 'cinder_cow.plugin.manager.CowVolumeManager'
PLAIN = 'plain'
POOL = cinder_case.POOL
SIZE = 4 * units.Mi


class ManagerTestCase(cinder_case.CinderCase):
    """Has our manager, with a back end of ours and one of Cinder's own."""

    settings: ClassVar = {
        'DEFAULT': {
            'volume_manager': MANAGER,
            'periodic_interval': 1,
            'cow_prepare_interval': 2,
            'cow_tidy_interval': 2,
        }
    }

    @classmethod
    def asked(cls):
        cls.proxy = glance_proxy.Proxy(cls.glance)
        cls.enterClassContext(cls.proxy)
        return cls.proxy

    @classmethod
    def section(cls, top):
        ours = cinder_service.upstream_driver(
            cls.cluster, volume_driver=DRIVER, cow_scratch_dir=top
        )
        (section,) = cinder_service.upstream_driver(cls.cluster).values()
        plain = {'volume_backend_name': PLAIN, 'rbd_pool': 'volumes2'}
        return {**ours, PLAIN: {**section, **plain}}

    def setUp(self):
        super().setUp()
        cluster = ceph.Cluster(conf=str(self.cluster.conf), user='cinder')
        trust = rbd_parents.Trust(frozenset({'images'}))
        settings = rbd_options.RbdSettings(cluster, POOL, trust)
        self.driver = rbd.RbdDriver(settings)

    def marked(self, value, **options):
        """Make a public image that is to be prepared."""
        return self.qcow2(
            corpus.noise(SIZE),
            **{'store': 'file1', 'visibility': 'public', **options},
            cow_prepare=value,
        )

    def base_of(self, image_id):
        for found in self.driver.list_bases():
            if found.facts.key.image_id == image_id:
                return found
        return None

    def until(self, reached):
        """Wait until something is so; return what it says."""
        deadline = time.monotonic() + volume_api.LIMIT
        while not (found := reached()):
            if time.monotonic() > deadline:
                raise AssertionError(self.cinder.end_of_log())
            time.sleep(0.05)
        return found

    def prepared(self, image_id):
        return self.until(lambda: self.base_of(image_id))

    def base(self, image_id, **changes):
        """Have a base that was made long ago."""
        name = aged_bases.make(self.driver, image_id, **changes)
        self.addCleanup(self.driver.retire_base, name)
        return name

    def names(self):
        return {found.name for found in self.driver.list_bases()}


class TestManagerNative(ManagerTestCase):
    """Cinder without eventlet, where the rounds are native threads."""

    native = True

    def test_an_image_that_is_marked_is_prepared(self):
        self.assertIn('with native threading', self.cinder.log)
        self.prepared(self.marked('true'))


class TestManager(ManagerTestCase):
    # Preparing

    def test_images_that_are_marked_are_prepared(self):
        others = [
            self.marked('true', visibility='private'),
            self.marked('another, back-end'),
            self.marked('', store='file1'),
        ]
        for value in ('true', 'another,rbd1'):
            # Each is there when the round has been at the others before it.
            image_id = self.marked(value)
            made = self.prepared(image_id)
        self.assertEqual([None] * 3, [self.base_of(one) for one in others])
        line = f'Image {image_id} was prepared: base {made.name}'
        self.until(lambda: line in self.cinder.log)
        self.created(image_id=image_id)
        self.assertEqual(1, self.cinder.log.count(line))

    def test_one_that_fails_keeps_no_other_from_its_own(self):
        good = self.marked('true')
        bad = self.marked('true')
        self.glance.set_hash(
            bad, os_hash_algo='sha512', os_hash_value='0' * 128
        )
        self.prepared(good)
        self.until(
            lambda: f'Image {bad} was not prepared: ' in self.cinder.log
        )
        self.assertIsNone(self.base_of(bad))

    def test_one_that_is_cloned_where_it_is_needs_none(self):
        raw = self.stored(
            data=corpus.noise(units.Mi),
            visibility='public',
            cow_prepare='true',
        )
        for _ in range(2):
            self.prepared(self.marked('true'))
        self.assertIsNone(self.base_of(raw))

    def killed(self):
        """Have it killed while it prepares; tell the image, and all before."""
        before = set(self.everything())
        path = 'GET /v2/images/.*/file'
        self.proxy.put(path, glance_proxy.Fault(stall_after=units.Mi))
        self.addCleanup(self.proxy.clear)
        image_id = self.marked('true')
        self.proxy.wait_stalled()
        self.until(lambda: set(self.everything()) - before)
        self.cinder.kill()
        self.proxy.clear()
        return image_id, before

    def test_killed_while_it_prepares(self):
        image_id, before = self.killed()
        self.cinder.restart()
        made = self.prepared(image_id)
        self.assertEqual({*before, made.name}, set(self.everything()))
        self.assertEqual([], self.orphans())

    def test_killed_while_it_prepares_what_nobody_wants_then(self):
        image_id, before = self.killed()
        self.glance.delete(image_id)
        self.cinder.restart()
        self.until(lambda: set(self.everything()) == before)

    def orphans(self):
        # A verdict stays until fsck, when its image is gone.
        found = [orphan.what for orphan in self.driver.orphans()]
        return [what for what in found if not what.startswith('verdict')]

    def everything(self):
        with rbd_place.opened(self.cluster, POOL) as ioctx:
            return librbd.RBD().list(ioctx)

    # Tidying

    def test_a_base_whose_image_is_gone_goes(self):
        since = time.time() - keeping.GONE_SECONDS - 60
        gone = self.base(str(uuid.uuid4()), missing_since=since)
        pinned = self.base(str(uuid.uuid4()), missing_since=since, pinned=True)
        here = self.base(self.stored(data=b'1'), missing_since=since)
        self.until(lambda: gone not in self.names())
        self.assertLessEqual({pinned, here}, self.names())
        self.until(
            lambda: (
                f'Base {pinned} stays, although its image is gone'
                in self.cinder.log
            )
        )

    # Other back ends

    def test_a_driver_of_cinder_is_left_alone(self):
        claims = {
            'name': self.id()[-200:],
            'extra_specs': {'volume_backend_name': PLAIN},
        }
        answer = self.cinder.do('POST', '/types', json={'volume_type': claims})
        kind = answer.json()['volume_type']['id']
        self.addCleanup(self.cinder.do, 'DELETE', f'/types/{kind}')
        self.created(volume_type=kind)
        self.prepared(self.marked('true'))
        self.assertNotIn(f'-{PLAIN}', self.cinder.log)
