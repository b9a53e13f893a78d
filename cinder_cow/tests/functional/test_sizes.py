# SPDX-License-Identifier: Apache-2.0
"""Images and volumes of odd and of very large sizes, from each source."""

import pathlib
import shutil
import subprocess

import ddt
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import http_source
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow.drivers import file
from cinder_cow.tests import corpus
from cinder_cow.tests import http_server
from cinder_cow.tests import storage

# Around sectors, pages, granules, chunks and the head.
SIZES = sorted(
    {1, 100}
    | {
        size + step
        for size in (512, 4096, 64 * units.Ki, units.Mi, 2 * units.Mi)
        for step in (-1, 0, 1, 511)
    }
)
LARGE = 3 * units.Ti


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, root, **settings):
        self.driver = file.FileDriver(root)
        self.settings = opts.Settings(**settings)

    def create(self, name, source, size, claimed='raw'):
        with source:
            image = image_source.describe(source, claimed)
            return self.create_volume_from_image(name, image, source, size)


def small(size):
    """Make data of a size whose tail is zeros: half of it, or a byte."""
    return corpus.noise(size - size // 2) + bytes(size // 2)


@ddt.ddt
class TestOddSizes(test_base.BaseTestCase):
    def check(self, root, sources, **settings):
        made = Manager(root, **settings)
        for size, source in sources:
            # No size of a volume is too odd either.
            for more in (0, 1, 4097):
                name = f'v{size}-{more}'
                outcome = made.create(name, source(size), size + more)
                expected = small(size) + bytes(more)
                if outcome.volume.format == 'qcow2':
                    # It has whole sectors.
                    expected += bytes(-len(expected) % 512)
                with made.driver.read(name) as reader:
                    self.assertEqual(len(expected), reader.size)
                    found = reader.read(0, reader.size)
                self.assertTrue(storage.same(expected, found), name)

    @ddt.data(*storage.KINDS)
    def test_of_files(self, kind):
        root = storage.directory(kind)
        self.addCleanup(shutil.rmtree, root)

        def source(size):
            path = root / f'image-{size}'
            path.write_bytes(small(size))
            return image_source.FileSource(path)

        for enabled in (True, False):
            self.check(
                root / str(enabled),
                [(size, source) for size in SIZES],
                cow_enabled=enabled,
            )

    def test_over_http(self):
        root = storage.directory('xfs')
        self.addCleanup(shutil.rmtree, root)
        settings = opts.Settings()
        files = {f'/{size}': small(size) for size in SIZES}
        with http_server.Server(files) as server:

            def source(size):
                location = image_location.parse(server.url(f'/{size}'))
                assert isinstance(location, image_location.HttpLocation)
                return http_source.HttpSource(location, settings)

            self.check(root / 'volumes', [(size, source) for size in SIZES])


@ddt.ddt
class TestLarge(test_base.BaseTestCase):
    """More than 2 TiB: what 32 bits of sectors cannot count."""

    def image(self, root):
        path = pathlib.Path(root, 'large.raw')
        with path.open('wb') as disk:
            disk.write(b'begin')
            disk.seek(LARGE - 3)
            disk.write(b'end')
        return path

    @ddt.named_data(
        *(
            (f'{kind}_{claimed}_{enabled}', kind, claimed, enabled)
            for kind in ('ext4', 'xfs')
            # QEMU reads all of a VHDX, holes too: 80 s for this one.
            for claimed in ('raw', 'qcow2')
            for enabled in (True, False)
        )
    )
    def test_volume(self, kind, claimed, enabled):
        root = storage.directory(kind)
        self.addCleanup(shutil.rmtree, root)
        path = self.image(root)
        if claimed != 'raw':
            converted = root / f'large.{claimed}'
            subprocess.run(
                ['qemu-img', 'convert', '-f', 'raw', '-O', claimed, path,
                 converted], check=True,
            )  # fmt: skip
            path = converted
        made = Manager(root / 'volumes', cow_enabled=enabled)
        source = image_source.FileSource(path)
        outcome = made.create('v1', source, None, claimed)
        self.assertEqual(LARGE, outcome.volume.size)
        self.assertLess(outcome.volume.allocated, 300 * units.Mi)
        with made.driver.read('v1') as reader:
            self.assertEqual(b'begin\0', reader.read(0, 6))
            self.assertEqual(b'\0end', reader.read(LARGE - 4, 4))
            self.assertEqual(b'\0' * 512, reader.read(LARGE // 2, 512))
