# SPDX-License-Identifier: Apache-2.0
"""The program cinder-cow: global options, exit statuses, signals.

Exit statuses: 0; 1 for a refusal or an error, told in one line; 2 for wrong
usage; 130 and 143 for SIGINT and SIGTERM.
"""

import argparse
import importlib.metadata
import os
import sys
from typing import NoReturn

from cliff import app
from cliff import commandmanager

from cinder_cow.cli import backend
from cinder_cow.cli import start


class CowApp(app.App):
    """The application: what all commands share."""

    NAME = 'cinder-cow'
    # Warnings and errors only; -v tells what is done.
    DEFAULT_VERBOSE_LEVEL = 0

    def __init__(self) -> None:
        super().__init__(
            description='Make copy-on-write volumes from images of any '
            'format, and say why when it could not be.',
            version=importlib.metadata.version('cinder-cow'),
            command_manager=commandmanager.CommandManager('cinder_cow.cli'),
            # "base prepare --help" is about base prepare.
            deferred_help=True,
        )
        self.interrupted = False

    def build_option_parser(
        self,
        description: str | None,
        version: str | None,
        argparse_kwargs: dict[str, object] | None = None,
    ) -> argparse.ArgumentParser:
        parser = super().build_option_parser(
            description, version, argparse_kwargs
        )
        parser.add_argument(
            '--config-file',
            metavar='PATH',
            action='append',
            default=[],
            help='A cinder.conf; may be repeated. Without it, '
            f'{backend.CINDER_CONF} when --backend is given.',
        )
        parser.add_argument(
            '--backend',
            metavar='NAME',
            help='The back end: a section of the configuration. Without any '
            'configuration, files under $CINDER_COW_HOME.',
        )
        return parser

    def interact(self) -> NoReturn:
        """Say how it is used, where no command is given."""
        self.parser.print_help(sys.stderr)
        raise SystemExit(2)


def main(argv: list[str] | None = None) -> int:
    """Run the program.

    :returns: the exit status
    """
    _open_standard_files()
    start.heed_signals()
    # Long reasons and remedies are folded to the terminal's width.
    os.environ.setdefault('CLIFF_FIT_WIDTH', '1')
    words = sys.argv[1:] if argv is None else argv
    if problem := lost_value(words):
        sys.stderr.write(f'cinder-cow: error: {problem}\n')
        return 2
    return CowApp().run(words)


def lost_value(words: list[str]) -> str:
    """Tell of an option whose value argparse of Python 3.11 would lose.

    It gives "--hash=--" an empty list: the hash would not be looked at.

    :returns: what is wrong, or ''
    """
    for word in words:
        if word == '--':
            break  # what follows are no options
        if word.startswith('--') and word.endswith('=--'):
            return f'argument {word[:-3]}: expected one argument'
    return ''


def _open_standard_files() -> None:
    """Give descriptors 0 to 2 to /dev/null where they are closed.

    A daemon may start us so. Else an image would get one of these numbers,
    and what is printed would go into it.
    """
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = 'r' if number == 0 else 'w'
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
