# SPDX-License-Identifier: Apache-2.0
"""Which locations can be cloned: the criteria, one guard clause each.

A location is text of an image record, and untrusted. What passes here is a
raw image of a pool that is trusted, in the cluster of the back end, at a
snapshot that its user may read; and its bytes are what the record claims.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import json
import shlex
import time
from typing import Protocol, TypeAlias

from cinder_cow import exception
from cinder_cow import formats
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow.drivers import ceph
from cinder_cow.refusal import Reason

# Rows of an object of our own pool: the pool of images is read-only to us.
_VERDICTS = 'cow_verdicts'
_GOOD = b'good'
# Seconds, and how many of them are kept.
_MOMENT = 10
_MOST = 1000
# Of a part that is missing, or a snapshot that is not protected; or of
# something else.
_UNCLEAR = {errno.ENOENT, errno.EINVAL}


def verdicts(pool: ceph.Pool) -> ceph.Rows:
    """Return what is remembered of images that were judged."""
    return pool.rows(_VERDICTS)


@dataclasses.dataclass(frozen=True, slots=True)
class Trust:
    """Which locations are believed; see OSSN-0065 and OSSN-0090.

    :param pools: in which images may be
    :param check_image: the image must have the id as its name
    :param snapshot: the name that it must have; '' for any
    """

    pools: frozenset[str]
    check_image: bool = True
    snapshot: str = 'snap'


@dataclasses.dataclass(frozen=True, slots=True)
class Parent:
    """A snapshot that can be cloned: of an image, or a base.

    :param identity: as the header of a clone tells it
    :param size: bytes
    :param content_size: bytes of what is in it, which may be less
    """

    location: image_location.Location
    pool: str
    image: str
    snapshot: str
    identity: str
    size: int
    content_size: int
    namespace: str = ''

    @property
    def name(self) -> str:
        """The name of a base, or where an image is; for people."""
        if isinstance(self.location, image_location.BaseLocation):
            return self.image
        return f'{self.pool}/{self.image}@{self.snapshot}'

    def is_of(self, child: ceph.Header) -> bool:
        """Whether a new clone is of this one, not of one that came later."""
        return child.parent() == self.identity and child.size() == self.size


class Judge(Protocol):
    """Tells what became of a parent while it was cloned."""

    def refused(
        self, pool: ceph.Pool, parent: Parent, error: ceph.CephError
    ) -> Exception:
        """Say why it could not be cloned.

        :returns: the error itself, where that says it
        """

    def replaced(self, parent: Parent) -> exception.BackendError:
        """Say that what was judged is another image by now."""


# A location, and what an image's record says that it is.
_Key: TypeAlias = tuple[image_location.Location, str, str, str | None]


class Parents:
    """Judges locations for one back end.

    :param caps: what its user needs, for people
    """

    def __init__(self, backend: str, caps: str, trust: Trust) -> None:
        self._backend = backend
        self._caps = caps
        self._trust = trust
        self._found: dict[_Key, tuple[Parent, float]] = {}

    def find(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        image: images.ImageInfo,
    ) -> Parent:
        """Return what can be cloned at the one location of an image.

        What was found a moment ago is not looked at again, which takes a
        fifth of a clone: that fails where it is gone, and its parent is
        compared with this one.

        :param pool: the back end's own
        :raises BackendError: why it cannot be
        """
        (location,) = image.locations
        key = (location, image.id, image.disk_format, image.os_hash_value)
        found, until = self._found.get(key, (None, 0.0))
        if found is None or time.monotonic() > until:
            found = self._find(connection, pool, image)
            self._remember(key, found)
        return found

    def _remember(self, key: _Key, found: Parent) -> None:
        now = time.monotonic()
        if len(self._found) > _MOST:
            self._found = {k: v for k, v in self._found.items() if v[1] > now}
        self._found[key] = found, now + _MOMENT

    def _find(
        self,
        connection: ceph.Connection,
        pool: ceph.Pool,
        image: images.ImageInfo,
    ) -> Parent:
        location = self.trusted(connection, image)
        if image.disk_format in formats.CONVERTED:
            raise self._no(
                Reason.NOT_RAW, image=image.label, format=image.disk_format
            )
        assert location.pool
        assert location.snapshot
        with self.opened(connection, location) as snapshot:
            if not snapshot.is_protected_snap(location.snapshot):
                self._check_unprotected(connection, location)
            identity = connection.identity(
                location.pool, snapshot, location.snapshot
            )
            size = snapshot.size()
            new_verdict = self._judged(pool, image, identity, snapshot)
        if new_verdict:
            verdicts(pool).put(new_verdict, _GOOD)
        return Parent(
            location,
            location.pool,
            location.image,
            location.snapshot,
            identity,
            size,
            content_size=size,
        )

    @contextlib.contextmanager
    def opened(
        self,
        connection: ceph.Connection,
        location: image_location.RbdLocation,
    ) -> Iterator[ceph.Image]:
        """Open the snapshot at a trusted location.

        :raises BackendError: it is not there, or closed to this user
        """
        assert location.pool
        try:
            with (
                connection.pool(location.pool) as pool,
                pool.image(location.image, location.snapshot) as snapshot,
            ):
                yield snapshot
        except ceph.CephError as error:
            raise self._refused(connection, location, error) from None

    # What judges a clone's parent

    def refused(
        self, pool: ceph.Pool, parent: Parent, error: ceph.CephError
    ) -> Exception:
        assert isinstance(parent.location, image_location.RbdLocation)
        return self._refused(pool.connection, parent.location, error)

    def replaced(self, parent: Parent) -> exception.BackendError:
        self._found.clear()
        return self._no(
            Reason.LOCATION_NOT_FOUND, location=str(parent.location)
        )

    def outside(
        self, location: image_location.Location
    ) -> exception.BackendError:
        return self._no(
            Reason.NOT_IN_BACKEND,
            location=str(location),
            backend=self._backend,
        )

    def trusted(
        self, connection: ceph.Connection, image: images.ImageInfo
    ) -> image_location.RbdLocation:
        """Return the one location of an image, if it is to be believed.

        :raises BackendError: it is not, or is of another cluster
        """
        (location,) = image.locations
        if not isinstance(location, image_location.RbdLocation):
            raise self.outside(location)
        if location.fsid is None or location.snapshot is None:
            raise self._no(Reason.NO_SNAPSHOT, location=str(location))
        if location.fsid != connection.fsid:
            raise self._no(
                Reason.OTHER_CLUSTER,
                location=str(location),
                backend=self._backend,
                fsid=connection.fsid,
            )
        trusted = sorted(self._trust.pools)
        if location.pool not in trusted:
            raise self._untrusted(
                location,
                f"pool '{location.pool}' is not trusted",
                'If Glance keeps its images there: set cow_rbd_trusted_pools'
                f' = {", ".join([*trusted, str(location.pool)])} in section'
                f' [{self._backend}].',
            )
        if self._trust.check_image and location.image != image.id:
            raise self._untrusted(
                location,
                f"it is not named after image '{image.id}'",
                'Correct the location in the image record; if names differ on'
                ' purpose, set cow_rbd_check_image = false in section'
                f' [{self._backend}].',
            )
        if self._trust.snapshot not in ('', location.snapshot):
            raise self._untrusted(
                location,
                f"its snapshot is not '{self._trust.snapshot}'",
                'Correct the location in the image record; if Glance names'
                f' its snapshots so, set cow_rbd_snapshot ='
                f' {location.snapshot} in section [{self._backend}].',
            )
        return location

    def _check_unprotected(
        self,
        connection: ceph.Connection,
        location: image_location.RbdLocation,
    ) -> None:
        if not connection.clones_unprotected():
            raise self._no(
                Reason.SNAPSHOT_UNPROTECTED,
                location=str(location),
                snapshot=_named(location),
            )

    def _judged(
        self,
        pool: ceph.Pool,
        image: images.ImageInfo,
        made: str,
        snapshot: ceph.Image,
    ) -> str:
        """Compare the bytes with the claim, once for each image.

        :param made: what no other snapshot has, also one of the same name
        :returns: the row to remember that it is good; '' if there is one
        :raises BackendError: what :func:`.formats.check_claim` says
        """
        hash_ = f'{image.os_hash_algo}:{image.os_hash_value}'
        verdict = json.dumps([made, image.disk_format, hash_])
        if verdicts(pool).get(verdict):
            return ''
        if not snapshot.size():
            raise self._no(Reason.EMPTY_IMAGE, image=image.label)
        ends = _Ends(snapshot, snapshot.size())
        found = formats.inspect_source(ends, image.disk_format)
        if refusal := formats.check_claim(image, found):
            raise exception.BackendError(refusal)
        return verdict

    def _refused(
        self,
        connection: ceph.Connection,
        location: image_location.RbdLocation,
        error: ceph.CephError,
    ) -> Exception:
        """Say which part of a location is missing or closed to this user.

        :returns: the error itself, where it is none of these
        """
        self._found.clear()
        if error.denied:
            return self._no(
                Reason.POOL_DENIED,
                location=str(location),
                user=connection.user,
                caps=self._caps,
            )
        if error.errno in _UNCLEAR:
            return self._missing(connection, location) or error
        if error.errno == errno.EXDEV:
            return self._no(
                Reason.BACKEND_ERROR,
                backend=self._backend,
                problem='only clones of version 2 can be in a namespace'
                ' (ceph osd set-require-min-compat-client mimic)',
            )
        return error

    def _missing(
        self,
        connection: ceph.Connection,
        location: image_location.RbdLocation,
    ) -> exception.BackendError | None:
        """Look which part it is; None: all of them are there."""
        assert location.pool
        assert location.snapshot
        told = str(location)
        try:
            with connection.pool(location.pool) as pool:
                if not pool.has_name(location.image):
                    return self._no(Reason.LOCATION_NOT_FOUND, location=told)
                with pool.image(location.image, location.snapshot) as found:
                    if not found.is_protected_snap(location.snapshot):
                        self._check_unprotected(connection, location)
        except ceph.NoPoolError:
            return self._no(Reason.POOL_NOT_FOUND, location=told)
        except exception.BackendError as error:
            return error
        except ceph.CephError as error:
            if error.errno != errno.ENOENT:
                raise
            return self._no(
                Reason.SNAPSHOT_NOT_FOUND,
                location=told,
                snapshot=_named(location),
            )
        return None

    def _untrusted(
        self, location: image_location.Location, problem: str, remedy: str
    ) -> exception.BackendError:
        return self._no(
            Reason.LOCATION_UNTRUSTED,
            location=str(location),
            problem=problem,
            remedy=remedy,
        )

    def _no(self, reason: Reason, **facts: str) -> exception.BackendError:
        return exception.BackendError.because(reason, **facts)


def _named(location: image_location.RbdLocation) -> str:
    """Name a snapshot as the command ``rbd`` takes it, in a shell."""
    return shlex.quote(f'{location.pool}/{location.image}@{location.snapshot}')


class _Ends:
    """What formats wants to see of an image."""

    def __init__(self, image: ceph.Image, size: int) -> None:
        self._image = image
        self.size = size

    def head(self, length: int) -> bytes:
        return self._image.read(0, min(length, self.size))

    def tail(self, length: int) -> bytes:
        length = min(length, self.size)
        return self._image.read(self.size - length, length)
