# SPDX-License-Identifier: Apache-2.0
"""What real services for tests have in common: a process, files and a log."""

import contextlib
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess


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


def share(database):
    """Have readers of a database of SQLite not wait for who writes.

    The file keeps it.
    """
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute('PRAGMA journal_mode = wal')
