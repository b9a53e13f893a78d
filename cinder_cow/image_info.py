# SPDX-License-Identifier: Apache-2.0
"""What an image is: one frozen value, from a Glance record or a file.

Everything in it is a claim. The format, the size of what is streamed and the
hash are compared with the bytes before a volume is published; the size of
the disk is taken from the bytes, never from here.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any, NoReturn, Protocol, Self

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_location
from cinder_cow import refusal

_HEX = re.compile(r'[0-9a-fA-F]+')


class Signature(Protocol):
    """A signature of an image; made by who knows where certificates are.

    :ivar algorithm: of the hash that was signed, as hashlib names it
    :ivar identity: tells it from all others; kept with what was found to
        have it
    """

    algorithm: str
    identity: str

    def check(self, digest: bytes) -> None:
        """Compare it with a hash of the image's bytes.

        :raises ImageError: SIGNATURE_INVALID
        """


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image, as its record describes it.

    :param id: Glance id, or the real path of a file
    :param name: what a person calls it
    :param disk_format: the claimed format ('raw', 'qcow2', ...)
    :param size: bytes of the stored image, None when not known
    :param virtual_size: bytes of the disk in it, None when not known
    :param min_disk: bytes a volume must have
    :param status: 'active' when its data can be read
    :param content_id: what changes when the content does, for an image that
        has no hash: a file's inode, size and times; a URL's ETag; when an
        image was made in Glance, whose bytes never change
    :param locations: where its bytes are, untrusted, in the order to try
    :param locations_told_by: what of Glance told them
    :param locations_hidden: why Glance tells none
    :param signature: that its bytes must have, where that is asked for
    """

    id: str
    name: str
    disk_format: str
    container_format: str = 'bare'
    size: int | None = None
    virtual_size: int | None = None
    min_disk: int = 0
    status: str = 'active'
    owner: str | None = None
    visibility: str | None = None
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    content_id: str = ''
    locations: tuple[image_location.Location, ...] = ()
    locations_told_by: str = ''
    locations_hidden: refusal.Refusal | None = None
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    signature: Signature | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    @property
    def label(self) -> str:
        """The name, or the id; safe to print on a terminal."""
        return refusal.printable(self.name or self.id)

    def at(self, location: image_location.Location) -> Self:
        """Narrow to exactly one location, as ``clone`` wants it."""
        return dataclasses.replace(self, locations=(location,))

    @classmethod
    def from_glance(cls, record: Mapping[str, Any]) -> Self:
        """Read a record of Glance's image API v2.

        :param record: as ``GET /v2/images/{id}`` answers it; ``locations``
            and ``direct_url`` are read where the cloud shows them
        :raises ImageError: IMAGE_RECORD_INVALID for a field of a wrong type
        """
        fields = _RecordReader(record)
        known = {field.name for field in dataclasses.fields(cls)}
        known.add('direct_url')
        known.remove('signature')
        made_at = fields.text('created_at')
        return cls(
            id=fields.required_text('id'),
            name=fields.text('name') or '',
            disk_format=(fields.text('disk_format') or '').lower(),
            container_format=fields.text('container_format') or 'bare',
            size=fields.number('size'),
            virtual_size=fields.number('virtual_size'),
            min_disk=(fields.number('min_disk') or 0) * units.Gi,
            status=fields.text('status') or '',
            owner=fields.text('owner'),
            visibility=fields.text('visibility'),
            checksum=fields.hexadecimal('checksum'),
            os_hash_algo=fields.text('os_hash_algo'),
            os_hash_value=fields.hexadecimal('os_hash_value'),
            content_id=f'glance:{made_at}' if made_at else '',
            locations=fields.locations(),
            properties={
                key: value
                for key, value in record.items()
                if isinstance(value, str) and key not in known
            },
        )


class _RecordReader:
    """Reads fields of a record, refusing values of a wrong type."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record

    def _bad(self, field: str) -> NoReturn:
        raise exception.ImageError.because(
            refusal.Reason.IMAGE_RECORD_INVALID,
            image=str(self._record.get('id'))[:200],
            field=field,
            value=repr(self._record.get(field))[:200],
        )

    def text(self, field: str) -> str | None:
        value = self._record.get(field)
        if value is not None and not isinstance(value, str):
            self._bad(field)
        return value

    def required_text(self, field: str) -> str:
        return self.text(field) or self._bad(field)

    def number(self, field: str) -> int | None:
        value = self._record.get(field)
        if value is None:
            return None
        if type(value) is not int or value < 0:
            self._bad(field)
        return value

    def hexadecimal(self, field: str) -> str | None:
        value = self.text(field)
        if not value:
            return None
        if not _HEX.fullmatch(value):
            self._bad(field)
        return value.lower()

    def locations(self) -> tuple[image_location.Location, ...]:
        """All locations, ``direct_url`` first, each once."""
        listed = self._record.get('locations')
        if listed is not None and not isinstance(listed, list):
            self._bad('locations')
        found = [self._location(entry) for entry in listed or []]
        direct_url = self.text('direct_url')
        if direct_url:
            direct = image_location.from_record(direct_url, {})
            # If it is listed too, then with its metadata.
            found.insert(0, next((f for f in found if f == direct), direct))
        return tuple(dict.fromkeys(found))

    def _location(self, entry: Any) -> image_location.Location:  # noqa: ANN401
        if not isinstance(entry, Mapping):
            self._bad('locations')
        url, metadata = entry.get('url'), entry.get('metadata', {})
        if not isinstance(url, str) or not isinstance(metadata, Mapping):
            self._bad('locations')
        return image_location.from_record(url, metadata)
