# SPDX-License-Identifier: Apache-2.0
"""What real services for tests have in common: a process, files and a log."""

import contextlib
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import tempfile

from cinder_cow.tests import ceph_config


class ServiceProcess:
    """A service in a process of its own, and all its files in a directory.

    :ivar process: None while it does not run
    """

    directory: pathlib.Path
    process: 'subprocess.Popen[bytes] | None' = None

    def stop(self):
        """End it, and wait for that."""
        raise NotImplementedError

    def __exit__(self, *_exc_info):
        self.stop()

    def kill(self):
        """End it at once, as a crash does."""
        process, self.process = self.process, None
        # Only while it is ours to reap: its number is not another's. It may
        # have ended, and what it ran be there yet.
        if process and process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def log(self):
        return (self.directory / 'log').read_text(errors='replace')


def listener():
    """Make a socket that listens on a free port, and tell its address.

    A service is given it: nobody can take its port, and a request that comes
    early waits instead of being refused.
    """
    found = socket.create_server(('127.0.0.1', 0))
    return found, f'http://127.0.0.1:{found.getsockname()[1]}'


def managed(*command):
    """Run a program that makes a database.

    :raises RuntimeError: it failed, and what it said
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={'PATH': os.environ['PATH']},
    )
    if done.returncode:
        program = pathlib.Path(command[0]).name
        raise RuntimeError(f'{program} failed:\n{done.stdout}')


def database_options(path):
    """Tell a service how its database of SQLite is used.

    Nothing of it outlives a crash of the machine. One writer waits for
    another for 60 s; by default 5.
    """
    return {
        'connection': f'sqlite:///{path}?timeout=60',
        'sqlite_synchronous': False,
    }


def database(program, *words, **sections):
    """Have a program make an empty database of SQLite; return its bytes.

    Readers of it do not wait for who writes: the file keeps that.

    :param sections: of its configuration, besides the database
    """
    with tempfile.TemporaryDirectory(prefix='cow-test-') as top:
        path = pathlib.Path(top) / 'database'
        settings = path.with_name('settings')
        sections['database'] = database_options(path)
        ceph_config.write_sections(settings, sections)
        managed(program, '--config-file', settings, *words)
        with contextlib.closing(sqlite3.connect(path)) as opened:
            opened.execute('PRAGMA journal_mode = wal')
        return path.read_bytes()
