# SPDX-License-Identifier: Apache-2.0
"""Run a Hypothesis property in a process that may take only so much.

With the first examples the process loads all that is needed. Then it limits
its address space to what it has and ``MEMORY`` more: so the kernel itself
refuses what is more, and counts what Hypothesis, servers and threads take
too. An example that takes longer than ``LONGEST`` ends the process.
"""

from collections.abc import Callable
import dataclasses
import importlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import traceback
from types import FrameType
from typing import Any, NoReturn

import hypothesis
from oslo_utils import units

MEMORY = 200 * units.Mi
# Of one example, in seconds; they take milliseconds.
LONGEST = 5
FIRST = 20
# A process that does not even end, in seconds.
HANGS = 900


class TooLongError(BaseException):
    """An example took too long; none that it catches."""


@dataclasses.dataclass
class Figures:
    """What a property took.

    :param seconds: of all examples
    :param slowest: seconds of one
    :param memory: bytes of address space, above those at its start
    """

    examples: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    memory: int = 0


def run(
    check: Callable[[], None], examples: int, seed: int, cwd: pathlib.Path
) -> Figures:
    """Check a property with so many examples.

    :param check: what ``hypothesis.given`` made of a function of a module
    :param cwd: an empty directory, or one with what the property needs
    :raises AssertionError: it does not hold; with the example
    """
    done = subprocess.run(
        [sys.executable, '-m', __name__, check.__module__,
         check.__name__, str(examples), str(seed)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
            # Else glibc reserves 128 MiB of addresses for each thread.
            'MALLOC_ARENA_MAX': '1',
        },
        timeout=HANGS,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f'{check.__name__}: {done.stdout}{done.stderr}')
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    module, name, examples, seed = sys.argv[1:]
    checked = getattr(importlib.import_module(module), name)
    signal.signal(signal.SIGALRM, _too_long)
    # The way that Hypothesis has for those who run examples differently.
    limited = _Limited(checked.hypothesis.inner_test)
    checked.hypothesis.inner_test = limited.run
    settings = hypothesis.settings(
        max_examples=FIRST + int(examples),
        deadline=None,
        database=None,
        # To make a good one of these often takes more than one attempt.
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(int(seed))(settings(checked))()
    figures = limited.figures
    figures.memory = _address_space('VmPeak') - limited.before
    print(json.dumps(dataclasses.asdict(figures)))


class _Limited:
    """Runs examples, with limits from the first ones on."""

    def __init__(self, inner: Callable[..., None]) -> None:
        self._inner = inner
        self.figures = Figures()
        self.before = 0

    def run(self, *arguments: Any, **named: Any) -> None:
        self.figures.examples += 1
        if self.figures.examples == FIRST:
            self.before = _address_space('VmSize')
            limit = self.before + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        begun = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            self._inner(*arguments, **named)
        except TooLongError:
            # To make it smaller would take as long, many times.
            print(ascii((arguments, named))[:10_000], flush=True)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            seconds = time.monotonic() - begun
            self.figures.seconds += seconds
            self.figures.slowest = max(self.figures.slowest, seconds)


def _too_long(number: int, frame: FrameType | None) -> NoReturn:
    raise TooLongError(f'longer than {LONGEST} s')


def _address_space(field: str) -> int:
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * units.Ki
    raise AssertionError(f'the kernel tells no {field}')


if __name__ == '__main__':
    main()
