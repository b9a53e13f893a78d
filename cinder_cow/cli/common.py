# SPDX-License-Identifier: Apache-2.0
"""What the commands share: sizes, progress, refusals."""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import pathlib
import sys
from typing import Any

from cliff import columns
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
def progress() -> Iterator[streaming.Progress]:
    """Show progress on a terminal; in a pipe, nothing."""
    with tqdm.tqdm(
        disable=not sys.stderr.isatty(),
        unit='B',
        unit_scale=True,
        unit_divisor=units.Ki,
        leave=False,
    ) as bar:

        def report(phase: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description_str(phase, refresh=False)
            bar.update(done - bar.n)

        yield report


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
