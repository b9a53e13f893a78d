# SPDX-License-Identifier: Apache-2.0
"""Any order of fetch, clone, delete, remove, crash and restart.

Against a model of dictionaries, on the memory and the file driver. There a
crash is one: a child process does the work and ends at some call that changes
the file system, with nothing undone.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow.drivers import bases
from cinder_cow.drivers import file
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason

PIECE = 1024 * 1024
# Two pieces are the head, which is looked at before anything is written.
PIECES = 4
SIZE = PIECES * PIECE
# Calls of one create that change something.
STEPS = 40
CRASHED = 9

NAMES = st.sampled_from(['v1', 'v2', 'v3'])
IMAGES = st.sampled_from(['image-1', 'image-2'])
# What changes a file system, and where it is called by.
CHANGES = (
    (os, 'open'), (os, 'rename'), (os, 'replace'), (os, 'link'),
    (os, 'unlink'), (os, 'rmdir'), (os, 'mkdir'), (os, 'fsync'),
    (os, 'fdatasync'), (os, 'pwrite'), (os, 'ftruncate'), (os, 'chmod'),
)  # fmt: skip


class Source:
    """An image on a server.

    :param version: tells its content
    :param breaks_at: the number of the piece that does not come
    """

    label = 'an image'
    size = SIZE

    def __init__(self, version, breaks_at=None):
        self.version = version
        self.breaks_at = breaks_at

    @property
    def content(self):
        return b''.join(self.piece(number) for number in range(PIECES))

    def piece(self, number):
        if number == 2:
            return bytes(PIECE)
        return bytes([65 + self.version % 26 + number]) * PIECE

    def head(self, length):
        return self.content[:length]

    def tail(self, length):
        return self.content[-length:]

    def pieces(self):
        return self.pieces_from(0)

    def pieces_from(self, offset):
        content = self.content
        for start in range(offset, SIZE, PIECE):
            if start // PIECE == self.breaks_at:
                raise exception.ImageError.because(
                    Reason.SOURCE_FAILED, image=self.label, problem='gone'
                )
            yield content[start : start + PIECE]

    @property
    def question(self):
        return id(self)

    def release(self):
        pass

    def check_readable(self):
        pass

    def check_unchanged(self):
        pass


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver):
        self.driver = driver
        self.settings = opts.Settings(backend=driver.backend, base_wait=30)


class BaseStates(stateful.RuleBasedStateMachine):
    """The model: versions of images, which have bases, and volumes."""

    def __init__(self):
        super().__init__()
        self.versions = {'image-1': 0, 'image-2': 1}
        self.based: set[bases.BaseKey] = set()
        self.volumes: dict[str, bytes] = {}
        self.restarts = 0
        self.driver: Any = None
        self.start()

    def start(self):
        raise NotImplementedError

    @contextlib.contextmanager
    def crashing(self, step):
        """Give what ends the process at that change; else all is as ever."""
        yield

    def info(self, name):
        value = hashlib.sha256(self.source(name).content).hexdigest()
        return images.ImageInfo(
            name,
            name,
            'raw',
            size=SIZE,
            os_hash_algo='sha256',
            os_hash_value=value,
        )

    def source(self, name, breaks_at=None):
        return Source(self.versions[name], breaks_at)

    def key(self, name) -> Any:
        return bases.BaseKey.of(self.info(name))

    def fetch_now(self, name, breaks_at=None):
        (handler,) = (
            one
            for one in Manager(self.driver).handlers
            if one.name == 'downloading'
        )
        return handler.fetch_image(
            self.info(name),
            self.source(name, breaks_at),
            SIZE,
            lambda *told: None,
        )

    @stateful.rule(image=IMAGES)
    def fetch(self, image):
        fetched = self.fetch_now(image)
        assert fetched.made is (self.key(image) not in self.based)
        self.based.add(self.key(image))

    @stateful.rule(image=IMAGES, piece=st.integers(0, PIECES - 1))
    def fetch_what_breaks(self, image, piece):
        if self.key(image) in self.based:
            return
        with contextlib.suppress(exception.ImageError):
            self.fetch_now(image, piece)
            # It went on behind that piece.
            self.based.add(self.key(image))

    @stateful.rule(image=IMAGES)
    def change_the_image(self, image):
        self.versions[image] += 2

    @stateful.rule(image=IMAGES, name=NAMES)
    def clone(self, image, name):
        if name in self.volumes:
            return
        outcome = self.clone_now(image, name)
        assert outcome.method.value == 'base', outcome
        self.volumes[name] = self.source(image).content
        self.based.add(self.key(image))

    def clone_now(self, image, name):
        return Manager(self.driver).create_volume_from_image(
            name, self.info(image), self.source(image), SIZE
        )

    @stateful.rule(name=NAMES)
    def delete(self, name):
        self.driver.delete(name)
        self.volumes.pop(name, None)

    @stateful.rule(image=IMAGES)
    def remove(self, image):
        try:
            self.driver.retire_base(self.key(image).name)
        except exception.RequestError as error:
            assert error.reason is Reason.BASE_IN_USE, error
            return
        self.based.discard(self.key(image))

    @stateful.rule()
    def restart(self):
        self.start()
        for handler in Manager(self.driver).handlers:
            handler.init()

    @stateful.invariant()
    def volumes_and_bases_are_those_of_the_model(self):
        found = {one.facts.key for one in self.driver.list_bases()}
        assert found == self.based, (found, self.based)
        names = [volume.name for volume in self.driver.list()]
        assert names == sorted(self.volumes), names
        for name, content in self.volumes.items():
            assert self.content(name) == content, name

    @stateful.invariant()
    def bases_hold_what_they_must(self):
        for one in self.driver.list_bases():
            content = self.content(one.location)
            value = hashlib.sha256(content).hexdigest()
            assert one.facts.hash == f'sha256:{value}', one

    def content(self, source):
        with self.driver.read(source) as reader:
            return reader.read(0, reader.size)


class MemoryStates(BaseStates):
    def start(self):
        # Nothing outlives a process but what the model is told of.
        if self.driver is None:
            self.driver = memory.MemoryDriver()


class FileStates(BaseStates):
    def __init__(self):
        self.top = pathlib.Path(tempfile.mkdtemp())
        super().__init__()

    def teardown(self):
        try:
            self.restart()
            left = [
                one
                for one in self.driver.orphans()
                if 'to go on with' not in one.problem
            ]
            assert left == [], left
        finally:
            shutil.rmtree(self.top)

    def start(self):
        self.driver = file.FileDriver(self.top / 'volumes')
        self.driver.sweep()

    def crash(self, step, work):
        """Do a work in a child that ends at some change; wait for it."""
        child = os.fork()
        if child:
            _pid, status = os.waitpid(child, 0)
            return os.waitstatus_to_exitcode(status)
        try:
            left = iter(range(step))
            with contextlib.ExitStack() as patched:
                for module, name in CHANGES:
                    call = crashing(getattr(module, name), left)
                    patched.enter_context(
                        mock.patch.object(module, name, call)
                    )
                work()
            os._exit(0)
        except exception.CowError:
            os._exit(1)
        finally:
            os._exit(2)

    @stateful.rule(image=IMAGES, step=st.integers(0, STEPS))
    def fetch_and_crash(self, image, step):
        code = self.crash(step, lambda: self.fetch_now(image))
        assert code in {0, CRASHED}, code
        if self.driver.find_base(self.key(image)):
            self.based.add(self.key(image))
        else:
            assert code == CRASHED

    @stateful.rule(image=IMAGES, name=NAMES, step=st.integers(0, 2 * STEPS))
    def clone_and_crash(self, image, name, step):
        if name in self.volumes:
            return
        code = self.crash(step, lambda: self.clone_now(image, name))
        assert code in {0, CRASHED}, code
        if self.driver.find_base(self.key(image)):
            self.based.add(self.key(image))
        # Either whole or not there, by the invariant.
        if self.driver.exists(name):
            self.volumes[name] = self.source(image).content
        else:
            assert code == CRASHED

    @stateful.rule(name=NAMES, step=st.integers(0, 5))
    def delete_and_crash(self, name, step):
        self.crash(step, lambda: self.driver.delete(name))
        if not self.driver.exists(name):
            self.volumes.pop(name, None)

    @stateful.rule(image=IMAGES, step=st.integers(0, 15))
    def remove_and_crash(self, image, step):
        self.crash(step, lambda: self.driver.retire_base(self.key(image).name))
        if self.driver.find_base(self.key(image)) is None:
            self.based.discard(self.key(image))


def crashing(call, left):
    def crash(*args, **named):
        if next(left, None) is None:
            os._exit(CRASHED)
        return call(*args, **named)

    return crash


TestMemoryStates = MemoryStates.TestCase
TestMemoryStates.settings = hypothesis.settings(
    deadline=None, max_examples=20, stateful_step_count=20
)
TestFileStates = FileStates.TestCase
TestFileStates.settings = hypothesis.settings(
    deadline=None, max_examples=25, stateful_step_count=15
)
