# SPDX-License-Identifier: Apache-2.0
"""The command "cinder-cow fsck"."""

import argparse
from collections.abc import Iterator
import pathlib
import sys
from typing import Any

from cinder_cow import exception
from cinder_cow import refusal
from cinder_cow.cli import backend
from cinder_cow.cli import common
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

_NAMES = ('what', 'problem', 'remedy', 'removable', 'removed')


class Fsck(common.StatusLister):
    """Name what is left of makers that died, and of what nobody knows.

    Ends with status 1 where something is left.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--repair',
            action='store_true',
            help='Remove what can be removed; never a volume.',
        )
        parser.add_argument(
            '--known-volumes',
            metavar='FILE',
            help='Names of all volumes that there should be, one a line; '
            '"-" for standard input. Others are named, and those that are '
            'missing.',
        )
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        known = self._known(parsed_args.known_volumes)
        driver = backend.from_arguments(self.app_args, sweep=False).driver
        if not isinstance(driver, bases.Checker):
            raise exception.RequestError.because(
                Reason.NO_CHECKING, backend=driver.backend
            )
        repair = parsed_args.repair
        found = driver.remove_orphans() if repair else driver.orphans()
        rows = [_row(one, repair and one.removable) for one in found]
        if known is not None:
            assert isinstance(driver, base.Driver)
            rows += [_row(one, False) for one in _compare(driver, known)]
        self.failed = any(not row[-1] for row in rows)
        return _NAMES, rows

    def _known(self, name: str | None) -> set[str] | None:
        """Read the names of volumes, if a list of them is given."""
        if name is None:
            return None
        try:
            if name == '-':
                data = sys.stdin.buffer.read()
            else:
                data = pathlib.Path(name).read_bytes()
            return set(_names(data.decode()))
        except (OSError, ValueError) as error:
            shown = refusal.printable(name)
            common.usage_error(self, f'--known-volumes {shown}: {error}')


def _names(text: str) -> Iterator[str]:
    for line in text.splitlines():
        name = line.partition('#')[0].strip()
        if name:
            yield name


def _compare(driver: base.Driver, known: set[str]) -> Iterator[bases.Orphan]:
    """Name the volumes that are not known, and those that are not there."""
    there = {volume.name for volume in driver.list()}
    for name in sorted(there - known):
        yield bases.Orphan(
            what=f'volume {refusal.printable(name)}',
            problem='it is not among the known volumes',
            remedy='If nobody needs it: cinder-cow volume delete'
            f' {refusal.printable(name)}',
            removable=False,
        )
    for name in sorted(known - there):
        yield bases.Orphan(
            what=f'volume {refusal.printable(name)}',
            problem='it is known, and not in the back end',
            remedy='Restore it, or take it from the list.',
            removable=False,
        )


def _row(orphan: bases.Orphan, removed: bool) -> tuple[Any, ...]:
    return (
        orphan.what,
        orphan.problem,
        orphan.remedy,
        orphan.removable,
        removed,
    )
