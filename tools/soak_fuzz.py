# SPDX-License-Identifier: Apache-2.0
"""Run the properties of unit/test_fuzz.py with many examples.

The seed decides all examples: a run can be repeated.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import functools
import pathlib
import sys
import tempfile

from oslo_utils import units
import reports

from cinder_cow.tests import limited
from cinder_cow.tests.unit import test_fuzz

# In one process: Hypothesis remembers all it has tried, which counts too.
BATCH = 1000

row = functools.partial(reports.row, (18, 10, 9, 14, 10))


def main() -> int:
    parser = reports.arguments(__doc__)
    parser.add_argument(
        '--examples', type=int, default=10_000, help='of each property'
    )
    arguments = parser.parse_args()
    broken: list[str] = []
    reports.told(report(arguments, broken), arguments.output)
    return 1 if broken else 0


def report(arguments: argparse.Namespace, broken: list[str]) -> Iterator[str]:
    yield from reports.heading(
        f'tools/soak fuzz --examples {arguments.examples} '
        f'--seed {arguments.seed}'
    )
    yield row('property', 'examples', 'seconds', 'slowest [ms]', 'most [MiB]')
    total = 0
    with tempfile.TemporaryDirectory(dir='/var/tmp') as top:
        test_fuzz.make_images(pathlib.Path(top))
        for check, usual in test_fuzz.PROPERTIES.items():
            examples = arguments.examples * usual // test_fuzz.EXAMPLES
            figures = limited.Figures()
            try:
                for batch in batches(check, examples, arguments.seed, top):
                    add(figures, batch)
            except AssertionError as error:
                broken.append(check.__name__)
                yield str(error)
            total += figures.examples
            yield row(
                check.__name__,
                figures.examples,
                f'{figures.seconds:.1f}',
                f'{figures.slowest * 1000:.1f}',
                f'{figures.memory / units.Mi:.0f}',
            )
    yield ''
    limit = limited.MEMORY // units.Mi
    yield 'most: address space of a process above that at its start, with all'
    yield f'that Hypothesis takes; the kernel gives it {limit} MiB'
    yield (
        f'fuzz: {len(test_fuzz.PROPERTIES)} properties, {total} examples, '
        f'{len(broken)} broken'
    )


def batches(
    check: Callable[[], None], examples: int, seed: int, top: str
) -> Iterator[limited.Figures]:
    for done in range(0, examples, BATCH):
        count = min(BATCH, examples - done)
        yield limited.run(check, count, seed + done, pathlib.Path(top))


def add(figures: limited.Figures, batch: limited.Figures) -> None:
    figures.examples += batch.examples
    figures.seconds += batch.seconds
    figures.slowest = max(figures.slowest, batch.slowest)
    figures.memory = max(figures.memory, batch.memory)


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
