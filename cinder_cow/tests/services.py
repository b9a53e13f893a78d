# SPDX-License-Identifier: Apache-2.0
"""Real services of OpenStack for tests: a Glance, without Keystone.

They run in an environment of their own, ``.venv-services``, so that what they
pin does not decide what we run with. ``tools/test`` makes it.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import time
from typing import Any
import unittest

import requests

from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_config
from cinder_cow.tests import image_api
from cinder_cow.tests import service_process

ROOT = pathlib.Path(__file__).parents[2]
# Another one, for instance with another release of Cinder.
_GIVEN = os.environ.get('COW_SERVICES')
PROGRAMS = pathlib.Path(_GIVEN or ROOT / '.venv-services') / 'bin'
STORES = ('file1', 'file2')
# Of a log, in an error.
_LINES = 40
RBD_STORE = 'rbd1'

_VERSIONS = (
    'glance.api.middleware.version_negotiation:VersionNegotiationFilter'
)
_PASTE = f"""
[composite:glance-api]
paste.composite_factory = glance.api:root_app_factory
/: api

[pipeline:api]
pipeline = recorder versionnegotiation token_auth context root

[composite:root]
paste.composite_factory = glance.api:root_app_factory
/: versions
/v2: v2

[app:versions]
paste.app_factory = glance.api.versions:create_resource

[app:v2]
paste.app_factory = glance.api.v2.router:API.factory

[filter:recorder]
paste.filter_factory = token_auth:recorder
path = %(here)s/requests

[filter:versionnegotiation]
paste.filter_factory = {_VERSIONS}.factory

[filter:token_auth]
paste.filter_factory = token_auth:token_auth

[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
"""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that Glance got, and its answer, None while it lasts.

    The size counts what gunicorn took to send, in bytes; a client that left
    may have got less of the last 64 KiB. The seconds are those of sending it.
    """

    method: str
    path: str
    range: str | None
    status: int | None = None
    size: int | None = None
    seconds: float | None = None


class Glance(service_process.ServiceProcess, image_api.Client):
    """A Glance on a free port of 127.0.0.1, with two file stores.

    Given a Ceph, it has a store there too, ``rbd1``, which is the default.

    It ends with the ``with`` block, or when the thread that entered it dies.

    :param directory: where all its files are; removed by who made it
    :param policy: rules that differ from Glance's own
    :param ceph: a Ceph whose pool "images" is a store, for its user "glance"
    :param settings: sections of glance-api.conf, dictionaries of options
    :raises RuntimeError: on entering, if it does not start, and its log
    :raises unittest.SkipTest: on entering, if this is not a checkout, or
        there is no module of Ceph for this Python
    """

    def __init__(
        self,
        directory,
        *,
        show_direct_url=False,
        show_locations=False,
        policy=None,
        threads=8,
        hashing_algorithm='sha512',
        default_store=None,
        ceph=None,
        settings=None,
    ):
        super().__init__()
        self.directory = pathlib.Path(directory).absolute()
        self.ceph = ceph
        self.threads = threads
        self.policy = policy or {}
        usual = RBD_STORE if ceph else STORES[0]
        self.settings = self._settings(default_store or usual)
        self.settings['DEFAULT'].update(
            show_image_direct_url=show_direct_url,
            show_multiple_locations=show_locations,
            hashing_algorithm=hashing_algorithm,
        )
        for section, options in (settings or {}).items():
            self.settings.setdefault(section, {}).update(options)

    def _settings(self, default_store):
        top = self.directory
        settings: dict[str, dict[str, Any]] = {
            'DEFAULT': {
                'enabled_backends': ','.join(f'{s}:file' for s in STORES),
                'enabled_import_methods': '[glance-direct,copy-image]',
                'image_cache_dir': top / 'cache',
            },
            'database': service_process.database_options(
                top / 'glance.sqlite'
            ),
            'paste_deploy': {'config_file': top / 'paste.ini'},
            'glance_store': {'default_backend': default_store},
            'oslo_policy': {'policy_file': top / 'policy.json'},
            'oslo_messaging_notifications': {'driver': 'noop'},
            'wsgi': {'task_pool_threads': 2},
        }
        reserved = ('os_glance_staging_store', 'os_glance_tasks_store')
        for store in (*STORES, *reserved):
            settings[store] = {'filesystem_store_datadir': top / store}
        if self.ceph:
            settings['DEFAULT']['enabled_backends'] += f',{RBD_STORE}:rbd'
            settings[RBD_STORE] = {
                'rbd_store_pool': 'images',
                'rbd_store_user': 'glance',
                'rbd_store_ceph_conf': self.ceph.conf,
            }
        return settings

    def __enter__(self):
        programs = environment_of_services()
        database = _database()
        if self.ceph:
            ceph_client.needed()
        listener, self.url = service_process.listener()
        with listener:
            self._write_files(database)
            self._start(programs, listener.fileno())
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _write_files(self, database):
        for name in ('cache', 'os_glance_staging_store'):
            (self.directory / name).mkdir(parents=True)
        self.settings['DEFAULT']['worker_self_reference_url'] = self.url
        ceph_config.write_sections(
            self.directory / 'glance-api.conf', self.settings
        )
        (self.directory / 'paste.ini').write_text(_PASTE)
        policy = json.dumps(self.policy)
        (self.directory / 'policy.json').write_text(policy)
        (self.directory / 'requests').touch()
        (self.directory / 'glance.sqlite').write_bytes(database)
        # A copy, in a directory of its own: the names of our modules must
        # not stand before those of Glance's environment.
        (self.directory / 'python').mkdir()
        module = pathlib.Path(__file__).with_name('token_auth.py')
        shutil.copy(module, self.directory / 'python')

    def _start(self, programs, listener):
        # setpriv binds gunicorn to us. Its worker misses it after 1 s at most,
        # and gives downloads another one.
        with (self.directory / 'log').open('wb') as log:
            self.process = subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', programs / 'gunicorn',
                 '--bind', f'fd://{listener}',
                 # One: each takes 125 MiB.
                 '--workers', '1',
                 # A thread is busy for as long as a download takes.
                 '--worker-class', 'gthread', '--threads', str(self.threads),
                 '--timeout', '0', '--graceful-timeout', '1',
                 '--worker-tmp-dir', self.directory, '--no-control-socket',
                 'glance.wsgi.api:application'],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    'PATH': f'{programs}:{os.environ["PATH"]}',
                    'PYTHONPATH': str(self.directory / 'python'),
                    'OS_GLANCE_CONFIG_DIR': str(self.directory),
                },
                pass_fds=[listener],
                # So that one signal reaches it and its worker, and Control-C
                # reaches us alone.
                start_new_session=True,
            )  # fmt: skip

    def _wait(self):
        try:
            answer = self.request('GET', '/v2/images?limit=1')
            answer.raise_for_status()
        except requests.RequestException as error:
            raise RuntimeError(
                f'Glance did not start: {error}\n{self._end_of_log()}'
            ) from None

    def stop(self):
        """End it, at most 5 s after its downloads got 1 s to end."""
        if not self.process:
            return
        # Quick, but the worker is gone when this process is.
        self.process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()

    def do(self, method, path, **options):
        try:
            return super().do(method, path, **options)
        except requests.HTTPError as error:
            text = f'{error}\n{self._end_of_log()}'
            raise requests.HTTPError(text, response=error.response) from None

    def _end_of_log(self):
        return '\n'.join(self.log.splitlines()[-_LINES:])

    def requests(self, settle=60):
        """Return the requests so far.

        :param settle: seconds to wait, at most, for answers that have not
            ended; 0 tells what is under way
        """
        deadline = time.monotonic() + settle
        while True:
            found = self._requests()
            ended = all(request.status is not None for request in found)
            if ended or time.monotonic() >= deadline:
                return found
            time.sleep(0.01)

    def downloads(self, image_id, settle=60):
        """Return the requests for the data of an image."""
        path = f'/v2/images/{image_id}/file'
        return [
            request
            for request in self.requests(settle)
            if (request.method, request.path) == ('GET', path)
        ]

    def _requests(self):
        found: dict[int, Request] = {}
        for line in (self.directory / 'requests').read_text().splitlines():
            facts = json.loads(line)
            number = facts.pop('number')
            if number in found:
                found[number] = dataclasses.replace(found[number], **facts)
            else:
                found[number] = Request(**facts)
        return list(found.values())

    def data_path(self, image_id, store=STORES[0]):
        """Tell the file that holds an image's data, for instance to break."""
        return self.directory / store / image_id

    def set_hash(
        self, image_id, checksum=None, os_hash_algo=None, os_hash_value=None
    ):
        """Set what Glance lets nobody set; what is not given is unset."""
        database = sqlite3.connect(
            self.directory / 'glance.sqlite', timeout=60
        )
        with contextlib.closing(database), database:
            done = database.execute(
                'UPDATE images SET checksum = ?, os_hash_algo = ?,'
                ' os_hash_value = ? WHERE id = ?',
                (checksum, os_hash_algo, os_hash_value, image_id),
            )
            if done.rowcount != 1:
                raise LookupError(f'{done.rowcount} images are {image_id}')


def environment_of_services():
    """Return the directory of the services' programs.

    :raises unittest.SkipTest: this is not a checkout, nothing can make it
    :raises RuntimeError: nobody made it yet
    """
    if not (ROOT / 'setup.cfg').exists():
        raise unittest.SkipTest('machine: installed without its source')
    # The stamp of tools/setup.sh: all of it is there.
    if not _GIVEN and not any(PROGRAMS.parent.glob('.done-*')):
        raise RuntimeError('tools/test makes .venv-services; it is missing')
    return PROGRAMS


@functools.cache
def _database():
    """Make an empty database of Glance, once per process: it takes 1.4 s."""
    manage = environment_of_services() / 'glance-manage'
    return service_process.database(manage, 'db_sync')
