# SPDX-License-Identifier: Apache-2.0
"""The commands "cinder-cow image ..."."""

import argparse
from collections.abc import Iterator

from cliff import lister

from cinder_cow import plan as plans
from cinder_cow.cli import backend
from cinder_cow.cli import common
from cinder_cow.cli import image_argument

_NAMES = ('candidate', 'possible', 'told_by', 'reason', 'detail', 'remedy')


class PlanImage(lister.Lister):
    """Tell how a volume could be made from an image, and why not otherwise.

    The candidates stand in the order in which they would be tried. Nothing
    is changed.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('image', metavar='IMAGE', help=image_argument.HELP)
        image_argument.add_options(parser)
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], Iterator[tuple[str | bool, ...]]]:
        manager = backend.from_arguments(self.app_args)
        with image_argument.opened(parsed_args, manager.settings) as (
            image,
            source,
        ):
            plan = manager.plan_volume_from_image(
                image, source, parsed_args.size
            )
        return _NAMES, _rows(plan)


def _rows(plan: plans.Plan) -> Iterator[tuple[str | bool, ...]]:
    for candidate in plan.candidates:
        if candidate.possible:
            yield str(candidate), True, candidate.told_by, '', '', ''
        for refusal in candidate.refusals:
            row: dict[str, str | bool] = {
                'possible': False,
                'told_by': candidate.told_by,
                **common.refusal_row(candidate, refusal),
            }
            yield tuple(row[name] for name in _NAMES)
