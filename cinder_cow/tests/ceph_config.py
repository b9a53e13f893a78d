# SPDX-License-Identifier: Apache-2.0
"""The files that a Ceph of one monitor and one OSD starts from.

They are written without Ceph's own tools, each of which takes 0.15 s or more.
"""

import base64
from collections.abc import Iterable, Mapping
import configparser
import os
import pathlib
import random
import socket
import struct
import time
import uuid

POOLS = ('images', 'volumes', 'volumes2')
MONITOR, OSD, MANAGER = 'mon.a', 'osd.0', 'mgr.x'

Caps = Mapping[str, str]
_Sections = dict[str, dict[str, object]]


def caps(writes: Iterable[str], reads: Iterable[str] = ()) -> Caps:
    """Return the usual caps of a user of RBD, by the pools it may use."""
    rights = [f'profile rbd pool={pool}' for pool in writes]
    # The manager has no profile for who only reads.
    told = ', '.join(rights)
    rights += [f'profile rbd-read-only pool={pool}' for pool in reads]
    return {'mon': 'profile rbd', 'osd': ', '.join(rights), 'mgr': told}


USERS: dict[str, Caps] = {
    'admin': dict.fromkeys(('mon', 'osd', 'mgr', 'mds'), 'allow *'),
    'glance': caps(['images']),
    'cinder': caps(['volumes', 'volumes2'], ['images']),
    'noimages': caps(['volumes']),
}
_DAEMONS: dict[str, Caps] = {
    'mon.': {'mon': 'allow *'},
    OSD: {
        'mon': 'allow profile osd',
        'osd': 'allow *',
        'mgr': 'allow profile osd',
    },
    MANAGER: {'mon': 'allow profile mgr', 'osd': 'allow *', 'mds': 'allow *'},
}


def write(
    directory: pathlib.Path,
    *,
    settings: Mapping[str, str],
    store: str,
    osd_size: int,
) -> list[str]:
    """Write configuration and keys; return the arguments of monmaptool.

    :param settings: options of Ceph that differ, by name
    :param store: bluestore or memstore
    :param osd_size: of the store, in bytes; its file is sparse
    """
    _write_keys(directory)
    fsid = str(uuid.uuid4())
    monitor = f'[v2:127.0.0.1:{free_port()}/0]'
    sections = _sections(directory, fsid, monitor, store, osd_size)
    _override(sections, settings)
    write_sections(directory / 'ceph.conf', sections)
    write_sections(directory / 'cinder.conf', cinder_sections(directory))
    # Made from "mon host" alone, the monitor would have no name in it.
    return ['--fsid', fsid, '--addv', MONITOR[4:], monitor]


def cinder_sections(
    directory: pathlib.Path, pool: str = 'volumes', user: str = 'cinder'
) -> _Sections:
    """Return a cinder.conf with this Ceph as its one back end."""
    return {
        'DEFAULT': {'enabled_backends': 'rbd1'},
        'rbd1': {
            'volume_driver': 'cinder.volume.drivers.rbd.RBDDriver',
            'volume_backend_name': 'rbd1',
            'rbd_pool': pool,
            'rbd_user': user,
            'rbd_ceph_conf': directory / 'ceph.conf',
            'rbd_cluster_name': 'ceph',
            'cow_driver': 'rbd',
        },
    }


def write_sections(path: pathlib.Path, sections: _Sections) -> None:
    parser = configparser.RawConfigParser()
    parser.read_dict(sections)
    with path.open('w') as file:
        parser.write(file)


def write_keyring(path: pathlib.Path, entity: str, key: str) -> None:
    path.touch(0o600)
    path.write_text(f'[{entity}]\n\tkey = {key}\n')


def _sections(
    top: pathlib.Path, fsid: str, monitor: str, store: str, osd_size: int
) -> _Sections:
    return {
        'global': {
            'fsid': fsid,
            'mon host': monitor,
            'ms bind msgr1': 'false',
            'ms bind ipv6': 'false',
            'keyring': top / '$name.keyring',
            'run dir': top / 'run',
            'admin socket': top / 'run/$name.asok',
            'pid file': '',
            'crash dir': top / 'crash',
            'log file': top / 'log/$name.log',
            'osd pool default size': '1',
            'osd pool default min size': '1',
            'osd pool default pg num': '8',
            'osd pool default pgp num': '8',
            'osd pool default pg autoscale mode': 'off',
            'osd crush chooseleaf type': '0',
            # A lease to read lasts 16 s by default, and an OSD that stood
            # still for longer may never renew it where it is the only one:
            # its placement groups are "laggy" for good. This is 2,000 s.
            'osd pool default read lease ratio': '100',
            'rbd default features': '61',
        },
        'mon': {
            'mon data': top / 'mon',
            'keyring': top / 'mon/keyring',
            'mon allow pool size one': 'true',
            'mon allow pool delete': 'true',
            'mon warn on pool no redundancy': 'false',
            'auth allow insecure global id reclaim': 'false',
            # By default it exits where less than 5 % of the disk are free.
            'mon data avail warn': '2',
            'mon data avail crit': '1',
            'mon max pg per osd': '1000',
            # Every change waits for a round of Paxos, by default for 1 s.
            # With 1 ms a pool is made in 45 ms, with 20 ms in 120.
            'paxos propose interval': '0.001',
            'paxos min wait': '0.0005',
            'mon cluster log file': top / 'log/cluster.log',
        },
        'osd': {
            # In [global] it would keep the monitor from starting.
            'public addr': '127.0.0.1',
            'cluster addr': '127.0.0.1',
            'osd data': top / 'osd',
            'osd objectstore': store,
            # A fast one would lose what is in memory.
            'osd fast shutdown': 'false' if store == 'memstore' else 'true',
            'osd crush initial weight': '1',
            'osd memory target': str(896 * 2**20),
            'osd op num shards': '2',
            'osd op num threads per shard': '2',
            'memstore device bytes': str(osd_size),
            'bluestore block size': str(osd_size),
            'bluestore block create': 'true',
            # These two take the start from 4 s to 1 s: whenever the device
            # is closed, a poll is waited out.
            'bluestore fsck on mkfs': 'false',
            'bdev aio poll ms': '10',
        },
        'mgr': {
            'public addr': '127.0.0.1',
            'mgr data': top / 'mgr',
            'mgr initial modules': 'rbd_support',
            'mgr tick period': '1',
            'mgr stats period': '1',
        },
        'client': {
            'log file': '',
            'admin socket': '',
            # An idle client learns by a request that the OSD was started
            # again: by default after 15 s, with these after 1 s.
            'objecter timeout': '1',
            'objecter tick interval': '0.5',
        },
    }


def _override(sections: _Sections, settings: Mapping[str, str]) -> None:
    # Ceph takes blanks and underscores alike.
    for given, value in settings.items():
        name = given.replace('_', ' ')
        holders = [held for held in sections.values() if name in held]
        for held in holders or [sections['global']]:
            held[name] = value


def _write_keys(directory: pathlib.Path) -> None:
    users = {f'client.{name}': rights for name, rights in USERS.items()}
    # The monitor takes them in when it is made: keys and caps.
    path = directory / 'bootstrap.keyring'
    path.touch(0o600)
    with path.open('w') as file:
        for entity, rights in (_DAEMONS | users).items():
            key = _new_key()
            file.write(f'[{entity}]\n\tkey = {key}\n')
            for service, right in rights.items():
                file.write(f'\tcaps {service} = "{right}"\n')
            write_keyring(directory / f'{entity}.keyring', entity, key)


def _new_key() -> str:
    # Type 1 (AES), seconds and nanoseconds, length, key.
    head = struct.pack('<HIIH', 1, int(time.time()), 0, 16)
    return base64.b64encode(head + os.urandom(16)).decode()


def free_port() -> int:
    """Find a port for a server that cannot be given a socket."""
    # Neither one that the kernel gives to clients nor one of the OSDs, which
    # look for theirs from 6800 on. A seed of the tests does not matter.
    choice = random.SystemRandom()
    while True:
        port = choice.randrange(20000, 30000)
        with socket.socket() as trial:
            try:
                trial.bind(('127.0.0.1', port))
            except OSError:
                continue
            return port
