# SPDX-License-Identifier: Apache-2.0
"""The commands "cinder-cow image ..."."""

import argparse
from collections.abc import Iterator

from cliff import lister

from cinder_cow import plan as plans
from cinder_cow.cli import backend
from cinder_cow.cli import common

_NAMES = ('candidate', 'possible', 'reason', 'detail', 'remedy')


class PlanImage(lister.Lister):
    """Tell how a volume could be made from an image, and why not otherwise.

    The candidates stand in the order in which they would be tried. Nothing
    is changed.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'image', metavar='IMAGE', help='The path of an image.'
        )
        common.add_image_options(parser)
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], Iterator[tuple[str | bool, ...]]]:
        manager = backend.from_arguments(self.app_args)
        with common.opened_image(
            parsed_args.image, parsed_args.disk_format
        ) as (image, source):
            plan = manager.plan_volume_from_image(
                image, source, parsed_args.size
            )
        return _NAMES, _rows(plan)


def _rows(plan: plans.Plan) -> Iterator[tuple[str | bool, ...]]:
    for candidate in plan.candidates:
        if candidate.possible:
            yield str(candidate), True, '', '', ''
        for refusal in candidate.refusals:
            row = common.refusal_row(candidate, refusal)
            yield tuple(row.get(name, False) for name in _NAMES)
