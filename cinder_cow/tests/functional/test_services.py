# SPDX-License-Identifier: Apache-2.0
"""The Glance of the tests is what they take it for."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import ClassVar
from urllib import parse

import ddt
from oslotest import base as test_base

from cinder_cow.tests import services
from cinder_cow.tests import storage

MEMBER = 'alice:p1:member'
READER = 'rita:p1:reader'
OTHER = 'bob:p2:member'
ADMIN = 'root:p0:admin'
SERVICE = 'cinder:service:service'
# What Cinder sends to see the locations of a user's image.
MEMBER_AND_SERVICE = 'cinder:p1:member,service'

# Starts a Glance, begins a download that it does not read, and waits.
_HOLDER = """
import os, sys, time
from cinder_cow.tests import services

with services.Glance(sys.argv[1]) as glance:
    image_id = glance.create(data=bytes(2**26))
    answer = glance.request(
        'GET', f'/v2/images/{image_id}/file', stream=True
    )
    print(glance.process.pid, glance.url, flush=True)
    time.sleep(600)
"""

# What openstacksdk makes of OS_* variables alone.
_SDK = """
import openstack

images = openstack.connect(load_yaml_config=False).image.images()
print(','.join(image.id for image in images))
"""


class GlanceTestCase(test_base.BaseTestCase):
    def directory(self):
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, top)
        return pathlib.Path(top) / 'glance'

    def started(self, **options):
        glance = services.Glance(self.directory(), **options)
        self.addCleanup(glance.stop)
        return glance.__enter__()


class SharedTestCase(test_base.BaseTestCase):
    """Tests of one Glance, which starts once for all of them."""

    options: ClassVar[dict[str, bool]] = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        cls.addClassCleanup(shutil.rmtree, top)
        cls.glance = services.Glance(
            pathlib.Path(top) / 'glance', **cls.options
        )
        cls.enterClassContext(cls.glance)

    def get(self, image_id, what='', token=MEMBER, **headers):
        return self.glance.request(
            'GET', f'/v2/images/{image_id}{what}', token=token, headers=headers
        )

    def private(self, **options):
        return self.glance.create(
            token=MEMBER, visibility='private', **{'data': b'abcd', **options}
        )


@ddt.ddt
class TestGlance(SharedTestCase):
    def test_a_member_uploads_and_downloads(self):
        data = os.urandom(100_000)
        path = pathlib.Path(tempfile.mkdtemp()) / 'image'
        path.write_bytes(data)
        image_id = self.glance.create(path=path, token=MEMBER, cow='yes')
        record = self.glance.record(image_id, MEMBER)
        told = [record[name] for name in ('status', 'size', 'owner', 'cow')]
        self.assertEqual(['active', 100_000, 'p1', 'yes'], told)
        self.assertEqual('sha512', record['os_hash_algo'])
        downloaded = self.get(image_id, '/file').content
        self.assertTrue(storage.same(data, downloaded))

    @ddt.data(
        (MEMBER, 200, 200),
        (ADMIN, 200, 200),
        (None, 200, 200),
        (parse.quote(MEMBER), 200, 200),
        # A reader sees an image, and does not get its data.
        (READER, 200, 403),
        (OTHER, 404, 404),
        (SERVICE, 404, 404),
        (MEMBER_AND_SERVICE, 200, 200),
        ('expired', 401, 401),
        ('alice:p1', 401, 401),
    )
    @ddt.unpack
    def test_who_sees_a_private_image(self, token, record, file):
        image_id = self.private()
        self.assertEqual(record, self.get(image_id, token=token).status_code)
        answer = self.get(image_id, '/file', token)
        self.assertEqual(file, answer.status_code)

    def test_hidden_locations(self):
        image_id = self.private()
        for token in (MEMBER, ADMIN):
            record = self.glance.record(image_id, token)
            self.assertEqual({'stores'}, _where(record))

    @ddt.data(
        (MEMBER, 403),
        (OTHER, 404),
        (ADMIN, 200),
        # A service has to see the image first.
        (SERVICE, 404),
        (MEMBER_AND_SERVICE, 200),
    )
    @ddt.unpack
    def test_the_locations_call(self, token, status):
        image_id = self.private()
        answer = self.get(image_id, '/locations', token)
        self.assertEqual(status, answer.status_code)
        if status == 200:
            url = f'file://{self.glance.data_path(image_id)}'
            expected = [{'url': url, 'metadata': {'store': 'file1'}}]
            self.assertEqual(expected, answer.json())

    def test_two_stores(self):
        image_id = self.private(store='file2')
        self.assertEqual('file2', self.glance.record(image_id)['stores'])
        self.glance.copy(image_id, 'file1')
        self.assertEqual('file2,file1', self.glance.record(image_id)['stores'])
        for store in services.STORES:
            path = self.glance.data_path(image_id, store)
            self.assertEqual(b'abcd', path.read_bytes())

    def test_a_deactivated_image(self):
        image_id = self.private()
        self.glance.deactivate(image_id)
        record = self.glance.record(image_id, MEMBER)
        self.assertEqual('deactivated', record['status'])
        self.assertEqual(403, self.get(image_id, '/file').status_code)
        # It is no obstacle to an administrator.
        self.assertEqual(200, self.get(image_id, '/file', ADMIN).status_code)

    def test_a_queued_image_has_no_content(self):
        image_id = self.private(data=None)
        self.assertEqual('queued', self.glance.record(image_id)['status'])
        self.assertEqual(204, self.get(image_id, '/file').status_code)

    def test_a_deleted_image(self):
        image_id = self.private()
        self.glance.delete(image_id)
        self.assertEqual(404, self.get(image_id, token=ADMIN).status_code)
        self.assertEqual(404, self.get(image_id, '/file').status_code)

    @ddt.data(
        ('bytes=1-2', 206, b'bc', 'bytes 1-2/4'),
        ('bytes=2-', 206, b'cd', 'bytes 2-3/4'),
        ('bytes=4-', 416, None, None),
    )
    @ddt.unpack
    def test_a_range(self, wanted, status, data, told):
        answer = self.get(self.private(), '/file', Range=wanted)
        self.assertEqual(status, answer.status_code)
        self.assertEqual(told, answer.headers.get('Content-Range'))
        if data is not None:
            self.assertEqual(data, answer.content)

    def test_a_hash_is_set(self):
        image_id = self.private()
        for wanted in ((None, None, None), ('0' * 32, 'sha256', 'ff')):
            self.glance.set_hash(image_id, *wanted)
            record = self.glance.record(image_id)
            names = ('checksum', 'os_hash_algo', 'os_hash_value')
            self.assertEqual(wanted, tuple(record[name] for name in names))
        self.assertRaises(LookupError, self.glance.set_hash, 'no such image')

    def test_downloads_are_counted(self):
        image_id = self.private()
        self.assertEqual([], self.glance.downloads(image_id))
        self.get(image_id, '/file')
        self.get(image_id, '/file', Range='bytes=1-2')
        self.get(image_id, '/file', OTHER)
        told = [(d.range, d.status) for d in self.glance.downloads(image_id)]
        expected = [(None, 200), ('bytes=1-2', 206), (None, 404)]
        self.assertEqual(expected, told)
        sizes = [done.size for done in self.glance.downloads(image_id)]
        self.assertEqual([4, 2], sizes[:2])

    def test_a_download_that_is_left(self):
        size = 2**26
        image_id = self.private(data=bytes(size))
        path = f'/v2/images/{image_id}/file'
        with self.glance.request('GET', path, stream=True):
            (begun,) = self.glance.downloads(image_id, settle=0)
            self.assertIsNone(begun.status)
        (left,) = self.glance.downloads(image_id)
        self.assertEqual(200, left.status)
        self.assertLess(left.size, size)

    @ddt.data(None, MEMBER)
    def test_variables_of_openstack(self, token):
        image_id = self.private()
        python = services.environment_of_services() / 'python'
        told = subprocess.run(
            [python, '-W', 'ignore', '-c', _SDK],
            capture_output=True,
            text=True,
            check=True,
            env={
                'PATH': os.environ['PATH'],
                **self.glance.environment(token),
            },
        )
        self.assertIn(image_id, told.stdout.strip().split(','))


class TestExposed(SharedTestCase):
    options: ClassVar = {'show_direct_url': True, 'show_locations': True}

    def test_exposed_locations(self):
        image_id = self.private()
        record = self.glance.record(image_id, MEMBER)
        url = f'file://{self.glance.data_path(image_id)}'
        self.assertEqual(url, record['direct_url'])
        expected = [{'url': url, 'metadata': {'store': 'file1'}}]
        self.assertEqual(expected, record['locations'])


class TestStarting(GlanceTestCase):
    def test_options(self):
        glance = self.started(
            policy={'download_image': 'role:admin'},
            hashing_algorithm='sha256',
            default_store='file2',
            show_direct_url=True,
        )
        image_id = glance.create(data=b'abcd', token=MEMBER)
        record = glance.record(image_id)
        self.assertEqual('sha256', record['os_hash_algo'])
        self.assertEqual({'stores', 'direct_url'}, _where(record))
        self.assertEqual('file2', record['stores'])
        path = f'/v2/images/{image_id}/file'
        answer = glance.request('GET', path, token=MEMBER)
        self.assertEqual(403, answer.status_code)

    def test_it_ends_with_the_block(self):
        with services.Glance(self.directory()) as glance:
            group = glance.process.pid
            self.assertEqual(2, len(_group(group)))
        self.assertEqual([], _group(group))
        self.assertRaises(OSError, _connect, glance.url)

    def test_it_tells_why_it_does_not_start(self):
        glance = services.Glance(self.directory(), default_store='none')
        error = self.assertRaises(RuntimeError, glance.__enter__)
        self.assertIn('Store for identifier none not found', str(error))
        self.assertIsNone(glance.process)

    def test_it_dies_with_us_during_a_download(self):
        holder = subprocess.Popen(
            [sys.executable, '-c', _HOLDER, self.directory()],
            cwd=pathlib.Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(holder.communicate)
        self.addCleanup(holder.kill)
        assert holder.stdout
        group, url = holder.stdout.readline().split()
        self.assertEqual(2, len(_group(int(group))))
        holder.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 60
        while _group(int(group)) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual([], _group(int(group)))
        self.assertRaises(OSError, _connect, url)


def _where(record):
    return {'direct_url', 'locations', 'stores'} & set(record)


def _connect(url):
    address = parse.urlsplit(url)
    socket.create_connection((address.hostname, address.port)).close()


def _group(number):
    """Tell the living processes of a group."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            words = path.read_text().rsplit(')')[-1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # State, parent, group. One that is not yet reaped holds nothing.
        if int(words[2]) == number and words[0] != 'Z':
            found.append(path.parent.name)
    return found
