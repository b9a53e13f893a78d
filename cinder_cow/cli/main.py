# SPDX-License-Identifier: Apache-2.0
"""The program cinder-cow: global options, exit statuses, signals."""

import importlib.metadata
import sys

from cliff import app
from cliff import commandmanager


class CowApp(app.App):
    NAME = 'cinder-cow'

    def __init__(self) -> None:
        super().__init__(
            description='Copy-on-write volumes from images.',
            version=importlib.metadata.version('cinder-cow'),
            command_manager=commandmanager.CommandManager('cinder_cow.cli'),
        )


def main(argv: list[str] | None = None) -> int:
    return CowApp().run(sys.argv[1:] if argv is None else argv)
