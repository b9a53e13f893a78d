# SPDX-License-Identifier: Apache-2.0
"""Start and stop a Ceph that stays when this program has ended."""

import argparse
import pathlib
import signal
import sys
import time
from typing import NoReturn
import unittest

from cinder_cow.tests import ceph_cluster


def main() -> int:
    # What was begun is undone.
    signal.signal(signal.SIGTERM, _terminated)
    args = _parser().parse_args()
    try:
        args.function(args)
    except (OSError, RuntimeError, unittest.SkipTest) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _up(args: argparse.Namespace) -> None:
    began = time.monotonic()
    cluster = ceph_cluster.Cluster(
        args.dir, mgr=args.mgr, store=args.store, min_compat=args.min_compat
    )
    done = cluster.up()
    seconds = time.monotonic() - began
    told = {
        'made': f'Made and started in {seconds:.1f} s.',
        'started': f'Started again in {seconds:.1f} s, with its data.',
        'none': 'It runs already.',
    }
    print(told[done], file=sys.stderr)
    print(f'CEPH_CONF={cluster.conf}')
    print(f'CINDER_CONF={cluster.cinder_conf}')


def _down(args: argparse.Namespace) -> None:
    ceph_cluster.Cluster(args.dir).down(remove=args.rm)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('tools/ceph-cluster', description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='up|down')
    up = commands.add_parser('up', help='make it, or start it again')
    up.add_argument('dir', type=pathlib.Path)
    up.add_argument('--mgr', action='store_true', help='with a manager')
    up.add_argument(
        '--store', choices=('bluestore', 'memstore'), default='bluestore'
    )
    up.add_argument(
        '--min-compat',
        default='',
        metavar='RELEASE',
        help='of clients; from mimic on, clones need no protected snapshot',
    )
    up.set_defaults(function=_up)
    down = commands.add_parser('down', help='stop it, if it runs')
    down.add_argument('dir', type=pathlib.Path)
    down.add_argument('--rm', action='store_true', help='remove DIR, too')
    down.set_defaults(function=_down)
    return parser


def _terminated(*_args: object) -> NoReturn:
    sys.exit(143)


if __name__ == '__main__':
    sys.exit(main())
