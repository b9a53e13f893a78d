# SPDX-License-Identifier: Apache-2.0
"""What is left in a pool of RBD, told from its objects.

librbd's own calls do not tell: they hide an image that is half made.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
import contextlib
import struct
import time
from typing import TypeVar

from cinder_cow.tests import ceph_client

with contextlib.suppress(ImportError):  # without them, tests are skipped
    import rados  # noqa: TID251
    import rbd  # noqa: TID251

# Objects of a pool that are of no image.
_OURS = {'cow_leases', 'cow_verdicts'}
_LIBRBDS = {'rbd_directory', 'rbd_info', 'rbd_children', 'rbd_trash'}
# Of an image, with its id behind.
_KINDS = ('rbd_header.', 'rbd_data.', 'rbd_object_map.', 'cow_manifest.')
# Rows that are read at once; an OSD gives 1024 at most.
_ROWS = 1000

Found = TypeVar('Found')


@contextlib.contextmanager
def opened(cluster: ceph_client.Client, pool: str) -> Iterator['rados.Ioctx']:
    """Open a pool as the administrator."""
    with cluster.connect() as client, client.open_ioctx(pool) as ioctx:
        yield ioctx


def left(
    cluster: ceph_client.Client, pool: str, expected: Iterable[str] = ()
) -> list[str]:
    """Tell what is in a pool that belongs to no volume that is expected.

    :param expected: names of the volumes and bases, which must be whole and
        free
    """
    with cluster.connect() as client, client.open_ioctx(pool) as ioctx:
        return list(_left(client, ioctx, set(expected)))


def until(
    cluster: ceph_client.Client,
    pool: str,
    expected: Iterable[str] = (),
    seconds: float = 10,
    sweep: Callable[[], object] = lambda: None,
) -> list[str]:
    """Wait until nothing is left; return what still is.

    :param sweep: the next command, and the one after it
    """
    deadline = time.monotonic() + seconds
    expected = list(expected)
    while True:
        sweep()
        found = left(cluster, pool, expected)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _left(
    client: 'rados.Rados', ioctx: 'rados.Ioctx', expected: set[str]
) -> Iterator[str]:
    rows = _omap(ioctx, 'rbd_directory')
    ids = {
        name.removeprefix('name_'): _text(value)
        for name, value in rows.items()
        if name.startswith('name_')
    }
    yield from _of_names(ioctx, rows, ids, expected)
    whole = {ids[name]: name for name in expected & set(ids)}
    for one in sorted(one.key for one in ioctx.list_objects()):
        if why := _stray(one, whole):
            yield f'{one}: {why}'
    yield from _of_children(client, ioctx, whole)
    dump = ceph_client.run_command(
        client.mon_command, prefix='osd dump', format='json'
    )
    for name in expected & set(ids):
        yield from _of_image(ioctx, name, dump['blocklist'])
    yield from (f'trash: {row}' for row in _omap(ioctx, 'rbd_trash'))
    yield from (f'a lease on {row}' for row in _omap(ioctx, 'cow_leases'))
    yield from _locks(ioctx, 'cow_leases')


def _of_names(
    ioctx: 'rados.Ioctx',
    rows: Mapping[str, bytes],
    ids: Mapping[str, str],
    expected: set[str],
) -> Iterator[str]:
    """Compare the directory with itself, and with the names."""
    names = {
        row.removeprefix('id_'): _text(value)
        for row, value in rows.items()
        if row.startswith('id_')
    }
    yield from (f'{name} is missing' for name in sorted(expected - set(ids)))
    yield from (f'{name} is listed' for name in sorted(set(ids) - expected))
    if {name: image for image, name in names.items()} != ids:
        yield f'the directory is not one: {ids} and {names}'
    for name in sorted(expected & set(ids)):
        found = _text(_object(ioctx, f'rbd_id.{name}'))
        if found != ids[name]:
            yield f'{name} is listed as {ids[name]} and opens {found!r}'


def _stray(one: str, whole: Mapping[str, str]) -> str:
    """Say what is wrong with an object's being there, if anything is."""
    if one in _OURS | _LIBRBDS or one.startswith('rbd_mirror'):
        return ''
    if one.startswith('rbd_id.'):
        name = one.removeprefix('rbd_id.')
        return '' if name in whole.values() else 'a dead name'
    for kind in _KINDS:
        if one.startswith(kind):
            image = one.removeprefix(kind).partition('.')[0]
            # With a data pool, its number stands before the id.
            image = image if image in whole else one.split('.')[-2]
            return '' if image in whole else 'of no image'
    return 'unknown'


def _of_children(
    client: 'rados.Rados', ioctx: 'rados.Ioctx', whole: Mapping[str, str]
) -> Iterator[str]:
    """Compare what clones say of their parents with what those say."""
    pool = ioctx.get_pool_id()
    registered: dict[str, set[str]] = {}
    # The keys have zeros in them, at which rados cuts them off; of a pool
    # with a number over 127 it fails to decode them.
    rows: list[tuple[str, bytes]] = []
    with contextlib.suppress(UnicodeDecodeError):
        rows = _rows(ioctx, 'rbd_children')
    for _key, value in rows:
        for child in _texts(value):
            registered.setdefault(child, set()).add('rbd_children')
    for name in client.list_pools():
        with client.open_ioctx(name) as other:
            for child, parent in _children_of_headers(other, pool):
                registered.setdefault(child, set()).add(parent)
    for child in set(registered) - set(whole):
        yield f'{registered[child]} have a child that is gone: {child}'
    for child, name in whole.items():
        with rbd.Image(ioctx, name, read_only=True) as image:
            has_parent = _has_parent(image)
            is_registered = child in registered or (
                has_parent and _is_registered(client, ioctx, image)
            )
        if has_parent != is_registered:
            yield f'{name} has a parent: {has_parent}, which knows otherwise'


def _children_of_headers(
    ioctx: 'rados.Ioctx', pool: int
) -> Iterator[tuple[str, str]]:
    """Give the clones of version 2 of a pool: they are in their parents."""
    headers = (
        one.key
        for one in ioctx.list_objects()
        if one.key.startswith('rbd_header.')
    )
    for header in headers:
        for row, value in _omap(ioctx, header, 'snap_children_').items():
            (count,) = struct.unpack_from('<I', value)
            at = 4
            for _number in range(count):
                _version, _compat, length, child_pool = struct.unpack_from(
                    '<BBIq', value, at
                )
                if child_pool == pool:
                    yield _text(value[at + 14 :]), f'{header} {row}'
                at += 6 + length


def _has_parent(image: 'rbd.Image') -> bool:
    try:
        image.parent_info()
    except rbd.ImageNotFound:
        return False
    return True


def _is_registered(
    client: 'rados.Rados', ioctx: 'rados.Ioctx', image: 'rbd.Image'
) -> bool:
    """Whether the parent of a clone of version 1 knows of it."""
    place, parent_id = image.get_parent_image_spec(), image.parent_id()
    with (
        client.open_ioctx(place['pool_name']) as other,
        rbd.Image(other, image_id=parent_id, read_only=True) as parent,
    ):
        key = parent_id.encode()
        data = struct.pack('<qI', other.get_pool_id(), len(key)) + key
        data += struct.pack('<Q', parent.snap_get_id(place['snap_name']))
    try:
        _status, answer = ioctx.execute(
            'rbd_children', 'rbd', 'get_children', data
        )
    except rados.ObjectNotFound:
        return False
    return image.id() in set(_texts(answer))


def _of_image(
    ioctx: 'rados.Ioctx', name: str, shut_out: Container[str]
) -> Iterator[str]:
    with rbd.Image(ioctx, name, read_only=True) as image:
        for watcher in image.watchers_list():
            # Of one that was killed as it began to watch, the OSD keeps that
            # for good: it hinders nothing but librbd's own removal.
            if watcher['addr'] not in shut_out:
                yield f'{name} is watched by {watcher["addr"]}'
        header = f'rbd_header.{image.id()}'
    yield from _locks(ioctx, header)


def _locks(ioctx: 'rados.Ioctx', one: str) -> Iterator[str]:
    with contextlib.suppress(rados.ObjectNotFound):
        for name, value in ioctx.get_xattrs(one):
            # The lock of an image that nobody holds is kept, and empty.
            if name.startswith('lock.') and _holders(value):
                yield f'{one} has {name}'


def _holders(lock: bytes) -> int:
    """Tell how many hold a lock; see lock_info_t of cls_lock."""
    (count,) = struct.unpack_from('<I', lock, 6)
    return int(count)


def _omap(
    ioctx: 'rados.Ioctx', one: str, prefix: str = ''
) -> dict[str, bytes]:
    return dict(_rows(ioctx, one, prefix))


def _rows(
    ioctx: 'rados.Ioctx', one: str, prefix: str = ''
) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    with contextlib.suppress(rados.ObjectNotFound):
        while True:
            after = found[-1][0] if found else ''
            with rados.ReadOpCtx() as operation:
                rows, _status = ioctx.get_omap_vals(
                    operation, after, prefix, _ROWS
                )
                ioctx.operate_read_op(operation, one)
                page = [(row, bytes(value)) for row, value in rows]
            found += page
            if len(page) < _ROWS:
                break
    return found


def _object(ioctx: 'rados.Ioctx', name: str) -> bytes:
    try:
        return bytes(ioctx.read(name))
    except rados.ObjectNotFound:
        return b''


def _text(data: bytes) -> str:
    """Read a string as Ceph stores it: its length, then its bytes."""
    (length,) = struct.unpack_from('<I', data) if data else (0,)
    return data[4 : 4 + length].decode()


def _texts(data: bytes) -> Iterator[str]:
    (count,) = struct.unpack_from('<I', data)
    at = 4
    for _number in range(count):
        text = _text(data[at:])
        at += 4 + len(text)
        yield text
