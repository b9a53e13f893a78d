# SPDX-License-Identifier: Apache-2.0
"""Glance's API as tests use it: plain requests, nothing of what we test."""

import pathlib
import time

import requests

# Glance starts in 1.5 s and answers in 20 ms; this is for a machine that does
# much else.
LIMIT = 120


class Client:
    """Makes images, and asks for them, as any user.

    A token is ``user:project:role[,role]``; see ``token_auth``. Without one
    an administrator asks.
    """

    def __init__(self, url=''):
        self.url = url
        self.session = requests.Session()
        # Neither a proxy nor a .netrc of this machine is meant for it.
        self.session.trust_env = False
        # gunicorn closes an idle connection after 2 s, perhaps just when
        # the next request is sent.
        self.session.headers['Connection'] = 'close'

    def request(self, method, path, *, token=None, headers=None, **options):
        """Send a request; return its answer, whatever it is."""
        headers = dict(headers or {})
        if token is not None:
            headers['X-Auth-Token'] = token
        return self.session.request(
            method,
            self.url + path,
            headers=headers,
            **{'timeout': LIMIT, **options},
        )

    def do(self, method, path, **options):
        """Send a request that must succeed.

        :raises requests.HTTPError: it did not
        """
        answer = self.request(method, path, **options)
        answer.raise_for_status()
        return answer

    def create(
        self,
        disk_format='raw',
        *,
        path=None,
        data=None,
        token=None,
        store=None,
        **properties,
    ):
        """Make an image, queued without path and data; return its id.

        :param disk_format: None leaves it unset, and so does
            container_format=None
        :param properties: of Glance (name, visibility, min_disk) or one's own
        """
        claims = {
            'name': 'image',
            'disk_format': disk_format,
            'container_format': 'bare',
            **properties,
        }
        claims = {name: v for name, v in claims.items() if v is not None}
        answer = self.do('POST', '/v2/images', token=token, json=claims)
        image_id = answer.json()['id']
        if path is not None:
            with pathlib.Path(path).open('rb') as file:
                self.upload(image_id, file, token=token, store=store)
        elif data is not None:
            self.upload(image_id, data, token=token, store=store)
        return image_id

    def upload(self, image_id, data, *, token=None, store=None):
        headers = {'Content-Type': 'application/octet-stream'}
        if store:
            headers['X-Image-Meta-Store'] = store
        self.do(
            'PUT',
            f'/v2/images/{image_id}/file',
            token=token,
            headers=headers,
            data=data,
        )

    def copy(self, image_id, *stores):
        """Copy an image's data to other stores too, and wait for it."""
        self.do(
            'POST',
            f'/v2/images/{image_id}/import',
            json={'method': {'name': 'copy-image'}, 'stores': stores},
        )
        deadline = time.monotonic() + LIMIT
        while not self._is_copied(image_id, stores):
            if time.monotonic() > deadline:
                raise TimeoutError(f'{image_id} is not copied to {stores}')
            time.sleep(0.05)

    def _is_copied(self, image_id, stores):
        if set(stores) - set(self.record(image_id)['stores'].split(',')):
            return False
        # What does it writes its own record last. SQLite refuses at once who
        # has read before that and writes after it.
        answer = self.do('GET', f'/v2/images/{image_id}/tasks').json()
        return all(task['status'] == 'success' for task in answer['tasks'])

    def record(self, image_id, token=None):
        return self.do('GET', f'/v2/images/{image_id}', token=token).json()

    def deactivate(self, image_id):
        self.do('POST', f'/v2/images/{image_id}/actions/deactivate')

    def delete(self, image_id):
        self.do('DELETE', f'/v2/images/{image_id}')

    def environment(self, token=None):
        """Tell the variables of a client of OpenStack that use this Glance.

        Without Keystone there is no catalogue: the endpoint is the answer.
        """
        if token is None:
            return {'OS_AUTH_TYPE': 'none', 'OS_ENDPOINT': self.url}
        return {
            'OS_AUTH_TYPE': 'admin_token',
            'OS_ENDPOINT': self.url,
            'OS_TOKEN': token,
            # Or openstacksdk asks for /images, not for /v2/images.
            'OS_IMAGE_ENDPOINT_OVERRIDE': self.url,
        }
