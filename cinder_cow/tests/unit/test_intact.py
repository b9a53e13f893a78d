# SPDX-License-Identifier: Apache-2.0
"""Whose fault it is that qemu-img cannot check an image."""

from unittest import mock

import ddt
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import intact
from cinder_cow import qemu_img
from cinder_cow.refusal import Reason

IMAGE = images.ImageInfo('i', 'an image', 'qcow2')
DISK = qemu_img.Disk(qemu_img.QemuNode({'driver': 'rbd'}), 'qcow2')


class Source:
    label = 'an image'
    size = 4096

    def read(self, offset, length):
        return bytes(length)


@ddt.ddt
class TestFault(test_base.BaseTestCase):
    def check(self, problem):
        error = qemu_img.QemuImgError(problem)
        source: mock.Mock = mock.Mock(wraps=Source(), size=4096)
        with mock.patch.object(
            qemu_img, 'check', autospec=True, side_effect=error
        ):
            intact.check(IMAGE, DISK, source, qemu_img.Limits())

    @ddt.data(
        'Could not open it: error reading header: Connection timed out',
        'error while reading: Cannot send after transport endpoint shutdown',
    )
    def test_of_the_cluster(self, problem):
        self.assertRaises(qemu_img.QemuImgError, self.check, problem)

    def test_of_the_image(self):
        error = self.assertRaises(
            exception.ImageError,
            self.check,
            'Could not open it: Image is not in qcow2 format',
        )
        self.assertIs(Reason.IMAGE_CORRUPT, error.reason)
