# SPDX-License-Identifier: Apache-2.0
"""What a lease says: one row of the object ``cow_leases``, and its format.

How a lease is got, renewed and released is in :mod:`.rbd_leases`.
"""

import dataclasses
import enum
import json
import time
from typing import Any, Self

from cinder_cow.drivers.rbd_owner import Owner


class Work(enum.Enum):
    """What is done to a volume."""

    CLONE = 'clone'
    STREAM = 'stream'
    DELETE = 'delete'
    BASE = 'base'
    RETIRE = 'retire'


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """How far a base is that is being made.

    :param kept: bytes from the start that are written, so that the next
        maker can go on behind them
    :param left: its maker has given it up, for the next one to go on
    :param told: when this was written down, in seconds since the epoch
    :param volume: whose content it has, if it was linked
    """

    kept: int = 0
    left: bool = False
    told: float = 0
    phase: str = ''
    done: int = 0
    total: int = 0
    volume: str = ''


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A work that is under way.

    :param id: of this one attempt
    :param address: of its client, by which it can be shut out
    :param client: its number, with which the ids of its images begin
    :param image: id of the image that is deleted, or is to be a base
    :param size: bytes it shall have
    :param since: seconds since the epoch, for people
    """

    id: str
    volume: str
    work: Work
    owner: Owner
    address: str
    client: str
    image: str = ''
    size: int = 0
    since: float = 0
    draft: Draft | None = None

    def packed(self) -> bytes:
        record = dataclasses.asdict(self) | {'work': self.work.value}
        if self.draft is None:
            del record['draft']
        return json.dumps(record).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Read a row.

        :raises ValueError: it is none of ours
        """
        try:
            record: dict[str, Any] = json.loads(data)
            owner = Owner(**record.pop('owner'))
            work = Work(record.pop('work'))
            draft = record.pop('draft', None)
            if draft is not None:
                draft = Draft(**draft)
            return cls(work=work, owner=owner, draft=draft, **record)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from None

    def has_made(self, image_id: str) -> bool:
        """Whether an image is of this work's client.

        librbd makes an id of the client's number and one by chance, both in
        hexadecimal, and keeps the last 14 digits of it.
        """
        return any(
            image_id[:-length] == self.client[length - 14 :]
            for length in range(1, 9)
        )

    @property
    def kept(self) -> int:
        """How much of a base the next maker can go on behind."""
        return self.draft.kept if self.draft else 0

    def changed(self, **changes: Any) -> Self:  # noqa: ANN401
        """Return the row with another draft.

        :param changes: fields of :class:`Draft`
        """
        draft = dataclasses.replace(
            self.draft or Draft(), told=time.time(), **changes
        )
        return dataclasses.replace(self, draft=draft)


def id_of(row: bytes) -> str:
    """Tell which lease a row is of, even one of another release."""
    try:
        return str(json.loads(row)['id'])
    except (ValueError, TypeError, KeyError):
        return ''
