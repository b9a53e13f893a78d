# SPDX-License-Identifier: Apache-2.0
"""How the file driver keeps a base: a directory with its image and facts.

``facts.json`` holds what the contract calls facts, and what the image file
was when it was published: size, mtime and inode. Both get their final name
by one rename of the directory, so neither is ever there without the other.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import re
import time
from typing import Any

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import file_locks
from cinder_cow import image_location
from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import common
from cinder_cow.drivers import file_layout
from cinder_cow.drivers import file_sinks

LOG = logging.getLogger(__name__)

IMAGE = 'image.raw'

# Cloning holds a base for milliseconds, retiring it for as long as unlinking
# takes; longer than this something is stuck.
_LOCK_SECONDS = 30
_POLL_SECONDS = 0.05
_FACTS = 'facts.json'
_NAME = re.compile(re.escape(base.RESERVED_PREFIX) + r'base-[0-9a-f]{40}')

# The facts of a base that has lost them: it can be seen, and removed.
_LOST = base.BaseFacts(base.BaseKey('', ''), '', '', 0, '', 0.0)
# What reading facts raises that are not what was written.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredBase:
    """A base as it lies in its directory.

    :param problem: how the image differs from what was published; empty if
        it does not
    """

    published: base.Base
    image: pathlib.Path
    problem: str


class BaseStore:
    """The bases of one directory.

    :param wait: seconds to wait for another maker
    """

    def __init__(self, layout: file_layout.Layout, wait: float) -> None:
        self._layout = layout
        self._wait = wait
        self._backend = layout.backend
        self._translated = functools.partial(
            file_layout.translated, self._backend
        )

    def find(self, name: str) -> StoredBase | None:
        """Return the base of that name, changed or not.

        :raises BackendError: BACKEND_ERROR: it is there and cannot be read
        """
        # Also keeps names with a slash from reaching the file system.
        if not _NAME.fullmatch(name):
            return None
        with self._translated():
            return _load(self._layout.bases / name, self._backend)

    def check(self, location: image_location.Location) -> StoredBase:
        """Return the base at a location, if it can be cloned.

        :raises BackendError: NOT_IN_BACKEND, BASE_NOT_FOUND, BASE_CHANGED
        """
        name = common.own_base(location, self._backend)
        return self.sound(name, self.find(name))

    def sound(self, name: str, found: StoredBase | None) -> StoredBase:
        """Return what was found, if it is there and as it was published.

        :raises BackendError: BASE_NOT_FOUND, BASE_CHANGED
        """
        if found is None:
            raise exception.BackendError.because(
                refusal.Reason.BASE_NOT_FOUND,
                base=name,
                backend=self._backend,
            )
        if found.problem:
            raise exception.BackendError.because(
                refusal.Reason.BASE_CHANGED, base=name, problem=found.problem
            )
        return found

    def list(self) -> Iterator[base.Base]:
        with self._translated():
            names = sorted(os.listdir(self._layout.bases))
        for name in names:
            try:
                found = self.find(name)
            except exception.BackendError as error:
                # One that is damaged must not hide the others.
                LOG.warning('Base %s: %s', name, error)
                continue
            if found:
                yield found.published

    def begin(self, name: str, size: int) -> base.BaseWriter | base.Base:
        """Begin a base, or wait for the one that another maker publishes.

        :raises BackendError: BUSY when the wait reaches its limit
        """
        deadline = time.monotonic() + self._wait
        while True:
            with contextlib.ExitStack() as undo:
                partial = self._hold(name)
                if partial:
                    undo.callback(partial.remove)
                # Only now: it may have been published before we held it.
                found = self.find(name)
                if found:
                    return found.published
                if partial:
                    undo.pop_all()
                    publish = functools.partial(self._publish, name)
                    path = partial.path / 'base' / IMAGE
                    return file_sinks.BaseSink(
                        self._backend, partial, path, size, publish
                    )
            if time.monotonic() > deadline:
                raise self._busy(name, self._wait)
            time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def held(
        self, name: str, kind: int
    ) -> Iterator[tuple[StoredBase | None, int]]:
        """Lock a base's image, and give it with its open descriptor.

        Cloning takes it shared and retiring alone, so that no child appears
        on a base that goes.

        :param kind: LOCK_SH or LOCK_EX
        :returns: None and -1 when there is no such base or image
        """
        with contextlib.ExitStack() as opened:
            found, descriptor = self.find(name), -1
            with self._translated(), contextlib.suppress(FileNotFoundError):
                if found:
                    file = opened.enter_context(found.image.open('rb'))
                    descriptor = file.fileno()
                    self._lock(descriptor, kind, name)
            # Again, now that it is locked: it may have gone meanwhile.
            found = self.find(name)
            if found and not file_locks.same_file(descriptor, found.image):
                raise self._busy(name, 0)
            yield found, descriptor

    def _lock(self, descriptor: int, kind: int, name: str) -> None:
        if not file_locks.wait_lock(descriptor, kind, _LOCK_SECONDS):
            raise self._busy(name, _LOCK_SECONDS)

    def remove(self, found: StoredBase) -> None:
        """Take a base out of the directory in one step, then remove it."""
        name = found.published.name
        partial = self._hold(name)
        if partial is None:
            raise self._busy(name, 0)
        try:
            with self._translated():
                found.image.parent.rename(partial.path / 'base')
                file_layout.sync_directory(self._layout.bases)
        finally:
            partial.remove()

    def _hold(self, name: str) -> file_layout.Partial | None:
        with self._translated():
            return self._layout.hold(name)

    def _publish(
        self, name: str, directory: pathlib.Path, facts: base.BaseFacts
    ) -> base.Base:
        with self._translated():
            _store(directory, facts)
            # Fails where a base of that name exists: it holds files.
            directory.rename(self._layout.bases / name)
            file_layout.sync_directory(self._layout.bases)
        found = self.find(name)
        if found is None:
            raise exception.BackendError.because(
                refusal.Reason.BASE_NOT_FOUND, base=name, backend=self._backend
            )
        return found.published

    def _busy(self, name: str, seconds: float) -> exception.BackendError:
        return exception.BackendError.because(
            refusal.Reason.BUSY,
            what=f'base {name}',
            owner=self._layout.owner(name),
            seconds=seconds,
        )


def _store(directory: pathlib.Path, facts: base.BaseFacts) -> None:
    """Write the facts beside a finished image; both are durable then."""
    image = directory / IMAGE
    image.chmod(0o400)
    record = {'facts': dataclasses.asdict(facts), 'file': _identity(image)}
    (directory / _FACTS).touch(mode=0o600)
    with (directory / _FACTS).open('w') as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    file_layout.sync_directory(directory)


def _load(directory: pathlib.Path, backend: str) -> StoredBase | None:
    """Read a base from its directory; what is lost of it is a problem."""
    if not directory.is_dir():
        return None
    image = directory / IMAGE
    try:
        record = json.loads((directory / _FACTS).read_text())
        facts = _facts(record['facts'])
        problem = _compare(image, record['file'])
    except FileNotFoundError as error:
        facts, problem = _LOST, f'{error.filename} is gone'
    except _DAMAGED:
        facts, problem = _LOST, 'its facts are damaged'
    location = image_location.BaseLocation(backend, directory.name)
    allocated = image.stat().st_blocks * 512 if image.exists() else 0
    return StoredBase(base.Base(facts, location, allocated), image, problem)


def _compare(image: pathlib.Path, published: dict[str, int]) -> str:
    """Tell how the file differs from the published one."""
    return ', '.join(
        f'{name} was {published.get(name)} and is {value}'
        for name, value in _identity(image).items()
        if published.get(name) != value
    )


def _identity(image: pathlib.Path) -> dict[str, int]:
    status = image.stat()
    return {
        'size': status.st_size,
        'mtime_ns': status.st_mtime_ns,
        'inode': status.st_ino,
    }


def _facts(record: dict[str, Any]) -> base.BaseFacts:
    """Read the facts, each of its type.

    :raises TypeError: one is not
    """
    key = base.BaseKey(**record.pop('key'))
    facts = base.BaseFacts(key=key, **record)
    texts = (key.image_id, key.content_id, key.read_as, facts.image_name,
             facts.source_format, facts.hash)  # fmt: skip
    if not all(isinstance(text, str) for text in texts):
        raise TypeError('a text is none')
    if type(facts.content_size) is not int or facts.content_size < 0:
        raise TypeError('the size is none')
    datetime.datetime.fromtimestamp(facts.made_at, datetime.UTC)
    return facts
