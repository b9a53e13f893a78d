# SPDX-License-Identifier: Apache-2.0
"""Bad cases on a real cluster: a clear error or the right bytes.

And in the end nothing is left but the volumes that were told of.
"""

import concurrent.futures
import contextlib
import functools
import os
import threading
import time
from unittest import mock

from oslo_utils import units

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd_leases
from cinder_cow.refusal import Reason
from cinder_cow.tests import rbd_case
from cinder_cow.tests import rbd_victim

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd as librbd  # noqa: TID251


class TestWhatIsLeft(rbd_case.FaultCase):
    """A test of the tests: what must not be left is found."""

    def test_what_is_left_is_found(self):
        self.make()
        self.assert_clean('victim')
        self.assertIn('victim is listed', self.left())
        self.assertIn('other is missing', self.left('victim', 'other'))
        with self.ioctx() as ioctx:
            for name in ('rbd_id.dead', 'rbd_header.dead', 'rbd_data.dead.0'):
                ioctx.write_full(name, b'')
                (found,) = self.left('victim')
                self.assertIn(name, found)
                ioctx.remove_object(name)
            with librbd.Image(ioctx, 'victim') as image:
                image.write(b'x', 0)
                found = ' '.join(self.left('victim'))
                self.assertIn('is watched', found)
                self.assertIn('rbd_lock', found)
            librbd.RBD().trash_move(ioctx, 'victim')
            self.assertIn('trash: ', ' '.join(self.left()))


class TestImages(rbd_case.FaultCase):
    def test_the_image_is_deleted_before_it_is_cloned(self):
        image = rbd_victim.image_at(self.location)
        self.assertIsNone(self.driver.cloneable(image).refusal)
        self.delete_image()
        self.refused(Reason.LOCATION_NOT_FOUND)
        self.assert_clean()

    def use_clones_of_version_2(self):
        name = 'rbd_default_clone_format'
        self.cluster.set_config('client', name, 2)
        self.addCleanup(
            self.cluster.mon, prefix='config rm', who='client', name=name
        )
        self.driver = self.new_driver()

    def remove_snapshot(self):
        with self.images() as ioctx, librbd.Image(ioctx, self.image) as image:
            image.unprotect_snap('snap')
            image.remove_snap('snap')

    def test_its_snapshot_is_in_the_trash(self):
        self.use_clones_of_version_2()
        self.make(name='before')
        self.remove_snapshot()
        self.refused(Reason.SNAPSHOT_NOT_FOUND)
        self.assert_clone('before')
        self.assert_clean('before')

    def test_many_clone_it_while_it_is_deleted(self):
        self.use_clones_of_version_2()

        def make(number):
            made: list[str] = []
            for turn in range(20):
                name = f'v{number}-{turn}'
                try:
                    self.make(name=name)
                except exception.CowError as error:
                    self.assertIn(
                        error.reason,
                        {
                            Reason.LOCATION_NOT_FOUND,
                            Reason.SNAPSHOT_NOT_FOUND,
                            Reason.SNAPSHOT_UNPROTECTED,
                            # It was unprotected as it was cloned.
                            Reason.BACKEND_ERROR,
                        },
                    )
                    return made
                made.append(name)
            return made

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            futures = [pool.submit(make, number) for number in range(16)]
            time.sleep(0.5)
            self.remove_snapshot()
            names = [name for one in futures for name in one.result()]
        self.assertGreater(16 * 20, len(names))
        # Whoever was told of a volume has it, and whole.
        self.assert_clean(*names)
        for name in names:
            self.assert_clone(name)

    def test_many_threads_make_volumes(self):
        names = [f'v{number}' for number in range(32)]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            sweeps = [pool.submit(self.driver.sweep) for _n in names]
            made = pool.map(lambda name: self.make(name=name), names)
            for _done in [*made, *(sweep.result() for sweep in sweeps)]:
                pass
        self.assert_clean(*names)
        for name in names:
            self.assert_clone(name)


class TestNames(rbd_case.FaultCase):
    def test_two_processes_make_one_volume(self):
        with rbd_victim.victims() as victims:
            for work in ('clone', 'stream', 'clone'):
                orders = [victims.order(self.order(work)) for _n in range(4)]
                told = [victims.told(one)['reason'] for one in orders]
                self.assertEqual(
                    ['', *[Reason.VOLUME_EXISTS.value] * 3], sorted(told)
                )
                self.assert_clean('victim')
                self.driver.delete('victim')
        self.assert_clean()

    def test_another_tool_is_faster(self):
        # Ours has looked, and found the name free.
        for work, step in (('clone', 'clone'), ('stream', 'rename')):
            with mock.patch.object(ceph.Pool, step, self.foreign_first(step)):
                self.refused(
                    Reason.VOLUME_EXISTS,
                    call=functools.partial(self.make, work),
                )
            self.assert_clean('victim')
            self.remove_foreign()

    def foreign_first(self, step):
        method = getattr(ceph.Pool, step)

        def call(*args, **options):
            self.make_foreign()
            method(*args, **options)

        return call

    def make_foreign(self):
        with self.ioctx() as ioctx:
            librbd.RBD().create(ioctx, 'victim', units.Mi)

    def remove_foreign(self):
        with self.ioctx() as ioctx:
            librbd.RBD().remove(ioctx, 'victim')

    def test_another_tools_image_outlives_who_was_killed(self):
        with rbd_victim.victims() as victims:
            for work, step in (('clone', 'clone'), ('stream', 'rename')):
                self.driver.delete('victim')
                steps = victims.told(victims.order(self.order(work)))['steps']
                self.driver.delete('victim')
                # There was one step more: that the image is good.
                number = steps.index(step) - (work == 'clone')
                order = self.order(work, step=number)
                victims.order(order).wait()
                self.make_foreign()
                self.assert_clean('victim')
                self.remove_foreign()


class TestFull(rbd_case.FaultCase):
    def setUp(self):
        super().setUp()
        self.driver = self.new_driver(op_timeout=2)

    def test_a_full_cluster(self):
        self.make(name='there')
        self.make(name='doomed')
        # librbd has no room for its trash, the first time.
        with self.full():
            self.refused(
                Reason.NO_SPACE,
                call=functools.partial(self.driver.delete, 'doomed'),
            )
        self.driver.sweep()
        self.make(name='doomed')
        size = 64 * units.Mi
        stream = self.driver.open('half', size)
        stream.write(bytes(range(256)) * (4 * units.Ki))
        with self.full():
            self.refused(Reason.NO_SPACE)
            self.refused(
                Reason.NO_SPACE, call=functools.partial(self.fill, stream)
            )
            stream.abort()
            # To make room is what one wants to do now.
            self.driver.delete('doomed')
        self.assert_clean_soon('there')
        self.assert_clone('there')
        self.make()
        self.assert_clone()

    def fill(self, stream):
        for _number in range(8):
            stream.write(os.urandom(4 * units.Mi))
        stream.close()


class TestDaemons(rbd_case.FaultCase):
    def impatient(self, seconds):
        return self.new_driver(op_timeout=seconds)

    def test_the_monitor_is_down(self):
        self.make(name='there')
        self.cluster.kill('mon')
        self.addCleanup(self.cluster.start, 'mon')
        # A connection that is there goes on without it.
        self.make(name='more')
        ceph.disconnect()
        settings = rbd_victim.settings(str(self.cluster.conf), self.pool)
        with mock.patch.object(
            rbd_victim, 'settings', lambda *_args: settings
        ):
            self.refused(Reason.CEPH_UNAVAILABLE, call=self.names)
        self.cluster.start('mon')
        self.assert_clean('more', 'there')

    def test_the_osd_goes_and_comes_back(self):
        # The lease must not end before the OSD is back, however slow.
        patched = mock.patch.object(rbd_leases, 'SECONDS', 60)
        patched.start()
        self.addCleanup(patched.stop)
        driver = self.new_driver(op_timeout=60)
        with driver.open('victim', 16 * units.Mi) as stream:
            for number, piece in enumerate(rbd_victim.content()):
                stream.write(piece)
                if number == 0:
                    self.cluster.kill('osd')
                    back = threading.Timer(1, self.cluster.start, ['osd'])
                    back.start()
            stream.close()
        back.join()
        self.assert_stream()
        self.assert_clean_soon('victim')

    def test_the_osd_does_not_answer(self):
        driver = self.new_driver(op_timeout=1)
        stream = driver.open('victim', 16 * units.Mi)
        stream.write(bytes([1]) * rbd_victim.PIECE)
        self.cluster.pause('osd')
        self.addCleanup(self.cluster.resume, 'osd')
        make = functools.partial(self.make, name='other', driver=driver)
        self.refused(Reason.CEPH_TIMED_OUT, call=make)
        self.refused(Reason.CEPH_TIMED_OUT, call=stream.close)
        with contextlib.suppress(exception.BackendError):
            stream.abort()
        self.cluster.resume('osd')
        self.assert_clean_soon()

    def test_connections_break(self):
        name = 'ms_inject_socket_failures'
        self.cluster.set_config('osd', name, 100)
        self.addCleanup(self.cluster.set_config, 'osd', name, 0)
        driver = self.new_driver(op_timeout=30)
        names = [f'v{number}' for number in range(8)]
        for one in names:
            self.make(name=one, driver=driver)
        self.make('stream', driver=driver)
        driver.delete(names.pop())
        self.cluster.set_config('osd', name, 0)
        self.assert_stream()
        for one in names:
            self.assert_clone(one)
        self.assert_clean(*names, 'victim')


class TestConnections(rbd_case.FaultCase):
    """A client that is shut out, and one that forks."""

    def blocklist(self):
        settings = self.driver._settings
        with ceph.connected(settings.cluster) as connection:
            self.cluster.blocklist(connection.address)

    def test_it_is_shut_out_before(self):
        for work in ('clone', 'stream', 'delete'):
            self.blocklist()
            self.make(work)
            if work != 'delete':
                self.assert_clean('victim')
                self.driver.delete('victim')
        self.assert_clean()

    def test_it_is_shut_out_amid_a_clone(self):
        clone = ceph.Pool.clone

        def call(*args, **options):
            patched.stop()
            self.blocklist()
            clone(*args, **options)

        patched = mock.patch.object(ceph.Pool, 'clone', call)
        patched.start()
        # The same request goes on, over another connection.
        self.make()
        self.assert_clone()
        self.assert_clean('victim')

    def test_it_is_shut_out_amid_a_stream(self):
        stream = self.driver.open('victim', 16 * units.Mi)
        stream.write(bytes([1]) * rbd_victim.PIECE)
        self.blocklist()
        self.refused(
            Reason.BACKEND_ERROR,
            Reason.CEPH_TIMED_OUT,
            call=functools.partial(self.finish, stream),
        )
        with contextlib.suppress(exception.BackendError):
            stream.abort()
        self.make('stream')
        self.assert_stream()
        self.assert_clean('victim')

    def finish(self, stream):
        stream.write(bytes([2]) * rbd_victim.PIECE)
        stream.close()

    def test_it_is_shut_out_amid_a_deletion(self):
        self.make()
        remove = ceph.Pool.remove

        def call(*args):
            patched.stop()
            self.blocklist()
            remove(*args)

        patched = mock.patch.object(ceph.Pool, 'remove', call)
        patched.start()
        self.driver.delete('victim')
        self.assert_clean()

    def test_a_process_forks(self):
        stream = self.driver.open('parents', 16 * units.Mi)
        content = list(rbd_victim.content())
        stream.write(content[0])
        pid = os.fork()
        if not pid:
            status = 1
            try:
                self.make(name='childs')
                self.driver.sweep()
                status = 0
            finally:
                os._exit(status)
        for piece in content[1:]:
            stream.write(piece)
        _pid, status = os.waitpid(pid, 0)
        self.assertEqual(0, status)
        stream.close()
        self.assert_stream('parents')
        self.assert_clone('childs')
        self.assert_clean('childs', 'parents')
