# SPDX-License-Identifier: Apache-2.0
"""Where the program begins: ready for signals before anything takes time.

To import the rest takes half a second, in which somebody may press Ctrl-C.
"""

import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> int:
    """Run the program.

    :returns: the exit status
    """
    heed_signals()
    from cinder_cow.cli import app

    return app.main()


def heed_signals() -> None:
    """Unwind where a signal comes, so that what is half-made is undone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, once."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.stderr.write(f'Ended by {signal.Signals(number).name}.\n')
    raise SystemExit(128 + number)
