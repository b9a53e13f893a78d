# SPDX-License-Identifier: Apache-2.0
"""Cinder's API as tests use it: plain requests, nothing of what we test."""

import time

from cinder_cow.tests import image_api

# A volume of a small image is there after 1 s; this is for a machine that
# does much else.
LIMIT = image_api.LIMIT
# Newer calls than those of the first release have it in their headers.
NEW = {'OpenStack-API-Version': 'volume 3.68'}


class Client:
    """Makes volumes and snapshots, and asks for them, as any user.

    A token is ``user:project:role[,role]``; see ``token_auth``. Without one
    an administrator asks.
    """

    def __init__(self, url=''):
        self._http = image_api.Client(url)

    @property
    def url(self):
        return self._http.url

    @url.setter
    def url(self, url):
        self._http.url = url

    def request(self, method, path, **options):
        """Send a request; return its answer, whatever it is.

        :param path: behind /v3; the project is the token's
        :param options: token, headers, or what ``requests`` takes
        """
        return self._http.request(method, f'/v3{path}', **options)

    def do(self, method, path, **options):
        """Send a request that must succeed.

        :raises RuntimeError: it did not, and what Cinder said
        """
        answer = self.request(method, path, **options)
        if not answer.ok:
            raise RuntimeError(
                f'{method} {path}: {answer.status_code} {answer.text}'
            )
        return answer

    # Volumes

    def create_volume(
        self,
        size,
        *,
        image_id=None,
        snapshot_id=None,
        source_volid=None,
        volume_type=None,
        token=None,
        **claims,
    ):
        """Begin to make a volume; return its id.

        :param size: in GiB
        :param claims: of Cinder (name, metadata, availability_zone)
        """
        claims.update(
            size=size,
            imageRef=image_id,
            snapshot_id=snapshot_id,
            source_volid=source_volid,
            volume_type=volume_type,
        )
        return self._create('volume', claims, token)

    def show(self, volume_id, token=None):
        return self._show('volume', volume_id, token)

    def wait(self, volume_id, status='available', limit=LIMIT):
        """Wait until a volume has a status; return its record.

        :raises RuntimeError: it has an error, or has the status not in time;
            with the end of Cinder's log
        """
        return self._wait('volume', volume_id, status, limit)

    def delete_volume(self, volume_id, limit=LIMIT):
        """Delete a volume, and wait until it is gone.

        :raises RuntimeError: it is not, with the end of Cinder's log
        """
        self._delete('volume', volume_id, limit)

    def act(self, volume_id, action, **claims):
        """Have something done to a volume; return the answer's JSON, if any.

        :param action: as Cinder calls it
        """
        path = f'/volumes/{volume_id}/action'
        answer = self.do('POST', path, json={action: claims}, headers=NEW)
        return answer.json() if answer.content else None

    def volumes(self, token=None):
        """Return the ids of a project's volumes."""
        answer = self.do('GET', '/volumes', token=token)
        return [volume['id'] for volume in answer.json()['volumes']]

    # Snapshots

    def create_snapshot(self, volume_id, *, token=None, **claims):
        """Begin to make a snapshot of a volume; return its id."""
        claims['volume_id'] = volume_id
        return self._create('snapshot', claims, token)

    def show_snapshot(self, snapshot_id, token=None):
        return self._show('snapshot', snapshot_id, token)

    def wait_snapshot(self, snapshot_id, status='available', limit=LIMIT):
        """Do for a snapshot as ``wait`` does for a volume."""
        return self._wait('snapshot', snapshot_id, status, limit)

    def delete_snapshot(self, snapshot_id, limit=LIMIT):
        """Do for a snapshot as ``delete_volume`` does for a volume."""
        self._delete('snapshot', snapshot_id, limit)

    def pools(self, **options):
        """Return what the scheduler knows of each pool, by its name."""
        path = '/scheduler-stats/get_pools?detail=true'
        pools = self.do('GET', path, **options).json()['pools']
        return {pool['name']: pool['capabilities'] for pool in pools}

    @property
    def log(self):
        """What errors quote the end of."""
        return ''

    def messages(self, volume_id, token=None):
        """Return what a user is told of a volume, the newest first."""
        answer = self.do(
            'GET',
            f'/messages?resource_uuid={volume_id}',
            token=token,
            headers={'OpenStack-API-Version': 'volume 3.5'},
        )
        return answer.json()['messages']

    def usage(self, token='admin:admin:admin'):
        """Return what counts for the quotas of a project, by its name."""
        project = token.split(':')[1]
        answer = self.do(
            'GET', f'/os-quota-sets/{project}?usage=true', token=token
        )
        found = answer.json()['quota_set']
        return {
            name: (usage['in_use'], usage['reserved'])
            for name, usage in found.items()
            if isinstance(usage, dict)
        }

    # Both

    def _create(self, kind, claims, token):
        claims = {name: v for name, v in claims.items() if v is not None}
        answer = self.do('POST', f'/{kind}s', token=token, json={kind: claims})
        return answer.json()[kind]['id']

    def _show(self, kind, number, token=None):
        return self.do('GET', f'/{kind}s/{number}', token=token).json()[kind]

    def _delete(self, kind, number, limit):
        self.do('DELETE', f'/{kind}s/{number}')
        self._wait(kind, number, 'deleted', limit)

    def _wait(self, kind, number, status, limit):
        deadline = time.monotonic() + limit
        while True:
            record = self._found(kind, number)
            if record['status'] == status:
                return record
            failed = record['status'].startswith('error')
            if failed or time.monotonic() > deadline:
                raise RuntimeError(
                    f'{kind} {number} is {record["status"]}, not {status}\n'
                    + self.end_of_log()
                )
            # One answer takes the process that works 15 ms.
            time.sleep(0.05)

    def _found(self, kind, number):
        answer = self.request('GET', f'/{kind}s/{number}')
        if answer.status_code == 404:
            return {'status': 'deleted'}
        answer.raise_for_status()
        return answer.json()[kind]

    def end_of_log(self, lines=120):
        # A download that fails takes Cinder 100 lines.
        return '\n'.join(self.log.splitlines()[-lines:])

    def environment(self, token='admin:admin:admin'):
        """Tell the variables of a client of OpenStack that use this Cinder.

        Without Keystone there is no catalogue: the endpoint is the answer.
        """
        url = f'{self.url}/v3'
        return {
            'OS_AUTH_TYPE': 'admin_token',
            'OS_ENDPOINT': url,
            'OS_TOKEN': token,
            'OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE': url,
        }
