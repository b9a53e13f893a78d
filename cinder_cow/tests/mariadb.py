# SPDX-License-Identifier: Apache-2.0
"""A real MariaDB for tests: a database that several processes may write."""

import contextlib
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import time
from typing import Self
import unittest

from cinder_cow.tests import service_process

# It takes 1 s; this is for a machine that does much else.
_START_SECONDS = 120


class MariaDb(service_process.ServiceProcess):
    """A MariaDB with an empty database, behind a socket in a directory.

    It has no port. It ends with the ``with`` block, or when the thread dies
    that entered it.

    :param directory: where all its files are; at most 80 characters, for the
        name of the socket; removed by who made it
    :ivar url: of the database, as SQLAlchemy takes it
    :raises RuntimeError: on entering, if it does not start, and its log
    :raises unittest.SkipTest: on entering, if it is not installed
    """

    def __init__(
        self, directory: os.PathLike[str] | str, name: str = 'cinder'
    ) -> None:
        self.directory = pathlib.Path(directory).absolute()
        self._name = name
        self._socket = self.directory / 'socket'
        self.url = (
            f'mysql+pymysql://root@localhost/{name}?unix_socket={self._socket}'
        )

    def __enter__(self) -> Self:
        install, server = needed()
        # Who comes to its socket needs no password.
        self.directory.mkdir(0o700, parents=True)
        user = pwd.getpwuid(os.geteuid()).pw_name
        usual = ['--no-defaults', f'--user={user}']
        usual.append(f'--datadir={self.directory}/data')
        service_process.managed(
            install, *usual, '--auth-root-authentication-method=normal',
            '--skip-test-db', '--skip-name-resolve',
        )  # fmt: skip
        first = self.directory / 'first.sql'
        # Done before it takes connections.
        first.write_text(
            f'CREATE DATABASE {self._name} CHARACTER SET utf8mb3;\n'
        )
        try:
            self._start([server, *usual, f'--init-file={first}'])
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, command: list[str]) -> None:
        with (self.directory / 'log').open('ab') as log:
            self.process = subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', *command,
                 '--skip-networking', f'--socket={self._socket}',
                 f'--pid-file={self.directory}/pid',
                 '--max-connections=400', '--performance-schema=OFF',
                 '--innodb-buffer-pool-size=64M',
                 # Nothing of it outlives a crash of the machine.
                 '--innodb-flush-log-at-trx-commit=0', '--sync-binlog=0'],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={'PATH': os.environ['PATH']},
                start_new_session=True,
            )  # fmt: skip

    def _wait(self) -> None:
        assert self.process
        deadline = time.monotonic() + _START_SECONDS
        while not self._greets():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f'MariaDB did not start:\n{self.log}')
            time.sleep(0.05)

    def _greets(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX) as connection,
        ):
            connection.settimeout(1)
            connection.connect(str(self._socket))
            return bool(connection.recv(1))
        return False

    def stop(self) -> None:
        """End it at once: nobody wants what it holds."""
        self.kill()


def needed() -> list[str]:
    """Return the paths of what makes a database, and of the server.

    :raises unittest.SkipTest: one of them is not installed
    """
    places = f'{os.environ["PATH"]}:/usr/sbin:/sbin'
    names = ('mariadb-install-db', 'mariadbd', 'my_print_defaults')
    found = [shutil.which(name, path=places) for name in names]
    if not all(found):
        raise unittest.SkipTest('machine: MariaDB is not installed')
    return [path for path in found[:2] if path]
