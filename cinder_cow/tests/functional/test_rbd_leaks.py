# SPDX-License-Identifier: Apache-2.0
"""What Cinder's own RBD driver leaves is removed, and nothing else is.

It is made here as that driver makes it; through Cinder, see
:mod:`.test_plugin_life`.
"""

from concurrent import futures
import contextlib
from unittest import mock
import uuid

import ddt
from oslo_utils import units

from cinder_cow.drivers import rbd_leaks
from cinder_cow.drivers import rbd_life
from cinder_cow.drivers import rbd_undo
from cinder_cow.tests import rbd_place
from cinder_cow.tests.functional import test_rbd

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rados  # noqa: TID251
    import rbd as librbd  # noqa: TID251

SNAPSHOT = f'snapshot-{uuid.UUID(int=1)}'
# Of an image in the trash: TrashImageSpec of cls_rbd.
REMOVING = 3
BACKUP = f'backup.{uuid.UUID(int=2)}.snap.1700000000.00'


@ddt.ddt
class TestLeaks(test_rbd.RbdTestCase):
    def setUp(self):
        super().setUp()
        self.driver = self.rbd_driver()
        self.life = rbd_life.Life(self.settings(), 'rbd1')
        self.version = '1'

    # What Cinder's own driver does

    @contextlib.contextmanager
    def ioctx(self):
        with self.cluster.connect() as client:
            client.conf_set('rbd_default_clone_format', self.version)
            with client.open_ioctx(self.pool) as ioctx:
                yield ioctx

    def volume(self, name=None):
        name = name or f'volume-{uuid.uuid4()}'
        with self.ioctx() as ioctx:
            librbd.RBD().create(ioctx, name, units.Mi, 20)
        return name

    def snapshot(self, volume, snapshot):
        with self.ioctx() as ioctx, librbd.Image(ioctx, volume) as image:
            image.create_snap(snapshot)
            image.protect_snap(snapshot)

    def clone(self, source):
        name = f'volume-{uuid.uuid4()}'
        self.snapshot(source, f'{name}.clone_snap')
        with self.ioctx() as ioctx:
            librbd.RBD().clone(
                ioctx, source, f'{name}.clone_snap', ioctx, name
            )
        return name

    def rename(self, volume):
        """Delete a volume that has clones."""
        with self.ioctx() as ioctx:
            librbd.RBD().rename(ioctx, volume, f'{volume}.deleted')

    def remove(self, *volumes):
        with self.ioctx() as ioctx:
            for volume in volumes:
                librbd.RBD().remove(ioctx, volume)

    # What we do

    def delete(self, volume, source=''):
        kin = self.life.kin(volume)
        if kin.has_children:
            self.life.set_aside(volume)
        else:
            try:
                self.remove(volume)
            except librbd.ImageHasSnapshots:
                self.rename(volume)
        self.life.after_delete(volume, kin, source)

    def nothing_is_young(self):
        patched = mock.patch.object(rbd_leaks, 'YOUNG_SECONDS', -5)
        patched.start()
        self.addCleanup(patched.stop)

    def found(self):
        return [orphan.what for orphan in self.driver.orphans()]

    def repair(self):
        """Repair, and look again; return what was found first."""
        before = self.held()
        found = self.found()
        self.assertEqual(before, self.held())
        removed = list(self.driver.remove_orphans())
        self.assertEqual(found, [orphan.what for orphan in removed])
        self.assertEqual([], self.found())
        return found

    def held(self):
        """Tell the images of the pool, the trash, and all snapshots."""
        with self.ioctx() as ioctx:
            names = librbd.RBD().list(ioctx)
            found = {f'trash:{x["name"]}' for x in self.trash(ioctx)}
            for name in names:
                with librbd.Image(ioctx, name, read_only=True) as image:
                    snapshots = [one['name'] for one in image.list_snaps()]
                found |= {name, *(f'{name}@{one}' for one in snapshots)}
        return sorted(found)

    def trash(self, ioctx):
        return list(librbd.RBD().trash_list(ioctx))

    @ddt.data('1', '2')
    def test_generations(self, version):
        self.version = version
        first = self.volume()
        second = self.clone(first)
        third = self.clone(second)
        self.delete(first)
        self.delete(second)
        self.assertEqual(5, len(self.held()))
        self.delete(third)
        self.assertEqual([], self.held())

    @ddt.data('1', '2')
    def test_of_two_clones_the_other_keeps_its_parent(self, version):
        self.version = version
        parent = self.volume()
        one, other = self.clone(parent), self.clone(parent)
        self.delete(parent)
        self.delete(one)
        kept = f'{parent}.deleted'
        self.assertEqual(
            sorted([kept, f'{kept}@{other}.clone_snap', other]), self.held()
        )
        self.delete(other)
        self.assertEqual([], self.held())

    @ddt.data('1', '2')
    def test_deleted_at_once(self, version):
        self.version = version
        parent = self.volume()
        clones = [self.clone(parent) for _ in range(8)]
        self.delete(parent)
        kins = {clone: self.life.kin(clone) for clone in clones}
        self.remove(*clones)
        with futures.ThreadPoolExecutor(8) as pool:
            for one, kin in kins.items():
                pool.submit(self.life.after_delete, one, kin, '')
        self.assertEqual([], self.held())

    @ddt.data('1', '2')
    def test_killed_in_the_middle(self, version):
        self.version = version
        parent = self.volume()
        clone = self.clone(parent)
        self.delete(parent)
        self.remove(clone)
        # Cinder deletes it once more when it is started.
        self.life.after_delete(clone, self.life.kin(clone), parent)
        self.assertEqual([], self.held())

    def half_remove(self, name):
        """Break off a removal, after its first step."""
        with self.ioctx() as ioctx:
            librbd.RBD().trash_move(ioctx, name, 0)
            with rados.ReadOpCtx() as read:
                found, _status = ioctx.get_omap_vals(read, '', 'id_', 2)
                ioctx.operate_read_op(read, 'rbd_trash')
                ((key, row),) = found
            state = row[:6] + bytes([REMOVING]) + row[7:]
            with rados.WriteOpCtx() as write:
                ioctx.set_omap(write, (key,), (state,))
                ioctx.operate_write_op(write, 'rbd_trash')

    @ddt.data('1', '2')
    def test_removal_that_was_broken_off(self, version):
        self.version = version
        parent = self.volume()
        for finish in (
            lambda clone: self.life.after_delete(clone, rbd_leaks.Kin(), ''),
            lambda _clone: self.assertEqual(1, len(self.repair())),
        ):
            clone = self.clone(parent)
            self.half_remove(clone)
            # Another one has its name.
            self.volume(clone)
            finish(clone)
            self.assertEqual(sorted([parent, clone]), self.held())
            self.remove(clone)
        self.remove(parent)
        self.assertEqual([], rbd_place.left(self.cluster, self.pool))

    def test_killed_before_the_clone_was_made(self):
        parent = self.volume()
        clone = f'volume-{uuid.uuid4()}'
        self.snapshot(parent, f'{clone}.clone_snap')
        self.life.after_failure(clone, parent)
        self.assertEqual([parent], self.held())

    @ddt.data('1', '2')
    def test_flattened(self, version):
        self.version = version
        for parent_is_first in (True, False):
            parent = self.volume()
            clone = self.clone(parent)
            with self.ioctx() as ioctx, librbd.Image(ioctx, clone) as image:
                image.flatten()
            if parent_is_first:
                self.delete(parent)
                self.assertEqual([clone], self.held())
                self.delete(clone, parent)
            else:
                self.delete(clone, parent)
                self.assertEqual([parent], self.held())
                self.delete(parent)
            self.assertEqual([], self.held())

    def test_not_made(self):
        parent = self.volume()
        clone = self.clone(parent)
        self.life.after_failure(clone, parent)
        self.assertEqual([parent], self.held())

    @ddt.data(SNAPSHOT, BACKUP)
    def test_what_a_snapshot_needs_is_kept(self, snapshot):
        self.nothing_is_young()
        parent = self.volume()
        self.snapshot(parent, snapshot)
        clone = self.clone(parent)
        self.rename(parent)
        self.delete(clone)
        kept = f'{parent}.deleted'
        self.assertEqual([kept, f'{kept}@{snapshot}'], self.held())
        self.life.sweep()
        self.assertEqual([], self.repair())
        self.assertEqual([kept, f'{kept}@{snapshot}'], self.held())

    def test_a_volume_in_use_keeps_its_own(self):
        self.nothing_is_young()
        parent = self.volume()
        clone = self.clone(parent)
        self.snapshot(parent, SNAPSHOT)
        before = self.held()
        self.assertEqual([], self.repair())
        self.life.sweep()
        self.assertEqual(before, self.held())
        self.delete(clone)
        self.assertEqual([parent, f'{parent}@{SNAPSHOT}'], self.held())

    @ddt.data(('1', 0), ('2', 0), ('1', 3600))
    @ddt.unpack
    def test_trash(self, version, delay):
        self.version = version
        parent = self.volume()
        clone = self.clone(parent)
        with self.ioctx() as ioctx:
            librbd.RBD().trash_move(ioctx, parent, delay)
        self.delete(clone)
        kept = [f'trash:{parent}'] if delay else []
        self.assertEqual(kept, self.held())
        with self.ioctx() as ioctx:
            for one in self.trash(ioctx):
                librbd.RBD().trash_remove(ioctx, one['id'], force=True)

    @ddt.data('1', '2')
    def test_found_and_repaired(self, version):
        self.version = version
        first = self.volume()
        second = self.clone(first)
        third = self.clone(second)
        living = self.clone(first)
        self.rename(first)
        self.rename(second)
        self.remove(third)
        # It may still be made.
        self.assertEqual([], self.repair())
        self.nothing_is_young()
        self.assertEqual(
            [
                f'snapshot {second}.deleted@{third}.clone_snap',
                f'image {second}.deleted',
            ],
            self.repair(),
        )
        # And, with it, the snapshot that it hung on itself.
        kept = f'{first}.deleted'
        self.assertEqual(
            sorted([kept, f'{kept}@{living}.clone_snap', living]), self.held()
        )
        self.remove(living)
        self.assertEqual(2, len(self.repair()))
        self.assertEqual([], self.held())

    def test_found_in_the_trash(self):
        self.nothing_is_young()
        parent = self.volume()
        clone = self.clone(parent)
        with self.ioctx() as ioctx:
            librbd.RBD().trash_move(ioctx, parent, 0)
        self.assertEqual([], self.repair())
        self.remove(clone)
        # Only who asks for it has it removed for good.
        before = self.held()
        self.life.sweep()
        self.assertEqual(before, self.held())
        self.assertEqual(2, len(self.repair()))
        self.assertEqual([], self.held())

    def test_swept_at_the_start(self):
        parent = self.volume()
        clone = self.clone(parent)
        self.rename(parent)
        self.remove(clone)
        before = self.held()
        self.life.sweep()
        self.assertEqual(before, self.held())
        self.nothing_is_young()
        self.life.sweep()
        self.assertEqual([], self.held())

    def test_of_others(self):
        self.nothing_is_young()
        names = ['mine.deleted', 'volume-1.deleted', 'a.clone_snap']
        for name in names:
            self.volume(name)
        self.snapshot('mine.deleted', 'mine.clone_snap')
        before = self.held()
        self.life.sweep()
        self.assertEqual([], self.repair())
        self.assertEqual(before, self.held())

    def test_partial(self):
        volume = f'volume-{uuid.uuid4()}'
        self.volume(rbd_undo.partial_name(volume))
        self.life.after_delete(volume, self.life.kin(volume), '')
        self.assertEqual([], self.held())
        self.assertEqual([], rbd_place.left(self.cluster, self.pool))

    def test_partial_that_is_being_written(self):
        volume = f'volume-{uuid.uuid4()}'
        with self.driver.open(volume, units.Mi) as writer:
            self.life.after_delete(volume, self.life.kin(volume), '')
            writer.write(bytes(4096))
            writer.close()
        self.assertEqual([volume], self.held())
