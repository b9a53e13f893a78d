# SPDX-License-Identifier: Apache-2.0
"""The RBD driver in threads, native and green, and in forks."""

from concurrent import futures
import contextlib
import gc
import hashlib
import os
import pathlib
import shutil
import tempfile
import time

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers.ceph import connection
from cinder_cow.refusal import Reason
from cinder_cow.tests import ceph_cluster
from cinder_cow.tests import corpus
from cinder_cow.tests import green
from cinder_cow.tests import rbd_images
from cinder_cow.tests import threads_seen
from cinder_cow.tests.functional import test_rbd

CLONES = 32
# Seconds an operation may take, where none is answered.
TIMEOUT = 2
# The same of one that nothing else is to wait for.
DEAF = 8
# A call is a few operations one after the other, and each may time out. Of
# pieces that wait for the lock of an image to write, each does. Five times
# that, for a machine that does much else: what hangs takes for ever.
LIMIT = 30 * TIMEOUT
# What a green thread waits for its turn, on a machine that does much else.
TURN = 1.0


class ThreadsTestCase(test_rbd.RbdTestCase):
    def setUp(self):
        super().setUp()
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.data = corpus.noise(units.Mi)
        self.record = self.stack.enter_context(
            rbd_images.stored(self.cluster, {0: self.data}, 16 * units.Mi)
        )
        (location,) = self.record.locations
        self.url = str(location)
        self.driver = self.rbd_driver(cluster=self.quick())

    def quick(self, **options):
        """Tell how to reach the cluster, with short time-outs."""
        return ceph.Cluster(
            **{
                'conf': str(self.cluster.conf),
                'user': 'admin',
                'connect_timeout': TIMEOUT,
                'op_timeout': TIMEOUT,
                **options,
            }
        )

    def pause(self, name):
        self.addCleanup(self.cluster.resume, name)
        self.cluster.pause(name)
        # A thread that is running just then goes on for a moment.
        while any(map(_runs, self.cluster.running(name))):
            time.sleep(0.001)

    def is_right(self, name):
        with self.driver.read(name) as reader:
            return reader.read(0, len(self.data)) == self.data


def _runs(pid):
    """Tell whether a process that was stopped has a thread that still runs."""
    told = threads_seen.read(pid, 'stat')
    return {one.rpartition(')')[2].split()[0] for one in told} != {'T'}


def threads():
    """Count the threads of this process, those of librados too."""
    return len(os.listdir('/proc/self/task'))


class TestNative(ThreadsTestCase):
    def test_all_share_one_connection(self):
        before = threads_seen.connections()
        with futures.ThreadPoolExecutor(CLONES) as pool:
            names = [f'v{number}' for number in range(CLONES)]
            made = [
                pool.submit(self.driver.clone, self.record, name)
                for name in names
            ]
            self.assertEqual(names, [one.result().name for one in made])
        self.assertEqual(before + 1, threads_seen.connections())
        ceph.disconnect()
        self.assertEqual(before, threads_seen.connections())

    def test_a_fork_has_its_own(self):
        self.driver.clone(self.record, 'before')
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                self.driver.clone(self.record, 'child')
                ceph.disconnect()
                status = 7
            os._exit(status)
        self.driver.clone(self.record, 'parent')
        self.assertEqual(7, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        for name in ('before', 'child', 'parent'):
            self.assertTrue(self.is_right(name), name)

    def test_a_fork_that_ends_as_programs_do(self):
        # What it has of its parent's connection it must not close.
        self.driver.clone(self.record, 'before')
        with self.driver.read('before') as reader:
            child = os.fork()
            if not child:
                os._exit(_finalized(7))
            status = os.waitpid(child, 0)[1]
            self.assertEqual(7, os.waitstatus_to_exitcode(status))
            self.assertEqual(self.data[:10], reader.read(0, 10))

    def test_a_lost_connection_is_closed_by_its_last_user(self):
        cluster = self.driver._settings.cluster
        with ceph.connected(cluster) as connected:
            address = connected.address
        self.driver.clone(self.record, 'v1')
        self.assertTrue(self.is_right('v1'))
        # Of librbd too, which starts its own as it needs them.
        before = threads(), threads_seen.connections()
        reader = self.driver.read('v1')
        self.cluster.blocklist(address)
        with futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self.driver.exists, ['v1'] * 8))
        self.assertEqual([True] * 8, found)
        self.assertEqual(before[1] + 1, threads_seen.connections())
        self.assertRaises(exception.BackendError, reader.read, 0, 10)
        with contextlib.suppress(exception.BackendError):
            reader.close()
        self.assertEqual(before[1], threads_seen.connections())
        self.assertTrue(self.is_right('v1'))
        self.assertEqual(before[0], threads())

    def test_one_that_does_not_answer_hinders_no_other(self):
        top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, top)
        other = self.stack.enter_context(ceph_cluster.Cluster(top / 'ceph'))
        deaf = self.rbd_driver(
            cluster=self.quick(conf=str(other.conf), connect_timeout=DEAF),
            pool='volumes',
        )
        other.pause('mon')
        with futures.ThreadPoolExecutor(16) as pool:
            begun = time.monotonic()
            waiting = [pool.submit(deaf.exists, 'v1') for _ in range(16)]
            self.driver.clone(self.record, 'v1')
            self.assertLess(time.monotonic() - begun, DEAF)
            errors = [one.exception() for one in waiting]
            # All at once, not each in its turn.
            self.assertLess(time.monotonic() - begun, 4 * DEAF)
        reasons = {getattr(error, 'reason', error) for error in errors}
        self.assertEqual({Reason.CEPH_UNAVAILABLE}, reasons)
        other.resume('mon')
        self.assertFalse(deaf.exists('v1'))


def _finalized(status):
    """Let go of all that a fork has, as the interpreter does at its end."""
    connection._of_parents.clear()
    gc.collect()
    return status


class TestTimes(ThreadsTestCase):
    """No call waits for good."""

    def calls(self, driver):
        return {
            'sweep': driver.sweep,
            'open': lambda: driver.open('v2', units.Mi),
            'read': lambda: driver.read('v1'),
            'read_image': lambda: driver.read_image(self.record),
            'exists': lambda: driver.exists('v1'),
            'show': lambda: driver.show('v1'),
            'extend': lambda: driver.extend('v1', units.Gi),
            'delete': lambda: driver.delete('v1'),
            'list': lambda: list(driver.list()),
            'clone': lambda: driver.clone(self.record, 'v3'),
        }

    def check(self, calls):
        """Call all at once: each is refused in time; return the reasons."""
        reasons = {}

        def timed(call):
            begun = time.monotonic()
            reason: Reason | None = None
            try:
                call()
            except exception.BackendError as error:
                reason = error.reason
            return reason, time.monotonic() - begun

        with futures.ThreadPoolExecutor(len(calls)) as pool:
            found = dict(
                zip(calls, pool.map(timed, calls.values()), strict=True)
            )
        for name, (reason, seconds) in found.items():
            self.assertLess(seconds, LIMIT, name)
            reasons[name] = reason
        return reasons

    def test_no_monitor(self):
        self.driver.clone(self.record, 'v1')
        ceph.disconnect()
        self.pause('mon')
        reasons = self.check(self.calls(self.driver))
        self.assertEqual({Reason.CEPH_UNAVAILABLE}, set(reasons.values()))
        verdict = self.driver.cloneable(self.record)
        self.assertIs(Reason.CEPH_UNAVAILABLE, verdict.refusal.reason)

    def test_no_osd(self):
        self.driver.clone(self.record, 'v1')
        self.driver.clone(self.record, 'written')
        writers = [self.driver.open(f'w{n}', 64 * units.Mi) for n in range(3)]
        reader = self.driver.read('written')
        for handle in (*writers, reader):
            # One that is left open lets no program end.
            self.addCleanup(_let_go, handle)
        self.pause('osd')
        calls = self.calls(self.driver) | {
            'write': lambda: writers[0].write(bytes(8 * units.Mi)),
            'flush': lambda: _written(writers[1]).flush(),
            'abort': lambda: _written(writers[2]).abort(),
            'reader': lambda: reader.read(0, 10),
            'extents': lambda: list(reader.extents()),
            'check_unchanged': reader.check_unchanged,
        }
        reasons = self.check(calls)
        # What is only begun, writes in a queue, fails at its end.
        reasons.pop('write')
        self.assertEqual(
            {Reason.CEPH_TIMED_OUT}, set(reasons.values()), reasons
        )
        ends = {
            'abort 0': writers[0].abort,
            'close 1': writers[1].close,
            'abort 1': writers[1].abort,
            'reader': reader.close,
        }
        self.check(ends)
        self.cluster.resume('osd')
        self.assertEqual(
            ['v1', 'written'], [one.name for one in self.driver.list()]
        )


def _let_go(handle):
    with contextlib.suppress(exception.BackendError):
        handle.__exit__(None, None, None)


def _written(writer):
    writer.write(bytes(range(256)) * 1024)
    return writer


@ddt.ddt
class TestGreen(ThreadsTestCase):
    """In a process that eventlet has patched."""

    def call(self, function, **facts):
        return green.call(
            function, conf=str(self.cluster.conf), pool=self.pool, **facts
        )

    def check_turns(self, answer):
        # The hub was not blocked: others had their turns all the time.
        self.assertLess(answer['longest'], TURN, answer)
        self.assertGreater(answer['ticks'], answer['seconds'] / TURN, answer)

    def test_clones(self):
        answer = self.call(green.clones, url=self.url)
        self.check_turns(answer)
        names = {f'v{number}' for number in range(green.THREADS)}
        self.assertEqual(names, set(answer['answers']))
        self.assertEqual(names, {one.name for one in self.driver.list()})
        self.assertEqual(1, answer['connections'])

    def test_streams(self):
        content = corpus.noise(16 * units.Mi)
        value = hashlib.sha256(content).hexdigest()
        with tempfile.TemporaryDirectory(dir='/var/tmp') as top:
            path = pathlib.Path(top, f'{value}.raw')
            path.write_bytes(content)
            answer = self.call(green.streams, path=str(path))
        self.check_turns(answer)
        self.assertEqual({f'sha256:{value}'}, set(answer['answers']))

    def test_logs(self):
        answer = green.call(green.logs, lines=300)
        self.check_turns(answer)
        self.assertEqual(green.THREADS, len(answer['answers']))

    @ddt.data(('mon', 'ceph_unavailable'), ('osd', 'ceph_timed_out'))
    @ddt.unpack
    def test_one_that_does_not_answer(self, daemon, reason):
        self.pause(daemon)
        answer = self.call(green.unavailable)
        self.check_turns(answer)
        self.assertEqual([reason] * green.THREADS, answer['answers'])
        # All at once, not each in its turn.
        self.assertLess(answer['seconds'], green.THREADS / 2 * green.TIMEOUT)

    def test_a_native_thread(self):
        answer = self.call(green.native_thread, url=self.url)
        self.assertEqual(['v1'], answer['made'])

    def test_a_fork(self):
        answer = self.call(green.forked, url=self.url)
        self.assertEqual(7, answer['status'])
        names = {one.name for one in self.driver.list()}
        self.assertEqual({'before', 'child', 'parent'}, names)
