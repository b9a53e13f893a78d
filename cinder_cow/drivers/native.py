# SPDX-License-Identifier: Apache-2.0
"""Native threads, also in a process that eventlet has patched.

librados and librbd block the thread that calls them, and their own threads
know nothing of green ones. So they are called in native threads only, which
eventlet keeps in a pool; and what such threads share is guarded by native
locks, since a green one cannot be waited for from outside of its hub.
"""

import _thread
from collections.abc import Callable
import functools
import importlib
import os
import sys
import types
from typing import Any, ParamSpec, TypeVar

_Arguments = ParamSpec('_Arguments')
_Answer = TypeVar('_Answer')


def _is_patched() -> bool:
    eventlet = sys.modules.get('eventlet')
    if eventlet is None:
        return False
    return bool(eventlet.patcher.is_monkey_patched('thread'))


def threading() -> types.ModuleType:
    """Return the module threading as it was before eventlet came."""
    if not _is_patched():
        import threading

        return threading
    module: types.ModuleType = sys.modules['eventlet'].patcher.original(
        'threading'
    )
    return module


def threaded(
    function: Callable[_Arguments, _Answer],
) -> Callable[_Arguments, _Answer]:
    """Let a function run in a native thread, while other green ones go on.

    Without eventlet it runs in the thread that calls it; so it does in a
    native thread, of eventlet's pool or another: only the main one has green
    threads, and no other can wait for them.
    """

    @functools.wraps(function)
    def call(*args: _Arguments.args, **named: _Arguments.kwargs) -> _Answer:
        # Of the main thread it is that of the process.
        if not _is_patched() or _thread.get_native_id() != os.getpid():
            return function(*args, **named)
        answer: _Answer = _pool().execute(function, *args, **named)
        return answer

    return call


# The process that eventlet's pool was used in.
_pool_process = 0


def _pool() -> Any:  # noqa: ANN401 - a module
    """Return eventlet's pool of native threads."""
    global _pool_process
    tpool: Any = importlib.import_module('eventlet.tpool')
    if _pool_process not in {0, os.getpid()}:
        # We are a fork, and its threads are not here; it does not notice.
        tpool._threads.clear()
        tpool._setup_already = False
    _pool_process = os.getpid()
    return tpool
