# SPDX-License-Identifier: Apache-2.0
"""A back end whose images are on an HTTP server, for tests."""

import contextlib
import functools
import gc
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading

import fixtures
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import http_source
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import outcome as outcomes
from cinder_cow import streaming
from cinder_cow.drivers import file
from cinder_cow.tests import corpus
from cinder_cow.tests import storage

SIZE = 4 * units.Mi
# Time-outs that are short, and long enough for a machine that does much else.
TIMEOUT = 2
ATTEMPTS = 2
# What of the environment changes how requests asks.
ENVIRONMENT = (
    'http_proxy', 'https_proxy', 'all_proxy', 'no_proxy', 'HTTP_PROXY',
    'HTTPS_PROXY', 'ALL_PROXY', 'NO_PROXY', 'REQUESTS_CA_BUNDLE',
    'CURL_CA_BUNDLE', 'NETRC',
)  # fmt: skip


class Place(manager.CreateVolumeFromImageMixin):
    """A file back end, and a scratch directory of its own."""

    def __init__(self, top: pathlib.Path, **settings) -> None:
        self.scratch = top / 'scratch'
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.volumes = top / 'volumes'
        self.files = file.FileDriver(self.volumes)
        self.driver = self.files
        self.settings = opts.Settings(
            **{
                'scratch_dir': str(self.scratch),
                'fetch_timeout': TIMEOUT,
                'fetch_attempts': ATTEMPTS,
                **settings,
            }
        )

    def source(
        self, url: str, *, hashed: bool = False
    ) -> http_source.HttpSource:
        location = image_location.parse(url)
        assert isinstance(location, image_location.HttpLocation)
        return http_source.HttpSource(location, self.settings, hashed)

    def create(
        self,
        url: str,
        name: str = 'v1',
        claimed: str | None = None,
        hash_: str | None = None,
        progress: streaming.Progress | None = None,
    ) -> outcomes.Outcome:
        with self.source(url, hashed=hash_ is not None) as source:
            described = image_source.describe(source, claimed, hash_)
            return self.create_volume_from_image(
                name, described, source, progress=progress
            )

    def is_right(self, expected: bytes, name: str = 'v1') -> bool:
        """Tell whether a volume begins with these bytes; zeros follow."""
        with self.driver.read(name) as reader:
            found = reader.read(0, len(expected))
            behind = reader.read(len(expected), units.Mi)
        return storage.same(expected, found) and not behind.strip(b'\0')

    def made(self) -> list[str]:
        """Tell of all that was made in the back end."""
        return sorted(
            str(path.relative_to(self.volumes))
            for path in self.volumes.rglob('*')
            if path.name not in {'cow-layout', 'cow-bases', 'cow-partial'}
        )

    def kept(self) -> dict[str, int]:
        """Tell what is in the scratch directory, with sizes."""
        return {
            path.suffix: path.stat().st_size
            for path in self.scratch.glob('cow-scratch-*/*')
            if not path.name.startswith('slot-')
        }


class HttpTestCase(test_base.BaseTestCase):
    """Has a directory, and no proxies of the machine."""

    def setUp(self):
        super().setUp()
        for name in ENVIRONMENT:
            self.useFixture(fixtures.EnvironmentVariable(name))
        self.top = pathlib.Path(tempfile.mkdtemp(dir='/var/tmp'))
        self.addCleanup(shutil.rmtree, self.top)


def held():
    """Tell what this process has open, and its threads."""
    gc.collect()
    for thread in threading.enumerate():
        # One that was cancelled takes a moment to end.
        if isinstance(thread, threading.Timer):
            thread.join(TIMEOUT)
    found = []
    for name in os.listdir('/proc/self/fd'):
        # That of the listing itself.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f'/proc/self/fd/{name}'))
    return sorted(found), sorted(t.name for t in threading.enumerate())


def convert(raw: pathlib.Path, path: pathlib.Path, *options: str) -> None:
    command = ['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', *options]
    subprocess.run([*command, raw, path], check=True)


@functools.cache
def image(kind: str, seed: int = 0, size: int = SIZE) -> bytes:
    """Make an image, raw or qcow2; its disk is noise."""
    data = corpus.noise(size, seed)
    if kind == 'raw':
        return data
    with tempfile.TemporaryDirectory(dir='/var/tmp') as top:
        raw, path = pathlib.Path(top, 'raw'), pathlib.Path(top, kind)
        raw.write_bytes(data)
        convert(raw, path)
        return path.read_bytes()


def sha256(content: bytes) -> str:
    return f'sha256:{hashlib.sha256(content).hexdigest()}'
