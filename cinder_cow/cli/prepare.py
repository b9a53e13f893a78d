# SPDX-License-Identifier: Apache-2.0
"""The command "cinder-cow base prepare"."""

import argparse
import time
from typing import Any

from cinder_cow import exception
from cinder_cow import manager as managers
from cinder_cow import plan as plans
from cinder_cow import refusal
from cinder_cow import scrubbing
from cinder_cow.cli import backend
from cinder_cow.cli import base as base_commands
from cinder_cow.cli import common
from cinder_cow.cli import image_argument
from cinder_cow.drivers import bases

_NAMES = ('image', 'base', 'made', 'seconds', 'bytes_copied', 'state')
_NOT_NEEDED = 'cloned from its location'

_Row = dict[str, Any]


class PrepareBase(common.StatusLister):
    """Make the bases of images, so that the first volume need not wait.

    An image that is cloned where it is needs none. One image that fails does
    not stop the others.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'images', metavar='IMAGE', nargs='+', help=image_argument.HELP
        )
        image_argument.add_claims(parser)
        parser.add_argument(
            '--force',
            action='store_true',
            help='Make a base also of an image that is cloned where it is.',
        )
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        manager = backend.from_arguments(self.app_args)
        keeper = base_commands.keeper_of(manager)
        rows = []
        for text in parsed_args.images:
            words = argparse.Namespace(**{**vars(parsed_args), 'image': text})
            begun = time.monotonic()
            try:
                row = _prepare(manager, keeper, words)
            except exception.CowError as error:
                self.problems.append(_named(text, error))
                row = {'state': error.reason.value}
            seconds = round(time.monotonic() - begun, 4)
            rows.append(_whole(text, seconds, row))
        return _NAMES, rows


def _named(text: str, error: exception.CowError) -> str:
    """Tell an error, and of which image, where it does not say so itself."""
    name, problem = refusal.printable(text), str(error)
    return problem if name in problem else f'{name}: {problem}'


def _prepare(
    manager: managers.CreateVolumeFromImageMixin,
    keeper: bases.BaseKeeper,
    words: argparse.Namespace,
) -> _Row:
    """Make the base of one image; tell what its row has."""
    label = refusal.printable(words.image, 30)
    with (
        image_argument.opened(words, manager) as (image, source),
        common.progress(label) as progress,
    ):
        plan = manager.plan_volume_from_image(image, source)
        if not words.force and plan.base is None and _is_cloned(plan):
            return {'state': _NOT_NEEDED}
        fetched = manager.prepare_base(image, source, progress, plan)
        if fetched.made:
            scrubbed = scrubbing.record(keeper, fetched.base, progress)
            if scrubbed.error:
                raise scrubbed.error
    return {
        'base': fetched.base.name,
        'made': fetched.made,
        'bytes_copied': fetched.bytes_copied,
        'state': base_commands.state(keeper, fetched.base),
    }


def _is_cloned(plan: plans.Plan) -> bool:
    return any(
        candidate.possible and candidate.kind is plans.Kind.CLONE_LOCATION
        for candidate in plan.candidates
    )


def _whole(text: str, seconds: float, row: _Row) -> tuple[Any, ...]:
    told = {
        'image': refusal.printable(text),
        'base': '',
        'made': False,
        'seconds': seconds,
        'bytes_copied': 0,
        **row,
    }
    return tuple(told[name] for name in _NAMES)
