# SPDX-License-Identifier: Apache-2.0
"""A real Ceph of one monitor and one OSD, on 127.0.0.1, for tests.

Without a manager, ``ceph df`` and ``get_cluster_stats`` answer zeros, and
``ceph osd df`` hangs; ``Cluster.osd_used`` asks the OSD instead.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping
import contextlib
import fcntl
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Self, TYPE_CHECKING
import uuid

from cinder_cow import file_locks
from cinder_cow.tests import ceph_client
from cinder_cow.tests import ceph_config
from cinder_cow.tests import ceph_daemons

if TYPE_CHECKING:
    import rados  # noqa: TID251

# Far more than tests write: a full OSD blocks its writers for good, or aborts.
OSD_SIZE = 64 * 2**30
_START_SECONDS = 60.0
# The locks of a client that died are free when its watch is.
SHARED_SETTINGS = {'osd_client_watch_timeout': '5'}
_PREFIX = 'cow-ceph-'


class Cluster(ceph_client.Client):
    """A Ceph in a directory.

    As a context manager it starts and stops; its daemons die with this
    process, however that ends. ``up`` alone starts daemons that stay.

    :param directory: where all its files are; at most 80 characters, for the
        names of sockets
    :param settings: options of Ceph that differ, by name
    :param mgr: start a manager too: statistics of pools, 75 to 312 MiB
    :param store: bluestore, or memstore, which is in memory while it runs
    :param min_compat: of clients; from mimic on, clones are of version 2
    :param osd_size: of the OSD, in bytes, in a sparse file
    """

    def __init__(
        self,
        directory: os.PathLike[str] | str,
        settings: Mapping[str, str] | None = None,
        *,
        mgr: bool = False,
        store: str = 'bluestore',
        min_compat: str = '',
        osd_size: int = OSD_SIZE,
    ) -> None:
        super().__init__(directory)
        self._settings = settings or {}
        self._mgr = mgr
        self._store = store
        self._min_compat = min_compat
        self._osd_size = osd_size
        self._bound = False
        self._made = self.directory / 'made'
        self._daemons = ceph_daemons.Daemons(self.conf, self.directory / 'log')

    def __enter__(self) -> Self:
        self._bound = True
        self.up()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.down()

    def up(self) -> str:
        """Start it, and make it if it does not exist.

        :returns: what was done: made, started or none
        :raises RuntimeError: it does not start; no daemon is left
        :raises FileExistsError: the directory has other files
        :raises unittest.SkipTest: Ceph is not installed
        """
        _check_machine()
        if self._mgr:
            ceph_daemons.needed('ceph-mgr')
        made = self._made.exists()
        if made and self.running('mon') and self.running('osd'):
            return 'none'
        try:
            if made:
                self._start()
            else:
                self._make()
        except BaseException:
            self.down()
            raise
        return 'started' if made else 'made'

    def down(self, *, remove: bool = False) -> None:
        """Stop its daemons, if there are any.

        :param remove: remove its directory, too
        :raises FileExistsError: the directory is none of a cluster
        """
        self._daemons.end()
        if remove and self.directory.exists():
            self._check_directory()
            shutil.rmtree(self.directory)

    def start(self, *names: str) -> None:
        """Start daemons ('mon', 'osd', 'mgr'), and wait until they serve."""
        for name in names:
            if name == 'osd':
                self._start_osd()
                continue
            self._daemons.launch(name, bound=self._bound)
            if name == 'mon':
                self.mon(prefix='fsid')

    def stop(self, *names: str) -> None:
        """Stop daemons, as a shutdown does."""
        self._daemons.end(*names)

    def kill(self, *names: str) -> None:
        """End daemons at once, as a crash does."""
        self._daemons.end(*names, kill=True)

    def pause(self, name: str = 'osd') -> None:
        """Have a daemon neither answer nor go away."""
        self._daemons.signal(name, signal.SIGSTOP)

    def resume(self, name: str = 'osd') -> None:
        self._daemons.signal(name, signal.SIGCONT)

    def running(self, *names: str) -> list[int]:
        """Return the process ids of daemons, by default of all."""
        return self._daemons.running(*names)

    def _start(self) -> None:
        for name in ('mon', 'osd', *(['mgr'] if self._mgr else [])):
            if not self.running(name):
                self.start(name)

    def _start_osd(self) -> None:
        # Of one that was killed, the monitor thinks that it is still up.
        before = self._boot_epoch()
        self._daemons.launch('osd', bound=self._bound)
        self._wait('osd', lambda: self._boot_epoch() > before)

    def _check_directory(self) -> None:
        """Refuse a directory with files of somebody else."""
        found = list(self.directory.iterdir())
        if found and not (self.directory / 'bootstrap.keyring').exists():
            raise FileExistsError(f'{self.directory} holds other files')

    def _make(self) -> None:
        top = self.directory
        top.mkdir(parents=True, exist_ok=True)
        # An earlier start may have left daemons, or half of a cluster.
        self._daemons.end()
        self._check_directory()
        monmap = ceph_config.write(
            top,
            settings=self._settings,
            store=self._store,
            osd_size=self._osd_size,
        )
        for name in ('mon', 'osd', 'mgr', 'log', 'run', 'crash'):
            shutil.rmtree(top / name, ignore_errors=True)
            (top / name).mkdir()
        osd = str(uuid.uuid4())
        make_osd = self._mkfs('osd', '--no-mon-config', '--osd-uuid', osd)
        self._make_monitor(monmap)
        self._daemons.launch('mon', bound=self._bound)
        with self.connect() as client:
            ceph_client.run_command(
                client.mon_command, prefix='osd new', uuid=osd, id=0
            )
            self._daemons.finish('osd', make_osd)
            self._daemons.launch('osd', bound=self._bound)
            self._first_settings(client)
        if self._mgr:
            self._daemons.launch('mgr', bound=self._bound)
        self._made.touch()

    def _make_monitor(self, monmap: list[str]) -> None:
        path = self.directory / 'monmap'
        done = subprocess.run(
            [ceph_daemons.needed('monmaptool'), '--create', '--clobber',
             *monmap, path],
            capture_output=True,
            text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f'monmaptool failed: {done.stderr}')
        keys = self.directory / 'bootstrap.keyring'
        args = ['--monmap', str(path), '--keyring', str(keys)]
        self._daemons.finish('mon', self._mkfs('mon', *args))

    def _mkfs(self, name: str, *args: str) -> subprocess.Popen[bytes]:
        return self._daemons.launch(
            name, bound=self._bound, args=['--mkfs', *args]
        )

    def _first_settings(self, client: 'rados.Rados') -> None:
        if self._min_compat:
            ceph_client.run_command(
                client.mon_command,
                prefix='osd set-require-min-compat-client',
                version=self._min_compat,
            )
        for pool in ceph_config.POOLS:
            ceph_client.run_command(
                client.mon_command, prefix='osd pool create', pool=pool
            )
        self._wait('osd', lambda: self._boot_epoch(client) > 0)
        for pool in ceph_config.POOLS:
            ceph_client.initialise(client, pool)

    def _boot_epoch(self, client: 'rados.Rados | None' = None) -> int:
        """Return the epoch of the OSD's last start, 0 where it is not up."""
        command = client.mon_command if client else self._mon_command
        found = ceph_client.run_command(
            command, prefix='osd dump', format='json'
        )
        return sum(osd['up_from'] for osd in found['osds'] if osd['up'])

    def _wait(self, name: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not done():
            self._daemons.check(name)
            if time.monotonic() > deadline:
                raise RuntimeError(self._daemons.failure(name))
            time.sleep(0.01)


@functools.cache
def shared() -> Cluster:
    """Return a cluster of this process, made once; it ends with the process.

    A client that died holds its locks on images for 5 s, by default 30.

    :raises unittest.SkipTest: Ceph is not installed, or not for this Python
    """
    _check_machine()
    sweep()
    with contextlib.ExitStack() as stack:
        # Not in TMPDIR, which is a test's own and emptied after it.
        directory = stack.enter_context(_place('/var/tmp'))
        cluster = Cluster(directory / 'ceph', SHARED_SETTINGS)
        stack.enter_context(cluster)
        atexit.register(stack.pop_all().close)
    return cluster


@contextlib.contextmanager
def _place(parent: str) -> Iterator[pathlib.Path]:
    """Make a directory with a lock, which tells that we live."""
    top = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with (top / 'new').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Never seen by that name without its lock.
        (top / 'new').rename(top / 'lock')
        try:
            yield top
        finally:
            shutil.rmtree(top)


def sweep(parent: str = '/var/tmp') -> None:
    """Remove what processes left that got SIGKILL; daemons died with them."""
    for path in pathlib.Path(parent).glob(f'{_PREFIX}*/lock'):
        with contextlib.suppress(OSError), path.open() as lock:
            if file_locks.try_lock(lock.fileno(), fcntl.LOCK_EX):
                shutil.rmtree(path.parent)


def _check_machine() -> None:
    for program in ('ceph-mon', 'ceph-osd'):
        ceph_daemons.needed(program)
    ceph_client.needed()
