# SPDX-License-Identifier: Apache-2.0
"""The command "cinder-cow base tidy"."""

import argparse
from collections.abc import Sequence
import os
from typing import Any

from cinder_cow import exception
from cinder_cow import opts
from cinder_cow.cli import backend
from cinder_cow.cli import base as base_commands
from cinder_cow.cli import common
from cinder_cow.cli import image_argument
from cinder_cow.drivers import bases
from cinder_cow.handlers import keeping

_NAMES = ('name', 'image', 'why', 'removed', 'stays')
# Without one of them no client of OpenStack finds its cloud.
_CLOUD = ('OS_CLOUD', 'OS_AUTH_URL', 'OS_AUTH_TYPE', 'OS_ENDPOINT')


class TidyBases(common.StatusLister):
    """Remove bases beyond the limits, and those whose image is gone.

    Lists those that were removed, and those that stay although they should
    go. An image is gone when Glance has said so in two of these commands, an
    hour apart.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        image_argument.add_cloud(parser)
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        manager = backend.from_arguments(self.app_args)
        keeper = base_commands.keeper_of(manager)
        # First: what goes for this need not go for a limit.
        tidied = [
            *self._forget_missing(
                keeper, manager.settings, parsed_args.os_cloud
            ),
            *keeping.remove_beyond_limits(keeper, manager.settings),
        ]
        self.problems += [str(one.error) for one in tidied if one.error]
        return _NAMES, [_row(one) for one in tidied]

    def _forget_missing(
        self,
        keeper: bases.BaseKeeper,
        settings: opts.Settings,
        cloud: str | None,
    ) -> Sequence[keeping.Tidied]:
        """Ask Glance, where there is one, and any base is about it."""
        concerned = len(keeping.of_glance(keeper))
        if not concerned:
            return ()
        if not cloud and not any(map(os.environ.get, _CLOUD)):
            self.app.LOG.warning(
                'Glance was not asked about the images of %d bases. Give'
                ' --os-cloud, or set OS_CLOUD.',
                concerned,
            )
            return ()
        try:
            return self._ask(keeper, settings, cloud)
        except exception.RequestError as error:
            self.problems.append(str(error))
            return ()

    def _ask(
        self,
        keeper: bases.BaseKeeper,
        settings: opts.Settings,
        cloud: str | None,
    ) -> Sequence[keeping.Tidied]:
        # 0.5 s to import.
        from cinder_cow import glance

        unknown = 0

        def exists(image_id: str) -> bool | None:
            nonlocal unknown
            answer = client.exists(image_id)
            unknown += answer is None
            return answer

        with glance.Glance.of_cloud(cloud, settings) as client:
            tidied = keeping.forget_missing(keeper, exists)
        if unknown:
            self.problems.append(
                f'Of the images of {unknown} bases Glance did not tell whether'
                ' they are there. Ask as a user with the role admin, who sees'
                ' all images.'
            )
        return tidied


def _row(tidied: keeping.Tidied) -> tuple[Any, ...]:
    return (
        tidied.base.name,
        tidied.base.facts.image_name,
        tidied.why,
        tidied.removed,
        tidied.stays,
    )
