# SPDX-License-Identifier: Apache-2.0
"""Bytes come with the rights of who asks Cinder, as Cinder would fetch them.

Where there is a Keystone; the Cinder of other tests has none.
"""

import pathlib
import shutil
import subprocess
import tempfile
import uuid

from oslo_utils import units

from cinder_cow.tests import ceph_config
from cinder_cow.tests import corpus
from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_case
from cinder_cow.tests import services
from cinder_cow.tests import storage

TOKEN = 'alice:a1:member'
SERVICE = 'cinder:service:service'

# Writes an image's bytes, as cinder-volume fetches them for a caller.
_PROGRAM = """
import json, sys
from cinder import context
from cinder.common import config
from cinder.image import image_utils
from oslo_config import cfg
from cinder_cow import image_info, opts
from cinder_cow.plugin import images

conf, token, request_id, image_id, size, catalogue = sys.argv[1:]
cfg.CONF(['--config-file', conf], project='cinder')
caller = context.RequestContext(
    'alice', 'a1', auth_token=token, global_request_id=request_id,
    service_catalog=json.loads(catalogue),
)
image = image_info.ImageInfo(image_id, 'i', 'raw', size=int(size))
with (
    images.opened(caller, opts.Settings()) as glance,
    glance.source(image) as source,
):
    for piece in source.pieces():
        sys.stdout.buffer.write(piece)
"""


class TestRights(http_case.HttpTestCase):
    def setUp(self):
        super().setUp()
        self.programs = services.environment_of_services()
        self.content = corpus.noise(4 * units.Mi)
        self.image_id = str(uuid.uuid4())
        self.path = f'/v2/images/{self.image_id}/file'
        self.request_id = f'req-{uuid.uuid4()}'
        # As Glance: it tells no ETag, and its bytes never change.
        self.behaviour = http_behaviour.Behaviour(
            self.content, etag=None, last_modified=None
        )

    def fetched(self, catalogue='[]', **options):
        """Run the program; return what it wrote, and what it was asked."""
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, top)
        conf = pathlib.Path(top) / 'cinder.conf'
        service_user = {
            'send_service_user_token': True,
            'auth_type': 'admin_token',
            'endpoint': 'http://127.0.0.1:9',
            'token': SERVICE,
        }
        ceph_config.write_sections(
            conf,
            {
                'DEFAULT': {'auth_strategy': 'keystone', **options},
                'service_user': service_user,
            },
        )
        return subprocess.run(
            [
                self.programs / 'python',
                '-c',
                _PROGRAM,
                conf,
                TOKEN,
                self.request_id,
                self.image_id,
                str(len(self.content)),
                catalogue,
            ],
            cwd=services.ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    def assert_fetched(self, **options):
        done = self.fetched(**options)
        self.assertEqual(0, done.returncode, done.stderr[-2000:])
        self.assertTrue(storage.same(self.content, done.stdout))
        requests = self.server.requests_for(self.path)
        for request in requests:
            headers = request.headers
            self.assertEqual(TOKEN, headers['X-Auth-Token'])
            self.assertEqual(SERVICE, headers['X-Service-Token'])
            self.assertEqual(
                self.request_id, headers['X-OpenStack-Request-ID']
            )
        return requests

    def test_tokens_are_those_of_cinder(self):
        self.start({self.path: self.behaviour})
        for url in (self.server.url(), self.server.url('/v2/')):
            self.assert_fetched(glance_api_servers=url)
        self.assertEqual(2, len(self.server.requests_for(self.path)))

    def test_the_rest_of_an_answer_that_broke_off(self):
        self.behaviour = http_behaviour.Behaviour(
            self.content,
            etag=None,
            last_modified=None,
            break_after=2 * units.Mi,
            breaks=1,
        )
        self.start({self.path: self.behaviour})
        url = self.server.url()
        requests = self.assert_fetched(glance_api_servers=url)
        ranges = [request.headers['Range'] for request in requests]
        self.assertEqual([None, f'bytes={2 * units.Mi}-'], ranges)

    def test_nobody_tells_where_glance_is(self):
        self.start({self.path: self.behaviour})
        done = self.fetched(catalogue='[]')
        self.assertIn(b'glance_unavailable', done.stderr)
        self.assertIn(b'glance_api_servers', done.stderr)
