# SPDX-License-Identifier: Apache-2.0
"""The commands "cinder-cow base ..."."""

import argparse
from collections.abc import Iterator
from typing import Any

from cliff import command
from cliff import lister
from cliff import show

from cinder_cow import exception
from cinder_cow import refusal
from cinder_cow.cli import backend
from cinder_cow.cli import common
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

# Children shown of one base; who wants all of them lists the volumes.
_CHILDREN = 20


def keeper_of(found: backend.Backend) -> bases.BaseKeeper:
    """Return the driver of a back end that keeps bases.

    :raises RequestError: NO_BASE_KEEPING
    """
    driver = found.driver
    if isinstance(driver, bases.BaseKeeper):
        return driver
    raise exception.RequestError.because(
        Reason.NO_BASE_KEEPING, backend=driver.backend
    )


def find(keeper: bases.BaseKeeper, name: str) -> bases.Base:
    """Return the base of that name.

    :raises RequestError: BASE_NOT_FOUND
    """
    for base in keeper.list_bases():
        if base.name == name:
            return base
    raise exception.RequestError.because(
        Reason.BASE_NOT_FOUND,
        base=name,
        backend=keeper.backend,
    )


def state(keeper: bases.BaseKeeper, base: bases.Base) -> str:
    """Tell whether a base can be cloned, or why not."""
    refused = bases.check_state(keeper, base).refusal
    return refused.reason.value if refused else 'ok'


def _row(keeper: bases.BaseKeeper, base: bases.Base) -> dict[str, Any]:
    facts = base.facts
    return {
        'name': base.name,
        'image': facts.image_name,
        'size': facts.content_size,
        'allocated': base.allocated,
        'source_format': facts.source_format,
        'made_at': common.iso_time(facts.made_at),
        'last_used': common.iso_time(facts.last_used),
        'pinned': facts.pinned,
        'state': state(keeper, base),
    }


class ListBases(lister.Lister):
    """List the bases."""

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
        keeper = keeper_of(backend.from_arguments(self.app_args))
        names = ('name', 'image', 'size', 'allocated', 'source_format',
                 'made_at', 'last_used', 'pinned', 'state')  # fmt: skip
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
        keeper = keeper_of(backend.from_arguments(self.app_args))
        base = find(keeper, parsed_args.name)
        row = {
            **_row(keeper, base),
            'image_id': refusal.printable(base.facts.key.image_id, 4096),
            'content_id': base.facts.key.content_id,
            'hash': base.facts.hash,
            'verified': base.facts.verified,
            'damaged': base.facts.damaged,
            'missing_since': common.iso_time(base.facts.missing_since),
            'children': list(keeper.children(base, _CHILDREN)),
        }
        return tuple(row), tuple(row.values())


class _ChangeBases(command.Command):
    """A command about bases that are named."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'names', metavar='BASE', nargs='+', help='The bases.'
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        keeper = keeper_of(backend.from_arguments(self.app_args))
        problems = []
        for name in parsed_args.names:
            try:
                self._change(keeper, name)
            except exception.CowError as error:
                # The others do not depend on it.
                problems.append(str(error))
        for problem in problems:
            self.app.LOG.error(problem)
        return int(bool(problems))

    def _change(self, keeper: bases.BaseKeeper, name: str) -> None:
        raise NotImplementedError


class PinBase(_ChangeBases):
    """Keep bases, whatever the limits say."""

    def _change(self, keeper: bases.BaseKeeper, name: str) -> None:
        keeper.set_base_facts(name, pinned=True)


class UnpinBase(_ChangeBases):
    """Keep bases no longer than others."""

    def _change(self, keeper: bases.BaseKeeper, name: str) -> None:
        keeper.set_base_facts(name, pinned=False)


class RemoveBase(_ChangeBases):
    """Remove bases that no volume hangs on."""

    def _change(self, keeper: bases.BaseKeeper, name: str) -> None:
        # Of one that is gone the driver says nothing; a person may have
        # mistyped it.
        find(keeper, name)
        keeper.retire_base(name)
