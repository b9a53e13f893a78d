# SPDX-License-Identifier: Apache-2.0
"""Image records of Glance: read as they are meant, or refused."""

import dataclasses
from typing import Any

import ddt
import hypothesis
from hypothesis import strategies as st
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info
from cinder_cow import image_location
from cinder_cow.refusal import Reason

ID = '7a0e4f6c-3b1f-4c3e-9a54-1d9d7a3c1f10'
FSID = 'b35a2d8c-8f7a-4a5e-bb1c-3f0c9d1e2a47'
RBD = f'rbd://{FSID}/images/{ID}/snap'
CINDER = 'cinder://nfs/0b5bf0b5-5c1d-4f6e-9d6b-0f5a4c3b2a19'
CUSTOM = {'hw_disk_bus': 'scsi', 'os_distro': 'ubuntu', 'content_id': 'file:1'}

# As "GET /v2/images/{id}" answers it, with show_multiple_locations.
RECORD = {
    'id': ID,
    'name': 'ubuntu-24.04',
    'status': 'active',
    'disk_format': 'QCOW2',
    'container_format': 'bare',
    'size': 612_892_672,
    'virtual_size': 3_758_096_384,
    'min_disk': 4,
    'min_ram': 512,
    'owner': '1d0f5b3a9b0c4a5f8d7e6c5b4a392817',
    'visibility': 'public',
    'protected': False,
    'os_hidden': False,
    'checksum': 'AB' * 16,
    'os_hash_algo': 'sha512',
    'os_hash_value': 'Cd' * 64,
    'created_at': '2026-05-01T12:00:00Z',
    'updated_at': '2026-05-01T12:00:09Z',
    'tags': ['lts'],
    'self': f'/v2/images/{ID}',
    'file': f'/v2/images/{ID}/file',
    'schema': '/v2/schemas/image',
    'stores': 'ceph,nfs',
    'direct_url': RBD,
    'locations': [
        {'url': CINDER, 'metadata': {'store': 'nfs'}},
        {'url': RBD, 'metadata': {'store': 'ceph'}},
        {'url': CINDER, 'metadata': {}},
    ],
    **CUSTOM,
}

TEXTS = (
    'id',
    'name',
    'disk_format',
    'container_format',
    'status',
    'owner',
    'visibility',
    'checksum',
    'os_hash_algo',
    'os_hash_value',
    'direct_url',
    'created_at',
)
HEXADECIMALS = ('checksum', 'os_hash_value')
NUMBERS = ('size', 'virtual_size', 'min_disk')
NO_TEXTS = [0, 1, 1.5, True, False, [], ['x'], {}, {'x': 1}]
NO_NUMBERS = [-1, 1.0, True, False, '', '1', [], [1], {}]
BAD: dict[str, list[Any]] = {
    **dict.fromkeys(TEXTS, NO_TEXTS),
    **dict.fromkeys(NUMBERS, NO_NUMBERS),
    'locations': [1, True, 'rbd://i', {'url': 'rbd://i'}, ['rbd://i'], [[]]],
}
BAD_LOCATIONS: list[Any] = [
    {},
    None,
    {'metadata': {}},
    {'url': None},
    {'url': 1},
    {'url': ['rbd://i']},
    {'url': 'rbd://i', 'metadata': 'x'},
    {'url': 'rbd://i', 'metadata': [1]},
    {'url': 'rbd://i', 'metadata': 1},
]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text() | st.sampled_from(['url', 'metadata']), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def read(**fields):
    """Read the record, with some fields changed."""
    return image_info.ImageInfo.from_glance({**RECORD, **fields})


@ddt.ddt
class TestFromGlance(test_base.BaseTestCase):
    def assert_bad(self, field, record):
        try:
            image_info.ImageInfo.from_glance(record)
        except exception.ImageError as error:
            self.assertIs(Reason.IMAGE_RECORD_INVALID, error.reason)
            self.assertEqual(field, error.refusal.facts['field'])
            return str(error)
        raise AssertionError(f'{field} {record.get(field)!r} was taken')

    def test_a_whole_record(self):
        image = read()
        expected = {
            'id': ID,
            'name': 'ubuntu-24.04',
            'disk_format': 'qcow2',
            'container_format': 'bare',
            'size': 612_892_672,
            'virtual_size': 3_758_096_384,
            'min_disk': 4 * units.Gi,
            'status': 'active',
            'owner': '1d0f5b3a9b0c4a5f8d7e6c5b4a392817',
            'visibility': 'public',
            'checksum': 'ab' * 16,
            'os_hash_algo': 'sha512',
            'os_hash_value': 'cd' * 64,
            # A property of that name is no fact about the content.
            'content_id': 'glance:2026-05-01T12:00:00Z',
        }
        found = {name: getattr(image, name) for name in expected}
        self.assertEqual(expected, found)
        self.assertEqual('ubuntu-24.04', image.label)

    def test_custom_properties_are_kept(self):
        properties = read(hw_qemu_guest_agent=True).properties
        for name in ('hw_disk_bus', 'os_distro'):
            self.assertEqual(CUSTOM[name], properties[name])
        self.assertTrue(all(isinstance(v, str) for v in properties.values()))

    def test_an_image_shows_no_secrets(self):
        url = 'swift+https://tenant:S3CR3T@auth/container/object'
        image = read(direct_url=url, locations=[{'url': url}])
        self.assertNotIn('S3CR3T', repr(image))
        self.assertNotIn('S3CR3T', str(image))
        self.assertEqual((image_location.parse(url),), image.locations)

    def test_the_least_record(self):
        image = image_info.ImageInfo.from_glance({'id': ID})
        self.assertEqual(
            image_info.ImageInfo(id=ID, name='', disk_format='', status=''),
            image,
        )
        self.assertEqual(ID, image.label)

    def test_null_is_nothing(self):
        nothing = dict.fromkeys(RECORD, None)
        self.assertEqual(
            image_info.ImageInfo.from_glance({'id': ID}),
            image_info.ImageInfo.from_glance({**nothing, 'id': ID}),
        )

    @ddt.data({}, {'id': None}, {'id': ''})
    def test_an_image_has_an_id(self, record):
        self.assert_bad('id', record)

    @ddt.data(*BAD)
    def test_a_wrong_type_is_refused(self, field):
        for value in BAD[field]:
            message = self.assert_bad(field, {**RECORD, field: value})
            self.assertIn(repr(value), message)

    @ddt.data(*HEXADECIMALS)
    def test_a_hash_is_hexadecimal(self, field):
        for value in ('xy', '0x12', 'ab cd', 'ab\n', '-1', '\u0661', '../x'):
            self.assert_bad(field, {**RECORD, field: value})

    @ddt.data(*BAD_LOCATIONS)
    def test_a_location_of_a_wrong_type_is_refused(self, entry):
        good = {'url': 'rbd://i', 'metadata': {}}
        self.assert_bad('locations', {**RECORD, 'locations': [good, entry]})

    def test_an_empty_value_of_a_wrong_type_is_refused(self):
        empty: list[Any] = [0, False, '', {}]
        for value in empty:
            self.assert_bad('locations', {**RECORD, 'locations': value})
        empty = [0, False, '', []]
        for value in empty:
            locations = [{'url': 'rbd://i', 'metadata': value}]
            self.assert_bad('locations', {**RECORD, 'locations': locations})

    @hypothesis.settings(deadline=None)
    @hypothesis.given(
        st.dictionaries(
            st.sampled_from([*RECORD, 'x']), JSON, min_size=1, max_size=3
        )
    )
    def test_any_value_is_read_or_refused(self, fields):
        try:
            image = read(**fields)
        except exception.ImageError as error:
            self.assertIs(Reason.IMAGE_RECORD_INVALID, error.reason)
            self.assertIn(error.refusal.facts['field'], fields)
            self.assertLess(len(str(error)), 5000)
        else:
            self.assertTrue(image.label.isprintable())
            self.assertGreaterEqual(image.min_disk, 0)
            for location in image.locations:
                self.assertNotIsInstance(location, image_location.BaseLocation)

    @ddt.data('a\x1b[2Jb', 'a\nb', 'a\u202eb', 'a\ud800b')
    def test_a_hostile_id_is_told_safely(self, image_id):
        record = {**RECORD, 'id': image_id, 'size': 'x'}
        message = self.assert_bad('size', record)
        self.assertTrue(message.isprintable(), ascii(message))

    def test_a_hostile_value_is_told_safely_and_cut(self):
        for value in ('\x1b[2J\n', '\ud800', 'x' * 50_000, ['\x1b'] * 5000):
            message = self.assert_bad('size', {**RECORD, 'size': value})
            self.assertTrue(message.isprintable(), ascii(message))
            self.assertLess(len(message), 5000)


class TestLocations(test_base.BaseTestCase):
    def test_direct_url_is_first_and_each_is_once(self):
        self.assertEqual(
            (image_location.parse(RBD), image_location.parse(CINDER)),
            read().locations,
        )

    def test_their_metadata_are_kept(self):
        image = read(direct_url=None)
        self.assertEqual(
            [{'store': 'nfs'}, {'store': 'ceph'}],
            [location.metadata for location in image.locations],
        )

    def test_direct_url_takes_no_metadata_away(self):
        (first, _second) = read().locations
        self.assertEqual({'store': 'ceph'}, first.metadata)

    def test_direct_url_alone(self):
        image = read(locations=None)
        self.assertEqual((image_location.parse(RBD),), image.locations)

    def test_none(self):
        self.assertEqual((), read(direct_url='', locations=[]).locations)

    def test_a_malformed_one_does_not_hide_the_good_ones(self):
        bad = ['rbd://a/b/c', '/etc/passwd', '', 'file://x/y', 'x' * 9000]
        image = read(
            direct_url=bad[0],
            locations=[
                {'url': url} for url in (bad[1], RBD, *bad[1:], CINDER)
            ],
        )
        kinds = [type(location).__name__ for location in image.locations]
        malformed = 'MalformedLocation'
        self.assertEqual(
            [
                malformed,
                malformed,
                'RbdLocation',
                malformed,
                malformed,
                malformed,
                'CinderLocation',
            ],
            kinds,
        )
        self.assertEqual(image_location.parse(RBD), image.locations[2])

    def test_at_narrows_to_one(self):
        image = read()
        location = image_location.parse('rbd://elsewhere')
        narrowed = image.at(location)
        self.assertEqual((location,), narrowed.locations)
        self.assertEqual(
            image, dataclasses.replace(narrowed, locations=image.locations)
        )


@ddt.ddt
class TestImageInfo(test_base.BaseTestCase):
    @ddt.data(
        ('plain ü', 'plain ü'),
        ('a\x1b]0;title\x07b', 'a?]0;title?b'),
        ('a\nb\tc\0d\x7f\x9b', 'a?b?c?d??'),
        ('\u202eevil\u2028\ud800', '?evil??'),
    )
    @ddt.unpack
    def test_label_is_printable(self, name, expected):
        self.assertEqual(expected, read(name=name).label)
        self.assertEqual(expected, read(id=name, name='').label)

    def test_label_is_cut(self):
        for image in (read(name='x' * 50_000), read(id='x' * 50_000, name='')):
            self.assertIn(image.label, 'x' * 4999)
            self.assertIn('x' * 100, image.label)

    def test_is_frozen(self):
        image = read()
        for field in dataclasses.fields(image):
            self.assertRaises(
                dataclasses.FrozenInstanceError,
                setattr,
                image,
                field.name,
                None,
            )
