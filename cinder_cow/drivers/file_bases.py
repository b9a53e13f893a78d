# SPDX-License-Identifier: Apache-2.0
"""How the file driver keeps a base: a directory with its image and facts.

Both get their final name by one rename of the directory, so neither is ever
there without the other.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import re
from typing import Any

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import file_locks
from cinder_cow import image_location
from cinder_cow import refusal
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import common
from cinder_cow.drivers import file_facts
from cinder_cow.drivers import file_layout
from cinder_cow.drivers import file_sinks

LOG = logging.getLogger(__name__)

# Cloning holds a base for milliseconds, retiring it for as long as unlinking
# takes; longer than this something is stuck.
_LOCK_SECONDS = 30
_NAME = re.compile(re.escape(base.RESERVED_PREFIX) + r'base-[0-9a-f]{40}')

# The facts of a base that has lost them: it can be seen, and removed.
_LOST = bases.BaseFacts(bases.BaseKey('', ''), '', '', 0, '', 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredBase:
    """A base as it lies in its directory.

    :param problem: how the image differs from what was published; empty if
        it does not
    :param is_lost: whether the image or the facts are
    """

    published: bases.Base
    image: pathlib.Path
    problem: str
    is_lost: bool

    @property
    def directory(self) -> pathlib.Path:
        return self.image.parent


class BaseStore:
    """The bases of one directory."""

    def __init__(self, layout: file_layout.Layout) -> None:
        self._layout = layout
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
        there = self._found(name, found)
        if there.problem:
            raise exception.BackendError.because(
                refusal.Reason.BASE_CHANGED, base=name, problem=there.problem
            )
        return there

    def _found(self, name: str, found: StoredBase | None) -> StoredBase:
        if found is None:
            raise exception.BackendError.because(
                refusal.Reason.BASE_NOT_FOUND,
                base=name,
                backend=self._backend,
            )
        return found

    def list(self) -> Iterator[bases.Base]:
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

    def begin(self, name: str, size: int) -> bases.Begun:
        """Begin a base, or tell that it is there or being made."""
        partial = self._hold(name, size)
        if partial is None:
            found = self.find(name)
            return found.published if found else self._layout.making(name)
        with contextlib.ExitStack() as undo:
            undo.callback(partial.remove)
            # Only now: it may have been published before we held it.
            found = self.find(name)
            if found:
                return found.published
            undo.pop_all()
        publish = functools.partial(self._publish, name)
        return file_sinks.BaseSink(self._backend, partial, size, publish)

    def set_facts(self, name: str, changes: dict[str, Any]) -> None:
        """Change facts of a base.

        :raises BackendError: BASE_NOT_FOUND; BASE_CHANGED: its facts are
            lost; BUSY
        """
        with self._writing(name) as directory:
            record = file_facts.Record.read(directory)
            facts = dataclasses.replace(record.facts, **changes)
            changed = dataclasses.replace(record, facts=facts)
            file_facts.write(directory / file_facts.FACTS, changed.packed())

    def manifest(self, name: str) -> bytes:
        """Return the manifest of a base, or b''.

        :raises BackendError: BASE_NOT_FOUND
        """
        found = self._found(name, self.find(name))
        with self._translated():
            try:
                return (found.directory / file_facts.MANIFEST).read_bytes()
            except FileNotFoundError:
                return b''

    def set_manifest(self, name: str, manifest: bytes) -> None:
        """Keep a manifest with a base.

        :raises BackendError: BASE_NOT_FOUND, BASE_CHANGED, BUSY, NO_SPACE
        """
        with self._writing(name) as directory:
            file_facts.write(directory / file_facts.MANIFEST, manifest)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[pathlib.Path]:
        """Give a base's directory, to write beside its image.

        Clones go on meanwhile, and it is not retired.
        """
        with self.held(name, fcntl.LOCK_SH) as (stored, _descriptor):
            found = self._found(name, stored)
            if found.is_lost:
                self.sound(name, found)
            with (
                self._translated(),
                file_facts.writing(found.directory) as is_ours,
            ):
                if not is_ours:
                    raise self._busy(name, _LOCK_SECONDS)
                yield found.directory

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
                found.directory.rename(partial.path / 'base')
                file_layout.sync_directory(self._layout.bases)
        finally:
            partial.remove()

    def _hold(
        self, name: str, size: int | None = None
    ) -> file_layout.Partial | None:
        with self._translated():
            return self._layout.hold(name, size)

    def _publish(
        self, name: str, directory: pathlib.Path, facts: bases.BaseFacts
    ) -> bases.Base:
        with self._translated():
            _store(directory, facts)
            # Fails where a base of that name exists: it holds files.
            directory.rename(self._layout.bases / name)
            file_layout.sync_directory(self._layout.bases)
        return self._found(name, self.find(name)).published

    def _busy(self, name: str, seconds: float) -> exception.BackendError:
        return exception.BackendError.because(
            refusal.Reason.BUSY,
            what=f'base {name}',
            owner=self._layout.owner(name),
            seconds=seconds,
        )


def _store(directory: pathlib.Path, facts: bases.BaseFacts) -> None:
    """Write the facts beside a finished image; both are durable then."""
    (directory / file_facts.IMAGE).chmod(0o400)
    record = file_facts.Record.of(directory, facts)
    file_facts.write(directory / file_facts.FACTS, record.packed())


def _load(directory: pathlib.Path, backend: str) -> StoredBase | None:
    """Read a base from its directory; what is lost of it is a problem."""
    if not directory.is_dir():
        return None
    image = directory / file_facts.IMAGE
    facts, is_lost = _LOST, True
    try:
        record = file_facts.Record.read(directory)
        problem = record.compare(directory)
        facts, is_lost = record.facts, False
    except FileNotFoundError as error:
        if not directory.is_dir():
            return None  # retired meanwhile
        problem = f'{error.filename} is gone'
    except (RecursionError, ValueError):
        problem = 'its facts are damaged'
    location = image_location.BaseLocation(backend, directory.name)
    allocated = 0
    with contextlib.suppress(FileNotFoundError):
        allocated = image.stat().st_blocks * 512
    published = bases.Base(facts, location, allocated)
    return StoredBase(published, image, problem, is_lost)
