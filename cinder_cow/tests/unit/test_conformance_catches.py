# SPDX-License-Identifier: Apache-2.0
"""The conformance suite fails where it must.

Each driver here breaks a promise of the contract, and the case that is about
that promise must fail. The sound driver must pass them all.
"""

import collections
import contextlib
import dataclasses
import functools
import time
from typing import Any
import unittest

import ddt
import fixtures
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_location
from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import common
from cinder_cow.drivers import memory
from cinder_cow.tests import conformance

# A broken driver may wait for ever; a sound one is far from these limits.
LIMIT_SECONDS = 30
WAIT_SECONDS = 1


class Result(unittest.TestResult):
    """Keeps what ended a case, by the name of the case."""

    def __init__(self):
        super().__init__()
        self.ended_by = {}

    def addError(self, test, err):
        super().addError(test, err)
        self.ended_by[test._testMethodName] = err[1]

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.ended_by[test._testMethodName] = err[1]


def run_cases(make_driver, *names):
    """Run these cases of the suite, or all of them, against a driver."""

    # In here, so that no test runner finds it.
    class Suite(conformance.BaseLinkerConformance, unittest.TestCase):
        def make_driver(self):
            return make_driver()

        def overwrite(self, volume_name, offset, data):
            self.driver._volumes[volume_name].write(offset, data)

        @contextlib.contextmanager
        def failing_writes(self):
            self.driver.capacity = 0
            yield
            self.driver.capacity = None

        def space_used(self):
            disks = [
                *self.driver._volumes.values(),
                *(kept.disk for kept in self.driver._bases.values()),
            ]
            blocks = {id(b) for disk in disks for b in disk.blocks.values()}
            return len(blocks) * memory.BLOCK

    chosen = names or unittest.TestLoader().getTestCaseNames(Suite)
    result = Result()
    unittest.TestSuite(map(Suite, chosen)).run(result)
    return result


class Driver(memory.MemoryDriver):
    """The sound driver, with parts that can be replaced by broken ones."""

    def __init__(
        self,
        writer=memory._VolumeWriter,
        base_writer=memory._BaseWriter,
        reader=memory._Reader,
    ):
        super().__init__()
        self.parts = (writer, base_writer, reader)

    def _open(self, volume_name, size):
        super()._open(volume_name, size)
        return self.parts[0](self, volume_name, size)

    def begin_base(self, key, size):
        begun = super().begin_base(key, size)
        if not isinstance(begun, memory._BaseWriter):
            return begun
        kept = (begun.disk, begun.kept) if begun.kept else None
        return self.parts[1](self, key.name, size, kept)

    def read(self, source):
        reader: Any = super().read(source)
        return self.parts[2](reader._disk)


# Sinks


class ShortSink(memory._MemorySink):
    """A write keeps only the first half of its data."""

    def write(self, data):
        half = len(data) // 2
        super().write(data[:half])
        self.skip(len(data) - half)


class ShortWriter(ShortSink, memory._VolumeWriter):
    pass


class ShortBaseWriter(ShortSink, memory._BaseWriter):
    pass


class NameKeepingSink(memory._MemorySink):
    """After an abort the name stays in use."""

    def abort(self):
        self._done = True
        if self.name in {**self.driver._volumes, **self.driver._bases}:
            self.driver._finish(self.name)


class NameKeepingWriter(NameKeepingSink, memory._VolumeWriter):
    pass


class NameKeepingBaseWriter(NameKeepingSink, memory._BaseWriter):
    pass


class TailLosingWriter(memory._VolumeWriter):
    """What fills no whole block of 4096 bytes at the end is lost."""

    def close(self):
        tail = self.disk.size % 4096
        self.disk.write(self.disk.size - tail, bytes(tail))
        super().close()


class OverlappingWriter(memory._VolumeWriter):
    """A write begins where the last whole sector ended."""

    def write(self, data):
        super().write(data)
        self._offset -= len(data) % 512


class ReferringWriter(memory._VolumeWriter):
    """Keeps the caller's buffers and reads them when it is closed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.kept = []

    def write(self, data):
        self.kept.append((self._advance(len(data)), data))

    def close(self):
        for offset, data in self.kept:
            self.disk.write(offset, bytes(data))
        super().close()


class DirtyWriter(memory._VolumeWriter):
    """What is not written is not zeros."""

    def __init__(self, *args):
        super().__init__(*args)
        self.disk.write(0, b'x' * self.disk.size)


class DirtySkipWriter(memory._VolumeWriter):
    """What is skipped is not zeros."""

    def skip(self, length):
        self.write(b'x' * length)


class BoundlessWriter(memory._VolumeWriter):
    """Writes beyond the size."""

    def _advance(self, length):
        self._offset += length
        return self._offset - length


class EarlyWriter(memory._VolumeWriter):
    """The volume is there from its first write on."""

    def write(self, data):
        super().write(data)
        self.driver._volumes[self.name] = self.disk


class LateAbortWriter(memory._VolumeWriter):
    """An abort after close removes the volume."""

    def close(self):
        super().close()
        self.driver._volumes[self.name] = self.disk

    def abort(self):
        super().abort()
        self.driver._volumes.pop(self.name, None)


class PublishingAbortWriter(memory._VolumeWriter):
    """An abort publishes what was written."""

    def abort(self):
        self.driver._volumes[self.name] = self.disk
        super().abort()


class PublishingExitWriter(memory._VolumeWriter):
    """Leaving the block unfinished publishes the volume."""

    def __exit__(self, *args):
        self.close()


class EarlyBaseWriter(memory._BaseWriter):
    """The base is there from its first write on."""

    def write(self, data):
        super().write(data)
        key = bases.BaseKey('image-1', 'sha512:1')
        self.publish(bases.BaseFacts(key, '', 'raw', 0, '', 0))


class VolumeMakingBaseWriter(memory._BaseWriter):
    """A base is a volume too."""

    def publish(self, facts):
        self.driver._volumes[self.name] = self.disk
        return super().publish(facts)


class HidingWriter(memory._VolumeWriter):
    """Publishes although a write failed."""

    def _check_capacity(self, more):
        pass


class HidingBaseWriter(memory._BaseWriter):
    """Publishes although a write failed."""

    def _check_capacity(self, more):
        pass


class SwallowingWriter(memory._VolumeWriter):
    """Leaving the block hides the error that it was left by."""

    def __exit__(self, *args):
        super().__exit__(*args)
        return True


class LateSink(memory._MemorySink):
    """Takes writes at any time."""

    def write(self, data):
        done, self._done = self._done, False
        super().write(data)
        self._done = done


class LateWriter(LateSink, memory._VolumeWriter):
    pass


class LateBaseWriter(LateSink, memory._BaseWriter):
    pass


class LatePublishingWriter(memory._BaseWriter):
    """Publishes what was aborted."""

    def publish(self, facts):
        self._done = False
        return super().publish(facts)


class FactLosingWriter(memory._BaseWriter):
    """Keeps the facts in seconds."""

    def publish(self, facts):
        made_at = int(facts.made_at)
        return super().publish(dataclasses.replace(facts, made_at=made_at))


# Readers


class HoleReader(memory._Reader):
    """Calls data holes."""

    def extents(self):
        for extent in super().extents():
            yield dataclasses.replace(extent, hole=True)


class ShortExtentsReader(memory._Reader):
    """The extents end before the volume does."""

    def extents(self):
        return iter(list(super().extents())[:-1])


class BoundlessReader(memory._Reader):
    """Reads zeros beyond the size."""

    def read(self, offset, length):
        return self._disk.read(offset, length)


# Volumes


class NoDriver(memory.MemoryDriver):
    """Has not all methods of a driver."""

    extend: Any = None


class RoundingDriver(memory.MemoryDriver):
    """A volume is some blocks large."""

    def _open(self, volume_name, size):
        return super()._open(volume_name, -(-size // 4096) * 4096)


class SectorRoundingDriver(memory.MemoryDriver):
    """A volume is some sectors large."""

    def _open(self, volume_name, size):
        return super()._open(volume_name, -(-size // 512) * 512)


class OverwritingDriver(memory.MemoryDriver):
    """A volume that is there gives way to a new one."""

    def _open(self, volume_name, size):
        self._volumes.pop(volume_name, None)
        return super()._open(volume_name, size)


class TwoMakersDriver(memory.MemoryDriver):
    """A name that is being made can be taken."""

    def _open(self, volume_name, size):
        self._making.pop(volume_name, None)
        return super()._open(volume_name, size)


class RacingDriver(memory.MemoryDriver):
    """Looks whether a name is free, and takes it some time later."""

    def _open(self, volume_name, size):
        if self.exists(volume_name):
            return super()._open(volume_name, size)
        time.sleep(0.1)
        return memory._VolumeWriter(self, volume_name, size)


class AnyNameDriver(memory.MemoryDriver):
    """Takes any name for a new volume."""

    def _open(self, volume_name, size):
        return memory._VolumeWriter(self, volume_name, size)


class AnyNameSeekingDriver(memory.MemoryDriver):
    """Takes any name to look for."""

    def exists(self, volume_name):
        return volume_name in self._volumes


class PathReadingDriver(memory.MemoryDriver):
    """Takes a path for a volume."""

    def _disk(self, volume_name):
        if volume_name.startswith('/'):
            return memory._Disk(0)
        return super()._disk(volume_name)


class AnyNameDeletingDriver(memory.MemoryDriver):
    """Takes any name to delete."""

    def delete(self, volume_name):
        self._volumes.pop(volume_name, None)


class SuffixDriver(memory.MemoryDriver):
    """Takes a suffix for its own."""

    def _open(self, volume_name, size):
        return super()._open(volume_name.removesuffix('.raw'), size)


class MakingDriver(memory.MemoryDriver):
    """What is not there is made, empty."""

    def _disk(self, volume_name):
        return self._volumes.setdefault(volume_name, memory._Disk(0))


class DirtyExtendDriver(memory.MemoryDriver):
    """What is new is not zeros."""

    def extend(self, volume_name, size):
        old = self.show(volume_name).size
        super().extend(volume_name, size)
        self._volumes[volume_name].write(old, b'x')


class LosingExtendDriver(memory.MemoryDriver):
    """What was there is lost."""

    def extend(self, volume_name, size):
        super().extend(volume_name, size)
        self._volumes[volume_name].blocks.clear()


class IdleExtendDriver(memory.MemoryDriver):
    """Extending does nothing."""

    def extend(self, volume_name, size):
        self.show(volume_name)


class ShrinkingDriver(memory.MemoryDriver):
    """Extending may cut a volume short."""

    def extend(self, volume_name, size):
        self._disk(volume_name).size = size


class LyingDeleteDriver(memory.MemoryDriver):
    """A deleted volume is still there."""

    def delete(self, volume_name):
        common.check_volume_name(volume_name)


class StrictDeleteDriver(memory.MemoryDriver):
    """Fails to delete what is gone."""

    def delete(self, volume_name):
        self._disk(volume_name)
        super().delete(volume_name)


class NameKeepingDeleteDriver(memory.MemoryDriver):
    """The name of a deleted volume stays in use."""

    def delete(self, volume_name):
        super().delete(volume_name)
        self._making[volume_name] = None


class DirtyStorageDriver(memory.MemoryDriver):
    """What was deleted is in the volumes that come after it."""

    def __init__(self):
        super().__init__()
        self.freed: dict[int, bytes] = {}

    def _open(self, volume_name, size):
        writer = super()._open(volume_name, size)
        writer.disk.blocks.update(self.freed)
        return writer

    def delete(self, volume_name):
        if self.exists(volume_name):
            self.freed.update(self._volumes[volume_name].blocks)
        super().delete(volume_name)


class UnorderedDriver(memory.MemoryDriver):
    """Lists volumes as they were made."""

    def list(self):
        return map(self.show, self._volumes)


# Clones


class CloneDriver(memory.MemoryDriver):
    """Makes a sound clone, and then spoils it."""

    def clone(self, image_info, volume_name):
        super().clone(image_info, volume_name)
        parent = self._parent(image_info.locations[0]).disk
        self.spoil(volume_name, self._volumes[volume_name], parent)
        return self.show(volume_name)

    def spoil(self, name, disk, parent):
        raise NotImplementedError


class EmptyCloneDriver(CloneDriver):
    """A clone has nothing of its parent."""

    def spoil(self, name, disk, parent):
        disk.blocks.clear()


class DirtyCloneDriver(CloneDriver):
    """A parent's holes are not zeros in its clone."""

    def spoil(self, name, disk, parent):
        for number in range(parent.size // memory.BLOCK):
            disk.blocks.setdefault(number, b'x' * memory.BLOCK)


class DirtyLargeCloneDriver(CloneDriver):
    """What lies behind the parent's end is not zeros."""

    def spoil(self, name, disk, parent):
        disk.write(parent.size, b'x' * (disk.size - parent.size))


class ParentSharingDriver(CloneDriver):
    """A clone has the blocks of its parent as its own."""

    def spoil(self, name, disk, parent):
        disk.blocks = parent.blocks


class SiblingSharingDriver(CloneDriver):
    """The clones of one parent are one."""

    def __init__(self):
        super().__init__()
        self.tables: dict[int, dict[int, bytes]] = {}

    def spoil(self, name, disk, parent):
        disk.blocks = self.tables.setdefault(id(parent), disk.blocks)


class FollowingDriver(CloneDriver):
    """A clone needs its parent, and the parent may go."""

    def spoil(self, name, disk, parent):
        disk.blocks = collections.ChainMap({}, parent.blocks)

    def retire_base(self, name):
        if name in self._bases:
            self._bases[name].disk.blocks.clear()
        super().retire_base(name)


class CopyingDisk(memory._Disk):
    """Shares all its blocks, until the first write copies them all."""

    shared = True

    def write(self, offset, data):
        self.shared = False
        super().write(offset, data)


class CopyingDriver(CloneDriver):
    """The first write to a clone copies all of it."""

    def spoil(self, name, disk, parent):
        self._volumes[name] = CopyingDisk(disk.size, disk.blocks)

    def show(self, volume_name):
        shared = getattr(self._disk(volume_name), 'shared', False)
        info = super().show(volume_name)
        return dataclasses.replace(info, allocated=0) if shared else info


class FullCopyDriver(CloneDriver):
    """A clone is a full copy."""

    def spoil(self, name, disk, parent):
        for number, block in disk.blocks.items():
            disk.blocks[number] = bytes(bytearray(block))


class CloneHoleDriver(memory.MemoryDriver):
    """Calls a hole what a clone shares with its parent."""

    def read(self, source):
        reader: Any = super().read(source)
        return HoleReader(reader._disk) if self._bases else reader


class AnyNameCloneDriver(memory.MemoryDriver):
    """Takes any name for a clone."""

    def clone(self, image_info, volume_name):
        try:
            return super().clone(image_info, volume_name)
        except exception.RequestError as error:
            if error.reason is not refusal.Reason.INVALID_NAME:
                raise
            return super().clone(image_info, 'any')


class NameKeepingCloneDriver(memory.MemoryDriver):
    """The name of a clone that was refused stays in use."""

    def clone(self, image_info, volume_name):
        try:
            return super().clone(image_info, volume_name)
        except exception.RequestError:
            self._making[volume_name] = None
            raise


class BindingDriver(memory.MemoryDriver):
    """Is bound itself, and for ever."""

    def bound(self, request):
        self.request = request
        return self


class OwnSizeCloneDriver(memory.MemoryDriver):
    """A clone is as large as its parent, whatever was asked for."""

    def clone(self, image_info, volume_name):
        whole = self.bound(base.VolumeRequest())
        return memory.MemoryDriver.clone(whole, image_info, volume_name)


class TruncatingDriver(OwnSizeCloneDriver):
    """A clone is as large as was asked for, whatever that cuts off."""

    def clone(self, image_info, volume_name):
        super().clone(image_info, volume_name)
        if self.request.size is not None:
            self._volumes[volume_name].size = self.request.size
        return self.show(volume_name)


class ParentDeletingDriver(memory.MemoryDriver):
    """A volume that is deleted takes the bases along."""

    def delete(self, volume_name):
        super().delete(volume_name)
        self._bases.clear()


class ImpatientDriver(memory.MemoryDriver):
    """Fails where another clone is being made."""

    def clone(self, image_info, volume_name):
        if self._making:
            raise exception.BackendError.because(
                refusal.Reason.BUSY, what='all', owner='another', seconds=0
            )
        self._making['any'] = None
        time.sleep(0.01)
        self._making.pop('any', None)
        return super().clone(image_info, volume_name)


# Bases


class NoBaseKeeper(memory.MemoryDriver):
    """Has not all methods of a base keeper."""

    retire_base: Any = None


class HashFindingDriver(memory.MemoryDriver):
    """Finds a base by its hash alone."""

    def find_base(self, key):
        for made in self.list_bases():
            if made.facts.key.content_id == key.content_id:
                return made
        return None


class HashGivingDriver(memory.MemoryDriver):
    """Gives the maker of a base one of the same hash."""

    def begin_base(self, key, size):
        for made in self.list_bases():
            if made.facts.key.content_id == key.content_id:
                return made
        return super().begin_base(key, size)


class BaseMakingDriver(memory.MemoryDriver):
    """Reads a base that is not there, as empty."""

    def read(self, source):
        name = getattr(source, 'name', '')
        if name and name not in self._bases:
            return memory._Reader(memory._Disk(0))
        return super().read(source)


class QuittingDriver(memory.MemoryDriver):
    """Where the first maker of a base gave up, a second makes zeros."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def begin_base(self, key, size):
        begun: Any = super().begin_base(key, size)
        if key in self.seen and hasattr(begun, 'skip'):
            begun.write = lambda data: begun.skip(len(data))
        self.seen.add(key)
        return begun


class ImageFindingDriver(memory.MemoryDriver):
    """Finds a base by its image alone, whatever is in it by now."""

    def find_base(self, key):
        for made in self.list_bases():
            if made.facts.key.image_id == key.image_id:
                return made
        return None


class TwoBaseMakersDriver(memory.MemoryDriver):
    """A base can have two makers."""

    def begin_base(self, key, size):
        self._making.pop(key.name, None)
        return super().begin_base(key, size)


class WaitingDriver(memory.MemoryDriver):
    """A second maker of a base waits for the first."""

    def begin_base(self, key, size):
        deadline = time.monotonic() + 2 * WAIT_SECONDS
        while key.name in self._making and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().begin_base(key, size)


class DiscreetDriver(memory.MemoryDriver):
    """Does not say who makes a base."""

    def begin_base(self, key, size):
        begun = super().begin_base(key, size)
        if isinstance(begun, bases.Making):
            return dataclasses.replace(begun, owner='')
        return begun


class RemakingDriver(memory.MemoryDriver):
    """A second maker makes the base again."""

    def begin_base(self, key, size):
        begun = super().begin_base(key, size)
        if isinstance(begun, bases.Base):
            return memory._BaseWriter(self, key.name, size, None)
        return begun


class SilentWriter(memory._BaseWriter):
    """Tells nobody how far it is."""

    def tell(self, progress):
        pass


# What is left of bases


class KeepingAbortWriter(memory._BaseWriter):
    """What was aborted is kept."""

    def abort(self):
        if not self._done:
            self.driver._kept[self.name] = self.disk, self._offset
        super().abort()


class OldKeepingAbortWriter(memory._BaseWriter):
    """What was kept stays, also where it is aborted."""

    def abort(self):
        if not self._done and self.kept:
            self.driver._kept[self.name] = self.disk, self.kept
        super().abort()


class BoastingWriter(memory._BaseWriter):
    """Keeps more than was written."""

    def leave(self):
        self._offset = self.disk.size
        super().leave()


class HoleKeepingWriter(memory._BaseWriter):
    """What was kept reads as zeros."""

    def kept_pieces(self):
        yield self.kept


class MisplacingWriter(memory._BaseWriter):
    """What comes behind what was kept goes to the start."""

    def __init__(self, *args):
        super().__init__(*args)
        self._offset = 0


class WholeLosingWriter(memory._BaseWriter):
    """Of what was left whole, nothing is there any more."""

    def __init__(self, *args):
        super().__init__(*args)
        if self.kept == self.disk.size:
            self.disk = memory._Disk(self.disk.size)


class TwiceCountingWriter(memory._BaseWriter):
    """Counts once more what was kept before."""

    def leave(self):
        self._offset += self.kept
        super().leave()


class PublishingLeaveWriter(memory._BaseWriter):
    """What is left is published."""

    def leave(self):
        if not self._done:
            key = bases.BaseKey('image-1', 'sha512:1')
            self.publish(bases.BaseFacts(key, '', 'raw', 0, '', 0))


class EndlessWriter(memory._BaseWriter):
    """Goes on writing after it left."""

    def leave(self):
        super().leave()
        self._done = False


class LateLeavingWriter(memory._BaseWriter):
    """Leaving what was published takes it back."""

    def leave(self):
        self.driver._bases.pop(self.name, None)
        super().leave()


class OldBytesWriter(memory._BaseWriter):
    """After a restart what was kept is still there."""

    def restart(self):
        if not self.kept:
            super().restart()
        self.kept = self._offset = 0


class IdleRestartWriter(memory._BaseWriter):
    """Begins again only where something was kept."""

    def restart(self):
        if self.kept:
            super().restart()


class OldLeavingWriter(memory._BaseWriter):
    """Leaves what was kept at first, whatever came after it."""

    def restart(self):
        self.old = self.disk, self.kept
        super().restart()

    def leave(self):
        super().leave()
        if self.old[1]:
            self.driver._kept[self.name] = self.old


class SizeIgnoringWriter(memory._BaseWriter):
    """Goes on with what was left of a base of another size."""

    def __init__(self, driver, name, size, kept):
        super().__init__(driver, name, size, kept)
        if kept and kept[0].size != size:
            self.disk.blocks = kept[0].blocks


class SizeIgnoringDriver(memory.MemoryDriver):
    """Takes what was left, of whatever size."""

    def begin_base(self, key, size):
        kept = self._kept.get(key.name)
        begun = super().begin_base(key, size)
        if isinstance(begun, memory._BaseWriter):
            return SizeIgnoringWriter(self, key.name, size, kept)
        return begun


# What is kept with a base


class FactForgettingDriver(memory.MemoryDriver):
    """Whoever changes a fact of a base resets the others."""

    def set_base_facts(self, name, **changes):
        others = {'last_used': 0, 'pinned': False, 'missing_since': 0}
        super().set_base_facts(name, **{**others, **changes})


class FactSpreadingDriver(memory.MemoryDriver):
    """A fact of one base becomes one of all."""

    def set_base_facts(self, name, **changes):
        for each in list(self._bases):
            super().set_base_facts(each, **changes)


class ByteLosingDriver(memory.MemoryDriver):
    """Whoever changes facts of a base loses its bytes."""

    def set_base_facts(self, name, **changes):
        super().set_base_facts(name, **changes)
        self._bases[name].disk.blocks.clear()


class TextManifestDriver(memory.MemoryDriver):
    """Takes a manifest for text."""

    def base_manifest(self, name):
        text = super().base_manifest(name).decode(errors='replace')
        return text.encode()


class AddingManifestDriver(memory.MemoryDriver):
    """A manifest is added to the one before it."""

    def set_base_manifest(self, name, manifest):
        before = self.base_manifest(name)
        super().set_base_manifest(name, before + manifest)


class ManifestDriver(memory.MemoryDriver):
    """Keeps manifests apart from bases, for ever."""

    def __init__(self):
        super().__init__()
        self.manifests: dict[str, bytes] = {}

    def base_manifest(self, name):
        self._base(name)
        return self.manifests.get(name, b'')

    def set_base_manifest(self, name, manifest):
        self._base(name)
        self.manifests[name] = manifest


class LenientFactsDriver(memory.MemoryDriver):
    """Changes facts of what is not there, as if it were."""

    def set_base_facts(self, name, **changes):
        if name in self._bases:
            super().set_base_facts(name, **changes)


class LenientManifestDriver(memory.MemoryDriver):
    """A base that is not there has an empty manifest."""

    def base_manifest(self, name):
        return super().base_manifest(name) if name in self._bases else b''


class LenientSettingDriver(memory.MemoryDriver):
    """A manifest of what is not there is lost in silence."""

    def set_base_manifest(self, name, manifest):
        if name in self._bases:
            super().set_base_manifest(name, manifest)


# Linking


class NoBaseLinker(memory.MemoryDriver):
    """Cannot link."""

    link_base: Any = None


class LinkDriver(memory.MemoryDriver):
    """Links a volume, and then spoils that."""

    def link_base(self, key, size, volume_name):
        begun = super().link_base(key, size, volume_name)
        if isinstance(begun, memory._BaseWriter):
            self.spoil(begun, self._volumes[volume_name])
        return begun

    def spoil(self, writer, volume):
        raise NotImplementedError


class EmptyLinkDriver(LinkDriver):
    """A linked base has nothing of its volume."""

    def spoil(self, writer, volume):
        writer.disk.blocks.clear()


class UncutLinkDriver(LinkDriver):
    """A linked base has all of its volume."""

    def spoil(self, writer, volume):
        writer.disk.blocks = dict(volume.blocks)


class WholeLinkDriver(LinkDriver):
    """A linked base is as large as its volume."""

    def spoil(self, writer, volume):
        writer.disk.blocks = dict(volume.blocks)
        writer.disk.size = volume.size


class FollowingLinkDriver(LinkDriver):
    """A linked base has the blocks of its volume as its own."""

    def spoil(self, writer, volume):
        writer.disk.blocks = volume.blocks


class ChildMakingLinkDriver(LinkDriver):
    """A linked volume becomes a child of its base."""

    def spoil(self, writer, volume):
        volume.parent = writer.name

    def show(self, volume_name):
        info = super().show(volume_name)
        parent = self._disk(volume_name).parent
        return dataclasses.replace(info, parent=parent)


class CopyingLinkDriver(LinkDriver):
    """Copies the volume."""

    def spoil(self, writer, volume):
        for number, block in volume.blocks.items():
            writer.disk.blocks[number] = bytes(bytearray(block))


class PublishingLinkDriver(LinkDriver):
    """A linked base is there, published or not."""

    def spoil(self, writer, volume):
        key = bases.BaseKey('image-1', 'sha512:1')
        writer.abort = lambda: None
        writer.publish(bases.BaseFacts(key, '', 'raw', 0, '', 0))


class KeepingLinkDriver(LinkDriver):
    """What was linked and left is kept, as if it had been written."""

    def spoil(self, writer, volume):
        writer._offset = writer.disk.size


class MixingLinkDriver(memory.MemoryDriver):
    """What was left by another maker is in a linked base."""

    def link_base(self, key, size, volume_name):
        volume = self._disk(volume_name)
        begun = self.begin_base(key, size)
        if isinstance(begun, memory._BaseWriter):
            begun.disk.blocks.update(volume.cut(size))
        return begun


class RemakingLinkDriver(memory.MemoryDriver):
    """Links a base that is there once more."""

    def link_base(self, key, size, volume_name):
        self._bases.pop(key.name, None)
        return super().link_base(key, size, volume_name)


class TwoLinkersDriver(memory.MemoryDriver):
    """Links a base that another makes."""

    def link_base(self, key, size, volume_name):
        self._making.pop(key.name, None)
        return super().link_base(key, size, volume_name)


class NameKeepingLinkDriver(memory.MemoryDriver):
    """Refuses to link, and keeps the name of the base."""

    def link_base(self, key, size, volume_name):
        super().link_base(key, size, volume_name)
        raise exception.BackendError.because(
            refusal.Reason.NOT_LINKABLE, volume=volume_name, problem='it is'
        )


class AnyChildDriver(memory.MemoryDriver):
    """Takes any volume for a base's child."""

    def children(self, base, limit):
        return sorted(self._volumes)

    def retire_base(self, name):
        if name in self._bases and self._volumes:
            raise self._error(
                refusal.Reason.BASE_IN_USE,
                base=name,
                children=', '.join(self._volumes),
            )
        super().retire_base(name)


class AnyLocationDriver(memory.MemoryDriver):
    """Says that it can clone anything."""

    def cloneable(self, image_info):
        return refusal.YES


class AnyBackendDriver(memory.MemoryDriver):
    """Takes the base of another back end for its own."""

    def _parent(self, location):
        name = getattr(location, 'name', '')
        return super()._parent(image_location.BaseLocation(self.backend, name))


class LyingRetireDriver(memory.MemoryDriver):
    """A retired base is still there."""

    def retire_base(self, name):
        pass


class CarelessRetireDriver(memory.MemoryDriver):
    """Retires a base although it knows of its children."""

    def children(self, base, limit):
        return [volume.name for volume in self.list()]


def with_writer(writer):
    return functools.partial(Driver, writer=writer)


def with_base_writer(writer):
    return functools.partial(Driver, base_writer=writer)


def with_reader(reader):
    return functools.partial(Driver, reader=reader)


@ddt.ddt
class TestConformanceCatches(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.Timeout(LIMIT_SECONDS, gentle=True))

    @ddt.named_data(['memory', memory.MemoryDriver], ['parts', Driver])
    def test_a_sound_driver_passes(self, make_driver):
        result = run_cases(make_driver)
        self.assertEqual({}, result.ended_by)
        self.assertEqual([], result.skipped)
        self.assertGreater(result.testsRun, 40)

    @ddt.named_data(
        # A volume by open, write and close
        ['no_driver', NoDriver, 'test_is_a_driver'],
        [
            'short_write',
            with_writer(ShortWriter),
            'test_written_bytes_are_read',
        ],
        [
            'dirty_skip',
            with_writer(DirtySkipWriter),
            'test_written_bytes_are_read',
        ],
        [
            'last_block_lost',
            with_writer(TailLosingWriter),
            'test_last_block_is_kept',
        ],
        [
            'writes_overlap',
            with_writer(OverlappingWriter),
            'test_many_small_writes_are_one_stream',
        ],
        [
            'buffers_by_reference',
            with_writer(ReferringWriter),
            'test_buffer_may_change_after_write',
        ],
        [
            'not_written_is_not_zeros',
            with_writer(DirtyWriter),
            'test_what_is_not_written_is_zeros',
        ],
        ['wrong_size', RoundingDriver, 'test_size_is_what_was_asked'],
        ['wrong_odd_size', SectorRoundingDriver, 'test_odd_sizes'],
        [
            'seen_before_close',
            with_writer(EarlyWriter),
            'test_nothing_is_seen_before_close',
        ],
        [
            'abort_after_close_removes',
            with_writer(LateAbortWriter),
            'test_close_twice',
        ],
        [
            'abort_keeps_the_name',
            with_writer(NameKeepingWriter),
            'test_abort_leaves_nothing',
        ],
        [
            'abort_publishes',
            with_writer(PublishingAbortWriter),
            'test_abort_leaves_nothing',
        ],
        [
            'leaving_publishes',
            with_writer(PublishingExitWriter),
            'test_leaving_the_block_unfinished_aborts',
        ],
        [
            'an_error_publishes',
            with_writer(PublishingExitWriter),
            'test_an_error_in_the_block_comes_through',
        ],
        [
            'writes_beyond_the_size',
            with_writer(BoundlessWriter),
            'test_writing_beyond_the_size_is_an_error',
        ],
        [
            'overwrites_a_volume',
            OverwritingDriver,
            'test_a_name_in_use_is_refused_and_kept',
        ],
        [
            'two_makers_of_a_name',
            TwoMakersDriver,
            'test_a_name_being_made_is_refused',
        ],
        ['makes_any_name', AnyNameDriver, 'test_bad_names_are_refused'],
        [
            'looks_for_any_name',
            AnyNameSeekingDriver,
            'test_bad_names_are_refused',
        ],
        [
            'deletes_any_name',
            AnyNameDeletingDriver,
            'test_bad_names_are_refused',
        ],
        ['mixes_up_names', SuffixDriver, 'test_names_that_look_alike'],
        # Reading
        [
            'calls_data_a_hole',
            with_reader(HoleReader),
            'test_extents_cover_the_volume_and_tell_the_truth',
        ],
        [
            'extents_end_early',
            with_reader(ShortExtentsReader),
            'test_extents_cover_the_volume_and_tell_the_truth',
        ],
        [
            'reads_beyond_the_end',
            with_reader(BoundlessReader),
            'test_reading_beyond_the_end_is_an_error',
        ],
        [
            'reads_what_is_not_there',
            MakingDriver,
            'test_reading_what_is_not_there',
        ],
        # Extend, delete, list
        [
            'extend_adds_no_zeros',
            DirtyExtendDriver,
            'test_extend_keeps_content_and_adds_zeros',
        ],
        [
            'extend_loses_content',
            LosingExtendDriver,
            'test_extend_keeps_content_and_adds_zeros',
        ],
        [
            'extend_does_nothing',
            IdleExtendDriver,
            'test_extend_keeps_content_and_adds_zeros',
        ],
        ['extend_shrinks', ShrinkingDriver, 'test_extend_never_shrinks'],
        [
            'extends_what_is_not_there',
            MakingDriver,
            'test_extend_what_is_not_there',
        ],
        ['delete_lies', LyingDeleteDriver, 'test_delete'],
        [
            'delete_fails_the_second_time',
            StrictDeleteDriver,
            'test_delete_what_is_gone_succeeds',
        ],
        [
            'delete_keeps_the_name',
            NameKeepingDeleteDriver,
            'test_a_name_is_free_after_delete',
        ],
        [
            'list_has_no_order',
            UnorderedDriver,
            'test_list_tells_what_show_tells',
        ],
        # Bases
        ['no_base_keeper', NoBaseKeeper, 'test_is_a_base_keeper'],
        [
            'base_found_by_hash_alone',
            HashFindingDriver,
            'test_a_base_is_found_by_its_whole_key',
        ],
        [
            'base_found_by_image_alone',
            ImageFindingDriver,
            'test_a_base_is_found_by_its_whole_key',
        ],
        [
            'short_write_to_a_base',
            with_base_writer(ShortBaseWriter),
            'test_a_base_is_no_volume',
        ],
        [
            'base_is_a_volume',
            with_base_writer(VolumeMakingBaseWriter),
            'test_a_base_is_no_volume',
        ],
        [
            'base_found_before_publish',
            with_base_writer(EarlyBaseWriter),
            'test_an_unfinished_base_is_not_found',
        ],
        [
            'abort_keeps_the_base',
            with_base_writer(NameKeepingBaseWriter),
            'test_an_unfinished_base_is_not_found',
        ],
        [
            'second_maker_is_a_maker_too',
            TwoBaseMakersDriver,
            'test_a_second_maker_is_told_of_the_first',
        ],
        [
            'second_maker_waits',
            WaitingDriver,
            'test_a_second_maker_is_told_of_the_first',
        ],
        [
            'owner_is_not_told',
            DiscreetDriver,
            'test_a_second_maker_is_told_of_the_first',
        ],
        [
            'progress_is_not_told',
            with_base_writer(SilentWriter),
            'test_progress_is_told_to_those_who_wait',
        ],
        [
            'second_maker_makes_it_again',
            RemakingDriver,
            'test_a_second_maker_is_given_the_first_ones_base',
        ],
        [
            'aborted_bytes_are_kept',
            with_base_writer(KeepingAbortWriter),
            'test_a_second_maker_begins_where_the_first_gave_up',
        ],
        [
            'second_maker_makes_zeros',
            QuittingDriver,
            'test_a_second_maker_begins_where_the_first_gave_up',
        ],
        # What is left of bases
        [
            'more_is_kept_than_written',
            with_base_writer(BoastingWriter),
            'test_what_was_left_can_be_gone_on_with',
        ],
        [
            'kept_bytes_read_as_zeros',
            with_base_writer(HoleKeepingWriter),
            'test_what_was_left_can_be_gone_on_with',
        ],
        [
            'goes_on_at_the_start',
            with_base_writer(MisplacingWriter),
            'test_what_was_left_can_be_gone_on_with',
        ],
        [
            'left_whole_and_lost',
            with_base_writer(WholeLosingWriter),
            'test_what_was_left_whole_can_be_gone_on_with',
        ],
        [
            'kept_is_counted_twice',
            with_base_writer(TwiceCountingWriter),
            'test_what_was_left_twice_can_be_gone_on_with',
        ],
        [
            'leaving_publishes_a_base',
            with_base_writer(PublishingLeaveWriter),
            'test_what_was_left_is_no_base',
        ],
        [
            'writes_after_leaving',
            with_base_writer(EndlessWriter),
            'test_what_was_left_is_no_base',
        ],
        [
            'leaving_takes_back',
            with_base_writer(LateLeavingWriter),
            'test_leaving_a_published_base_does_nothing',
        ],
        [
            'aborted_bytes_stay_kept',
            with_base_writer(OldKeepingAbortWriter),
            'test_what_was_gone_on_with_and_aborted_is_gone',
        ],
        [
            'restart_keeps_old_bytes',
            with_base_writer(OldBytesWriter),
            'test_restart_forgets_what_was_kept',
        ],
        [
            'restart_does_nothing',
            with_base_writer(IdleRestartWriter),
            'test_restart_forgets_what_was_written',
        ],
        [
            'leaves_what_it_restarted',
            with_base_writer(OldLeavingWriter),
            'test_what_was_left_after_a_restart_is_what_came_after_it',
        ],
        [
            'kept_of_another_size',
            SizeIgnoringDriver,
            'test_what_was_left_of_another_size_is_forgotten',
        ],
        # What is kept with a base
        [
            'facts_reset_each_other',
            FactForgettingDriver,
            'test_facts_are_changed_one_by_one',
        ],
        [
            'facts_of_all_bases',
            FactSpreadingDriver,
            'test_changed_facts_change_nothing_else',
        ],
        [
            'facts_for_bytes',
            ByteLosingDriver,
            'test_changed_facts_change_nothing_else',
        ],
        [
            'manifest_is_text',
            TextManifestDriver,
            'test_a_manifest_is_kept_with_its_base',
        ],
        [
            'manifest_grows',
            AddingManifestDriver,
            'test_a_manifest_is_kept_with_its_base',
        ],
        [
            'manifest_stays',
            ManifestDriver,
            'test_a_manifest_goes_with_its_base',
        ],
        [
            'facts_of_nothing',
            LenientFactsDriver,
            'test_nothing_is_kept_with_a_base_that_is_not_there',
        ],
        [
            'manifest_of_nothing',
            LenientManifestDriver,
            'test_nothing_is_kept_with_a_base_that_is_not_there',
        ],
        [
            'manifest_for_nothing',
            LenientSettingDriver,
            'test_nothing_is_kept_with_a_base_that_is_not_there',
        ],
        # Linking
        [
            'no_base_linker',
            NoBaseLinker,
            'test_is_a_base_linker',
        ],
        [
            'link_is_empty',
            EmptyLinkDriver,
            'test_a_linked_base_has_the_content_of_the_volume',
        ],
        [
            'refused_link_keeps_the_name',
            NameKeepingLinkDriver,
            'test_a_linked_base_has_the_content_of_the_volume',
        ],
        [
            'link_is_not_cut',
            WholeLinkDriver,
            'test_a_linked_base_ends_where_its_content_does',
        ],
        [
            'link_ends_in_no_zeros',
            UncutLinkDriver,
            'test_a_linked_base_ends_where_its_content_does',
        ],
        [
            'link_follows_its_volume',
            FollowingLinkDriver,
            'test_a_linked_base_does_not_follow_its_volume',
        ],
        [
            'linked_volume_is_a_child',
            ChildMakingLinkDriver,
            'test_a_linked_volume_does_not_follow_its_base',
        ],
        [
            'link_is_a_copy',
            CopyingLinkDriver,
            'test_linking_takes_almost_no_space',
        ],
        [
            'link_is_published',
            PublishingLinkDriver,
            'test_an_aborted_link_leaves_nothing',
        ],
        [
            'link_is_kept',
            KeepingLinkDriver,
            'test_an_aborted_link_leaves_nothing',
        ],
        [
            'link_over_old_bytes',
            MixingLinkDriver,
            'test_linking_where_somebody_left_something',
        ],
        [
            'links_again',
            RemakingLinkDriver,
            'test_linking_what_is_there_or_being_made',
        ],
        [
            'two_linkers',
            TwoLinkersDriver,
            'test_linking_what_is_there_or_being_made',
        ],
        [
            'links_what_is_not_there',
            MakingDriver,
            'test_linking_what_is_not_there',
        ],
        # Clones
        [
            'clone_is_empty',
            EmptyCloneDriver,
            'test_a_clone_has_the_bytes_of_its_parent',
        ],
        [
            'clone_has_its_own_size',
            OwnSizeCloneDriver,
            'test_a_clone_has_the_size_asked_for',
        ],
        [
            'clone_ends_in_no_zeros',
            DirtyLargeCloneDriver,
            'test_a_clone_has_the_size_asked_for',
        ],
        [
            'clone_truncates',
            TruncatingDriver,
            'test_a_clone_is_never_a_truncation',
        ],
        [
            'clone_is_copied_later',
            CopyingDriver,
            'test_a_clone_takes_almost_no_space',
        ],
        [
            'blocks_shared_with_the_parent',
            ParentSharingDriver,
            'test_a_write_to_a_clone_shows_in_no_other',
        ],
        [
            'blocks_shared_with_a_sibling',
            SiblingSharingDriver,
            'test_a_write_to_a_clone_shows_in_no_other',
        ],
        [
            'clone_fills_holes',
            DirtyCloneDriver,
            'test_clone_and_stream_give_the_same_bytes',
        ],
        [
            'delete_takes_the_parent',
            ParentDeletingDriver,
            'test_a_clone_can_be_extended_and_deleted',
        ],
        [
            'clone_overwrites_a_volume',
            OverwritingDriver,
            'test_a_clone_does_not_take_a_name_in_use',
        ],
        [
            'everything_is_cloneable',
            AnyLocationDriver,
            'test_only_own_bases_are_cloneable',
        ],
        [
            'any_back_end_is_its_own',
            AnyBackendDriver,
            'test_only_own_bases_are_cloneable',
        ],
        [
            'clone_follows_its_parent',
            FollowingDriver,
            'test_a_base_with_children_stays',
        ],
        [
            'retire_lies',
            LyingRetireDriver,
            'test_a_base_with_children_stays',
        ],
        [
            'retires_with_children',
            CarelessRetireDriver,
            'test_a_base_with_children_stays',
        ],
        ['fails_at_once', ImpatientDriver, 'test_many_at_once'],
        [
            'many_winners',
            RacingDriver,
            'test_one_name_many_makers_one_winner',
        ],
        [
            'close_hides_an_error',
            with_writer(HidingWriter),
            'test_close_tells_of_a_write_that_failed',
        ],
        [
            'publish_hides_an_error',
            with_base_writer(HidingBaseWriter),
            'test_publish_tells_of_a_write_that_failed',
        ],
        [
            'leaving_hides_an_error',
            with_writer(SwallowingWriter),
            'test_an_error_in_the_block_comes_through',
        ],
        [
            'writes_after_close',
            with_writer(LateWriter),
            'test_a_late_write_changes_nothing',
        ],
        [
            'writes_after_publish',
            with_base_writer(LateBaseWriter),
            'test_a_published_base_never_changes',
        ],
        [
            'publishes_after_abort',
            with_base_writer(LatePublishingWriter),
            'test_an_aborted_base_is_not_published',
        ],
        ['reads_a_path', PathReadingDriver, 'test_bad_names_reach_nothing'],
        [
            'storage_is_not_cleared',
            DirtyStorageDriver,
            'test_what_was_deleted_shows_in_no_other',
        ],
        [
            'base_given_by_hash_alone',
            HashGivingDriver,
            'test_a_hash_gives_nobody_the_bytes_of_another_image',
        ],
        [
            'facts_are_lost',
            with_base_writer(FactLosingWriter),
            'test_the_facts_of_a_base_are_kept',
        ],
        [
            'reads_a_base_that_is_not_there',
            BaseMakingDriver,
            'test_reading_a_base_that_is_not_there',
        ],
        [
            'bound_for_ever',
            BindingDriver,
            'test_a_bound_view_leaves_the_driver_as_it_is',
        ],
        [
            'clones_any_name',
            AnyNameCloneDriver,
            'test_bad_names_of_clones_are_refused',
        ],
        [
            'calls_the_parents_data_a_hole',
            CloneHoleDriver,
            'test_extents_of_a_base_and_its_clone_tell_the_truth',
        ],
        [
            'refused_clone_keeps_the_name',
            NameKeepingCloneDriver,
            'test_a_clone_is_never_a_truncation',
        ],
        [
            'clone_is_a_full_copy',
            FullCopyDriver,
            'test_clones_take_almost_no_space',
        ],
        [
            'any_volume_is_a_child',
            AnyChildDriver,
            'test_a_base_with_children_stays',
        ],
    )
    def test_is_caught(self, make_driver, case):
        self.useFixture(
            fixtures.MonkeyPatch(
                'cinder_cow.tests.conformance.LIMIT_SECONDS', WAIT_SECONDS
            )
        )
        error = run_cases(make_driver, case).ended_by.get(case)
        # A crash of the broken driver itself would prove nothing.
        self.assertIsInstance(error, (AssertionError, exception.CowError))
