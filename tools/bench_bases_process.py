# SPDX-License-Identifier: Apache-2.0
"""Processes of bench_bases_worker.py, which make volumes as ordered."""

from collections.abc import Mapping
import json
import os
import pathlib
import subprocess
import sys
from typing import Any
import uuid

TOOLS = pathlib.Path(__file__).parent


class Worker:
    """A process of bench_bases_worker.py; a context manager.

    :param name: of the back end
    :param environment: variables that differ from ours
    """

    def __init__(
        self,
        conf: pathlib.Path,
        name: str,
        log: pathlib.Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log.open('w+')
        self._process = subprocess.Popen(
            [sys.executable, TOOLS / 'bench_bases_worker.py', conf, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **os.environ,
                'PYTHONPATH': str(TOOLS.parent),
                **(environment or {}),
            },
        )

    def __enter__(self) -> 'Worker':
        self.answer()
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def made(self, order: Mapping[str, Any]) -> float:
        """Have one volume made, and its base; return the seconds."""
        self.ask({**order, 'volumes': [str(uuid.uuid4())]})
        ((taken, _method, made),) = self.answer()['each']
        assert made
        return float(taken)

    def ask(self, order: Mapping[str, Any]) -> None:
        self._process.stdin.write(json.dumps(order) + '\n')
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {'problem': 'it ended'}
        if 'problem' in answer:
            self._log.seek(0)
            raise RuntimeError(f'{answer["problem"]}\n{self._log.read()}')
        return answer
