# SPDX-License-Identifier: Apache-2.0
"""What is kept with a base: written by this release, read by it and later."""

import json
import math

import ddt
from oslotest import base as test_base

from cinder_cow.drivers import bases

KEY = bases.BaseKey('image-1', 'sha512:1')
OLD = bases.BaseFacts(KEY, 'an image', 'qcow2', 4096, 'sha512:1', 1234.5)
NEW = bases.BaseFacts(
    key=bases.BaseKey('\u00e4', 'md5:\n', 'vhd'),
    image_name='"\udc80',
    source_format='vhd',
    content_size=0,
    hash='',
    made_at=0,
    verified=bases.Verified.LOCATION.value,
    last_used=1234.5,
    pinned=True,
    missing_since=1,
)


@ddt.ddt
class TestFacts(test_base.BaseTestCase):
    @ddt.data(OLD, NEW)
    def test_what_is_packed_is_unpacked(self, facts):
        record = json.loads(facts.packed())
        self.assertEqual(facts, bases.BaseFacts.unpacked(record))

    def test_what_a_release_before_wrote(self):
        record = {
            'key': {
                'image_id': 'image-1',
                'content_id': 'sha512:1',
                'read_as': 'raw',
            },
            'image_name': 'an image',
            'source_format': 'qcow2',
            'content_size': 4096,
            'hash': 'sha512:1',
            'made_at': 1234.5,
        }
        self.assertEqual(OLD, bases.BaseFacts.unpacked(record))

    def test_what_a_later_release_wrote(self):
        record = json.loads(NEW.packed()) | {'more': 1}
        self.assertEqual(NEW, bases.BaseFacts.unpacked(record))

    @ddt.data(
        {'key': None},
        {'key': {}},
        {'key': {'image_id': 'x'}},
        {'key': {'image_id': 'x', 'content_id': 1}},
        {'image_name': None},
        {'source_format': 1},
        {'content_size': '1'},
        {'content_size': 1.5},
        {'content_size': -1},
        {'hash': []},
        {'made_at': '1'},
        {'made_at': -1},
        {'made_at': 1e300},
        {'made_at': math.nan},
        {'verified': None},
        {'last_used': '1'},
        {'last_used': -1},
        {'last_used': 1e300},
        {'pinned': 1},
        {'missing_since': None},
        {'missing_since': math.inf},
        {'damaged': 'no'},
    )
    def test_what_is_not_as_it_was_written(self, damage):
        record = json.loads(OLD.packed())
        record.update(damage)
        self.assertRaises(ValueError, bases.BaseFacts.unpacked, record)

    @ddt.data('key', 'image_name', 'content_size', 'made_at')
    def test_what_is_lost(self, name):
        record = json.loads(OLD.packed())
        del record[name]
        self.assertRaises(ValueError, bases.BaseFacts.unpacked, record)

    @ddt.data(None, 1, 'x', [], [1])
    def test_what_is_no_record(self, record):
        self.assertRaises(ValueError, bases.BaseFacts.unpacked, record)
