# SPDX-License-Identifier: Apache-2.0
"""To talk to a Ceph of tests as its administrator, or as a user of it."""

from collections.abc import Callable, Iterator, Mapping
import configparser
import contextlib
import functools
import json
import os
import pathlib
from typing import Any
import unittest

from cinder_cow.tests import ceph_config

try:
    import rados  # noqa: TID251
    import rbd  # noqa: TID251
except ImportError as _error:
    _missing = str(_error)
else:
    _missing = ''

# Requests fail in the end when a daemon is gone; by default they hang. A disk
# that frees gigabytes can be still for more than a minute.
CLIENT = {
    'client_mount_timeout': '120',
    'rados_mon_op_timeout': '120',
    'rados_osd_op_timeout': '300',
}


class Client:
    """What can be asked of a Ceph and changed in it while it runs.

    :param directory: where its files are
    """

    def __init__(self, directory: os.PathLike[str] | str) -> None:
        self.directory = pathlib.Path(directory).resolve()
        self.conf = self.directory / 'ceph.conf'
        self.cinder_conf = self.directory / 'cinder.conf'

    @property
    def fsid(self) -> str:
        sections = configparser.RawConfigParser()
        sections.read(self.conf)
        return sections['global']['fsid']

    def keyring(self, user: str) -> pathlib.Path:
        return self.directory / f'client.{user}.keyring'

    @contextlib.contextmanager
    def connect(
        self, user: str = 'admin', settings: Mapping[str, str] = CLIENT
    ) -> Iterator['rados.Rados']:
        """Connect as a user; close all that is open in it before its end.

        :param settings: options of Ceph; without CLIENT much waits for good
        """
        needed()
        client = rados.Rados(
            conffile=str(self.conf), rados_id=user, conf=settings
        )
        try:
            # Its argument "timeout" is ignored.
            client.connect()
            yield client
        finally:
            client.shutdown()

    def mon(self, **command: Any) -> Any:
        """Run a command of the monitor: ``mon(prefix='osd dump')``.

        :returns: its answer, parsed if it is JSON
        :raises RuntimeError: it failed, and what it said
        """
        return run_command(self._mon_command, format='json', **command)

    def _mon_command(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with self.connect() as client:
            return client.mon_command(*args, **kwargs)

    def _osd_command(self, *args: Any) -> tuple[Any, ...]:
        with self.connect() as client:
            return client.osd_command(0, *args)

    def set_config(self, who: str, name: str, value: object) -> None:
        """Change an option of Ceph while it runs.

        :param who: 'osd' or 'mon', at once and until it stops; or
            'client' or 'client.NAME', for those who connect from now on
        """
        change = {'prefix': 'config set', 'name': name, 'value': str(value)}
        if who not in ('osd', 'mon'):
            self.mon(who=who, **change)
            return
        # By "tell", for what is in ceph.conf outweighs the monitor's store.
        told = {'prefix': 'config set', 'var': name, 'val': [str(value)]}
        if who == 'osd':
            run_command(self._osd_command, **told)
        else:
            tell = functools.partial(self._mon_command, target='a')
            run_command(tell, **told)

    def osd_used(self) -> int:
        """Return the bytes that the OSD has allocated for data.

        Deleted data count until they are freed, some seconds later.
        """
        counters = run_command(self._osd_command, prefix='perf dump')
        return int(counters['bluestore']['bluestore_allocated'])

    def make_pool(self, name: str, pg_num: int = 1) -> None:
        """Make a pool for RBD images; ``admin`` alone may use it."""
        with self.connect() as client:
            run_command(
                client.mon_command,
                prefix='osd pool create',
                pool=name,
                pg_num=pg_num,
            )
            initialise(client, name)

    def remove_pool(self, name: str) -> None:
        """Remove a pool and all that is in it."""
        self.mon(
            prefix='osd pool delete',
            pool=name,
            pool2=name,
            yes_i_really_really_mean_it=True,
        )

    def add_user(self, name: str, caps: ceph_config.Caps) -> pathlib.Path:
        """Make a user, with caps as of ``ceph_config.caps``.

        :returns: the path of its keyring, where the configuration has it
        """
        entity = f'client.{name}'
        words = [word for pair in caps.items() for word in pair]
        found = self.mon(
            prefix='auth get-or-create', entity=entity, caps=words
        )
        path = self.keyring(name)
        ceph_config.write_keyring(path, entity, found[0]['key'])
        return path

    def remove_user(self, name: str) -> None:
        self.mon(prefix='auth rm', entity=f'client.{name}')
        self.keyring(name).unlink()

    def blocklist(self, address: str) -> None:
        """Shut a client out; the address is of ``Rados.get_addrs``."""
        self.mon(prefix='osd blocklist', blocklistop='add', addr=address)


def needed() -> None:
    """Raise unittest.SkipTest where the modules of Ceph are missing."""
    if _missing:
        raise unittest.SkipTest(f'machine: {_missing}')


def initialise(client: 'rados.Rados', pool: str) -> None:
    """Have a pool take images; when it returns, the pool takes writes."""
    with client.open_ioctx(pool) as ioctx:
        rbd.RBD().pool_init(ioctx, True)


def run_command(call: Callable[..., tuple[Any, ...]], **words: Any) -> Any:
    """Run a command by ``mon_command`` or one like it.

    :returns: its answer, parsed if it is JSON
    :raises RuntimeError: it failed, and what it said
    """
    status, answer, message = call(json.dumps(words), b'')
    if status:
        why = message or os.strerror(abs(status))
        raise RuntimeError(f'{words["prefix"]}: {why}')
    try:
        return json.loads(answer)
    except ValueError:
        return answer.decode()
