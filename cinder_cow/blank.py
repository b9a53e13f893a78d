# SPDX-License-Identifier: Apache-2.0
"""Make volumes with an empty file system, as clones of a blank base.

The base of a kind and size is made once, by mkfs on a sparse scratch file.
"""

import dataclasses
import functools
import os
import shutil
import subprocess
import time
import uuid

from oslo_log import log as logging
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow import scratch
from cinder_cow import sparse
from cinder_cow import streaming
from cinder_cow.drivers import base as drivers
from cinder_cow.drivers import bases
from cinder_cow.handlers import keeping
from cinder_cow.handlers import making
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

NONE = 'none'
_IMAGE_ID = 'cow-blank'
# Of a few TiB it takes seconds.
_TIMEOUT = 600
# Where these programs are, and a user's PATH often does not lead.
_SBIN = '/usr/sbin:/sbin'


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """How a file system or swap space is made.

    :param commands: to be tried in turn, the file comes behind
    :param renew: gives a clone a UUID of its own, where that is cheap;
        ``{uuid}`` is a new one
    :param advice: the same, for a guest
    :param package: of Debian
    """

    title: str
    commands: tuple[tuple[str, ...], ...]
    renew: tuple[str, ...]
    advice: str
    package: str

    @property
    def tool(self) -> str:
        return self.commands[0][0]


_EXT4 = ('mkfs.ext4', '-q', '-F', '-E')
_KINDS = {
    'ext4': _Kind(
        title='ext4 file system',
        # It knows that all else is zeros: else each clone would write its
        # inode tables when it is mounted first. Before e2fsprogs 1.47.0
        # there was no such option.
        commands=(
            (*_EXT4, 'assume_storage_prezeroed=1,nodiscard'),
            (*_EXT4, 'lazy_itable_init=1,lazy_journal_init=1,nodiscard'),
        ),
        renew=('tune2fs', '-U', 'random'),
        advice='tune2fs -U random DEV',
        package='e2fsprogs',
    ),
    'xfs': _Kind(
        title='XFS file system',
        commands=(('mkfs.xfs', '-q', '-f', '-K'),),
        # It would write all of its log: 64 MiB and more.
        renew=(),
        advice='xfs_admin -U generate DEV',
        package='xfsprogs',
    ),
    'swap': _Kind(
        title='swap space',
        commands=(('mkswap', '-q'),),
        renew=('swaplabel', '-U', '{uuid}'),
        advice='swaplabel -U $(uuidgen) DEV',
        package='util-linux',
    ),
}
CHOICES = (*_KINDS, NONE)


@dataclasses.dataclass(frozen=True, slots=True)
class Blank:
    """A volume was made.

    :param method: as of :class:`.plan.Method`; 'empty' for no file system
    :param base_made: by us, just now
    :param uuid: whether that of the file system is its own, for people
    """

    volume: drivers.VolumeInfo
    method: str
    base_made: bool
    uuid: str
    seconds: float
    bytes_copied: int


def create(  # noqa: PLR0913 - the back end, and what is asked for
    driver: drivers.Driver,
    settings: opts.Settings,
    volume_name: str,
    kind: str,
    size: int,
    report: streaming.Progress,
) -> Blank:
    """Make a volume with an empty file system, or with nothing in it.

    A full copy of it is a few MiB; it is made where there can be no base,
    unless the options forbid full copies.

    :param kind: one of ``CHOICES``
    :param size: bytes
    :raises RequestError: INVALID_NAME, VOLUME_EXISTS
    :raises BackendError: MKFS_FAILED, COW_DISABLED, NO_BASE_KEEPING, ...
    """
    begun = time.monotonic()
    # Before a base is made for nothing.
    if driver.exists(volume_name):
        raise exception.RequestError.because(
            Reason.VOLUME_EXISTS, volume=volume_name, state='exists already'
        )
    maker = _Maker(driver, settings, volume_name, size, report)
    made = maker.empty() if kind == NONE else maker.of(_KINDS[kind], kind)
    return dataclasses.replace(made, seconds=time.monotonic() - begun)


@dataclasses.dataclass(frozen=True, slots=True)
class _Maker:
    driver: drivers.Driver
    settings: opts.Settings
    volume_name: str
    size: int
    report: streaming.Progress

    def empty(self) -> Blank:
        with self.driver.open(self.volume_name, self.size) as writer:
            writer.close()
        return self._told('empty', '')

    def of(self, kind: _Kind, name: str) -> Blank:
        if not self.settings.cow_enabled:
            refused = Reason.COW_DISABLED
        elif isinstance(self.driver, bases.BaseKeeper):
            return self._clone(self.driver, kind, name)
        else:
            refused = Reason.NO_BASE_KEEPING
        if self.settings.cow_fallback == 'refuse':
            raise exception.BackendError.because(
                refused, backend=self.driver.backend
            )
        return self._stream(kind)

    def _stream(self, kind: _Kind) -> Blank:
        with self.driver.open(self.volume_name, self.size) as writer:
            count = self._write(kind, writer)
            writer.close()
        return self._told('stream', 'its own', bytes_copied=count)

    def _clone(
        self, driver: bases.BaseKeeper, kind: _Kind, name: str
    ) -> Blank:
        image = _image(name, kind, self.size)
        key = bases.BaseKey.of(image)
        assert key is not None

        def fill(
            writer: bases.BaseWriter, report: streaming.Progress
        ) -> streaming.Filled:
            if writer.kept:
                # What an earlier maker left has another UUID.
                writer.restart()
            return streaming.Filled(self._write(kind, writer))

        maker = making.Maker(
            driver=driver,
            settings=self.settings,
            image=image,
            source=None,
            key=key,
            size=self.size,
            report=self.report,
        )
        begin = functools.partial(driver.begin_base, key, self.size)
        fetched = maker.make(begin, fill)
        if refused := bases.check_state(driver, fetched.base).refusal:
            raise exception.BackendError(refused)
        bound = driver.bound(drivers.VolumeRequest(self.size))
        bound.clone(image.at(fetched.base.location), self.volume_name)
        keeping.note_use(driver, fetched.base)
        volume = driver.show(self.volume_name)
        return self._told(
            'base', _renew(volume, kind), fetched.made, fetched.bytes_copied
        )

    def _write(self, kind: _Kind, sink: sparse.Sparse) -> int:
        """Write a new file system; return how many bytes that were."""
        directory = scratch.Scratch(self.settings)
        written = done = 0
        with (
            directory.file(None, kind.title) as file,
            directory.translated(),
        ):
            file.append(self.size)
            self.report('making', 0, self.size)
            _make(kind, file.fileno(), self.size)
            for piece in file.pieces():
                written += sparse.put(sink, piece)
                done += piece if isinstance(piece, int) else len(piece)
                self.report('streaming', done, self.size)
        return written

    def _told(
        self,
        method: str,
        uuid_told: str,
        base_made: bool = False,
        bytes_copied: int = 0,
    ) -> Blank:
        volume = self.driver.show(self.volume_name)
        return Blank(volume, method, base_made, uuid_told, 0, bytes_copied)


def _image(name: str, kind: _Kind, size: int) -> images.ImageInfo:
    """Describe what a base is made of, as if it were an image."""
    # Made in another way, it is another base.
    how = ' '.join(kind.commands[0])
    return images.ImageInfo(
        id=_IMAGE_ID,
        name=f'blank {name} of {size // units.Gi} GiB',
        disk_format='raw',
        content_id=f'blank:{name}:{size}:{how}',
    )


def _make(kind: _Kind, descriptor: int, size: int) -> None:
    """Run mkfs on an open file.

    :raises BackendError: TOOL_MISSING, MKFS_FAILED
    """
    path = f'/proc/self/fd/{descriptor}'
    problem = ''
    for command in kind.commands:
        tool = _program(command[0], kind)
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, size)
        problem = _run([tool, *command[1:], path], (descriptor,))
        if not problem:
            return
    raise exception.BackendError.because(
        Reason.MKFS_FAILED,
        kind=kind.title,
        size=size,
        tool=kind.tool,
        problem=problem,
    )


def _renew(volume: drivers.VolumeInfo, kind: _Kind) -> str:
    """Give a clone a UUID of its own, or tell who can."""
    advice = f'as in the base; in the guest: {kind.advice}'
    is_file = volume.format == 'raw' and os.path.isfile(volume.path)
    if not is_file or not kind.renew:
        return advice
    try:
        tool = _program(kind.renew[0], kind)
    except exception.BackendError as error:
        LOG.warning('Volume %s: %s', volume.name, error)
        return advice
    words = [word.format(uuid=uuid.uuid4()) for word in kind.renew[1:]]
    problem = _run([tool, *words, volume.path])
    if problem:
        LOG.warning(
            'Volume %s has no UUID of its own: %s', volume.name, problem
        )
        return advice
    return 'its own'


def _program(name: str, kind: _Kind) -> str:
    """Find a program.

    :raises BackendError: TOOL_MISSING
    """
    path = f'{os.environ.get("PATH", os.defpath)}:{_SBIN}'
    found = shutil.which(name, path=path)
    if found is None:
        raise exception.BackendError.because(
            Reason.TOOL_MISSING, tool=name, package=kind.package
        )
    return found


def _run(command: list[str], descriptors: tuple[int, ...] = ()) -> str:
    """Run a program; return what is wrong, or ''."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            pass_fds=descriptors,
            env={
                'PATH': f'{os.environ.get("PATH", os.defpath)}:{_SBIN}',
                'LC_ALL': 'C',
            },
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f'it took longer than {_TIMEOUT} s'
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ''
    said = done.stderr.decode(errors='replace').split('\n')
    told = ' '.join(line.strip() for line in said if line.strip())
    return refusal.printable(told, 300) or f'exit status {done.returncode}'
