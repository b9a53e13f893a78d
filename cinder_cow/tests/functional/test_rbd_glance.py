# SPDX-License-Identifier: Apache-2.0
"""Volumes from images that a real Glance keeps in the same Ceph as ours.

What matters: no byte of such an image comes over HTTP, its bytes are checked
as those of any other, and Glance has its image for itself again afterwards.
"""

import ddt
from oslo_utils import units

from cinder_cow import plan as plans
from cinder_cow.refusal import Reason
from cinder_cow.tests import ceph_config
from cinder_cow.tests import corpus
from cinder_cow.tests import corpus_disks
from cinder_cow.tests import rbd_glance_case
from cinder_cow.tests import services
from cinder_cow.tests.functional import test_glance

# A bad qcow2 of each kind; the cut ones are what a cluster could hide, for
# its objects have no end.
HOSTILE = {
    'backed_by_raw_claimed',
    'backed_by_passwd',
    'backed_by_json',
    'data_file',
    'feature_bit_5',
    'encrypted_luks',
    'size_2_50',
    'l1_size_max',
    'l2_beyond',
    'noisy',
    'zlib_damaged',
    'cut_in_l2',
    'cut_by_cluster',
    'cut_by_1',
    'cut_in_half',
    'zlib_cut_by_513',
}
WHOLE = {
    'clusters_512',
    'zlib',
    'zstd',
    'version_2',
    'snapshot',
    'resized',
    'longer_than_needed',
}


@ddt.ddt
class TestVolumes(rbd_glance_case.RbdGlanceCase):
    @ddt.data(1, 2)
    def test_raw_is_cloned_where_it_is(self, version):
        self.clones(version)
        data = corpus.holey(units.Mi)
        image_id = self.stored(data=data)
        made = self.create(image_id)
        self.assertIs(plans.Kind.CLONE_LOCATION, made.candidate.kind)
        self.assertEqual('', made.verified)
        self.assertEqual(f'images/{image_id}@snap', made.volume.parent)
        self.assert_content(made, data)
        self.assertEqual([], list(self.driver.list_bases()))
        self.assert_no_download(image_id)

    @ddt.data(1, 2)
    def test_qcow2_is_converted_where_it_is(self, version):
        self.clones(version)
        data = corpus.holey(3 * units.Mi)
        image_id = self.qcow2(data)
        first = self.create(image_id)
        self.assertTrue(first.base_made)
        # Nothing was compared, so nothing is told.
        self.assertEqual('', first.verified)
        self.assertEqual(
            ('location', '', 'qcow2', len(data)),
            (self.base().facts.verified, self.base().facts.hash,
             self.base().facts.source_format, self.base().facts.content_size),
        )  # fmt: skip
        self.assertEqual(self.base().name, first.volume.parent)
        self.assert_content(first, data)
        self.assert_no_download(image_id)
        self.assert_clean()

        second = self.create(image_id)
        told = (second.candidate.kind, second.base_made, second.bytes_copied)
        self.assertEqual((plans.Kind.CLONE_BASE, False, 0), told)
        self.assertEqual('', second.verified)
        self.assert_content(second, data)
        # Only whether this user may read it is asked, for the last byte;
        # this store of Glance has no single bytes, and it says so.
        asked = self.glance.downloads(image_id)
        self.assertEqual({400}, {download.status for download in asked})
        # The base needs it no more.
        self.assert_glance_can_delete(image_id)
        self.assert_content(first, data)

    @ddt.data(['raw', 1], ['raw', 2], ['qcow2', 1], ['qcow2', 2])
    @ddt.unpack
    def test_a_snapshot_that_is_not_protected(self, disk_format, version):
        self.clones(version)
        data = corpus.holey(units.Mi)
        image = corpus.Image('it', corpus.converted(data, to=disk_format))
        path = self.made_file(image)
        image_id = self.stored(disk_format, path=path)
        self.unprotect(image_id)
        made = self.create(image_id)
        self.assert_content(made, data)
        self.assert_no_download(image_id)
        # Where it cannot be cloned, not for qemu-img either, it is fetched
        # from there.
        is_clone = disk_format == 'raw' and version == 2
        self.assertIs(not is_clone, made.base_made)
        self.assertIs(version == 1, bool(made.verified))
        self.assert_clean()

    def test_a_full_copy_is_converted_there_too(self):
        self.options = {'cow_enabled': False}
        image_id = self.qcow2()
        made = self.create(image_id)
        self.assertIs(plans.Kind.STREAM, made.candidate.kind)
        self.assertEqual('', made.verified)
        self.assert_content(made, corpus.holey(units.Mi))
        self.assert_no_download(image_id)
        self.assert_clean()
        self.assert_glance_can_delete(image_id)

    def test_an_import_that_does_not_tell_its_size(self):
        # The store makes the image larger as it comes, and cuts it then.
        data = corpus.noise(5 * units.Mi + 1)
        image_id = self.stored()
        self.glance.upload(image_id, iter([data]))
        made = self.create(image_id)
        self.assert_content(made, data)
        self.assert_no_download(image_id)

    @ddt.data('vmdk', 'vhd', 'vdi')
    def test_others_are_fetched_from_there(self, disk_format):
        data = corpus.holey(units.Mi)
        to = {'vhd': 'vpc'}.get(disk_format, disk_format)
        options = ['subformat=streamOptimized'] * (disk_format == 'vmdk')
        made = corpus.Image('it', corpus.converted(data, *options, to=to))
        path = self.made_file(made)
        expected = corpus.expected(path, disk_format)
        image_id = self.stored(disk_format, path=path)
        outcome = self.create(image_id)
        self.assertTrue(outcome.base_made)
        # What comes through our hands is hashed.
        self.assertTrue(outcome.verified.startswith('sha512:'))
        self.assertEqual('hash', self.base().facts.verified)
        self.assert_content(outcome, expected)
        self.assert_no_download(image_id)
        self.assert_clean()

    @ddt.data(*sorted(WHOLE))
    def test_a_qcow2_of_any_kind(self, name):
        (image,) = (one for one in corpus.GOOD if one.name == name)
        path = self.made_file(image)
        expected = corpus.expected(path)
        image_id = self.stored('qcow2', path=path)
        self.assert_content(self.create(image_id), expected)
        self.assertEqual('location', self.base().facts.verified)
        self.assert_no_download(image_id)


class TestHashes(rbd_glance_case.RbdGlanceCase):
    def setUp(self):
        super().setUp()
        self.options = {'verify_linked': True}

    def test_a_right_one(self):
        image_id = self.qcow2()
        made = self.create(image_id)
        value = self.glance.record(image_id)['os_hash_value']
        self.assertEqual(f'sha512:{value}', made.verified)
        self.assertEqual(
            ('hash', made.verified),
            (self.base().facts.verified, self.base().facts.hash),
        )
        self.assert_content(made, corpus.holey(units.Mi))
        self.assert_no_download(image_id)

    def test_a_wrong_one(self):
        image_id = self.qcow2()
        self.wrong_hash(image_id)
        self.refused(Reason.HASH_MISMATCH, image_id)
        self.assertEqual([], list(self.driver.list_bases()))
        self.assert_no_download(image_id)
        self.assert_glance_can_delete(image_id)

    def test_a_wrong_one_that_nobody_asked_about(self):
        self.options = {}
        image_id = self.qcow2()
        self.wrong_hash(image_id)
        self.assertEqual('', self.create(image_id).verified)
        self.assertEqual('location', self.base().facts.verified)

    def test_a_wrong_one_of_what_is_fetched_from_there(self):
        self.options = {}
        image = corpus.Image('it', corpus.converted(b'x' * 4096, to='vmdk'))
        image_id = self.stored('vmdk', path=self.made_file(image))
        self.wrong_hash(image_id)
        self.refused(Reason.HASH_MISMATCH, image_id)
        self.assert_no_download(image_id)

    def test_none_at_all(self):
        image_id = self.qcow2()
        self.glance.set_hash(image_id)
        made = self.create(image_id)
        self.assertEqual('', made.verified)
        self.assert_content(made, corpus.holey(units.Mi))
        self.assert_no_download(image_id)


@ddt.ddt
class TestHostile(rbd_glance_case.RbdGlanceCase):
    @ddt.data(*sorted(HOSTILE))
    def test_a_qcow2(self, name):
        """It is refused exactly as from a file."""
        (image,) = (one for one in corpus.BAD if one.name == name)
        path = self.made_file(image)
        # Glance looks at nothing in a container.
        image_id = self.stored('qcow2', path=path, container_format='ovf')
        self.refused(image.reason, image_id)
        self.assertEqual([], list(self.driver.list_bases()))
        self.assert_no_download(image_id)
        self.assert_glance_can_delete(image_id)

    def test_a_qcow2_that_is_said_to_be_raw(self):
        image = corpus.Image('it', corpus.PLAIN)
        image_id = self.stored('raw', path=self.made_file(image))
        self.refused(Reason.FORMAT_MISMATCH, image_id)
        self.assert_no_download(image_id)

    def test_a_disk_of_another_format(self):
        (image,) = (one for one in corpus_disks.BAD if one.name == 'vmdk_flat')
        path = self.made_file(image)
        image_id = self.stored('vmdk', path=path, container_format='ovf')
        self.refused(image.reason, image_id)
        self.assert_no_download(image_id)


@ddt.ddt
class TestOverHttp(rbd_glance_case.RbdGlanceCase):
    def test_locations_that_are_hidden(self):
        data = corpus.holey(units.Mi)
        image_id = self.qcow2(data)
        made = self.create(image_id, token=test_glance.MEMBER)
        (hidden, *_) = made.failures
        self.assertIs(Reason.LOCATIONS_HIDDEN, hidden.refusal.reason)
        self.assertTrue(made.verified.startswith('sha512:'))
        self.assertEqual('hash', self.base().facts.verified)
        self.assert_content(made, data)
        size = self.glance.record(image_id)['size']
        sizes = [done.size for done in self.glance.downloads(image_id)]
        self.assertEqual([size], sizes)

    def test_raw_whose_location_is_hidden(self):
        data = corpus.holey(units.Mi)
        image_id = self.stored(data=data)
        made = self.create(image_id, token=test_glance.MEMBER)
        self.assertTrue(made.base_made)
        self.assert_content(made, data)
        self.assertEqual(1, len(self.glance.downloads(image_id)))

    @ddt.unpack
    @ddt.data(['raw', Reason.POOL_DENIED], ['qcow2', Reason.NOT_RAW])
    def test_a_pool_that_we_may_not_read(self, disk_format, reason):
        user = f'only-{self.pool}'
        self.cluster.add_user(user, ceph_config.caps([self.pool]))
        self.addCleanup(self.cluster.remove_user, user)
        self.driver = self.rbd_driver(user)
        data = corpus.holey(units.Mi)
        image = corpus.Image('it', corpus.converted(data, to=disk_format))
        path = self.made_file(image)
        image_id = self.stored(disk_format, path=path)
        made = self.create(image_id)
        self.assertIs(reason, made.failures[0].refusal.reason)
        self.assertEqual('hash', self.base().facts.verified)
        self.assert_content(made, data)
        self.assertEqual(1, len(self.glance.downloads(image_id)))

    def test_who_may_not_download(self):
        """They may see it, and there is a base; they get no bytes of it."""
        image_id = self.qcow2()
        self.create(image_id, token=test_glance.MEMBER)
        self.refused(Reason.SOURCE_DENIED, image_id, token=test_glance.READER)

    def test_an_image_in_another_store(self):
        data = corpus.holey(units.Mi)
        image_id = self.stored()
        self.glance.upload(image_id, data, store='file1')
        made = self.create(image_id)
        self.assertTrue(made.base_made)
        self.assert_content(made, data)

    def test_a_second_location_is_the_near_one(self):
        data = corpus.holey(units.Mi)
        image_id = self.stored()
        self.glance.upload(image_id, data, store='file1')
        self.glance.copy(image_id, services.RBD_STORE)
        made = self.create(image_id)
        self.assertIs(plans.Kind.CLONE_LOCATION, made.candidate.kind)
        self.assert_content(made, data)
        self.assert_no_download(image_id)
