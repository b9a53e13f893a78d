# SPDX-License-Identifier: Apache-2.0
"""A real Cinder for tests, without Keystone, beside ``services.Glance``."""

import contextlib
import functools
import json
import os
import pathlib
import select
import socket
import sqlite3
import subprocess
import time
import unittest

import requests

from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_config
from cinder_cow.tests import service_process
from cinder_cow.tests import services
from cinder_cow.tests import volume_api

BACKEND = 'rbd1'
# Three processes took 50 s beside other tests; for a slower machine.
_START_SECONDS = 180
# For a process that was told to end; it takes 0.8 s when it does nothing.
_STOP_SECONDS = 5
# What has as many lines as there are requests would hide why one failed;
# the others print every statement and every connection.
_QUIET = (
    'eventlet.wsgi.server',
    'cinder.api.openstack.wsgi',
    'sqlalchemy',
    'stevedore',
    'taskflow',
    'urllib3.connectionpool',
)
# Kept in the database when that is made; from then on it counts.
_QUOTAS = {
    'quota_volumes': -1,
    'quota_snapshots': -1,
    'quota_gigabytes': -1,
}

# Of the environment: "1" has Cinder run in native threads.
_NATIVE = 'OS_CINDER_DISABLE_EVENTLET_PATCHING'

_PASTE = """
[composite:osapi_volume]
use = call:cinder.api:root_app_factory
/: versions
/v3: v3

[pipeline:versions]
pipeline = request_id faultwrap versions_app

[app:versions_app]
paste.app_factory = cinder.api.versions:Versions.factory

[pipeline:v3]
pipeline = request_id faultwrap sizelimit token_auth context v3_app

[app:v3_app]
paste.app_factory = cinder.api.v3.router:APIRouter.factory

[filter:request_id]
paste.filter_factory = cinder.api.middleware.request_id:RequestId.factory

[filter:faultwrap]
paste.filter_factory = cinder.api.middleware.fault:FaultWrapper.factory

[filter:sizelimit]
paste.filter_factory = oslo_middleware.sizelimit:RequestBodySizeLimiter.factory

[filter:token_auth]
paste.filter_factory = cinder_cow.tests.token_auth:token_auth

[filter:context]
paste.filter_factory = cinder.api.middleware.auth:CinderKeystoneContext.factory
"""


class Cinder(service_process.ServiceProcess, volume_api.Client):
    """A Cinder on a free port of 127.0.0.1, which finds cinder_cow.

    API, scheduler and volume services are one process. It asks Glance as an
    administrator, whoever asked it. It ends with the ``with`` block, or when
    the thread dies that entered it or called ``restart``; what it made in
    Ceph stays there.

    :param directory: where all its files are; removed by who made it
    :param glance: where images are, as ``services.Glance``
    :param ceph: whose pool "volumes" is a back end, for its user "cinder"
    :param drivers: sections of cinder.conf by the name of the back end, by
        default Cinder's own driver on that pool
    :param settings: sections of cinder.conf that differ, dictionaries of
        options
    :param native: run it in native threads, not in eventlet's
    :param keyring: the path of one that it is to find in /etc/ceph, where
        os-brick alone looks for them; it takes root
    :raises RuntimeError: on entering, if it does not start, and its log
    :raises unittest.SkipTest: on entering, if this is not a checkout, or
        there is no module of Ceph for this Python
    """

    def __init__(
        self,
        directory,
        glance,
        ceph=None,
        *,
        drivers=None,
        settings=None,
        native=False,
        keyring=None,
    ):
        super().__init__()
        self.native = native
        self._keyring = keyring
        self.directory = pathlib.Path(directory).absolute()
        self.glance = glance
        self._listener: socket.socket | None = None
        self.drivers = drivers or upstream_driver(ceph)
        self.settings = self._settings()
        for section, options in (settings or {}).items():
            self.settings.setdefault(section, {}).update(options)

    def _settings(self):
        top = self.directory
        helper = (
            f'{services.PROGRAMS}/privsep-helper'
            f' --config-file {top}/cinder.conf'
        )
        return {
            'DEFAULT': {
                'use_stderr': True,
                'default_log_levels': ','.join(f'{q}=WARN' for q in _QUIET),
                'state_path': top / 'state',
                'host': 'cow',
                'my_ip': '127.0.0.1',
                'auth_strategy': 'noauth',
                'api_paste_config': top / 'api-paste.ini',
                'transport_url': 'fake://',
                'glance_api_servers': self.glance.url,
                'image_conversion_dir': top / 'conversion',
                'enabled_backends': ','.join(self.drivers),
                'default_volume_type': '__DEFAULT__',
                **_QUOTAS,
                # Seconds. The first round of what is periodic begins after a
                # time by chance, of up to a minute.
                'periodic_fuzzy_delay': 0,
                # A back end that was down is known to be up again.
                'backend_stats_polling_interval': 10,
                'report_interval': 5,
                # What the owner of cached images would be.
                'cinder_internal_tenant_project_id': 'internal',
                'cinder_internal_tenant_user_id': 'internal',
            },
            'database': service_process.database_options(
                top / 'cinder.sqlite'
            ),
            'oslo_concurrency': {'lock_path': top / 'locks'},
            'coordination': {'backend_url': f'file://{top}/coordination'},
            'oslo_policy': {'policy_file': top / 'policy.json'},
            'oslo_messaging_notifications': {'driver': 'noop'},
            # By default they are started by sudo.
            'cinder_sys_admin': {'helper_command': helper},
            'privsep_osbrick': {'helper_command': helper},
            **self.drivers,
        }

    def __enter__(self):
        ceph_client.needed()
        services.environment_of_services()
        self._write_files()
        self._make_database()
        # Open here too, so that a request that comes before a restart waits.
        self._listener, self.url = service_process.listener()
        try:
            self.restart()
        except BaseException:
            self.stop()
            raise
        return self

    def _write_files(self):
        for name in ('conversion', 'locks', 'coordination', 'state', 'tmp'):
            (self.directory / name).mkdir(parents=True)
        conf = self.directory / 'cinder.conf'
        ceph_config.write_sections(conf, self.settings)
        (self.directory / 'api-paste.ini').write_text(_PASTE)
        (self.directory / 'policy.json').write_text(json.dumps({}))

    def _make_database(self):
        (self.directory / 'cinder.sqlite').write_bytes(_database())

    def restart(self):
        """Start it, if it was killed, with what it has; wait for its pools.

        :raises RuntimeError: it does not start, and its log
        """
        self.kill()
        with (self.directory / 'log').open('ab') as log:
            self._launch(log)
        self._wait_for_pools()

    def _launch(self, log):
        assert self._listener
        descriptor = self._listener.fileno()
        self.process = self._run(
            log,
            'python', '-m', 'cinder_cow.tests.cinder_program', str(descriptor),
            '--config-file', self.directory / 'cinder.conf',
        )  # fmt: skip

    def _run(self, log, program, *words):
        """Start a program of the services' environment, with our socket."""
        assert self._listener
        return subprocess.Popen(
            ['setpriv', '--pdeathsig', 'KILL', *self._place(),
             services.PROGRAMS / program, *words],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                'PATH': f'{services.PROGRAMS}:{os.environ["PATH"]}',
                'PYTHONPATH': str(services.ROOT),
                'TMPDIR': str(self.directory / 'tmp'),
                # Where Cinder looks for cinder.conf if it is not told.
                'HOME': str(self.directory),
                _NATIVE: str(int(self.native)),
            },
            pass_fds=[self._listener.fileno()],
            # So that one signal reaches it and what it runs, and Control-C
            # reaches us alone.
            start_new_session=True,
        )  # fmt: skip

    def _place(self):
        """Give the words that have a program see another /etc/ceph."""
        if not self._keyring:
            return []
        if os.geteuid():
            raise unittest.SkipTest(
                'machine: mounting on /etc/ceph needs root'
            )
        script = (
            'mkdir -p /etc/ceph && mount -t tmpfs cow-test /etc/ceph &&'
            ' cp "$0" /etc/ceph/ceph.client.cinder.keyring && exec "$@"'
        )
        return ['unshare', '--mount', 'sh', '-c', script, self._keyring]

    def _wait_for_pools(self):
        """Wait until the scheduler knows each back end.

        That a service is up may have been written before a restart.
        """
        assert self.process
        deadline = time.monotonic() + _START_SECONDS
        missing = set(self.drivers)
        while missing:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f'Cinder did not start:\n{self.end_of_log()}'
                )
            if time.monotonic() > deadline:
                names = ', '.join(sorted(missing))
                raise RuntimeError(
                    f'Cinder has no pool of {names}:\n{self.end_of_log()}'
                )
            # Its first answers may be errors.
            with contextlib.suppress(requests.RequestException, RuntimeError):
                # Not longer: a process that has ended answers nothing.
                pools = self.pools(timeout=1)
                missing -= {_backend(name) for name in pools}
            time.sleep(0.05)

    def told(self, volume_id):
        """Return the admin metadata of a volume, which no API shows."""
        query = (
            'SELECT key, value FROM volume_admin_metadata'
            ' WHERE volume_id = ? AND NOT deleted'
        )
        database = sqlite3.connect(self.directory / 'cinder.sqlite')
        with contextlib.closing(database):
            return dict(database.execute(query, [volume_id]))

    def stop(self):
        """End it, at most 5 s after it was told to."""
        if self.process and self.process.poll() is None:
            descriptor = os.pidfd_open(self.process.pid)
            try:
                self.process.terminate()
                # Ready when it has ended, but not reaped: what it ran may
                # still be there.
                select.select([descriptor], [], [], _STOP_SECONDS)
            finally:
                os.close(descriptor)
        self.kill()
        if self._listener:
            self._listener.close()


def upstream_driver(ceph, **options):
    """Return Cinder's own driver on a Ceph's pool "volumes", as a section."""
    section = ceph_config.cinder_sections(ceph.directory)[BACKEND]
    return {BACKEND: {**section, **options}}


def _backend(pool):
    """Tell the back end of a pool; its name is host@backend#pool."""
    return pool.partition('@')[2].partition('#')[0]


@functools.cache
def _database():
    """Make an empty database of Cinder, once per process: it takes 2 s."""
    manage = services.PROGRAMS / 'cinder-manage'
    return service_process.database(manage, 'db', 'sync', DEFAULT=_QUOTAS)
