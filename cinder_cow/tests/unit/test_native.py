# SPDX-License-Identifier: Apache-2.0
"""Native threads, in a process that eventlet has patched and in others."""

import importlib
import os
import subprocess
import sys
import threading
from typing import Any

from oslotest import base as test_base

from cinder_cow.drivers import native

# Seconds in which a process ends that does not hang.
LIMIT = 60


@native.threaded
def where(*arguments: object, **named: object) -> tuple[int, Any, Any]:
    return threading.get_native_id(), arguments, named


@native.threaded
def nested() -> tuple[int, int]:
    return threading.get_native_id(), where()[0]


@native.threaded
def failing() -> None:
    raise KeyError('x')


class TestUnpatched(test_base.BaseTestCase):
    def test_it_stays_in_its_thread(self):
        here = threading.get_native_id()
        self.assertEqual((here, (1,), {'a': 2}), where(1, a=2))
        self.assertEqual((here, here), nested())

    def test_an_error(self):
        self.assertRaises(KeyError, failing)

    def test_the_module(self):
        self.assertIs(threading, native.threading())

    def test_eventlet_is_not_imported(self):
        done = subprocess.run(
            [sys.executable, '-c', 'import sys, cinder_cow.drivers.rbd;'
             'sys.exit("eventlet" in sys.modules)'],
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
            timeout=LIMIT,
            check=False,
        )  # fmt: skip
        self.assertEqual(0, done.returncode)


class TestPatched(test_base.BaseTestCase):
    """Each function below is one, in a process of its own."""

    def patched(self, name):
        try:
            done = subprocess.run(
                [sys.executable, '-W', 'ignore', '-c',
                 'import eventlet; eventlet.monkey_patch();'
                 f'from {__name__} import {name}; {name}()'],
                env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f'it hangs: {error.stderr!r}') from None
        self.assertEqual(0, done.returncode, done.stderr)

    def test_another_thread_is_used(self):
        self.patched('in_another')

    def test_one_of_the_pool_stays(self):
        self.patched('in_the_pool')

    def test_a_native_thread_that_is_none_of_the_pool_stays(self):
        self.patched('in_a_native_one')

    def test_a_fork_has_a_pool_of_its_own(self):
        self.patched('in_a_fork')

    def test_locks_are_native(self):
        self.patched('with_a_lock')


def in_another():
    number, arguments, named = where(1, a=2)
    assert number != threading.get_native_id()
    assert (arguments, named) == ((1,), {'a': 2})
    try:
        failing()
    except KeyError:
        return
    raise AssertionError('no error')


def in_the_pool():
    outer, inner = nested()
    assert outer == inner != threading.get_native_id()


def in_a_native_one():
    where()
    found = []

    def run():
        found.append((threading.get_native_id(), where()[0]))

    thread = native.threading().Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT / 2)
    ((outer, inner),) = found
    assert outer == inner != threading.get_native_id()


def in_a_fork():
    where()
    child = os.fork()
    if not child:
        # As oslo.service does.
        importlib.import_module('eventlet.hubs').use_hub()
        right = where()[0] != threading.get_native_id()
        os._exit(7 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def with_a_lock():
    """Hold a lock in a native thread, and wait for it in another."""
    lock = native.threading().Lock()
    held = native.threading().Event()
    order = []

    def hold():
        with lock:
            held.set()
            importlib.import_module('eventlet.patcher').original('time').sleep(
                0.05
            )
            order.append('held')

    @native.threaded
    def wait():
        with lock:
            order.append('waited')

    thread = native.threading().Thread(target=hold, daemon=True)
    thread.start()
    held.wait()
    wait()
    assert order == ['held', 'waited'], order
