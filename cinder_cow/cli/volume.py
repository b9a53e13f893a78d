# SPDX-License-Identifier: Apache-2.0
"""The commands "cinder-cow volume ..."."""

import argparse
from collections.abc import Iterator
import pathlib
from typing import Any

from cliff import command
from cliff import lister
from cliff import show

from cinder_cow import blank
from cinder_cow import exporting
from cinder_cow import outcome as outcomes
from cinder_cow.cli import backend
from cinder_cow.cli import common
from cinder_cow.cli import image_argument
from cinder_cow.drivers import base

_Table = tuple[tuple[str, ...], tuple[Any, ...]]


class CreateVolume(show.ShowOne):
    """Make a volume from an image, or with an empty file system."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('name', metavar='NAME', help='The volume.')
        content = parser.add_mutually_exclusive_group(required=True)
        content.add_argument(
            '--image', metavar='IMAGE', help=image_argument.HELP
        )
        content.add_argument(
            '--blank',
            choices=blank.CHOICES,
            help='An empty file system or swap space in place of an image, or '
            'nothing at all; needs --size.',
        )
        image_argument.add_options(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> _Table:
        if parsed_args.blank is not None:
            return self._blank(parsed_args)
        manager = backend.from_arguments(self.app_args)
        with (
            image_argument.opened(parsed_args, manager) as (
                image,
                source,
            ),
            common.progress() as progress,
        ):
            outcome = manager.create_volume_from_image(
                parsed_args.name, image, source, parsed_args.size, progress
            )
        return _columns(_outcome(outcome))

    def _blank(self, words: argparse.Namespace) -> _Table:
        if words.size is None:
            common.usage_error(self, '--blank needs --size')
        if words.disk_format or words.hash or words.os_cloud:
            common.usage_error(
                self,
                '--disk-format, --hash and --os-cloud are about an image,'
                ' not --blank',
            )
        manager = backend.from_arguments(self.app_args)
        with common.progress() as progress:
            made = blank.create(
                manager.driver,
                manager.settings,
                words.name,
                words.blank,
                words.size,
                progress,
            )
        return _columns(
            {
                **_volume(made.volume),
                'method': made.method,
                'base_made': made.base_made,
                'uuid': made.uuid,
                'seconds': round(made.seconds, 4),
                'bytes_copied': made.bytes_copied,
            }
        )


class ListVolumes(lister.Lister):
    """List the volumes."""

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
        driver = backend.from_arguments(self.app_args).driver
        names = ('name', 'size', 'allocated', 'format', 'parent')
        return names, (
            tuple(getattr(volume, name) for name in names)
            for volume in driver.list()
        )


class ShowVolume(show.ShowOne):
    """Show a volume, with the path and format to give to QEMU."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('name', metavar='NAME', help='The volume.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> _Table:
        driver = backend.from_arguments(self.app_args).driver
        return _columns(_volume(driver.show(parsed_args.name)))


class ExtendVolume(command.Command):
    """Make a volume larger."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('name', metavar='NAME', help='The volume.')
        parser.add_argument(
            'size', metavar='GIB', type=common.gib, help='Its new size.'
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        driver = backend.from_arguments(self.app_args).driver
        driver.extend(parsed_args.name, parsed_args.size)


class DeleteVolume(command.Command):
    """Delete volumes; one that is gone already is deleted."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'names', metavar='NAME', nargs='+', help='The volumes.'
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        driver = backend.from_arguments(self.app_args).driver
        for name in parsed_args.names:
            driver.delete(name)


class ExportVolume(command.Command):
    """Write a volume to a new raw file."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('name', metavar='NAME', help='The volume.')
        parser.add_argument(
            'path', metavar='PATH', type=pathlib.Path, help='The file.'
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        driver = backend.from_arguments(self.app_args).driver
        common.check_outside(parsed_args.path)
        with (
            driver.read(parsed_args.name) as reader,
            common.progress() as progress,
        ):
            exporting.export(reader, parsed_args.path, progress)


def _outcome(outcome: outcomes.Outcome) -> dict[str, Any]:
    return {
        **_volume(outcome.volume),
        'method': outcome.method.value,
        'base_made': outcome.base_made,
        'location': outcome.location,
        'verified': outcome.verified,
        'seconds': round(outcome.seconds, 4),
        'bytes_copied': outcome.bytes_copied,
        'refusals': common.Refusals(
            [
                common.refusal_row(failure.candidate, failure.refusal)
                for failure in outcome.failures
            ]
        ),
    }


def _volume(volume: base.VolumeInfo) -> dict[str, Any]:
    return {
        'name': volume.name,
        'size': volume.size,
        'allocated': volume.allocated,
        'format': volume.format,
        'path': volume.path,
        'parent': volume.parent,
    }


def _columns(row: dict[str, Any]) -> _Table:
    return tuple(row), tuple(row.values())
