# SPDX-License-Identifier: Apache-2.0
"""Every remedy that is printed is carried out, and then it is possible.

One test a reason, named after its code. Each brings the refusal about, reads
its remedy, does what it says, and tries again.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from typing import Any

import fixtures
from oslotest import base as test_base
import requests

from cinder_cow import blank
from cinder_cow import exception
from cinder_cow import exporting
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import scrubbing
from cinder_cow import volume_records
from cinder_cow.cli import app
from cinder_cow.cli import backend as backends
from cinder_cow.cli import fsck
from cinder_cow.cli import image_argument
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import file
from cinder_cow.drivers import memory
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.refusal import Reason
from cinder_cow.tests import corpus
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server
from cinder_cow.tests import rbd_case
from cinder_cow.tests import rbd_victim
from cinder_cow.tests import services
from cinder_cow.tests import storage
from cinder_cow.tests.functional import test_plugin_signatures
from cinder_cow.tests.functional import test_plugin_telling
from cinder_cow.tests.functional import test_rbd_remedies
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Framing

GIB = 2**30


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver, **settings):
        self.driver = driver
        self.settings = opts.Settings(**settings)


class StreamOnly:
    """A driver with nothing but what is required."""

    def __init__(self):
        self._driver = memory.MemoryDriver('simple')
        self.backend = 'simple'
        for name in ('open', 'read', 'exists', 'show', 'extend', 'delete',
                     'list'):  # fmt: skip
            setattr(self, name, getattr(self._driver, name))

    def bound(self, request):
        return self


class CloneOnly(StreamOnly):
    """A driver that clones, and keeps no bases."""

    def cloneable(self, image_info):
        return self._driver.cloneable(image_info)

    def clone(self, image_info, volume_name):
        return self._driver.clone(image_info, volume_name)


class Volumes:
    """Tells of one volume, which is Glance's and holds an image."""

    def __init__(self, name, image_id):
        self._record = volume_records.VolumeRecord(
            name=name,
            backend='file',
            project_id='glance',
            image_id=image_id,
            readonly=True,
            attached=False,
        )

    def volume(self, volume_id):
        return self._record


class TestRemedies(test_base.BaseTestCase):
    """Remedies of what stands in the way of a volume from an image."""

    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, self.top)
        self.driver = file.FileDriver(self.top / 'volumes')
        self.manager = Manager(self.driver)
        self.count = 0

    # What the tests are told in

    def raw(self, name='image.raw', size=1024 * 1024):
        path = self.top / name
        path.write_bytes(os.urandom(size))
        return path

    def qcow2(self, name='image.qcow2', *options):
        path = self.top / name
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', *options,
             self.raw('source.raw'), path], check=True,
        )  # fmt: skip
        return path

    def convert(self, old):
        """Do what remedies say: qemu-img convert -O qcow2 OLD NEW."""
        self.count += 1
        new = self.top / f'new-{self.count}'
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', old, new], check=True
        )
        return new

    def create(self, path, claimed=None, size=None, change=None):
        self.count += 1
        with image_source.FileSource(path) as source:
            image = image_source.describe(source, claimed)
            if change:
                image = dataclasses.replace(image, **change)
            return self.manager.create_volume_from_image(
                f'v{self.count}', image, source, size
            )

    def prepare(self, path):
        with image_source.FileSource(path) as source:
            image = image_source.describe(source, None)
            return self.manager.prepare_base(image, source)

    def plan(self, path, change=None, size=None):
        with image_source.FileSource(path) as source:
            image = image_source.describe(source, None)
            if change:
                image = dataclasses.replace(image, **change)
            return self.manager.plan_volume_from_image(image, source, size)

    def candidate(self, kind, path, change=None):
        plan = self.plan(path, change)
        (found,) = [c for c in plan.candidates if str(c).startswith(kind)]
        return found

    def refused(self, reason, call, *args, **options):
        """Call; it must be refused for that reason. Return the remedy."""
        try:
            call(*args, **options)
        except exception.CowError as error:
            self.assertIs(reason, error.reason, str(error))
            return error.refusal.remedy
        raise AssertionError(f'{reason} was not raised')

    def refused_candidate(self, reason, kind, path, change=None):
        """Check that it is refused, for that reason among others."""
        found = self.candidate(kind, path, change)
        (remedy,) = [r.remedy for r in found.refusals if r.reason is reason]
        return remedy

    def assert_possible(self, kind, path, change=None):
        found = self.candidate(kind, path, change)
        self.assertEqual([], [str(r) for r in found.refusals])

    def record(self, **fields):
        return {
            'id': '5c8f1a6e-7c0b-4bb0-8b6e-0f8a6d3c1b11',
            'name': 'an image',
            'disk_format': 'raw',
            'status': 'active',
            **fields,
        }

    # The request

    def test_invalid_name(self):
        remedy = self.refused(Reason.INVALID_NAME, self.driver.open, 'a/b', 1)
        self.assertIn('letters, digits and ".", "_", "+", "-"', remedy)
        self.driver.open('a.b_c+d-e0', 1).abort()

    def test_volume_exists(self):
        path = self.raw()
        name = self.create(path).volume.name
        self.count -= 1
        remedy = self.refused(Reason.VOLUME_EXISTS, self.create, path)
        self.assertIn('another name, or delete that volume', remedy)
        self.create(path)
        self.driver.delete(name)
        self.count = 0
        self.create(path)

    def test_volume_not_found(self):
        self.create(self.raw())
        remedy = self.refused(
            Reason.VOLUME_NOT_FOUND, self.driver.show, 'nothing'
        )
        self.assertIn('cinder-cow volume list', remedy)
        for volume in self.driver.list():
            self.driver.show(volume.name)

    def test_volume_too_small(self):
        path = self.top / 'large.raw'
        with path.open('wb') as image:
            image.truncate(GIB + 512)
        remedy = self.refused(
            Reason.VOLUME_TOO_SMALL, self.create, path, size=GIB
        )
        (gib,) = re.findall(r'at least (\d+) GiB', remedy)
        self.create(path, size=int(gib) * GIB)

    def test_shrink(self):
        volume = self.create(self.raw()).volume
        remedy = self.refused(
            Reason.SHRINK, self.driver.extend, volume.name, volume.size - 512
        )
        self.assertIn('give at least its size', remedy)
        self.driver.extend(volume.name, volume.size)

    def test_export_exists(self):
        volume = self.create(self.raw()).volume
        path = self.top / 'exported'
        path.touch()

        def export(path):
            with self.driver.read(volume.name) as reader:
                exporting.export(reader, path, lambda *told: None)

        remedy = self.refused(Reason.EXPORT_EXISTS, export, path)
        self.assertIn('another path, or remove that file', remedy)
        export(self.top / 'another')
        path.unlink()
        export(path)

    def test_export_failed(self):
        volume = self.create(self.raw()).volume

        def export(path):
            with self.driver.read(volume.name) as reader:
                exporting.export(reader, path, lambda *told: None)

        remedy = self.refused(
            Reason.EXPORT_FAILED, export, self.top / 'no' / 'where'
        )
        self.assertIn('a directory that you may write to', remedy)
        export(self.top / 'where')

    # The configuration

    def test_backend_unknown(self):
        conf = self.top / 'cinder.conf'
        conf.write_text('[files]\n')
        arguments = argparse.Namespace(
            config_file=[str(conf)], backend='other'
        )
        remedy = self.refused(
            Reason.BACKEND_UNKNOWN, backends.from_arguments, arguments
        )
        self.assertIn('--backend', remedy)
        arguments.backend = 'files'
        remedy = self.refused(
            Reason.BACKEND_UNKNOWN, backends.from_arguments, arguments
        )
        self.assertIn('Set cow_file_dir in section [files]', remedy)
        conf.write_text(f'[files]\ncow_file_dir = {self.top}/files\n')
        backends.from_arguments(arguments)

    def test_layout_unknown(self):
        root = self.top / 'other'
        root.mkdir()
        (root / 'a.raw').touch()
        remedy = self.refused(Reason.LAYOUT_UNKNOWN, file.FileDriver, root)
        self.assertIn('give an empty directory', remedy)
        file.FileDriver(self.top / 'empty')

    def test_cow_disabled(self):
        path = self.raw()
        self.manager = Manager(self.driver, cow_enabled=False)
        for kind in ('clone', 'make'):
            remedy = self.refused_candidate(Reason.COW_DISABLED, kind, path)
            self.assertIn('Set cow_enabled = true in section [file]', remedy)
        self.manager = Manager(self.driver, cow_enabled=True)
        self.assert_possible('make', path)

    def test_fallback_refused(self):
        path = self.raw()
        self.manager = Manager(self.driver, cow_fallback='refuse')
        remedy = self.refused_candidate(Reason.FALLBACK_REFUSED, 'full', path)
        self.assertIn('Set cow_fallback = stream in section [file]', remedy)
        self.manager = Manager(self.driver, cow_fallback='stream')
        self.assert_possible('full', path)

    def test_not_cloneable(self):
        path = self.raw()
        keeper = memory.MemoryDriver()
        self.manager = Manager(keeper)
        self.create(path)
        (made,) = keeper.list_bases()
        change = {'locations': (made.location,)}
        self.manager = Manager(StreamOnly())
        remedy = self.refused_candidate(
            Reason.NOT_CLONEABLE, 'clone of base', path, change
        )
        self.assertIn('whose driver clones', remedy)
        self.manager = Manager(keeper)
        self.assert_possible('clone of base', path, change)

    def test_no_base_keeping(self):
        path = self.raw()
        self.manager = Manager(CloneOnly())
        remedy = self.refused_candidate(Reason.NO_BASE_KEEPING, 'make', path)
        self.assertIn('for instance "file"', remedy)
        self.manager = Manager(self.driver)
        self.assert_possible('make', path)

    def test_no_checking(self):
        class Backend:
            driver: Any = StreamOnly()

        command = fsck.Fsck(app.CowApp(), None)
        words = command.get_parser('fsck').parse_args([])
        with fixtures.MonkeyPatch(
            'cinder_cow.cli.backend.from_arguments',
            lambda arguments, sweep: Backend,
        ):
            remedy = self.refused(
                Reason.NO_CHECKING, command.take_action, words
            )
            self.assertIn('for instance "file"', remedy)
            Backend.driver = self.driver
            _names, rows = command.take_action(words)
            self.assertEqual([], list(rows))

    def test_tool_missing(self):
        path = self.qcow2()
        known = os.environ['PATH']
        self.addCleanup(os.environ.__setitem__, 'PATH', known)
        os.environ['PATH'] = str(self.top)
        for kind in ('make', 'full'):
            remedy = self.refused_candidate(Reason.TOOL_MISSING, kind, path)
            self.assertIn('apt-get install qemu-utils', remedy)
        # What that package brings, where the shell looks for it.
        for tool in ('qemu-img', 'setpriv', 'prlimit'):
            found = shutil.which(tool, path=known)
            (self.top / tool).symlink_to(str(found))
        self.assert_possible('make', path)
        self.assertEqual('base', self.create(path).method.value)

    # The image

    def test_image_not_found(self):
        path = self.top / 'not-there'
        remedy = self.refused(Reason.IMAGE_NOT_FOUND, self.create, path)
        self.assertIn('Give the path, URL or Glance id', remedy)
        self.create(self.raw('not-there'))

    def test_image_not_active(self):
        path = self.raw()
        remedy = self.refused(
            Reason.IMAGE_NOT_ACTIVE, self.create, path,
            change={'status': 'queued'},
        )  # fmt: skip
        self.assertIn('Wait until it is active', remedy)
        self.create(path, change={'status': 'active'})

    def test_image_record_invalid(self):
        remedy = self.refused(
            Reason.IMAGE_RECORD_INVALID,
            images.ImageInfo.from_glance,
            self.record(size='much'),
        )
        self.assertIn('Correct the record', remedy)
        images.ImageInfo.from_glance(self.record(size=1))

    def test_image_changed(self):
        path = self.raw()
        with image_source.FileSource(path) as source:
            image = image_source.describe(source, None)
            path.write_bytes(b'x' * 1024)
            remedy = self.refused(
                Reason.IMAGE_CHANGED,
                self.manager.create_volume_from_image, 'v', image, source,
            )  # fmt: skip
        self.assertIn('when nothing writes to it', remedy)
        self.assertEqual([], list(self.driver.list_bases()))
        self.create(path)

    def test_not_an_image(self):
        path = self.raw(size=1025)
        remedy = self.refused(Reason.NOT_AN_IMAGE, self.create, path)
        self.assertIn('--disk-format raw', remedy)
        self.create(path, claimed='raw')

    def test_not_an_image_but_a_compressed_one(self):
        path = self.raw()
        subprocess.run(['gzip', path], check=True)
        packed = self.top / 'image.raw.gz'
        remedy = self.refused(Reason.NOT_AN_IMAGE, self.create, packed)
        (command,) = re.findall(r': (gzip -d) FILE', remedy)
        subprocess.run([*command.split(), packed], check=True)
        self.create(path)

    def test_empty_image(self):
        path = self.raw(size=0)
        remedy = self.refused(Reason.EMPTY_IMAGE, self.create, path)
        self.assertIn('write the image again', remedy)
        self.create(self.raw())

    def test_format_mismatch(self):
        path = self.qcow2()
        remedy = self.refused(
            Reason.FORMAT_MISMATCH, self.create, path, claimed='raw'
        )
        (right,) = re.findall(r'--disk-format (\w+)', remedy)
        self.create(path, claimed=right)

    def test_format_unsupported(self):
        path = self.top / 'image.qed'
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qed', self.raw(), path], check=True
        )
        remedy = self.refused(Reason.FORMAT_UNSUPPORTED, self.create, path)
        self.assertIn('qemu-img convert -O qcow2 OLD NEW', remedy)
        self.create(self.convert(path))

    def test_backing_file(self):
        path = self.top / 'overlay.qcow2'
        subprocess.run(
            ['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', self.raw(),
             '-F', 'raw', path], check=True,
        )  # fmt: skip
        remedy = self.refused(Reason.BACKING_FILE, self.create, path)
        self.assertIn('qemu-img convert -O qcow2 OLD NEW', remedy)
        self.create(self.convert(path))

    def test_data_file(self):
        path = self.top / 'outside.qcow2'
        subprocess.run(
            ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
             f'data_file={self.top / "data"}', path, '1M'], check=True,
        )  # fmt: skip
        remedy = self.refused(Reason.DATA_FILE, self.create, path)
        self.assertIn('qemu-img convert -O qcow2 OLD NEW', remedy)
        self.create(self.convert(path))

    def test_unknown_features(self):
        path = self.qcow2('new.qcow2', '-o', 'extended_l2=on')
        remedy = self.refused(Reason.UNKNOWN_FEATURES, self.create, path)
        self.assertIn('qemu-img convert -O qcow2 SOURCE NEW', remedy)
        self.create(self.convert(path))

    def test_encrypted(self):
        path = self.top / 'encrypted.qcow2'
        secret = 'secret,id=s,data=geheim'
        subprocess.run(
            ['qemu-img', 'convert', '--object', secret, '-O', 'qcow2', '-o',
             'encrypt.format=aes,encrypt.key-secret=s', self.raw(), path],
            check=True,
        )  # fmt: skip
        remedy = self.refused(Reason.ENCRYPTED, self.create, path)
        self.assertIn('qemu-img convert --object secret,...', remedy)
        new = self.top / 'new.qcow2'
        subprocess.run(
            ['qemu-img', 'convert', '--object', secret, '--image-opts',
             f'driver=qcow2,file.filename={path},encrypt.key-secret=s',
             '-O', 'qcow2', new], check=True,
        )  # fmt: skip
        self.create(new)

    def test_image_corrupt(self):
        path = self.qcow2()
        intact = path.read_bytes()
        path.write_bytes(intact[: len(intact) // 2])
        remedy = self.refused(Reason.IMAGE_CORRUPT, self.create, path)
        self.assertIn('from an intact copy', remedy)
        path.write_bytes(intact)
        self.create(path)

    def test_image_too_large(self):
        path = self.top / 'large.qcow2'
        subprocess.run(
            ['qemu-img', 'create', '-q', '-f', 'qcow2', path, '3G'],
            check=True,
        )
        self.manager = Manager(self.driver, max_image_size=GIB)
        remedy = self.refused(Reason.IMAGE_TOO_LARGE, self.create, path)
        (gib,) = re.findall(r'Raise cow_max_image_gib to (\d+)', remedy)
        self.manager = Manager(self.driver, max_image_size=int(gib) * GIB)
        self.create(path)

    def test_hash_mismatch(self):
        path = self.raw()
        claim = {'os_hash_algo': 'sha512', 'os_hash_value': '00' * 64}
        remedy = self.refused(
            Reason.HASH_MISMATCH, self.create, path, change=claim
        )
        self.assertIn('Upload the image again', remedy)
        self.assertEqual([], list(self.driver.list_bases()))
        # Uploaded again, Glance hashes what it then has.
        found = hashlib.sha512(path.read_bytes()).hexdigest()
        self.create(path, change={**claim, 'os_hash_value': found})

    def test_hash_unknown(self):
        path = self.raw()
        claim = {'os_hash_algo': 'rot13', 'os_hash_value': '00'}
        remedy = self.refused(
            Reason.HASH_UNKNOWN, self.create, path, change=claim
        )
        self.assertIn('hashed with sha512', remedy)
        found = hashlib.sha512(path.read_bytes()).hexdigest()
        claim = {'os_hash_algo': 'sha512', 'os_hash_value': found}
        self.create(path, change=claim)

    def test_location_invalid(self):
        path = self.raw()
        image = images.ImageInfo.from_glance(
            self.record(locations=[{'url': 'rbd://a//b/c', 'metadata': {}}])
        )
        change = {'locations': image.locations}
        remedy = self.refused_candidate(
            Reason.LOCATION_INVALID, 'clone of rbd', path, change
        )
        self.assertIn('Correct it', remedy)
        image = images.ImageInfo.from_glance(
            self.record(locations=[{'url': 'rbd://f/b/c/d', 'metadata': {}}])
        )
        found = self.candidate(
            'clone of rbd', path, {'locations': image.locations}
        )
        self.assertNotIn(
            Reason.LOCATION_INVALID, [r.reason for r in found.refusals]
        )

    def test_not_in_backend(self):
        path = self.raw()
        location = image_location.parse('http://host/image.raw')
        remedy = self.refused_candidate(
            Reason.NOT_IN_BACKEND, 'clone of http', path,
            {'locations': (location,)},
        )  # fmt: skip
        self.assertIn('let a base be made here', remedy)
        self.assert_possible('make', path, {'locations': (location,)})

    # Bases

    def test_no_base(self):
        path = self.raw()
        remedy = self.refused_candidate(Reason.NO_BASE, 'clone', path)
        self.assertIn('Create a volume from the image', remedy)
        self.create(path)
        self.assert_possible('clone', path)

    def test_no_identity(self):
        path = self.raw()
        change = {'content_id': ''}
        remedy = self.refused_candidate(
            Reason.NO_IDENTITY, 'make', path, change
        )
        self.assertIn('a Glance that hashes', remedy)
        found = hashlib.sha512(path.read_bytes()).hexdigest()
        change |= {'os_hash_algo': 'sha512', 'os_hash_value': found}
        self.assert_possible('make', path, change)

    def test_base_not_found(self):
        self.create(self.raw())
        image = images.ImageInfo(id='x', name='x', disk_format='raw')
        location = image_location.BaseLocation('file', 'cow-base-' + '0' * 40)
        refusal = self.driver.cloneable(image.at(location)).refusal
        assert refusal is not None
        self.assertIs(Reason.BASE_NOT_FOUND, refusal.reason)
        self.assertIn('cinder-cow base list', refusal.remedy)
        for made in self.driver.list_bases():
            self.assertTrue(self.driver.cloneable(image.at(made.location)))

    def test_base_changed(self):
        path = self.raw()
        first = self.create(path)
        (made,) = self.driver.list_bases()
        image = self.top / 'volumes/cow-bases' / made.name / 'image.raw'
        image.chmod(0o600)
        with image.open('r+b') as disk:
            disk.write(b'x')
        remedy = self.refused_candidate(Reason.BASE_CHANGED, 'clone', path)
        self.refused_candidate(Reason.BASE_CHANGED, 'make', path)
        # Never from the changed base; the full copy says why.
        second = self.create(path)
        self.assertEqual('stream', second.method.value)
        self.assertIn('Export and delete the volumes', remedy)
        self.assertIn(f'"cinder-cow base remove {made.name}"', remedy)
        self.driver.delete(first.volume.name)
        self.driver.retire_base(made.name)
        self.assert_possible('make', path)
        self.assertEqual('base', self.create(path).method.value)

    def test_manifest_damaged(self):
        def quiet(phase, done, total):
            pass

        self.create(self.raw())
        (made,) = self.driver.list_bases()
        self.driver.set_base_manifest(made.name, b'nonsense')
        words = (self.driver, made, quiet)
        remedy = self.refused(Reason.MANIFEST_DAMAGED, scrubbing.scrub, *words)
        self.assertIn(f'cinder-cow base scrub --record {made.name}', remedy)
        # What that command calls.
        self.assertEqual('recorded', scrubbing.record(*words).state)
        self.assertEqual('ok', scrubbing.scrub(*words).state)

    def test_base_in_use(self):
        root = storage.directory('ext4')
        self.addCleanup(shutil.rmtree, root)
        self.driver = file.FileDriver(root)
        self.manager = Manager(self.driver)
        volume = self.create(self.raw()).volume
        (made,) = self.driver.list_bases()
        remedy = self.refused(
            Reason.BASE_IN_USE, self.driver.retire_base, made.name
        )
        self.assertIn('Delete these volumes first', remedy)
        self.driver.delete(volume.name)
        self.driver.retire_base(made.name)

    # The back end, while at work

    def test_no_space(self):
        with storage.mounted('ext4', 64 * 2**20) as mount:
            (mount / 'cow-filler').write_bytes(os.urandom(35 * 2**20))
            path = self.raw(size=30 * 2**20)
            self.driver = file.FileDriver(mount)
            self.manager = Manager(self.driver)
            remedy = self.refused(Reason.NO_SPACE, self.create, path)
            self.assertIn('Free some space there', remedy)
            (mount / 'cow-filler').unlink()
            self.assertEqual('base', self.create(path).method.value)

    def key(self, path):
        with image_source.FileSource(path) as source:
            return bases.BaseKey.of(image_source.describe(source, None))

    def test_busy(self):
        path = self.raw()
        self.manager = Manager(self.driver, base_wait=0.2)
        holder: Any = self.driver.begin_base(self.key(path), 1024 * 1024)
        remedy = self.refused(Reason.BUSY, self.prepare, path)
        self.assertIn('Try again when it has ended', remedy)
        holder.abort()
        self.assertEqual('base', self.create(path).method.value)

    def test_not_linkable(self):
        # Blocks cannot be shared between the files of ext4.
        root = storage.directory('ext4')
        self.addCleanup(shutil.rmtree, root)
        self.driver = file.FileDriver(root)
        path = self.raw()
        with self.driver.open('of-glance', path.stat().st_size) as writer:
            writer.write(path.read_bytes())
            writer.close()
        self.manager = Manager(
            self.driver, backend='file', glance_project='glance'
        )
        self.manager.volume_records = Volumes('of-glance', str(path))
        location = image_location.CinderLocation('of-glance')
        outcome = self.create(path, change={'locations': (location,)})
        (failed,) = [one for one in outcome.failures if one.tried]
        self.assertIs(Reason.NOT_LINKABLE, failed.refusal.reason)
        # So it is: there is a base, and it is no less a clone.
        self.assertIn('the image is copied into a base', failed.refusal.remedy)
        self.assertEqual('base', outcome.method.value)
        with self.driver.read(outcome.volume.name) as reader:
            self.assertEqual(path.read_bytes(), reader.read(0, 1024 * 1024))

    def test_conversion_failed(self):
        path = self.qcow2()
        self.manager = Manager(self.driver, qemu_img_timeout=0)
        remedy = self.refused(Reason.CONVERSION_FAILED, self.create, path)
        self.assertIn('Check it with qemu-img check', remedy)
        subprocess.run(['qemu-img', 'check', '-q', path], check=True)
        # The image is in order, so it is the limit.
        self.manager = Manager(self.driver)
        self.create(path)

    def test_mkfs_failed(self):
        def create(size):
            return blank.create(
                self.driver,
                self.manager.settings,
                'blank',
                'xfs',
                size,
                lambda phase, done, total: None,
            )

        remedy = self.refused(Reason.MKFS_FAILED, create, 16 * 1024 * 1024)
        self.assertIn('Choose a size that mkfs.xfs takes', remedy)
        self.assertEqual('base', create(GIB).method)

    def test_backend_error(self):
        path = self.raw()
        self.create(path)
        partial = self.top / 'volumes/cow-partial'
        partial.rmdir()
        partial.touch()
        remedy = self.refused(Reason.BACKEND_ERROR, self.create, path)
        self.assertIn('Look at the storage', remedy)
        partial.unlink()
        partial.mkdir()
        self.create(path)


class TestHttpRemedies(http_place.HttpTestCase):
    """Remedies of what stands in the way of an image on a server."""

    def setUp(self):
        super().setUp()
        self.place = http_place.Place(self.top, fetch_attempts=1)

    def serve(self, kind='qcow2', /, **options):
        server = http_server.Server(
            {'/image': Behaviour(http_place.image(kind), **options)}
        )
        self.addCleanup(server.__exit__, None, None, None)
        return server.__enter__()

    def create(self, server, **options):
        self.place.create(server.url('/image'), **options)
        self.assertTrue(self.place.is_right(http_place.image('raw')))

    def refused(self, reason, server, **options):
        """Create; it must be refused for that reason. Return the remedy."""
        try:
            self.place.create(server.url('/image'), **options)
        except exception.CowError as error:
            self.assertIs(reason, error.reason, str(error))
            self.assertEqual([], self.place.made())
            return error.refusal.remedy
        raise AssertionError(f'{reason} was not raised')

    def open(self, image):
        arguments = argparse.Namespace(
            image=image, disk_format=None, hash=None, os_cloud=None
        )
        with image_argument.opened(arguments, self.place):
            pass

    def test_url_unsupported(self):
        error = self.assertRaises(
            exception.RequestError, self.open, 'ftp://host/image'
        )
        self.assertIs(Reason.URL_UNSUPPORTED, error.reason)
        self.assertIn('a path, an http or https URL', error.refusal.remedy)
        self.open(self.serve().url('/image'))

    def test_scratch_unusable(self):
        self.place = http_place.Place(self.top, scratch_dir='/proc')
        remedy = self.refused(Reason.SCRATCH_UNUSABLE, self.serve())
        self.assertIn('Set cow_scratch_dir to a directory', remedy)
        self.place = http_place.Place(self.top)
        self.create(self.serve())

    def test_source_denied(self):
        server = self.serve(auth=('user', 'geheim'))
        remedy = self.refused(Reason.SOURCE_DENIED, server)
        self.assertIn('for instance in ~/.netrc', remedy)
        netrc = self.top / 'netrc'
        netrc.write_text('machine 127.0.0.1 login user password geheim\n')
        netrc.chmod(0o600)
        self.useFixture(fixtures.EnvironmentVariable('NETRC', str(netrc)))
        self.create(server)

    def test_source_failed(self):
        server = self.serve(statuses=(503,))
        remedy = self.refused(Reason.SOURCE_FAILED, server)
        self.assertIn('Try again', remedy)
        self.create(server)

    def test_size_unknown(self):
        server = self.serve(framing=Framing.CHUNKED)
        remedy = self.refused(Reason.SIZE_UNKNOWN, server)
        self.assertIn('Download it, and give the file', remedy)
        path = self.top / 'image'
        path.write_bytes(requests.get(server.url('/image'), timeout=9).content)
        self.open(str(path))

    def test_hash_required(self):
        self.place = http_place.Place(self.top, require_hash=True)
        server = self.serve()
        remedy = self.refused(Reason.HASH_REQUIRED, server)
        self.assertIn('Give it with --hash', remedy)
        self.assertIn('cow_require_hash = false in section [file]', remedy)
        content = http_place.image('qcow2')
        self.create(server, hash_=http_place.sha256(content))
        self.place = http_place.Place(self.top / '2', require_hash=False)
        self.create(server)

    def test_expands_too_far(self):
        path = self.top / 'qcow2'
        corpus.shared_cluster(path)
        # Of its 32 times 512 MiB, three are enough.
        start = corpus.get(path, corpus.L1_OFFSET) + 3 * 8
        corpus.put(path, (start, '>29Q'), *[0] * 29)
        server = self.serve()
        server.put('/image', path)
        remedy = self.refused(Reason.EXPANDS_TOO_FAR, server)
        (times,) = re.findall(r'Raise cow_max_expansion to (\d+)', remedy)
        self.place = http_place.Place(self.top, max_expansion=int(times))
        self.place.create(server.url('/image'))

    def test_no_scratch_space(self):
        server = self.serve()
        with storage.mounted('ext4', 16 * 2**20) as mount:
            (mount / 'filler').write_bytes(os.urandom(10 * 2**20))
            self.place = http_place.Place(self.top, scratch_dir=str(mount))
            remedy = self.refused(Reason.NO_SCRATCH_SPACE, server)
            self.assertIn('Free some, or set cow_scratch_dir', remedy)
            (mount / 'filler').unlink()
            self.create(server)
        self.place = http_place.Place(self.top / '2')
        self.create(server)


class TestBaseRemedies(rbd_case.FaultCase):
    """Remedies of what happens to a base while it is made."""

    def setUp(self):
        super().setUp()
        self.manager = Manager(self.driver)

    def prepare(self, progress=None):
        with tempfile.NamedTemporaryFile(dir='/var/tmp') as image:
            image.write(rbd_victim.PIECE * b'A')
            image.flush()
            with image_source.FileSource(image.name) as source:
                described = dataclasses.replace(
                    image_source.describe(source, 'raw'),
                    id='an-image',
                    content_id='always the same',
                )
                return self.manager.prepare_base(described, source, progress)

    def take_over(self, *_progress):
        """Be another maker, who dies at once."""
        with (
            ceph.connected(self.driver._settings.cluster) as connection,
            connection.pool(self.pool) as pool,
        ):
            rows = pool.rows(rbd_leases.OBJECT)
            for volume, row in rows.all().items():
                lease = Lease.unpacked(row)
                dead = dataclasses.replace(lease.owner, pid=1, started='never')
                other = dataclasses.replace(lease, id='f' * 32, owner=dead)
                rows.put(volume, other.packed(), was=row, unlock=lease.id)

    def test_base_lost(self):
        error = self.assertRaises(
            exception.CowError, self.prepare, self.take_over
        )
        self.assertIs(Reason.BASE_LOST, error.reason, error)
        self.assertIn('Try again', error.refusal.remedy)
        made = self.prepare()
        self.assertEqual([], self.left(made.base.name))


class TestGlanceRemedies(test_base.BaseTestCase):
    """Remedies of what a Glance, or who asks it, stands in the way of."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        top = tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        cls.addClassCleanup(shutil.rmtree, top)
        cls.glance = cls.enterClassContext(
            services.Glance(pathlib.Path(top) / 'glance')
        )

    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(
            tempfile.mkdtemp(prefix='cow-test-', dir='/var/tmp')
        )
        self.addCleanup(shutil.rmtree, self.top)
        for name in [n for n in os.environ if n.startswith('OS_')]:
            self.useFixture(fixtures.EnvironmentVariable(name))

    def uploaded(self, glance):
        return glance.create(data=os.urandom(4096), token='alice:p1:member')

    def plan(self, image_id, user=None, **options):
        """Plan as the command does, for a user of OpenStack's variables."""
        for name, value in (user or {}).items():
            self.useFixture(fixtures.EnvironmentVariable(name, value))
        arguments = argparse.Namespace(
            image=image_id,
            **{'disk_format': None, 'hash': None, 'os_cloud': None, **options},
        )
        ours = Manager(file.FileDriver(self.top / 'volumes'))
        with image_argument.opened(arguments, ours) as (image, source):
            return ours.plan_volume_from_image(image, source)

    def refused(self, reason, *arguments, **options):
        error = self.assertRaises(
            exception.RequestError, self.plan, *arguments, **options
        )
        self.assertIs(reason, error.reason)
        return error.refusal.remedy

    def hidden(self, *arguments):
        (refusal,) = self.plan(*arguments).candidates[0].refusals
        self.assertIs(Reason.LOCATIONS_HIDDEN, refusal.reason)
        return refusal.remedy

    def told_by(self, *arguments):
        return self.plan(*arguments).candidates[0].told_by

    def test_glance_unavailable(self):
        glance = self.glance
        image_id = self.uploaded(glance)
        remedy = self.refused(Reason.GLANCE_UNAVAILABLE, image_id)
        self.assertIn('Set OS_CLOUD, or OS_AUTH_URL and its like', remedy)
        self.assertIn('OS_AUTH_TYPE=none and OS_ENDPOINT', remedy)
        user = {'OS_AUTH_TYPE': 'none', 'OS_ENDPOINT': glance.url}
        self.plan(image_id, user)

    def test_locations_hidden(self):
        glance = self.glance
        image_id = self.uploaded(glance)
        member = glance.environment('alice:p1:member')
        remedy = self.hidden(image_id, member)
        self.assertIn('have the role service too (fetch_image_l', remedy)
        self.assertIn('set show_image_direct_url = true', remedy)
        service = glance.environment('alice:p1:member,service')
        self.assertEqual('locations call', self.told_by(image_id, service))
        # Or what the words in brackets mean.
        self.hidden(image_id, member)
        policy = glance.directory / 'policy.json'
        policy.write_text('{"fetch_image_location": "role:member"}')
        # Glance reads it where its time is later than it was.
        later = policy.stat().st_mtime + 10
        os.utime(policy, (later, later))
        self.assertEqual('locations call', self.told_by(image_id, member))

    def test_locations_hidden_but_in_the_record(self):
        top = self.top / 'glance'
        with services.Glance(top, show_direct_url=True) as glance:
            image_id = self.uploaded(glance)
            told_by = self.told_by(
                image_id, glance.environment('alice:p1:member')
            )
        self.assertEqual('direct_url of the record', told_by)

    def test_has_record(self):
        glance = self.glance
        image_id = self.uploaded(glance)
        for option in ({'disk_format': 'raw'}, {'hash': 'md5:' + '0' * 32}):
            remedy = self.refused(Reason.HAS_RECORD, image_id, **option)
            self.assertIn('Leave out --disk-format and --hash', remedy)
        self.plan(image_id, glance.environment())


class TestComplete(test_base.BaseTestCase):
    def test_every_reason_has_its_test(self):
        missing = [
            reason.value
            for reason in Reason
            if not any(
                hasattr(tests, f'test_{reason.value}')
                for tests in (
                    TestRemedies,
                    TestHttpRemedies,
                    TestGlanceRemedies,
                    TestBaseRemedies,
                    test_rbd_remedies.TestRbdRemedies,
                    test_plugin_telling.TestKeys,
                    test_plugin_telling.TestOddities,
                    test_plugin_signatures.TestSignatures,
                )
            )
        ]
        self.assertEqual([], missing)
