# SPDX-License-Identifier: Apache-2.0
"""Start and stop a small OpenStack that stays when this program has ended.

A process of its own, the keeper, starts Ceph, Glance and Cinder, and they die
with it, however it ends. It locks a file in DIR, by which "down" finds it.
"""

# Named so, for this directory comes first where programs in it look for
# modules, and there is one named openstack.

import argparse
from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import NoReturn
import unittest

from cinder_cow import file_locks
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import cinder_processes
from cinder_cow.tests import cinder_service
from cinder_cow.tests import services

UPSTREAM = 'cinder.volume.drivers.rbd.RBDDriver'
# Glance and Cinder get 5 s each to end, each of two daemons of Ceph 10.
_END_SECONDS = 60
_CINDERS = {1: cinder_service.Cinder, 3: cinder_processes.Cinder}
_LOCK = 'lock'
# Written when all is ready.
_TOLD = 'environment'


def main() -> int:
    args = _parser().parse_args()
    # What was begun is undone.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        args.function(args)
    except (OSError, RuntimeError, unittest.SkipTest) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _up(args: argparse.Namespace) -> None:
    began = time.monotonic()
    top = args.dir.absolute()
    top.mkdir(exist_ok=True)
    if any(top.iterdir()):
        raise FileExistsError(
            f'{top} holds files. If it is an OpenStack of before, end it'
            f' with: tools/openstack down {top}'
        )
    _start_keeper(
        top, '--driver', args.driver, '--processes', str(args.processes)
    )
    seconds = time.monotonic() - began
    print(f'Made and started in {seconds:.1f} s.', file=sys.stderr)
    print((top / _TOLD).read_text(), end='')


def _start_keeper(top: pathlib.Path, *options: str) -> None:
    """Start a keeper, and wait until all is ready.

    :param options: those of "up"
    :raises RuntimeError: it did not start, and what it said
    """
    keeper = subprocess.Popen(
        [sys.executable, __file__, 'keep', top, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Control-C reaches us alone, and the end of a terminal nobody.
        start_new_session=True,
    )
    assert keeper.stdout
    try:
        with keeper.stdout:
            # To its end, which is when all is ready, or nothing is left.
            why = keeper.stdout.read()
    except BaseException:
        keeper.terminate()
        _reap(keeper, top)
        raise
    if not (top / _TOLD).exists():
        _reap(keeper, top)
        raise RuntimeError(f'{why}It did not start; {top} is removed.')


def _reap(keeper: subprocess.Popen[str], top: pathlib.Path) -> None:
    keeper.wait(_END_SECONDS)
    # It does so itself, unless it ended before it came to that.
    shutil.rmtree(top, ignore_errors=True)


def _down(args: argparse.Namespace) -> None:
    top = args.dir.absolute()
    if not (top / _LOCK).exists():
        raise FileNotFoundError(f'{top} holds no OpenStack to end')
    with _found_keeper(top) as keeper:
        if keeper is None:
            # It was killed, and all that it had started died with it.
            shutil.rmtree(top)
            return
        signal.pidfd_send_signal(keeper, signal.SIGTERM)
        ended, _, _ = select.select([keeper], [], [], _END_SECONDS)
    if not ended:
        raise RuntimeError(
            f'It has not ended after {_END_SECONDS} s; see the logs in {top}'
        )


@contextlib.contextmanager
def _found_keeper(top: pathlib.Path) -> Iterator[int | None]:
    """Give a descriptor of the process that holds the lock, if one does."""
    with (top / _LOCK).open() as lock:
        if file_locks.try_lock(lock.fileno(), fcntl.LOCK_EX):
            yield None
            return
        keeper = os.pidfd_open(int(lock.read()))
    try:
        yield keeper
    finally:
        os.close(keeper)


def _keep(args: argparse.Namespace) -> None:
    """Start all, say so by closing what "up" reads, and wait for a signal."""
    top = args.dir
    with (top / _LOCK).open('w') as lock:
        # Who finds it locked finds a number in it.
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with _running(top, args.driver, args.processes) as told:
                (top / _TOLD).write_text(told)
                _detach()
                signal.pause()
        finally:
            shutil.rmtree(top)


@contextlib.contextmanager
def _running(top: pathlib.Path, driver: str, processes: int) -> Iterator[str]:
    """Start Ceph, Glance and Cinder; give the environment of a client."""
    with contextlib.ExitStack() as stack:
        ceph = stack.enter_context(ceph_cluster.Cluster(top / 'ceph'))
        glance = stack.enter_context(
            services.Glance(top / 'glance', ceph=ceph)
        )
        drivers = cinder_service.upstream_driver(ceph, volume_driver=driver)
        cinder = stack.enter_context(
            _CINDERS[processes](top / 'cinder', glance, drivers=drivers)
        )
        token = 'admin:admin:admin'
        variables = {
            **cinder.environment(token),
            # Where no service is named, it is Glance.
            **glance.environment(token),
            'CEPH_CONF': ceph.conf,
            'CINDER_CONF': cinder.directory / 'cinder.conf',
        }
        yield ''.join(
            f'export {name}={shlex.quote(str(value))}\n'
            for name, value in variables.items()
        )


def _detach() -> None:
    with pathlib.Path(os.devnull).open('wb') as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('tools/openstack', description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='up|down')
    up = commands.add_parser(
        'up', help='make and start it; print the environment of a client'
    )
    up.set_defaults(function=_up)
    # What "up" starts.
    keep = commands.add_parser('keep')
    keep.set_defaults(function=_keep)
    for parser_of_class in (up, keep):
        parser_of_class.add_argument('dir', type=pathlib.Path)
        parser_of_class.add_argument(
            '--driver',
            metavar='CLASS',
            default=UPSTREAM,
            help='of Cinder, by default its own: %(default)s',
        )
        parser_of_class.add_argument(
            '--processes',
            type=int,
            choices=_CINDERS,
            default=1,
            help='of Cinder: one, or three with RabbitMQ and MariaDB',
        )
    down = commands.add_parser('down', help='end it, and remove DIR')
    down.add_argument('dir', type=pathlib.Path)
    down.set_defaults(function=_down)
    return parser


def _terminated(*_args: object) -> NoReturn:
    # A second one would stop the undoing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


if __name__ == '__main__':
    sys.exit(main())
