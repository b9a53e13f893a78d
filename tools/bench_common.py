# SPDX-License-Identifier: Apache-2.0
"""A table of figures of ours, each beside another one of the same run."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
import random
import statistics
import tempfile
from typing import Any

from oslo_utils import units
import reports

# Bytes of free memory to begin with; the images of 500 MiB need it thrice.
_WARM = 1536 * units.Mi

row = functools.partial(reports.row, (44, 24, 9, 18, 18))
HEADER = row('what', 'ours: 1/4 median 3/4', 'beside', 'ratio (1/4-3/4)')


@dataclasses.dataclass(frozen=True)
class Target:
    """What a ratio must be.

    :param limit: at least that; or at most
    """

    limit: float
    at_most: bool = False

    def verdict(self, ratio: float) -> str:
        held = ratio <= self.limit if self.at_most else ratio >= self.limit
        sign = '<=' if self.at_most else '>='
        return f'{sign} {self.limit:g}: {"held" if held else "MISSED"}'


def compared(
    what: str,
    ours: Sequence[float],
    beside: Sequence[float],
    target: Target | None = None,
    unit: float = 1.0,
) -> str:
    """Make a row of runs that were made in turn.

    The ratio is that of the medians; after it, the middle half of the pairs'.
    Of times it is, ours through the other; where a target is a lower limit,
    of speeds.
    """
    over, under = ours, beside
    if target and not target.at_most:
        over, under = beside, ours
    ratio = statistics.median(over) / statistics.median(under)
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, _middle, high = quartiles(ratios)
    told = ' '.join(f'{value * unit:.2f}' for value in quartiles(ours))
    return row(
        what,
        told,
        f'{statistics.median(beside) * unit:.2f}',
        f'{ratio:.2f} ({low:.2f}-{high:.2f})',
        target.verdict(ratio) if target else '',
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, method='inclusive')
    return low, middle, high


def settle() -> None:
    """Have nothing to be written, and as much free memory that is backed.

    The host of a virtual machine takes back what is free for a second. Who
    touches it next pays for it: 1.2 s instead of 0.04 s for the page cache of
    500 MiB, be it curl or we.
    """
    os.sync()
    with tempfile.NamedTemporaryFile(dir='/dev/shm') as file:
        for _ in range(_WARM // units.Mi):
            file.write(bytes(units.Mi))
        file.flush()


def in_turn(
    works: Mapping[str, Callable[[], Any]],
    rounds: int,
    before: Callable[[], None] | None = None,
) -> dict[str, list[Any]]:
    """Do each work once in each round, and return what each returned.

    Their order is another one in each round, for what one leaves to be done
    in the background is paid by the next. It is the same in every run.

    :param before: is called before each of them, to have them begin alike
    """
    found: dict[str, list[Any]] = {name: [] for name in works}
    names = list(works)
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            if before:
                before()
            found[name].append(works[name]())
    return found
