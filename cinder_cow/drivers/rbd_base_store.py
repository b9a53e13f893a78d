# SPDX-License-Identifier: Apache-2.0
"""The bases of a pool: images that have the snapshot ``snap``.

That is what publishes a base, in one step, and freezes its bytes. What is
told of it lies in its header: the facts are metadata of the image, written
before the snapshot. So a base is found by two small reads.
"""

from collections.abc import Iterator
import dataclasses
import errno
import json
import re
import time
from typing import Any

from oslo_log import log as logging

from cinder_cow import exception
from cinder_cow import image_location
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import common
from cinder_cow.drivers import rbd_cleanup
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_parents
from cinder_cow.drivers import rbd_sweep
from cinder_cow.drivers.rbd_lease_row import Lease
from cinder_cow.drivers.rbd_lease_row import Work
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

PREFIX = f'{base.RESERVED_PREFIX}base-'
SNAPSHOT = rbd_cleanup.SNAPSHOT
# Names of the image's metadata.
_FACTS = 'cow.facts'
_ALLOCATED = 'cow.allocated'
_NAME = re.compile(re.escape(PREFIX) + r'[0-9a-f]{40}')
# The facts of a base that has lost them: it can be seen, and removed.
_LOST = bases.BaseFacts(bases.BaseKey('', ''), '', '', 0, '', 0.0)
# Of a snapshot that is gone, or not protected any more.
_GOING = {errno.ENOENT, errno.EINVAL}
# How long a clone waits for one who would retire its base, in seconds.
_WAIT = 60
_PAUSE = 0.1


class AgainError(Exception):
    """A base could not be cloned, perhaps as it was to be retired; it stays.

    :param error: why not
    """

    def __init__(self, error: ceph.CephError) -> None:
        super().__init__(error)
        self.error = error


@dataclasses.dataclass(frozen=True, slots=True)
class StoredBase:
    """A base as it lies in the pool.

    :param image: id of its image
    :param kept: the facts as they are kept
    :param problem: what is damaged; empty if nothing is
    """

    published: bases.Base
    image: str
    snapshot: ceph.Snapshot
    kept: bytes
    problem: str

    @property
    def name(self) -> str:
        return self.published.name


class BaseStore:
    """The bases of one back end."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def find(self, pool: ceph.Pool, name: str) -> StoredBase | None:
        """Return a published base, damaged or not.

        :raises CephError: it cannot be read
        """
        if not _NAME.fullmatch(name):
            return None
        image_id = pool.id_of(name)
        if not image_id:
            return None
        try:
            kept = pool.header(image_id).kept(_FACTS, _ALLOCATED)
        except ceph.CephError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        snapshot = kept.snapshots.get(SNAPSHOT)
        if snapshot is None:
            return None
        packed = kept.metadata[_FACTS]
        facts, problem = _facts(packed)
        published = bases.Base(
            facts,
            image_location.BaseLocation(self._backend, name),
            _number(kept.metadata[_ALLOCATED]),
        )
        return StoredBase(published, image_id, snapshot, packed, problem)

    def get(self, pool: ceph.Pool, name: str) -> StoredBase:
        """Return a published base, damaged or not.

        :raises BackendError: BASE_NOT_FOUND
        """
        found = self.find(pool, name)
        if found is None:
            raise self.missing(name)
        return found

    def sound(
        self, pool: ceph.Pool, location: image_location.Location
    ) -> StoredBase:
        """Return the base at a location, if it can be cloned.

        :raises BackendError: NOT_IN_BACKEND, BASE_NOT_FOUND, BASE_CHANGED
        """
        name = common.own_base(location, self._backend)
        found = self.get(pool, name)
        if found.problem:
            raise self._changed(found)
        protect(pool, found)
        return found

    def parent(
        self, pool: ceph.Pool, location: image_location.Location
    ) -> rbd_parents.Parent:
        """Return what is cloned of a base.

        :raises BackendError: as ``sound``
        """
        found = self.sound(pool, location)
        return rbd_parents.Parent(
            location=found.published.location,
            pool=pool.name,
            namespace=pool.namespace,
            image=found.name,
            snapshot=SNAPSHOT,
            identity=ceph.identity(
                pool.id, found.image, found.snapshot.id, pool.namespace
            ),
            size=found.snapshot.size,
            content_size=found.published.facts.content_size,
        )

    def list(self, pool: ceph.Pool) -> Iterator[StoredBase]:
        for name in pool.listed(PREFIX):
            try:
                found = self.find(pool, name)
            except ceph.CephError as error:
                # One that is damaged must not hide the others.
                LOG.warning('Base %s: %s', name, error)
                continue
            if found:
                yield found

    def write_facts(
        self,
        pool: ceph.Pool,
        image_id: str,
        facts: bases.BaseFacts,
        allocated: int,
    ) -> None:
        """Keep the facts with an image that is to be a base."""
        pool.header(image_id).set_metadata(
            {
                _FACTS: facts.packed().encode(),
                _ALLOCATED: str(allocated).encode(),
            }
        )

    def change_facts(
        self, pool: ceph.Pool, name: str, changes: dict[str, Any]
    ) -> None:
        """Change facts of a base, of which others may change some too.

        :raises BackendError: BASE_NOT_FOUND, BASE_CHANGED
        """
        while True:
            found = self.get(pool, name)
            if found.problem:
                raise self._changed(found)
            facts = dataclasses.replace(found.published.facts, **changes)
            if pool.header(found.image).replace_metadata(
                _FACTS, found.kept, facts.packed().encode()
            ):
                return

    def manifest(self, pool: ceph.Pool, name: str) -> bytes:
        found = self.get(pool, name)
        return pool.read_all(rbd_cleanup.manifest_of(found.image))

    def write_manifest(
        self, pool: ceph.Pool, name: str, manifest: bytes
    ) -> None:
        found = self.get(pool, name)
        one = rbd_cleanup.manifest_of(found.image)
        pool.write_object(one, manifest)
        # Else it would stay for good, had the base gone meanwhile.
        if not pool.has_object(f'rbd_header.{found.image}'):
            pool.remove_object(one)
            raise self.missing(name)

    # What judges a clone's parent

    def refused(
        self,
        pool: ceph.Pool,
        parent: rbd_parents.Parent,
        error: ceph.CephError,
    ) -> Exception:
        """Say why a base could not be cloned.

        :returns: AgainError: it can be by now
        """
        if error.errno not in _GOING:
            return error
        try:
            self._wait(pool, parent.image)
            self.get(pool, parent.image)
        except exception.BackendError as missing:
            return missing
        return AgainError(error)

    def replaced(self, parent: rbd_parents.Parent) -> exception.BackendError:
        return self.missing(parent.image)

    # Errors

    def missing(self, name: str) -> exception.BackendError:
        return exception.BackendError.because(
            Reason.BASE_NOT_FOUND, base=name, backend=self._backend
        )

    def lost(self, name: str) -> exception.BackendError:
        return exception.BackendError.because(Reason.BASE_LOST, base=name)

    def busy(self, lease: Lease, seconds: float) -> exception.BackendError:
        return exception.BackendError.because(
            Reason.BUSY,
            what=f'base {lease.volume}',
            owner=str(lease.owner),
            seconds=seconds,
        )

    def _wait(self, pool: ceph.Pool, name: str) -> None:
        """Wait for one who would retire a base: it may stay.

        :raises BackendError: BUSY
        """
        deadline = time.monotonic() + _WAIT
        while lease := rbd_leases.of(pool, name):
            if lease.work is not Work.RETIRE:
                return
            if rbd_leases.is_dead(pool, lease):
                rbd_sweep.end(
                    pool, pool.connection, lease, rbd_cleanup.finish_or_undo
                )
            elif time.monotonic() > deadline:
                raise self.busy(lease, _WAIT)
            else:
                time.sleep(_PAUSE)

    def _changed(self, found: StoredBase) -> exception.BackendError:
        return exception.BackendError.because(
            Reason.BASE_CHANGED, base=found.name, problem=found.problem
        )


def protect(pool: ceph.Pool, found: StoredBase) -> None:
    """Protect a base whose maker died before it did, for clones of version 1.

    Not one that is being retired, or was when its retirer died.
    """
    if found.snapshot.protected:
        return
    lease = rbd_leases.of(pool, found.name)
    if lease and lease.work is Work.RETIRE:
        return
    try:
        rbd_cleanup.protect(pool, found.image)
    except ceph.CephError as error:
        LOG.warning('Base %s could not be protected: %s', found.name, error)


def is_name(name: str) -> bool:
    """Whether a name is that of a base."""
    return bool(_NAME.fullmatch(name))


def _facts(data: bytes) -> tuple[bases.BaseFacts, str]:
    """Read the facts, and tell what is wrong with them."""
    try:
        return bases.BaseFacts.unpacked(json.loads(data)), ''
    except (ValueError, RecursionError):
        return _LOST, 'its facts are damaged'


def _number(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        return 0
