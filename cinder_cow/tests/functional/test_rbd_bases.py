# SPDX-License-Identifier: Apache-2.0
"""Bases of the RBD driver on a real cluster, beyond what all drivers do."""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
import threading
import time
from unittest import mock

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import qemu_img
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_base_store
from cinder_cow.drivers import rbd_base_works
from cinder_cow.drivers import rbd_leases
from cinder_cow.refusal import Reason
from cinder_cow.tests import rbd_case
from cinder_cow.tests import rbd_victim

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd as librbd  # noqa: TID251

OBJECT = 4 * units.Mi
SIZE = 16 * units.Mi
LIMITS = qemu_img.Limits(timeout=60)
# Seconds; what is waited for takes a fraction of it.
LIMIT = 30


class BaseCase(rbd_case.FaultCase):
    def clones(self, version):
        """Have all who connect from now on make clones of a version."""
        name = 'rbd_default_clone_format'
        self.cluster.set_config('client', name, version)
        self.addCleanup(
            self.cluster.mon, prefix='config rm', who='client', name=name
        )
        self.driver = self.new_driver()

    def key(self, name='b'):
        return rbd_victim.key_of(name)

    def facts(self, name='b', size=SIZE):
        return dataclasses.replace(
            rbd_victim.facts_of(self.order('base', name)), content_size=size
        )

    def begin(self, name='b', size=SIZE):
        begun = self.driver.begin_base(self.key(name), size)
        self.assertNotIsInstance(begun, (bases.Base, bases.Making))
        return begun

    def made(self, name='b'):
        self.make('base', name)
        return self.driver.find_base(self.key(name))

    def image_at(self, made):
        image = images.ImageInfo('b', 'b', disk_format='raw')
        return image.at(made.location)

    def clone(self, made, name='v', size=None):
        driver = self.driver.bound(base.VolumeRequest(size))
        return driver.clone(self.image_at(made), name)

    def clone_later(self, made, parent=None):
        """Clone a base in another thread.

        :param parent: as it is found first
        """
        executor = concurrent.futures.ThreadPoolExecutor(1)
        self.addCleanup(executor.shutdown)
        found, real = [parent] * bool(parent), self.driver._store.parent

        def find(pool, location):
            return found.pop() if found else real(pool, location)

        self.driver._store.parent = find
        return executor.submit(self.clone, made)

    def retire(self, made):
        self.driver.retire_base(made.name)

    @contextlib.contextmanager
    def opened(self, name, **options):
        with self.ioctx() as ioctx, librbd.Image(ioctx, name, **options) as i:
            yield i

    def data_objects(self):
        with self.ioctx() as ioctx:
            return sorted(
                one.key
                for one in ioctx.list_objects()
                if one.key.startswith('rbd_data.')
            )

    def directory(self):
        top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, top)
        return top


@ddt.ddt
class TestClones(BaseCase):
    @ddt.data(1, 2)
    def test_of_both_versions(self, version):
        self.clones(version)
        made = self.made()
        before = self.data_objects()
        self.assertEqual(made.name, self.clone(made).parent)
        self.assertEqual(made.name, self.driver.show('v').parent)
        self.assertEqual(before, self.data_objects())
        self.assert_stream('v')
        with self.opened('v') as image:
            v2 = bool(image.op_features() & 2)
            parent = image.parent_info()
        self.assertEqual(version == 2, v2)
        self.assertEqual(['v'], self.driver.children(made, 20))
        self.refused(Reason.BASE_IN_USE, call=lambda: self.retire(made))
        self.assert_clean_of(made)
        with self.opened(made.name) as image:
            self.assertIs(True, image.is_protected_snap('snap'))
        # It is no other snapshot by now, and its clone's not in the trash.
        with self.opened('v') as image:
            self.assertEqual(parent, image.parent_info())
        self.driver.delete('v')
        self.retire(made)
        self.assert_clean()

    def assert_clean_of(self, made):
        self.assertEqual([], self.left(made.name, *self.names()))

    def test_children_in_the_trash_and_in_another_pool(self):
        made = self.made()
        self.clone(made)
        with self.ioctx() as ioctx, self.images() as others:
            librbd.RBD().clone(ioctx, made.name, 'snap', others, 'far')
            self.addCleanup(self.remove_far)
            librbd.RBD().trash_move(ioctx, 'v')
        children = self.driver.children(made, 20)
        self.assertEqual({'v (in the trash)', 'images/far'}, set(children))
        self.assertEqual(1, len(self.driver.children(made, 1)))
        error = self.refused(
            Reason.BASE_IN_USE, call=lambda: self.retire(made)
        )
        self.assertIn('images/far', str(error))

    def remove_far(self):
        with self.images() as others:
            librbd.RBD().remove(others, 'far')

    def test_of_content_that_ends_before_its_image(self):
        with self.begin(size=2 * OBJECT) as writer:
            writer.write(b'A' * (OBJECT + 512))
            made = writer.publish(self.facts(size=OBJECT + 512))
        self.assertEqual(OBJECT + 512, self.clone(made).size)
        with self.driver.read('v') as reader:
            self.assertEqual(OBJECT + 512, reader.size)
            self.assertEqual(b'A' * 512, reader.read(OBJECT, 512))
        self.driver.extend('v', 3 * OBJECT)
        with self.driver.read('v') as reader:
            self.assertEqual(bytes(OBJECT), reader.read(OBJECT + 512, OBJECT))

    @ddt.data(1, 2)
    def test_many_clone_a_base_while_it_is_retired(self, version):
        self.clones(version)
        for turn in range(5):
            made = self.made()
            gate = threading.Barrier(5, timeout=LIMIT)
            names = [f'v{turn}-{number}' for number in range(4)]
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                futures = [
                    pool.submit(self.cloned, gate, made, name)
                    for name in names
                ]
                gate.wait()
                in_use = self.is_in_use(made)
                done = {future.result() for future in futures} - {None}
            # Not both, and who was told of a volume has it.
            self.assertEqual(done, set(self.names()))
            self.assertIs(bool(done), in_use)
            for name in done:
                self.assert_stream(name)
                self.driver.delete(name)
            self.retire(made)
            self.assert_clean()

    def cloned(self, gate, made, name):
        """Clone a base when all are ready; return the name if it is there."""
        gate.wait()
        try:
            self.clone(made, name)
        except exception.BackendError as error:
            self.assertIs(Reason.BASE_NOT_FOUND, error.reason)
            return None
        return name

    def is_in_use(self, made):
        try:
            self.retire(made)
        except exception.RequestError as error:
            self.assertIs(Reason.BASE_IN_USE, error.reason)
            return True
        return False

    def test_a_clone_between_the_look_and_the_removal(self):
        self.clones(2)
        made = self.made()
        looks: list[list[str]] = []

        def look(image, limit):
            found = real(image, limit)
            looks.append(found)
            if len(looks) == 1:
                later.append(self.clone_later(made))
                while not real(image, limit):
                    pass
            return found

        later: list[concurrent.futures.Future[base.VolumeInfo]] = []
        real = ceph.children
        with mock.patch.object(ceph, 'children', look):
            self.assertIs(True, self.is_in_use(made))
        # It was a base again before anybody was told otherwise.
        later[0].result(LIMIT)
        self.assert_stream('v')
        found = self.driver.find_base(self.key())
        self.assertEqual(made, found)
        self.assertEqual(['v'], self.driver.children(made, 20))
        self.clone(made, 'w')
        self.assert_stream('w')
        for name in 'vw':
            self.driver.delete(name)
        self.retire(made)
        self.assert_clean()

    def test_a_clone_waits_for_what_becomes_of_its_base(self):
        self.clones(2)
        made = self.made()
        self.clone(made, 'child')
        asked = threading.Event()

        def tell(works, pool, lease):
            # Nobody can clone it until all is as it was.
            with pool.image_of(lease.image, write=True) as image:
                image.unprotect_snap('snap')
                image.rename_snap('snap', 'other')
                later.append(self.clone_later(made, parent))
                self.assertIs(True, asked.wait(LIMIT))
                image.rename_snap('other', 'snap')
            return in_use(works, pool, lease)

        def wait(store, pool, name):
            asked.set()
            real(store, pool, name)

        later: list[concurrent.futures.Future[base.VolumeInfo]] = []
        in_use = rbd_base_works.BaseWorks._in_use
        real = rbd_base_store.BaseStore._wait
        with self.pool_opened() as pool:
            # As it was found the moment before.
            parent = self.driver._store.parent(pool, made.location)
        with (
            mock.patch.object(rbd_base_works.BaseWorks, '_in_use', tell),
            mock.patch.object(rbd_base_store.BaseStore, '_wait', wait),
        ):
            self.assertIs(True, self.is_in_use(made))
            later[0].result(LIMIT)
        self.assert_stream('v')

    @contextlib.contextmanager
    def pool_opened(self):
        with (
            ceph.connected(self.driver._settings.cluster) as connection,
            connection.pool(self.pool) as pool,
        ):
            yield pool


class _TimesOut:
    """An image whose snapshot is made, or not, and nobody is told."""

    def __init__(self, image, done=True):
        self._image = image
        self._done = done

    def create_snap(self, name):
        if self._done:
            self._image.create_snap(name)
        raise librbd.Timeout('timed out', errno=110)

    def __getattr__(self, name):
        return getattr(self._image, name)


class TestWriting(BaseCase):
    def test_who_waits_is_told(self):
        with rbd_victim.victims() as victims:
            victim = victims.order(self.order('base', 'b', slow=True))
            deadline = time.monotonic() + LIMIT
            while not any('a lease on' in one for one in self.left()):
                self.assertLess(time.monotonic(), deadline)
            making = self.driver.begin_base(self.key(), SIZE)
            self.assertIsInstance(making, bases.Making)
            self.assertIn(f'process {victim.pid} on ', making.owner)
            self.assertEqual('', victims.told(victim)['error'])
        self.assertIsInstance(
            self.driver.begin_base(self.key(), SIZE), bases.Base
        )

    def test_what_is_left_is_kept_in_whole_objects(self):
        with self.begin() as writer:
            writer.write(b'A' * OBJECT)
            writer.skip(OBJECT)
            writer.write(b'B' * 512)
            writer.leave()
        # It is left alone until the next one comes, and not for good.
        self.assertEqual([], self.names())
        with self.begin() as writer:
            self.assertEqual(2 * OBJECT, writer.kept)
            pieces = list(writer.kept_pieces())
            self.assertEqual([b'A' * OBJECT, OBJECT], pieces)
            writer.leave()
        settings = dataclasses.replace(self.driver._settings, keep=0)
        rbd.RbdDriver(settings).sweep()
        self.assert_clean()

    def test_what_was_written_behind_is_gone(self):
        with self.begin() as writer:
            writer.write(b'A' * OBJECT)
            writer.flush()
            # As of a request that was under way when its maker died.
            writer._stream.image.write(b'X' * OBJECT, 2 * OBJECT)
            writer.leave()
        with self.begin() as writer:
            self.assertEqual(OBJECT, writer.kept)
            made = writer.publish(self.facts())
        with self.driver.read(made.location) as reader:
            self.assertEqual(b'A', reader.read(OBJECT - 1, 1))
            rest = reader.read(OBJECT, SIZE - OBJECT)
        self.assertEqual(b'', rest.strip(b'\0'))

    def test_what_failed_is_not_kept(self):
        with self.begin(size=64 * units.Mi) as writer:
            writer.write(b'A' * OBJECT)
            writer.flush()
            with (
                self.full(),
                contextlib.suppress(exception.BackendError),
            ):
                for _number in range(12):
                    writer.write(b'B' * OBJECT)
            writer.leave()
        with self.begin(size=64 * units.Mi) as writer:
            self.assertLessEqual(OBJECT, writer.kept)
            length = 0
            for piece in writer.kept_pieces():
                self.assertNotIsInstance(piece, int)
                length += len(piece)
            self.assertEqual(writer.kept, length)

    def test_a_full_cluster(self):
        with self.begin() as writer:
            writer.write(b'A' * OBJECT)
            writer.flush()
            with self.full():
                with contextlib.suppress(exception.BackendError):
                    writer.write(b'A' * OBJECT)
                self.refused(
                    Reason.NO_SPACE,
                    call=lambda: writer.publish(self.facts()),
                )
        self.assert_clean()
        self.assertIsNone(self.driver.find_base(self.key()))

    def test_publishing_into_a_full_cluster(self):
        with self.begin() as writer:
            writer.write(b'A' * OBJECT)
            writer.flush()
            with self.full():
                # Ceph says that it made the snapshot, which cannot be used.
                self.refused(
                    Reason.NO_SPACE,
                    call=lambda: writer.publish(self.facts()),
                )
        self.assertIsNone(self.driver.find_base(self.key()))
        self.assert_clean()

    def test_a_maker_that_died_in_a_full_cluster(self):
        writer = self.begin()
        writer.write(b'A' * OBJECT)
        writer.flush()
        stream = writer._stream
        with self.full():
            stream.image.create_snap('snap')
        # As if it was killed here.
        stream._holding.drop()
        stream._opened.close()
        self.assert_clean()
        self.made()

    def test_publishing_that_only_seems_to_fail(self):
        writer = self.begin()
        writer.write(b'A' * OBJECT)
        stream = writer._stream
        stream.image = _TimesOut(stream.image)
        with writer:
            made = writer.publish(self.facts())
        self.assertEqual(made, self.driver.find_base(self.key()))
        self.assertEqual([], self.left(made.name))

    def test_publishing_that_fails(self):
        writer = self.begin()
        writer.write(b'A' * OBJECT)
        stream = writer._stream
        stream.image = _TimesOut(stream.image, done=False)
        with writer:
            self.refused(
                Reason.CEPH_TIMED_OUT,
                call=lambda: writer.publish(self.facts()),
            )
        self.assertIsNone(self.driver.find_base(self.key()))
        self.assert_clean()

    def test_a_lost_lease_is_told(self):
        with self.begin() as writer:
            writer.write(b'A')
            holding = writer._stream._holding
            other = dataclasses.replace(holding.lease, id='f' * 32)
            rows = holding._pool.rows(rbd_leases.OBJECT)
            # Another one took over, which we did not notice.
            self.assertIs(
                True,
                rows.put(
                    other.volume,
                    other.packed(),
                    was=holding.lease.packed(),
                    unlock=holding.lease.id,
                ),
            )
            self.refused(
                Reason.BASE_LOST, call=lambda: writer.publish(self.facts())
            )
        # And what that one makes is left alone.
        with self.ioctx() as ioctx:
            self.assertIn(other.volume, librbd.RBD().list(ioctx))
        self.made()

    def test_a_lease_that_ended_is_ours_until_it_is_taken_over(self):
        with self.begin() as writer:
            writer.write(b'A')
            holding = writer._stream._holding
            rows = holding._pool.rows(rbd_leases.OBJECT)
            # As when the machine was asleep.
            rows.forget_lock(holding.lease.id)
            self.assertIs(False, rows.is_locked(holding.lease.id))
            made = writer.publish(self.facts())
        self.assertEqual([], self.left(made.name))

    def test_a_lease_that_another_one_saw_end_is_lost(self):
        with self.begin() as writer:
            holding = writer._stream._holding
            rows = holding._pool.rows(rbd_leases.OBJECT)
            rows.forget_lock(holding.lease.id)
            probe = ceph.Lock(holding.lease.id, 'a sweep', 60)
            self.assertIs(True, rows.lock(probe))
            self.refused(
                Reason.BASE_LOST, call=lambda: writer.publish(self.facts())
            )
            rows.forget_lock(holding.lease.id)
        self.assert_clean()

    def test_a_lease_that_ended_is_taken_again_meanwhile(self):
        with self.begin() as writer:
            holding = writer._stream._holding
            rows = holding._pool.rows(rbd_leases.OBJECT)
            probe = ceph.Lock(holding.lease.id, 'a sweep', 2)
            rows.forget_lock(holding.lease.id)
            self.assertIs(True, rows.lock(probe))
            # Renewed in vain at first, each second.
            deadline = time.monotonic() + LIMIT
            while not rows.lock(rbd_leases.lock_of(holding.lease, renew=True)):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.1)
        self.assert_clean()

    def test_one_who_may_not_shut_out_takes_nothing_over(self):
        caps = {'mon': 'allow r', 'osd': f'allow rwx pool={self.pool}'}
        self.cluster.add_user(self.pool, caps)
        self.addCleanup(self.cluster.remove_user, self.pool)
        with rbd_victim.victims() as victims:
            victim = victims.order(self.order('base', 'b', step=8))
            victim.wait()
        strong, self.driver = self.driver, self.new_driver(self.pool)
        for _twice in range(2):
            self.refused(Reason.POOL_DENIED, call=self.begin)
        self.driver = strong
        self.made()
        self.assertEqual([], self.left(self.key().name))


class TestWhatIsKept(BaseCase):
    def test_one_that_is_not_protected_is_protected(self):
        made = self.made()
        for find in (
            lambda: self.driver.find_base(self.key()),
            lambda: self.driver.cloneable(self.image_at(made)),
            lambda: self.driver.begin_base(self.key(), SIZE),
        ):
            with self.opened(made.name) as image:
                image.unprotect_snap('snap')
            find()
            with self.opened(made.name) as image:
                self.assertIs(True, image.is_protected_snap('snap'))

    def test_one_whose_facts_are_damaged(self):
        made = self.made()
        for text in ('{', '[]', '{"key": 1}', '\u00e4', '[' * 100000):
            with self.opened(made.name) as image:
                image.metadata_set('cow.facts', text)
            (found,) = self.driver.list_bases()
            self.assertEqual('', found.facts.key.image_id)
            verdict = self.driver.cloneable(self.image_at(made))
            self.assertIs(Reason.BASE_CHANGED, verdict.refusal.reason)
            self.refused(Reason.BASE_CHANGED, call=lambda: self.clone(made))
            self.refused(
                Reason.BASE_CHANGED,
                call=lambda: self.driver.set_base_facts(
                    made.name, pinned=True
                ),
            )
        self.retire(made)
        self.assert_clean()

    def test_facts_that_are_changed_meanwhile(self):
        made = self.made()
        calls: list[str] = []
        real = rbd_base_store.BaseStore.get

        def get(store, pool, name):
            found = real(store, pool, name)
            calls.append(name)
            if len(calls) == 1:
                self.driver.set_base_facts(name, pinned=True)
            return found

        with mock.patch.object(rbd_base_store.BaseStore, 'get', get):
            self.driver.set_base_facts(made.name, last_used=5)
        facts = self.driver.find_base(self.key()).facts
        self.assertEqual((True, 5), (facts.pinned, facts.last_used))

    def test_a_manifest_of_some_size(self):
        made = self.made()
        manifest = b'0123456789abcdef' * (9 * units.Mi // 16) + b'x'
        self.driver.set_base_manifest(made.name, manifest)
        self.assertIs(True, manifest == self.driver.base_manifest(made.name))
        self.assertEqual([], self.left(made.name))
        self.retire(made)
        self.assert_clean()


@ddt.ddt
class TestLinks(BaseCase):
    def link(self, size=SIZE, volume='volume-1'):
        return self.driver.link_base(self.key(), size, volume)

    @ddt.data(1, 2)
    def test_no_byte_is_copied(self, version):
        self.clones(version)
        self.make('stream', 'volume-1')
        before = self.data_objects()
        with self.link() as writer:
            self.assertEqual(0, writer.kept)
            self.assertRaises(ValueError, writer.write, b'x')
            made = writer.publish(self.facts())
        self.assertEqual(before, self.data_objects())
        self.assertEqual(0, made.allocated)
        # A clone of version 2 needs no snapshot of the volume.
        with self.opened('volume-1') as image:
            kept = [one['name'] for one in image.list_snaps()]
        self.assertEqual(version == 1, any('cow-link-' in k for k in kept))
        self.clone(made)
        self.assert_stream('v')
        error = self.refused(
            Reason.VOLUME_HAS_SNAPSHOTS,
            call=lambda: self.driver.delete('volume-1'),
        )
        self.assertIn(made.name, str(error))
        self.driver.delete('v')
        self.retire(made)
        with self.opened('volume-1') as image:
            self.assertEqual([], list(image.list_snaps()))
        self.assert_clean('volume-1')
        self.driver.delete('volume-1')
        self.assert_clean()

    @ddt.data(1, 2)
    def test_an_aborted_one_leaves_the_volume_as_it_was(self, version):
        self.clones(version)
        self.make('stream', 'volume-1')
        for finish in ('abort', 'leave'):
            writer = self.link()
            getattr(writer, finish)()
            with self.opened('volume-1') as image:
                self.assertEqual([], list(image.list_snaps()))
            self.assert_clean('volume-1')

    def test_a_guest_writes_to_the_volume_afterwards(self):
        self.make('stream', 'volume-1')
        with self.link() as writer:
            made = writer.publish(self.facts())
        with self.opened('volume-1') as image:
            image.write(b'X' * SIZE, 0)
        self.clone(made)
        self.assert_stream('v')

    def test_of_a_clone_its_base_is_of_two_levels(self):
        first = self.made()
        self.clone(first, 'volume-1')
        key = self.key('second')
        with self.driver.link_base(key, SIZE, 'volume-1') as writer:
            made = writer.publish(self.facts('second'))
        self.clone(made)
        self.assert_stream('v')
        self.refused(Reason.BASE_IN_USE, call=lambda: self.retire(first))

    def test_a_volume_that_is_open(self):
        self.make('stream', 'volume-1')
        with self.opened('volume-1'):
            error = self.refused(Reason.NOT_LINKABLE, call=self.link)
            self.assertIn('it is open to ', str(error))
        self.assert_clean('volume-1')

    def test_a_volume_that_is_smaller(self):
        self.make('stream', 'volume-1')
        self.refused(Reason.NOT_LINKABLE, call=lambda: self.link(SIZE + 512))
        self.assert_clean('volume-1')

    def test_a_volume_that_cannot_be_cloned(self):
        with self.ioctx() as ioctx:
            librbd.RBD().create(ioctx, 'volume-1', SIZE, features=0)
        self.refused(Reason.NOT_LINKABLE, call=self.link)
        self.assert_clean('volume-1')


class TestQemuImg(BaseCase):
    def convert(self, source, target):
        qemu_img.convert(
            qemu_img.Disk(source, 'raw'),
            qemu_img.Disk(target, 'raw'),
            zeroed=True,
            limits=LIMITS,
        )

    def file(self, content=b''):
        path = self.directory() / 'file'
        path.write_bytes(content)
        return path

    def test_writes_a_base(self):
        source = self.file(b'Q' * OBJECT)
        with self.begin() as writer:
            self.convert(qemu_img.QemuNode.path(source), writer.qemu_target())
            made = writer.publish(self.facts())
        with self.driver.read(made.location) as reader:
            self.assertEqual(b'Q' * OBJECT, reader.read(0, OBJECT))
        self.assertEqual([], self.left(made.name))

    def test_what_it_wrote_is_not_kept(self):
        for write_first in (False, True):
            with self.begin() as writer:
                if write_first:
                    writer.write(b'A' * OBJECT * 2)
                    writer.flush()
                self.convert(
                    qemu_img.QemuNode.path(self.file(b'Q' * OBJECT)),
                    writer.qemu_target(),
                )
                writer.write(b'A' * OBJECT)
                writer.leave()
            self.assert_clean()

    def test_what_it_wrote_is_gone_after_a_restart(self):
        with self.begin() as writer:
            self.convert(
                qemu_img.QemuNode.path(self.file(b'Q' * OBJECT)),
                writer.qemu_target(),
            )
            writer.restart()
            made = writer.publish(self.facts())
        with self.driver.read(made.location) as reader:
            self.assertEqual(bytes(OBJECT), reader.read(0, OBJECT))

    def test_reads_bases_volumes_and_images(self):
        made = self.made()
        self.clone(made)
        image = rbd_victim.image_at(self.location)
        for reader in (
            self.driver.read(made.location),
            self.driver.read('v'),
            self.driver.read_image(image),
        ):
            target = self.file()
            with reader:
                self.assertIsInstance(reader, base.QemuSource)
                with target.open('r+b') as file:
                    file.truncate(reader.size)
                self.convert(
                    reader.qemu_source(), qemu_img.QemuNode.path(target)
                )
                content = reader.read(0, reader.size)
            self.assertIs(True, target.read_bytes() == content)

    def test_a_snapshot_is_read_as_it_was(self):
        with self.images() as ioctx, librbd.Image(ioctx, self.image) as image:
            image.write(b'later', 0)
        target = self.file(bytes(rbd_case.SIZE))
        with self.driver.read_image(
            rbd_victim.image_at(self.location)
        ) as reader:
            self.convert(reader.qemu_source(), qemu_img.QemuNode.path(target))
        self.assertEqual(self.content, target.read_bytes()[:4096])
