# SPDX-License-Identifier: Apache-2.0
"""What lies beside the image of a base: its facts and its manifest.

``facts.json`` holds what the contract calls facts, and what the image file
was when it was published. Where one of the two is changed later, it is
written aside and renamed, so that nobody ever sees it half-written.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from typing import Any, Self

from cinder_cow import file_locks
from cinder_cow.drivers import bases
from cinder_cow.drivers import file_kept
from cinder_cow.drivers import file_layout

IMAGE = file_kept.IMAGE.name
FACTS = 'facts.json'
MANIFEST = 'manifest'
# What a file is called until it is renamed.
ASIDE = '.new'

# Longer than a write of one file takes, on any disk that works.
_LOCK_SECONDS = 30


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What ``facts.json`` holds.

    :param file: what the image was when it was published
    """

    facts: bases.BaseFacts
    file: dict[str, Any]

    @classmethod
    def of(cls, directory: pathlib.Path, facts: bases.BaseFacts) -> Self:
        """Make the record of an image that is finished."""
        return cls(facts, _identity(directory / IMAGE))

    @classmethod
    def read(cls, directory: pathlib.Path) -> Self:
        """Read the record of a base.

        :raises FileNotFoundError: it is gone
        :raises ValueError: it is not what was written
        """
        record = json.loads((directory / FACTS).read_bytes())
        try:
            facts, file = record['facts'], dict(record['file'])
        except (LookupError, TypeError) as error:
            raise ValueError(str(error)) from None
        return cls(bases.BaseFacts.unpacked(facts), file)

    def packed(self) -> bytes:
        facts = json.loads(self.facts.packed())
        record = {'facts': facts, 'file': self.file}
        return json.dumps(record, indent=1).encode()

    def compare(self, directory: pathlib.Path) -> str:
        """Tell how the image differs from the published one, if it does.

        :raises FileNotFoundError: it is gone
        """
        return ', '.join(
            f'{name} was {self.file.get(name)} and is {value}'
            for name, value in _identity(directory / IMAGE).items()
            if self.file.get(name) != value
        )


@contextlib.contextmanager
def writing(directory: pathlib.Path) -> Iterator[bool]:
    """Be the only one to write beside an image, in the block.

    :returns: False where somebody else does, for longer than a write takes
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file_locks.wait_lock(descriptor, fcntl.LOCK_EX, _LOCK_SECONDS)
    finally:
        os.close(descriptor)


def is_being_written(directory: pathlib.Path) -> bool:
    """Tell whether somebody writes beside an image right now.

    :raises OSError: it is gone
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not file_locks.try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def aside(directory: pathlib.Path) -> list[pathlib.Path]:
    """Name what was written aside, and never renamed."""
    names = [directory / f'{name}{ASIDE}' for name in (FACTS, MANIFEST)]
    return [path for path in names if path.exists()]


def write(path: pathlib.Path, data: bytes) -> None:
    """Write or replace a file in one step; it is durable then.

    :raises OSError: it cannot be written; what was there is there
    """
    temporary = path.with_name(path.name + ASIDE)
    try:
        temporary.touch(mode=0o600)
        with temporary.open('r+b') as file:
            file.truncate(0)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    file_layout.sync_directory(path.parent)


def _identity(image: pathlib.Path) -> dict[str, int]:
    status = image.stat()
    return {
        'size': status.st_size,
        'mtime_ns': status.st_mtime_ns,
        'inode': status.st_ino,
    }
