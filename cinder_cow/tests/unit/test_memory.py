# SPDX-License-Identifier: Apache-2.0
from oslotest import base as test_base

from cinder_cow.drivers import memory
from cinder_cow.tests import conformance


class TestMemoryDriver(
    conformance.BaseKeeperConformance, test_base.BaseTestCase
):
    def make_driver(self):
        return memory.MemoryDriver()

    def overwrite(self, volume_name, offset, data):
        self.driver._volumes[volume_name].write(offset, data)
