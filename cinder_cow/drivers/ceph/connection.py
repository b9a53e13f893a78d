# SPDX-License-Identifier: Apache-2.0
"""Connections: one per cluster and user in a process, for all its threads.

One that Ceph has shut out is replaced. Every call has a time limit, which
librados itself keeps.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
from typing import Any

from cinder_cow.drivers import native
from cinder_cow.drivers.ceph.calls import CephError
from cinder_cow.drivers.ceph.calls import ignored
from cinder_cow.drivers.ceph.calls import NoConnectionError
from cinder_cow.drivers.ceph.calls import NoPoolError
from cinder_cow.drivers.ceph.calls import translated
from cinder_cow.drivers.ceph.header import identity
from cinder_cow.drivers.ceph.images import Image
from cinder_cow.drivers.ceph.images import is_migrating
from cinder_cow.drivers.ceph.images import parent_place
from cinder_cow.drivers.ceph.pool import Pool

with contextlib.suppress(ImportError):
    import rados


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    """How a cluster is reached, and as whom.

    :param conf: path of its ceph.conf; '' for where Ceph looks for it
    :param user: without "client."; '' for Ceph's default
    :param connect_timeout: seconds until monitors count as down
    :param op_timeout: seconds until an operation has failed
    """

    conf: str = ''
    user: str = ''
    name: str = 'ceph'
    connect_timeout: int = 30
    op_timeout: int = 60

    def conf_text(self) -> str:
        """Return the configuration, with our settings, for other programs."""
        places = (
            [self.conf]
            if self.conf
            else [
                f'/etc/ceph/{self.name}.conf',
                os.path.expanduser(f'~/.ceph/{self.name}.conf'),
            ]
        )
        found = ''
        for place in places:
            with contextlib.suppress(OSError):
                found = pathlib.Path(place).read_text()
                break
        ours = [f'{name} = {value}' for name, value in self.settings().items()]
        return '\n'.join([found, '[client]', *ours, ''])

    def settings(self) -> Mapping[str, str]:
        return {
            # The argument of connect() is ignored.
            'client_mount_timeout': str(self.connect_timeout),
            # Without it, what an OSD does not answer hangs for good.
            'rados_osd_op_timeout': str(self.op_timeout),
            'rados_mon_op_timeout': str(self.connect_timeout),
            # An acknowledged write is a written write.
            'rbd_cache': 'false',
            # Else a read changes the header of an image once a minute, and
            # looks like a write.
            'rbd_atime_update_interval': '0',
        }


class Connection:
    """A connection to a cluster, for any thread.

    :ivar fsid: which cluster it is
    :ivar address: of this client, by which it can be shut out
    :ivar client: its number, with which the ids of its images begin
    :ivar lost: it was shut out, and is of no use
    :ivar rados: it, for who knows only librados
    :raises NoConnectionError: it cannot be reached, or not as this user
    """

    def __init__(self, cluster: Cluster) -> None:
        self.user = cluster.user or 'admin'
        self.lost = False
        try:
            with translated():
                self._connect(cluster)
        except CephError as error:
            raise NoConnectionError(error.errno, error.problem) from error

    def _connect(self, cluster: Cluster) -> None:
        self.rados = rados.Rados(
            rados_id=cluster.user or None,
            clustername=cluster.name,
            conffile=cluster.conf,
            conf=cluster.settings(),
        )
        try:
            self.rados.connect()
            self.fsid: str = self.rados.get_fsid()
            self.address: str = self.rados.get_addrs()
            self.client = f'{self.rados.get_instance_id():x}'
        except BaseException:
            self.rados.shutdown()
            raise

    def close(self) -> None:
        with translated():
            self.rados.shutdown()

    @contextlib.contextmanager
    def pool(self, name: str, namespace: str = '') -> Iterator[Pool]:
        """Give a pool, which all users may open and not all may use.

        :raises NoPoolError: there is none of that name
        """
        ioctx = self.handle(name)
        with translated(), ioctx:
            if namespace:
                ioctx.set_namespace(namespace)
            yield Pool(ioctx, name, namespace, self)

    def handle(self, pool: str) -> 'rados.Ioctx':
        """Open a pool, for who closes it.

        :raises NoPoolError: there is none of that name
        """
        try:
            with translated():
                ioctx = self.rados.open_ioctx(pool)
                # In a full cluster do at once what takes no space, and fail
                # at once with the rest; else all waits, and nothing can be
                # deleted.
                ioctx.set_osdmap_full_try()
        except CephError as error:
            if error.errno == errno.ENOENT:
                raise NoPoolError(error.errno, error.problem) from None
            raise
        return ioctx

    def probe(self, ioctx: 'rados.Ioctx', name: str) -> None:
        """Ask for an object, whether it is there or may be read, or not.

        :raises CephError: the connection was lost, or does not answer
        """
        with ignored(errno.ENOENT, errno.EPERM, errno.EACCES):
            ioctx.stat(name)

    def is_imported(self, image: Image) -> bool:
        """Whether an image, or what it was cloned from, is being imported."""
        if is_migrating(image):
            return True
        parent = parent_place(image)
        if parent is None:
            return False
        pool_name, namespace, image_id = parent
        with (
            self.pool(pool_name, namespace) as pool,
            pool.image_of(image_id) as opened,
        ):
            return self.is_imported(opened)

    def identity(self, pool: str, image: Image, snapshot: str) -> str:
        """Name an open snapshot as the header of a clone does."""
        with translated():
            return identity(
                self.rados.pool_lookup(pool),
                image.id(),
                image.snap_get_id(snapshot),
            )

    def has_snapshot(self, made: str) -> bool:
        """Whether there is still the snapshot of an identity.

        :param made: what :meth:`identity` told
        """
        pool_id, namespace, rest = made.split('/', 2)
        image_id, _, snapshot_id = rest.rpartition('@')
        with ignored(errno.ENOENT):
            name = self.rados.pool_reverse_lookup(int(pool_id))
            with self.pool(name, namespace) as pool:
                kept = pool.header(image_id).kept()
                found = {snapshot.id for snapshot in kept.snapshots.values()}
                return int(snapshot_id) in found
        return False

    def is_full(self, pool: str) -> bool:
        """Whether the cluster takes no more writes, or none to the pool."""
        dump = self._map()
        flags = str(dump['flags']).split(',')
        for one in dump['pools']:
            if one['pool_name'] == pool:
                flags += one['flags_names'].split(',')
        return 'full' in flags

    def clones_unprotected(self) -> bool:
        """Whether clones are of version 2, of snapshots that may go."""
        with translated():
            wanted = self.rados.conf_get('rbd_default_clone_format')
        if wanted != 'auto':
            return wanted == '2'
        dump = self._map()
        # The releases are named in the order of the alphabet.
        return str(dump['require_min_compat_client']) >= 'mimic'

    def shut_out(self, address: str) -> None:
        """Blocklist a client: nothing it has sent or will send is done.

        :raises CephError: EACCES: this user may not
        """
        with translated():
            for one in address.strip('[]').split(','):
                self.rados.blocklist_add(one, 3600)
            # From here on no OSD serves us with an older map.
            self.rados.wait_for_latest_osdmap()

    def shut_out_clients(self) -> set[str]:
        """Tell who is blocklisted; what they watch, ghosts watch."""
        return set(self._map()['blocklist'])

    def _map(self) -> Any:  # noqa: ANN401 - JSON
        return self._ask({'prefix': 'osd dump', 'format': 'json'})

    def _ask(self, command: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON
        with translated():
            status, output, problem = self.rados.mon_command(
                json.dumps(command), b''
            )
        if status:
            raise CephError(-status, problem)
        return json.loads(output)


@dataclasses.dataclass
class _Slot:
    """The connection of a cluster, once it is there.

    :param failure: why it never will be
    """

    lock: Any
    connection: Connection | None = None
    failure: CephError | None = None
    users: int = 0

    @property
    def is_over(self) -> bool:
        if self.connection is None:
            return self.failure is not None
        return self.connection.lost

    def connect(self, cluster: Cluster) -> None:
        """Connect, unless another thread has; wait for it if it is at it.

        :raises NoConnectionError: to all that waited, or each in its turn
            would try to reach what does not answer
        """
        with self.lock:
            if self.failure:
                raise NoConnectionError(
                    self.failure.errno, self.failure.problem
                )
            if self.connection is None:
                try:
                    self.connection = Connection(cluster)
                except CephError as error:
                    self.failure = error
                    raise


_slots: dict[Cluster, _Slot] = {}
_slots_lock = native.threading().Lock()
# A child must not even close what it has of its parent: the threads that
# would do it are not there.
_of_parents: list[dict[Cluster, _Slot]] = []


def _after_fork() -> None:
    global _slots, _slots_lock
    _of_parents.append(_slots)
    _slots, _slots_lock = {}, native.threading().Lock()


os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Connection]:
    """Give the connection of this process to a cluster.

    :raises CephError: there is none, or what was done with it failed
    """
    slot = _take(cluster)
    connection = slot.connection
    assert connection is not None
    try:
        yield connection
    except CephError as error:
        connection.lost |= error.lost
        raise
    finally:
        _give_back(cluster, slot)


def _take(cluster: Cluster) -> _Slot:
    with _slots_lock:
        slot = _slots.get(cluster)
        if slot is None or slot.is_over:
            # The last user of the old one closes it.
            slot = _slots[cluster] = _Slot(native.threading().Lock())
        slot.users += 1
    # Others need not wait for a cluster that does not answer.
    try:
        slot.connect(cluster)
    except BaseException:
        _give_back(cluster, slot)
        raise
    return slot


def _give_back(cluster: Cluster, slot: _Slot) -> None:
    with _slots_lock:
        slot.users -= 1
        is_last = not slot.users and _slots.get(cluster) is not slot
    if is_last and slot.connection is not None:
        with contextlib.suppress(CephError):
            slot.connection.close()


def disconnect() -> None:
    """Close what nobody uses; for tests, and before a process ends."""
    with _slots_lock:
        unused = [c for c, slot in _slots.items() if not slot.users]
        slots = [_slots.pop(cluster) for cluster in unused]
    for slot in slots:
        if slot.connection is not None:
            slot.connection.close()
