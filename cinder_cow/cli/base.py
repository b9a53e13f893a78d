# SPDX-License-Identifier: Apache-2.0
"""The commands "cinder-cow base ..."."""

import argparse
from collections.abc import Iterator
import datetime
from typing import Any

from cliff import command
from cliff import lister
from cliff import show

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import refusal
from cinder_cow.cli import backend
from cinder_cow.drivers import base as contract
from cinder_cow.refusal import Reason

# Children shown of one base; who wants all of them lists the volumes.
_CHILDREN = 20


def _keeper(arguments: argparse.Namespace | None) -> Any:  # noqa: ANN401
    """Return the driver: a Driver that is a BaseKeeper too."""
    driver = backend.from_arguments(arguments).driver
    if isinstance(driver, contract.BaseKeeper):
        return driver
    raise exception.RequestError.because(
        Reason.NO_BASE_KEEPING, backend=driver.backend
    )


def _find(keeper: contract.BaseKeeper, name: str) -> contract.Base:
    for base in keeper.list_bases():
        if base.name == name:
            return base
    raise exception.RequestError.because(
        Reason.BASE_NOT_FOUND,
        base=name,
        backend=getattr(keeper, 'backend', ''),
    )


def _state(keeper: contract.Cloner, base: contract.Base) -> str:
    """Tell whether a base can be cloned, or why not."""
    image = images.ImageInfo(
        id=base.facts.key.image_id, name=base.facts.image_name, disk_format=''
    )
    verdict = keeper.cloneable(image.at(base.location))
    return verdict.refusal.reason.value if verdict.refusal else 'ok'


def _row(keeper: contract.Cloner, base: contract.Base) -> dict[str, Any]:
    return {
        'name': base.name,
        'image': base.facts.image_name,
        'size': base.facts.content_size,
        'allocated': base.allocated,
        'source_format': base.facts.source_format,
        'made_at': datetime.datetime.fromtimestamp(
            base.facts.made_at, datetime.UTC
        ).isoformat(timespec='seconds'),
        'state': _state(keeper, base),
    }


class ListBases(lister.Lister):
    """List the bases."""

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
        keeper = _keeper(self.app_args)
        names = ('name', 'image', 'size', 'allocated', 'source_format',
                 'made_at', 'state')  # fmt: skip
        rows = (_row(keeper, base) for base in keeper.list_bases())
        return names, (tuple(row.values()) for row in rows)


class ShowBase(show.ShowOne):
    """Show a base and the volumes that hang on it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('name', metavar='BASE', help='The base.')
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        keeper = _keeper(self.app_args)
        base = _find(keeper, parsed_args.name)
        row = {
            **_row(keeper, base),
            'image_id': refusal.printable(base.facts.key.image_id, 4096),
            'content_id': base.facts.key.content_id,
            'hash': base.facts.hash,
            'children': list(keeper.children(base, _CHILDREN)),
        }
        return tuple(row), tuple(row.values())


class RemoveBase(command.Command):
    """Remove bases that no volume hangs on."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'names', metavar='BASE', nargs='+', help='The bases.'
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        keeper = _keeper(self.app_args)
        for name in parsed_args.names:
            _find(keeper, name)
            keeper.retire_base(name)
