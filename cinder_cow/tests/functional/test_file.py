# SPDX-License-Identifier: Apache-2.0
"""The file driver on real ext4 (overlays), XFS and btrfs (reflinks)."""

import contextlib
import os
import resource
import shutil
import subprocess

from oslotest import base as test_base

from cinder_cow.drivers import file
from cinder_cow.tests import conformance
from cinder_cow.tests import storage


class FileDriverConformance(conformance.BaseKeeperConformance):
    kind: str

    def make_driver(self):
        self.root = storage.directory(self.kind)
        self.addCleanup(shutil.rmtree, self.root)
        return file.FileDriver(self.root)

    def overwrite(self, volume_name, offset, data):
        volume = self.driver.show(volume_name)
        if volume.format == 'raw':
            with open(volume.path, 'r+b') as disk:
                os.pwrite(disk.fileno(), data, offset)
            return
        assert len(set(data)) == 1
        command = f'write -q -P {data[0]} {offset} {len(data)}'
        subprocess.run(
            ['qemu-io', '-f', 'qcow2', '-c', command, volume.path],
            check=True,
        )

    @contextlib.contextmanager
    def failing_writes(self):
        # The process may write no file beyond this: EFBIG, as on a full disk.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def space_used(self):
        os.sync()
        status = os.statvfs(self.root)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


class TestFileExt4(FileDriverConformance, test_base.BaseTestCase):
    kind = 'ext4'


class TestFileXfs(FileDriverConformance, test_base.BaseTestCase):
    kind = 'xfs'


class TestFileBtrfs(FileDriverConformance, test_base.BaseTestCase):
    kind = 'btrfs'
