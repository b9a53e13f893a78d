# SPDX-License-Identifier: Apache-2.0
"""Makes volumes for tools/bench rbd, in a process of its own.

It reads lines of JSON: {"image": ID, "volumes": [ID, ...], "at_once": 32};
and answers each with {"each": [SECONDS, ...], "total": SECONDS}, or
{"problem": TEXT}.
"""

import argparse
from collections.abc import Callable
from concurrent import futures
import json
import pathlib
import sys
import time

VOLUME_SIZE = 2 * 2**30
Make = Callable[[str, str], None]


class Ours:
    """What a request costs: cloneable, then clone."""

    def __init__(self, directory: pathlib.Path, fsid: str) -> None:
        from oslo_config import cfg

        from cinder_cow import opts
        from cinder_cow.drivers import rbd

        conf = cfg.ConfigOpts()
        conf([], default_config_files=[str(directory / 'cinder.conf')])
        options = opts.BackendOptions(conf, 'rbd1')
        self.driver = rbd.RbdDriver.from_options(options)
        self.settings = opts.Settings.read(options)
        self._fsid = fsid

    def make(self, image: str, volume: str) -> None:
        from cinder_cow.drivers import base

        bound = self.driver.bound(base.VolumeRequest(VOLUME_SIZE))
        info = self.info(image)
        verdict = bound.cloneable(info)
        if verdict.refusal:
            raise RuntimeError(str(verdict.refusal))
        bound.clone(info, volume)

    def info(self, image: str):
        """Return what the record of an image says."""
        from cinder_cow import image_info
        from cinder_cow import image_location

        url = f'rbd://{self._fsid}/images/{image}/snap'
        return image_info.ImageInfo(
            id=image,
            name='bench',
            disk_format='raw',
            size=VOLUME_SIZE // 2,
            os_hash_algo='sha512',
            os_hash_value='0' * 128,
            locations=(image_location.parse(url),),
        )


class Managed(Ours):
    """All of it: the plan and its first candidate."""

    def __init__(self, directory: pathlib.Path, fsid: str) -> None:
        from cinder_cow import manager

        super().__init__(directory, fsid)
        self._manager = manager.CreateVolumeFromImageMixin()
        self._manager.driver = self.driver
        self._manager.settings = self.settings

    def make(self, image: str, volume: str) -> None:
        outcome = self._manager.create_volume_from_image(
            volume, self.info(image), _Unread(VOLUME_SIZE // 2), VOLUME_SIZE
        )
        if outcome.candidate.kind.name != 'CLONE_LOCATION':
            raise RuntimeError(f'{outcome.candidate}')


class _Unread:
    """An image's source that must not be asked for a byte."""

    label = 'bench'
    image_id = content_id = ''

    def __init__(self, size: int) -> None:
        self.size = size


class Bare:
    """The calls of librbd that make such a volume, and nothing else."""

    def __init__(self, directory: pathlib.Path, fsid: str) -> None:
        import rados  # noqa: TID251
        import rbd  # noqa: TID251

        self._rbd = rbd
        self._client = rados.Rados(
            conffile=str(directory / 'ceph.conf'), rados_id='cinder'
        )
        self._client.connect()
        self._images = self._client.open_ioctx('images')
        self._volumes = self._client.open_ioctx('volumes')

    def make(self, image: str, volume: str) -> None:
        self._rbd.RBD().clone(
            self._images, image, 'snap', self._volumes, volume
        )
        opened = self._rbd.Image(self._volumes, volume)
        opened.resize(VOLUME_SIZE)
        opened.close()


def _upstream(directory: pathlib.Path, fsid: str):
    import bench_rbd_upstream

    conf = directory / 'cinder.conf'
    return bench_rbd_upstream.Upstream(conf, fsid, VOLUME_SIZE)


KINDS = {'ours': Ours, 'managed': Managed, 'bare': Bare, 'upstream': _upstream}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('kind', choices=KINDS)
    parser.add_argument('directory', type=pathlib.Path, help='of the cluster')
    parser.add_argument('fsid')
    parser.add_argument(
        '--like-cinder',
        action='store_true',
        help='have the process as cinder-volume has its own',
    )
    arguments = parser.parse_args()
    if arguments.like_cinder:
        import bench_rbd_upstream  # noqa: F401 - that is what it does
    maker = KINDS[arguments.kind](arguments.directory, arguments.fsid)
    answered({'ready': True})
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            answered(made(maker.make, **wanted))
        except Exception as error:  # noqa: BLE001 - is told
            answered({'problem': repr(error)})


def answered(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def made(make: Make, image: str, volumes: list[str], at_once: int) -> object:
    def timed(volume: str) -> float:
        begun = time.perf_counter()
        make(image, volume)
        return time.perf_counter() - begun

    begun = time.perf_counter()
    each = list(all_of(timed, volumes, at_once))
    return {'each': each, 'total': time.perf_counter() - begun}


def all_of(call: Callable[[str], float], names: list[str], at_once: int):
    if at_once == 1:
        yield from map(call, names)
    elif is_green():
        import eventlet

        yield from eventlet.GreenPool(at_once).imap(call, names)
    else:
        with futures.ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(call, names)


def is_green() -> bool:
    eventlet = sys.modules.get('eventlet')
    return bool(eventlet and eventlet.patcher.is_monkey_patched('thread'))


if __name__ == '__main__':
    main()
