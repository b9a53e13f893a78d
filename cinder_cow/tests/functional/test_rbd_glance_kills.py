# SPDX-License-Identifier: Apache-2.0
"""What happens while an image of Glance is converted where it is."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import ddt
from oslo_utils import units

from cinder_cow import exception
from cinder_cow.drivers import ceph
from cinder_cow.refusal import Reason
from cinder_cow.tests import ceph_config
from cinder_cow.tests import corpus
from cinder_cow.tests import program
from cinder_cow.tests import rbd_glance_case
from cinder_cow.tests import rbd_place
from cinder_cow.tests import storage

with contextlib.suppress(ImportError):  # without it, the tests are skipped
    import rbd  # noqa: TID251

# Large enough that qemu-img can be caught at its work.
LARGE = 64 * units.Mi
# Until a cluster of tests forgets a client that was killed; and some more.
FORGOTTEN = 5 + 5


class TestMeanwhile(rbd_glance_case.RbdGlanceCase):
    def during(self, image_id, act):
        """Create; when the conversion has begun, something is done once."""
        left = [act]

        def progress(phase, done, total):
            if phase == 'converting' and left:
                left.pop()()

        made = self.create(image_id, progress=progress)
        self.assertEqual([], left)
        return made

    def test_glance_may_not_delete_what_is_being_read(self):
        self.clones(1)
        data = corpus.noise(LARGE)
        image_id = self.qcow2(data)
        path = f'/v2/images/{image_id}'
        made = self.during(
            image_id,
            lambda: self.assertEqual(
                409, self.glance.request('DELETE', path).status_code
            ),
        )
        self.assert_content(made, data)
        self.assert_clean()
        self.assert_glance_can_delete(image_id)

    def test_glance_deletes_what_is_being_read(self):
        self.clones(2)
        data = corpus.noise(LARGE)
        image_id = self.qcow2(data)
        made = self.during(image_id, lambda: self.glance.delete(image_id))
        # It was whole as long as it was read: Ceph keeps what has a clone.
        self.assert_content(made, data)
        self.assert_clean()
        self.assertNotIn(image_id, self.images()[0])
        # Glance has put it into its trash, where nothing holds it now.
        self.assertIn(image_id, self.purge())

    def test_it_is_gone_before_it_is_read(self):
        image_id = self.qcow2()
        with self.opened(image_id) as (ours, image, source):
            self.glance.delete(image_id)
            error = self.assertRaises(
                exception.ImageError,
                ours.create_volume_from_image, 'v1', image, source,
            )  # fmt: skip
        self.assertIs(Reason.IMAGE_NOT_FOUND, error.reason)
        self.assert_clean()


@ddt.ddt
class TestKilled(rbd_glance_case.RbdGlanceCase):
    """The program itself, killed in the middle of a conversion."""

    def setUp(self):
        super().setUp()
        self.conf = self.top / 'cinder.conf'
        sections = ceph_config.cinder_sections(
            self.cluster.directory, self.pool, self.user
        )
        sections['rbd1']['cow_scratch_dir'] = self.scratch
        ceph_config.write_sections(self.conf, sections)

    @contextlib.contextmanager
    def started(self, image_id):
        """Give the program at work; it is killed when the block is left."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith('OS_')
        }
        with subprocess.Popen(
            [program.PROGRAM, '--config-file', self.conf,
             'volume', 'create', 'v1', '--image', image_id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, **self.glance.environment()},
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def caught(self, process):
        """Stop the qemu-img that has written for a process; return its id."""
        deadline = time.monotonic() + program.LIMIT
        with rbd_place.opened(self.cluster, self.pool) as ioctx:
            while time.monotonic() < deadline:
                self.assertIsNone(process.poll(), 'it ended before')
                for child in _children(process.pid):
                    # Not what only is about to become it.
                    is_at_work = _words(child)[:2] == ['qemu-img', 'convert']
                    if is_at_work and _has_data(ioctx):
                        os.kill(child, signal.SIGSTOP)
                        return child
                time.sleep(0.001)
        raise AssertionError('it never converted')

    @ddt.data(1, 2)
    def test_kill(self, version):
        self.clones(version)
        data = corpus.noise(LARGE)
        image_id = self.qcow2(data)
        with self.started(image_id) as process:
            child = self.caught(process)
            # This is how it reads without the right to write.
            self.assertEqual(1, len(self.clones_of(image_id)))
        found = rbd_place.until(
            self.cluster, self.pool, (), FORGOTTEN, self.next_command
        )
        self.assertEqual([], found)
        self.assertEqual([], self.clones_of(image_id))
        self.assertEqual([], _words(child))
        # And whoever comes next is not kept waiting.
        self.assert_content(self.create(image_id), data)
        self.assert_no_download(image_id)
        self.assert_glance_can_delete(image_id)

    def next_command(self):
        ceph.disconnect()
        self.assertEqual([], list(self.driver.list()))
        self.driver.sweep()

    def clones_of(self, image_id):
        with (
            rbd_place.opened(self.cluster, 'images') as ioctx,
            rbd.Image(ioctx, image_id, 'snap', read_only=True) as image,
        ):
            return list(image.list_children2())

    def test_the_program_as_it_is(self):
        data = corpus.holey(units.Mi)
        image_id = self.qcow2(data)
        with self.started(image_id) as process:
            output, _ = process.communicate(timeout=program.LIMIT)
        self.assertEqual(0, process.returncode, output)
        with self.driver.read('v1') as reader:
            found = reader.read(0, len(data))
        self.assertTrue(storage.same(data, found))
        self.assert_no_download(image_id)


def _children(pid):
    path = pathlib.Path(f'/proc/{pid}/task')
    with contextlib.suppress(OSError):
        for thread in path.iterdir():
            text = (thread / 'children').read_text()
            yield from map(int, text.split())


def _has_data(ioctx):
    return any(one.key.startswith('rbd_data.') for one in ioctx.list_objects())


def _words(pid):
    """Return the command line of a process; [] if it has ended."""
    with contextlib.suppress(OSError):
        path = pathlib.Path(f'/proc/{pid}/cmdline')
        return path.read_bytes().decode().split('\0')[:-1]
    return []
