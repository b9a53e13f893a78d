# SPDX-License-Identifier: Apache-2.0
"""A table of figures of ours, each beside another one of the same run."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import random
import statistics
from typing import Any

import reports

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


def in_turn(
    works: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[Any]]:
    """Do each work once in each round, and return what each returned.

    Their order is another one in each round, for what one leaves to be done
    in the background is paid by the next. It is the same in every run.
    """
    found: dict[str, list[Any]] = {name: [] for name in works}
    names = list(works)
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            found[name].append(works[name]())
    return found
