# SPDX-License-Identifier: Apache-2.0
"""Benchmark the RBD driver on a real Ceph that is started for it.

"clone" takes our requests, the bare calls of librbd and Cinder's own driver
in turn, each in a process of its own; "many" makes thousands of volumes of
one image; "stream" writes a raw image beside "rbd import". Nothing but
Cinder's driver is measured in another environment than ours.
"""

import argparse
from collections.abc import Iterator
import contextlib
import pathlib
import sys
import tempfile

import bench_common
import bench_rbd_clone
import bench_rbd_many
import bench_rbd_stream
import reports

from cinder_cow.tests import ceph_cluster

PARTS = {
    'clone': bench_rbd_clone.rows,
    'many': bench_rbd_many.rows,
    'stream': bench_rbd_stream.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--short', action='store_true', help='a few rounds')
    parser.add_argument('--only', choices=PARTS, help='one part of it')
    parser.add_argument(
        '--volumes', type=int, help='how many in "many"; default: 5000'
    )
    parser.add_argument(
        '--min-compat',
        default='',
        metavar='RELEASE',
        help='of clients; from mimic on, clones are of version 2',
    )
    parser.add_argument('--output', type=pathlib.Path, help='keep it there')
    arguments = parser.parse_args()
    if arguments.volumes is None:
        arguments.volumes = 100 if arguments.short else 5000
    reports.told(_report(arguments), arguments.output)
    return 0


def _report(arguments: argparse.Namespace) -> Iterator[str]:
    yield from reports.heading(f'tools/bench rbd{_told(arguments)}')
    yield bench_common.HEADER
    with (
        tempfile.TemporaryDirectory(dir='/var/tmp', prefix='bench-') as top,
        ceph_cluster.Cluster(
            pathlib.Path(top) / 'ceph', min_compat=arguments.min_compat
        ) as cluster,
    ):
        for name, rows in PARTS.items():
            if arguments.only in (None, name):
                yield from rows(cluster, pathlib.Path(top), arguments)


def _told(arguments: argparse.Namespace) -> str:
    """Return the options by which the same is run again."""
    words = ' --short' if arguments.short else ''
    if arguments.only:
        words += f' --only {arguments.only}'
    if arguments.min_compat:
        words += f' --min-compat {arguments.min_compat}'
    return f'{words} --volumes {arguments.volumes}'


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
