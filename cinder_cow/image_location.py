# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of an image are: text parsed once into frozen values.

Parsing does no I/O. A location comes from an image record and is untrusted:
nothing here says that it may be used. ``parse(location.url) == location``
for every location that has a URL; ``str(location)`` is for people and logs
and never holds credentials.

URL grammars: rbd as glance_store writes it (``rbd://image`` or
``rbd://fsid/pool/image/snapshot``, each part percent-encoded), cinder as
glance_store writes it (``cinder://uuid`` or ``cinder://store/uuid``).
"""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any, TypeAlias
import urllib.parse
import uuid

from cinder_cow import exception
from cinder_cow import refusal
from cinder_cow.i18n import _

# Longer than any URL a browser or glance_store makes; a bound on hostile text.
MAX_URL_LENGTH = 8192

_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://(.*)', re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class _Location:
    """Common to all: what the image record says beside the URL.

    :param metadata: as Glance keeps it (the store's name, a share, ...);
        two locations are equal whatever it holds
    """

    metadata: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, compare=False, repr=False, kw_only=True
    )


@dataclasses.dataclass(frozen=True, slots=True)
class RbdLocation(_Location):
    """An RBD image; with all four parts, a snapshot in a known cluster."""

    image: str
    pool: str | None = None
    fsid: str | None = None
    snapshot: str | None = None

    @property
    def url(self) -> str:
        parts = (self.fsid, self.pool, self.image, self.snapshot)
        return 'rbd://' + '/'.join(
            urllib.parse.quote(part, safe='') for part in parts if part
        )

    def __str__(self) -> str:
        return self.url


@dataclasses.dataclass(frozen=True, slots=True)
class CinderLocation(_Location):
    """A Cinder volume that holds the image."""

    volume_id: str
    store: str | None = None

    @property
    def url(self) -> str:
        store = (
            urllib.parse.quote(self.store, safe='') + '/' if self.store else ''
        )
        return f'cinder://{store}{self.volume_id}'

    def __str__(self) -> str:
        return self.url


@dataclasses.dataclass(frozen=True, slots=True)
class FileLocation(_Location):
    """A file on some host; an absolute path."""

    path: str

    @property
    def url(self) -> str:
        return 'file://' + urllib.parse.quote(self.path)

    def __str__(self) -> str:
        return self.url


@dataclasses.dataclass(frozen=True, slots=True)
class HttpLocation(_Location):
    """An http or https URL, kept as it came."""

    url: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return _without_secrets(self.url)


@dataclasses.dataclass(frozen=True, slots=True)
class UnknownLocation(_Location):
    """A URL of a scheme we do not read: s3, swift, and what is to come."""

    scheme: str
    rest: str = dataclasses.field(repr=False)

    @property
    def url(self) -> str:
        return f'{self.scheme}://{self.rest}'

    def __str__(self) -> str:
        return _without_secrets(self.url)


@dataclasses.dataclass(frozen=True, slots=True)
class MalformedLocation(_Location):
    """Text of an image record that is not a location, and why."""

    text: str = dataclasses.field(repr=False)
    problem: str

    def __str__(self) -> str:
        return refusal.printable(_without_secrets(self.text))


@dataclasses.dataclass(frozen=True, slots=True)
class BaseLocation(_Location):
    """A base inside a back end.

    Made by drivers only. It has no URL, so no image record can name one:
    otherwise whoever writes a record could clone another tenant's base.
    """

    backend: str
    name: str

    def __str__(self) -> str:
        return f'base {self.name} in {self.backend}'


# What has a URL.
ParsedLocation: TypeAlias = (
    RbdLocation
    | CinderLocation
    | FileLocation
    | HttpLocation
    | UnknownLocation
)
Location: TypeAlias = ParsedLocation | MalformedLocation | BaseLocation


def parse(url: str) -> ParsedLocation:
    """Parse a URL into the location it names.

    :param url: text from an image record or a command line
    :returns: a location of the scheme's class, never a BaseLocation
    :raises ImageError: LOCATION_INVALID when the text breaks its grammar
    """
    try:
        return _parse(url)
    except ValueError as error:
        raise exception.ImageError.because(
            refusal.Reason.LOCATION_INVALID,
            location=refusal.printable(_without_secrets(url)),
            problem=str(error),
        ) from None


def from_record(url: str, metadata: Mapping[str, Any]) -> Location:
    """Parse a location of an image record, keeping a bad one as Malformed.

    One bad location of an image must not hide its good ones.
    """
    location: Location
    try:
        location = _parse(url)
    except ValueError as error:
        location = MalformedLocation(url, str(error))
    return dataclasses.replace(location, metadata=metadata)


def _parse(url: str) -> ParsedLocation:
    _check_length(url)
    if not url.isprintable() or ' ' in url:
        raise ValueError(_('it holds white space or control characters'))
    match = _SCHEME.fullmatch(url)
    if match is None:
        raise ValueError(_('it has no scheme'))
    scheme, rest = match.group(1).lower(), match.group(2)
    parser = _PARSERS.get(scheme, UnknownLocation)
    location = parser(scheme, rest)
    # Printed it may be longer: what was not encoded will be.
    _check_length(location.url)
    return location


def _check_length(url: str) -> None:
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(_('it is longer than %d characters') % MAX_URL_LENGTH)


def _parse_rbd(scheme: str, rest: str) -> RbdLocation:
    parts = [_unquote(part) for part in rest.split('/')]
    if '' in parts:
        raise ValueError(_('it has an empty part'))
    match parts:
        case [image]:
            return RbdLocation(image)
        case [pool, image]:
            return RbdLocation(image, pool)
        case [fsid, pool, image, snapshot]:
            return RbdLocation(image, pool, fsid, snapshot)
    raise ValueError(
        _('an rbd location has 1, 2 or 4 parts, this has %d') % len(parts)
    )


def _parse_cinder(scheme: str, rest: str) -> CinderLocation:
    parts = [_unquote(part) for part in rest.split('/')]
    if '' in parts:
        raise ValueError(_('it has an empty part'))
    if len(parts) > 2:
        raise ValueError(_('a cinder location has 1 or 2 parts'))
    try:
        volume_id = str(uuid.UUID(parts[-1]))
    except ValueError:
        raise ValueError(_('its volume id is not a UUID')) from None
    return CinderLocation(volume_id, parts[0] if len(parts) == 2 else None)


def _parse_file(scheme: str, rest: str) -> FileLocation:
    if not rest.startswith('/'):
        raise ValueError(_('its path is not absolute'))
    path = _unquote(rest)
    if '\0' in path:
        raise ValueError(_('its path holds a NUL'))
    return FileLocation(path)


def _parse_http(scheme: str, rest: str) -> HttpLocation:
    url = f'{scheme}://{rest}'
    try:
        split = urllib.parse.urlsplit(url)
        split.port  # noqa: B018 - it is parsed when it is read
    except ValueError:
        # Not what Python says: that quotes the text, a password perhaps.
        raise ValueError(_('its host or port is malformed')) from None
    if not split.hostname:
        raise ValueError(_('it names no host'))
    return HttpLocation(url)


_PARSERS: dict[str, Callable[[str, str], ParsedLocation]] = {
    'rbd': _parse_rbd,
    'cinder': _parse_cinder,
    'file': _parse_file,
    'http': _parse_http,
    'https': _parse_http,
}


def _unquote(part: str) -> str:
    try:
        return urllib.parse.unquote(part, errors='strict')
    except UnicodeDecodeError:
        raise ValueError(_('it is not UTF-8 behind its percent signs')) from (
            None
        )


def _without_secrets(text: str) -> str:
    """Cut user names, passwords and queries (signed URLs) out of a URL.

    A password that was not encoded may hold any character, so all before the
    last "@" goes, whatever it looks like.
    """
    scheme = _SCHEME.fullmatch(text)
    head = f'{scheme.group(1)}://' if scheme else ''
    rest = text[len(head) :]
    secret, at, shown = rest.rpartition('@')
    if '?' in secret:
        # A query with an "@" in it, or a password with a "?".
        return head + '***'
    shown, query, _secret = shown.partition('?')
    return head + ('***@' if at else '') + shown + ('?***' if query else '')
