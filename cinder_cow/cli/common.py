# SPDX-License-Identifier: Apache-2.0
"""What the commands share: sizes, progress, refusals."""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import datetime
import pathlib
import sys
from typing import Any, NoReturn

from cliff import columns
from cliff import command
from cliff import lister
from oslo_utils import units
import tqdm

from cinder_cow import exception
from cinder_cow import plan as plans
from cinder_cow import streaming
from cinder_cow.drivers import file_layout
from cinder_cow.refusal import Reason
from cinder_cow.refusal import Refusal


def gib(text: str) -> int:
    """Read a size in GiB from the command line; return bytes."""
    try:
        size = int(text)
    except ValueError:
        size = 0
    # File systems and QEMU count bytes in 63 bits.
    if not 0 < size * units.Gi < 2**63:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a whole number of GiB from 1 to {2**33 - 1}'
        )
    return size * units.Gi


def check_outside(path: pathlib.Path) -> None:
    """Refuse to put a file among volumes: it would become one.

    :raises RequestError: EXPORT_FAILED
    """
    if file_layout.is_back_end(path.parent):
        raise exception.RequestError.because(
            Reason.EXPORT_FAILED,
            path=str(path),
            problem='that directory is a back end',
        )


@contextlib.contextmanager
def progress(label: str = '') -> Iterator[streaming.Progress]:
    """Show progress on a terminal; in a pipe, nothing.

    :param label: of what, safe to print
    """
    with tqdm.tqdm(
        disable=not sys.stderr.isatty(),
        unit='B',
        unit_scale=True,
        unit_divisor=units.Ki,
        leave=False,
    ) as bar:
        shown = ''

        def report(phase: str, done: int, total: int) -> None:
            nonlocal shown
            if bar.disable:
                return
            if phase != shown:
                # Or the time left would be told by the speed of another.
                shown = phase
                bar.set_description_str(
                    f'{label}: {phase}' if label else phase, refresh=False
                )
                bar.reset()
            bar.total = total
            bar.update(done - bar.n)

        yield report


class StatusLister(lister.Lister):
    """A list of what was done, which ends with 1 where some of it failed.

    :ivar problems: what failed, a sentence each; told behind the list
    :ivar failed: whether it ends so
    """

    problems: list[str]
    failed: bool

    def run(self, parsed_args: argparse.Namespace) -> int:
        self.problems, self.failed = [], False
        status = super().run(parsed_args)
        # The list first: both may go to one terminal.
        sys.stdout.flush()
        for problem in self.problems:
            self.app.LOG.error(problem)
        return int(bool(status or self.problems or self.failed))


def usage_error(words: command.Command, problem: str) -> NoReturn:
    """End as argparse does, where it cannot tell by itself."""
    sys.stderr.write(f'cinder-cow {words.cmd_name}: error: {problem}\n')
    raise SystemExit(2)


def iso_time(seconds: float) -> str | None:
    """Tell a time by ISO 8601; None for 0, which is never.

    :param seconds: since the epoch
    """
    if not seconds:
        return None
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat(timespec='seconds')


class Refusals(columns.FormattableColumn[Sequence[dict[str, str]]]):
    """A list of refusals: a line each for people, objects for programs."""

    def human_readable(self) -> str:
        return '\n'.join(
            f'{r["candidate"]}: {r["detail"]} ({r["reason"]}). {r["remedy"]}'
            for r in self._value
        )

    def machine_readable(self) -> Any:  # noqa: ANN401 - as cliff has it
        return self._value


def refusal_row(
    candidate: plans.Candidate, refusal: Refusal
) -> dict[str, str]:
    """Tell one refusal of a candidate, for any output format."""
    return {
        'candidate': str(candidate),
        'reason': refusal.reason.value,
        'detail': refusal.detail,
        'remedy': refusal.remedy,
    }
