# SPDX-License-Identifier: Apache-2.0
"""What benchmarks and soak tests share: a report, with date and commit."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import datetime
import os
import pathlib
import platform
import random
import subprocess


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        '--seed',
        type=int,
        default=random.SystemRandom().randrange(10**6),
        help='of the random numbers',
    )
    parser.add_argument('--output', type=pathlib.Path, help='keep it there')
    return parser


def row(widths: Sequence[int], *cells: object) -> str:
    """Make a row of a table whose columns are so wide."""
    padded = zip(cells, widths[: len(cells)], strict=True)
    return ' '.join(f'{c!s:<{width}}' for c, width in padded).rstrip()


def told(lines: Iterable[str], output: pathlib.Path | None) -> None:
    """Print lines as they come, and keep them."""
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.append(line.rstrip())
    if output:
        output.write_text('\n'.join(kept) + '\n')


def heading(command: str) -> Iterator[str]:
    """Say what was run, when, and on what."""
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date()
    yield command
    yield (
        f'{today}, commit {commit}, {os.cpu_count()} cores, Linux '
        f'{platform.release()}, Python {platform.python_version()}'
    )
    yield ''
