# SPDX-License-Identifier: Apache-2.0
"""A real Cinder in three processes, with RabbitMQ and MariaDB.

As operators have it: neither what the API does nor a download in one back end
takes time from another back end. Each back end has a process of its own, too.
"""

import contextlib
import os
import signal
import subprocess
import unittest

from cinder_cow.tests import broker
from cinder_cow.tests import cinder_service
from cinder_cow.tests import mariadb
from cinder_cow.tests import service_process
from cinder_cow.tests import services

# The API has no words for its own options: it takes gunicorn's for its own.
_GUNICORN = """
import ctypes

wsgi_app = 'cinder.wsgi.api:application'
bind = 'fd://{descriptor}'
# As many as Cinder has by default.
workers = {workers}
worker_class = 'gthread'
threads = 16
timeout = 0
graceful_timeout = 1
worker_tmp_dir = {directory!r}
control_socket_disable = True


def post_fork(_server, _worker):
    # PR_SET_PDEATHSIG, SIGKILL. A worker whose gunicorn is gone ends when its
    # requests end; those that miss RabbitMQ never do.
    ctypes.CDLL(None).prctl(1, 9)
"""


class Cinder(cinder_service.Cinder):
    """A Cinder whose API, scheduler and volume services are processes.

    The arguments are those of ``cinder_service.Cinder``. ``process`` is the
    volume service; ``kill`` and ``restart`` are of all three.

    :raises unittest.SkipTest: on entering, also if RabbitMQ or MariaDB is not
        installed, or if we are not root, whom Cinder's own programs need
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._others: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        needed()
        with contextlib.ExitStack() as stack:
            database = mariadb.MariaDb(self.directory / 'mariadb')
            stack.enter_context(database)
            rabbit = broker.Broker(self.directory / 'rabbitmq')
            stack.enter_context(rabbit)
            self.settings['database'] = {'connection': database.url}
            self.settings['DEFAULT']['transport_url'] = rabbit.url
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    def _make_database(self):
        service_process.managed(
            services.PROGRAMS / 'cinder-manage',
            '--config-file', self.directory / 'cinder.conf', 'db', 'sync',
        )  # fmt: skip

    def _launch(self, log):
        assert self._listener
        settings = _GUNICORN.format(
            descriptor=self._listener.fileno(),
            workers=os.cpu_count(),
            directory=str(self.directory),
        )
        (self.directory / 'gunicorn.conf.py').write_text(settings)
        for program in ('gunicorn', 'cinder-scheduler'):
            self._others.append(self._run(log, program))
        self.process = self._run(log, 'cinder-volume')

    def kill(self):
        super().kill()
        while self._others:
            process = self._others.pop()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self):
        super().stop()
        self._stack.close()


def needed():
    """Raise unittest.SkipTest where it cannot run."""
    if os.geteuid():
        raise unittest.SkipTest('machine: three processes need root')
    broker.needed()
    mariadb.needed()
