# SPDX-License-Identifier: Apache-2.0
import contextlib

from oslotest import base as test_base

from cinder_cow.drivers import memory
from cinder_cow.tests import conformance


class TestMemoryDriver(
    conformance.BaseLinkerConformance, test_base.BaseTestCase
):
    def make_driver(self):
        return memory.MemoryDriver()

    def overwrite(self, volume_name, offset, data):
        self.driver._volumes[volume_name].write(offset, data)

    @contextlib.contextmanager
    def failing_writes(self):
        self.driver.capacity = 0
        try:
            yield
        finally:
            self.driver.capacity = None

    def space_used(self):
        disks = [
            *self.driver._volumes.values(),
            *(kept.disk for kept in self.driver._bases.values()),
        ]
        blocks = {
            id(b): len(b) for disk in disks for b in disk.blocks.values()
        }
        return sum(blocks.values())
