# SPDX-License-Identifier: Apache-2.0
"""The command "cinder-cow base scrub"."""

import argparse
import time
from typing import Any

from cinder_cow import exception
from cinder_cow import scrubbing
from cinder_cow.cli import backend
from cinder_cow.cli import base as base_commands
from cinder_cow.cli import common
from cinder_cow.drivers import bases

_NAMES = ('name', 'image', 'state', 'damaged', 'bytes_read', 'seconds')


class ScrubBase(common.StatusLister):
    """Compare bases with what was recorded of them when they were made.

    Of a base of which nothing is recorded yet, that is done now.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'names',
            metavar='BASE',
            nargs='*',
            help='The bases; default: all.',
        )
        parser.add_argument(
            '--record',
            action='store_true',
            help='Compare with nothing recorded, but record anew what the '
            'bases are.',
        )
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        if parsed_args.record and not parsed_args.names:
            common.usage_error(self, '--record needs the bases to be named')
        keeper = base_commands.keeper_of(backend.from_arguments(self.app_args))
        # All of them before the first: a wrong name need not cost an hour.
        found = [
            base_commands.find(keeper, name) for name in parsed_args.names
        ] or list(keeper.list_bases())
        do = scrubbing.record if parsed_args.record else scrubbing.scrub
        return _NAMES, [self._row(keeper, one, do) for one in found]

    def _row(
        self, keeper: bases.BaseKeeper, base: bases.Base, do: scrubbing.Scrub
    ) -> tuple[Any, ...]:
        begun = time.monotonic()
        try:
            with common.progress(base.name) as progress:
                scrubbed = do(keeper, base, progress)
        except exception.CowError as error:
            scrubbed = scrubbing.Scrubbed(
                base.name, error.reason.value, error=error
            )
        if scrubbed.error:
            self.problems.append(str(scrubbed.error))
        return (
            base.name,
            base.facts.image_name,
            scrubbed.state,
            list(scrubbed.damaged),
            scrubbed.bytes_read,
            round(time.monotonic() - begun, 4),
        )
