# SPDX-License-Identifier: Apache-2.0
"""How the file driver keeps a base: a directory with its image and facts.

``facts.json`` holds what the contract calls facts, and what the image file
was when it was published: size, mtime and inode. Both get their final name
by one rename of the directory, so neither is ever there without the other.
"""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from cinder_cow import image_location
from cinder_cow.drivers import base
from cinder_cow.drivers import file_layout

IMAGE = 'image.raw'
_FACTS = 'facts.json'
_NAME = re.compile(re.escape(base.RESERVED_PREFIX) + r'base-[0-9a-f]{40}')


@dataclasses.dataclass(frozen=True, slots=True)
class StoredBase:
    """A base as it lies in its directory.

    :param problem: how the image differs from what was published; empty if
        it does not
    """

    published: base.Base
    image: pathlib.Path
    problem: str


def is_name(name: str) -> bool:
    """Whether this can be the name of a base."""
    return _NAME.fullmatch(name) is not None


def store(directory: pathlib.Path, facts: base.BaseFacts) -> None:
    """Write the facts beside a finished image; both are durable then.

    :raises OSError: nothing was published
    """
    image = directory / IMAGE
    image.chmod(0o400)
    record = {'facts': dataclasses.asdict(facts), 'file': _identity(image)}
    path = directory / _FACTS
    with path.open('w') as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    file_layout.sync_directory(directory)


def load(directory: pathlib.Path, backend: str) -> StoredBase | None:
    """Read a base from its directory.

    :returns: None when there is none
    :raises OSError: it is there and cannot be read
    """
    image = directory / IMAGE
    try:
        record = json.loads((directory / _FACTS).read_text())
        facts = _facts(record['facts'])
        published = record['file']
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f'{directory / _FACTS} is damaged: {error}') from error
    location = image_location.BaseLocation(backend, directory.name)
    problem, allocated = _compare(image, published)
    return StoredBase(base.Base(facts, location, allocated), image, problem)


def _compare(
    image: pathlib.Path, published: dict[str, int]
) -> tuple[str, int]:
    """Tell how the file differs from the published one, and its blocks."""
    try:
        found = _identity(image)
    except FileNotFoundError:
        return 'its file is gone', 0
    changed = [
        f'{name} was {published.get(name)} and is {value}'
        for name, value in found.items()
        if published.get(name) != value
    ]
    return ', '.join(changed), image.stat().st_blocks * 512


def _identity(image: pathlib.Path) -> dict[str, int]:
    status = image.stat()
    return {
        'size': status.st_size,
        'mtime_ns': status.st_mtime_ns,
        'inode': status.st_ino,
    }


def _facts(record: dict[str, Any]) -> base.BaseFacts:
    key = base.BaseKey(**record.pop('key'))
    return base.BaseFacts(key=key, **record)
