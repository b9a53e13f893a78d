# SPDX-License-Identifier: Apache-2.0
"""A real RabbitMQ for tests, by which processes of Cinder talk."""

from collections.abc import Callable, Sequence
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from typing import Self
import unittest

from cinder_cow.tests import ceph_config
from cinder_cow.tests import service_process

# Debian's program in PATH runs as the user of the system's own RabbitMQ.
_PROGRAM = pathlib.Path('/usr/lib/rabbitmq/bin/rabbitmq-server')
# It takes 6 s; this is for a machine that does much else.
_START_SECONDS = 120
_GREETING = b'AMQP\x00\x00\x09\x01'

_SETTINGS = """\
disk_free_limit.absolute = 1MB
log.console = true
log.console.level = warning
log.file = false
"""
# Without it a process of its own looks up names, and outlives it.
_NAMES = """\
{lookup, [file]}.
{host, {127,0,0,1}, ["localhost"]}.
"""


class Broker(service_process.ServiceProcess):
    """A RabbitMQ on a free port of 127.0.0.1, apart from the system's own.

    It ends with the ``with`` block, or when the thread dies that entered it;
    so does the daemon by which Erlang finds its nodes. What it holds is lost.

    :param directory: where all its files are; removed by who made it
    :ivar url: as Cinder's ``transport_url``
    :raises RuntimeError: on entering, if it does not start, and its log
    :raises unittest.SkipTest: on entering, if it is not installed
    """

    url = ''

    def __init__(self, directory: os.PathLike[str] | str) -> None:
        self.directory = pathlib.Path(directory).absolute()
        self._names: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        epmd = needed()
        self.directory.mkdir(parents=True)
        (self.directory / 'rabbitmq.conf').write_text(_SETTINGS)
        (self.directory / 'plugins').write_text('[].\n')
        (self.directory / 'names').write_text(_NAMES)
        names, port = ceph_config.free_port(), ceph_config.free_port()
        try:
            # If it found none, Erlang would start one that stays.
            command = [epmd, '-address', '127.0.0.1', '-port', str(names)]
            self._names = self._started(command, {})
            self._wait(self._names, lambda: _answer(names, b'\x00\x01n', 4))
            self.process = self._started(
                [_PROGRAM], self._environment(names, port)
            )
            self._wait(self.process, lambda: _answer(port, _GREETING, 8))
        except BaseException:
            self.stop()
            raise
        self.url = f'rabbit://guest:guest@127.0.0.1:{port}/'
        return self

    def _environment(self, names: int, port: int) -> dict[str, str]:
        top = str(self.directory)
        return {
            # Where its cookie is.
            'HOME': top,
            'ERL_INETRC': f'{top}/names',
            'RABBITMQ_NODENAME': f'cow{port}@localhost',
            'RABBITMQ_NODE_IP_ADDRESS': '127.0.0.1',
            'RABBITMQ_NODE_PORT': str(port),
            'RABBITMQ_DIST_PORT': str(ceph_config.free_port()),
            'ERL_EPMD_ADDRESS': '127.0.0.1',
            'ERL_EPMD_PORT': str(names),
            'RABBITMQ_CONF_ENV_FILE': f'{top}/none',
            'RABBITMQ_CONFIG_FILE': f'{top}/rabbitmq',
            'RABBITMQ_ENABLED_PLUGINS_FILE': f'{top}/plugins',
            'RABBITMQ_LOG_BASE': top,
            'RABBITMQ_MNESIA_BASE': f'{top}/data',
            'RABBITMQ_PID_FILE': f'{top}/pid',
            # By default its threads turn in circles for a while when they
            # have nothing to do.
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': (
                '-kernel inet_dist_use_interface {127,0,0,1} +sbwt none'
            ),
            # Then it is the process that we start, not a child of it.
            'RUNNING_UNDER_SYSTEMD': 'true',
        }

    def _started(
        self,
        command: Sequence[str | pathlib.Path],
        environment: dict[str, str],
    ) -> 'subprocess.Popen[bytes]':
        with (self.directory / 'log').open('ab') as log:
            return subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', *command],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={'PATH': os.environ['PATH'], **environment},
                start_new_session=True,
            )

    def _wait(
        self, process: 'subprocess.Popen[bytes]', answers: Callable[[], bytes]
    ) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f'RabbitMQ did not start:\n{self.log}')
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once: nobody wants what it holds."""
        self.kill()
        names, self._names = self._names, None
        if names:
            # Last: RabbitMQ starts another one where it misses it.
            names.send_signal(signal.SIGKILL)
            names.wait()


def needed() -> str:
    """Return the path of the daemon that tells the ports of Erlang's nodes.

    :raises unittest.SkipTest: it or RabbitMQ is not installed
    """
    epmd = shutil.which('epmd')
    if not (_PROGRAM.exists() and epmd):
        raise unittest.SkipTest('machine: RabbitMQ is not installed')
    return epmd


def _answer(port: int, request: bytes, length: int) -> bytes:
    """Tell what a server answers; nothing while it does not."""
    address = ('127.0.0.1', port)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(address, 1) as connection,
    ):
        connection.sendall(request)
        return connection.recv(length)
    return b''
