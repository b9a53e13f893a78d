# SPDX-License-Identifier: Apache-2.0
"""Benchmark the file driver: clones, streams, and the first use of an image.

Each figure of ours stands beside the bare calls that do the same, taken in
turn in one run; the ratio is of pairs. Printed as min, median and max.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import fcntl
import functools
import hashlib
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from oslo_utils import units
import reports

from cinder_cow import image_info as images
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import streaming
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import file
from cinder_cow.tests import storage

FICLONE = 0x40049409

row = functools.partial(reports.row, (46, 26, 14, 24))


class Manager(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver: base.Driver) -> None:
        self.driver = driver
        self.settings = opts.Settings()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--short', action='store_true', help='a few runs')
    parser.add_argument('--output', type=pathlib.Path, help='keep it there')
    arguments = parser.parse_args()
    reports.told(report(arguments.short), arguments.output)
    return 0


def report(short: bool) -> Iterator[str]:
    yield from reports.heading(
        f'tools/bench files{" --short" if short else ""}'
    )
    yield row('what', 'ours: min median max', 'bare: median', 'ratio')
    with tempfile.TemporaryDirectory(dir='/var/tmp') as top:
        yield from stream_rows(pathlib.Path(top), 3 if short else 9)
        yield from qcow2_rows(pathlib.Path(top), 3 if short else 9)
    for kind in ('ext4', 'xfs'):
        with storage.mounted(kind, 24 * units.Gi) as mount:
            yield from clone_rows(kind, mount, 5 if short else 50)


def compared(
    what: str,
    ours: list[float],
    bare: list[float],
    unit: float = 1.0,
    better: str = 'time',
) -> str:
    """Make a row of paired runs.

    :param better: 'time': ours / bare; 'speed': bare / ours
    """
    pairs = zip(ours, bare, strict=True)
    ratios = [o / b if better == 'time' else b / o for o, b in pairs]
    name = f'{statistics.median(ratios):.2f} of its {better}'
    return row(
        what,
        spread(ours, unit),
        f'{statistics.median(bare) * unit:.2f}',
        f'{name} ({min(ratios):.2f}-{max(ratios):.2f})',
    )


def spread(values: list[float], unit: float) -> str:
    three = (min(values), statistics.median(values), max(values))
    return ' '.join(f'{value * unit:.2f}' for value in three)


# Streams


def half_empty(path: pathlib.Path, size: int = 2 * units.Gi) -> None:
    """Write a raw image: 8 MiB of data, 8 MiB of hole, and so on."""
    with path.open('wb') as image:
        image.truncate(size)
        for offset in range(0, size, 16 * units.Mi):
            image.seek(offset)
            image.write(os.urandom(8 * units.Mi))
        image.flush()
        os.fsync(image.fileno())


def stream_rows(top: pathlib.Path, runs: int) -> Iterator[str]:
    path = top / 'image.raw'
    half_empty(path)
    digest = hashlib.sha512()
    with path.open('rb') as image:
        hashlib.file_digest(image, lambda: digest)
    claimed = digest.hexdigest()
    plain: list[tuple[float, int]] = []
    hashed: list[tuple[float, int]] = []
    qemu: list[float] = []
    hashing: list[float] = []
    for _ in range(runs):
        qemu.append(qemu_convert(top, path))
        plain.append(in_process_of_its_own(stream, top, path, None))
        hashing.append(hash_alone(path))
        hashed.append(in_process_of_its_own(stream, top, path, claimed))
    yield compared(
        'stream 2 GiB half-empty raw, no hash [s]',
        [seconds for seconds, _ in plain],
        qemu,
        better='speed',
    )
    yield '    bare: qemu-img convert -n -W -t none, then fsync'
    slower = [max(pair) for pair in zip(qemu, hashing, strict=True)]
    yield compared(
        'the same with a claimed sha512 [s]',
        [seconds for seconds, _ in hashed],
        slower,
        better='speed',
    )
    yield '    bare: the slower of sha512 alone and qemu-img alone'
    peak = max(memory for _, memory in plain + hashed)
    yield f'    peak memory of ours: {peak / units.Mi:.0f} MiB'
    source, result = path.stat(), stream_and_stat(top, path)
    yield (
        f'    blocks: source {source.st_blocks // 2} KiB, volume '
        f'{result.st_blocks // 2} KiB'
    )


def qemu_convert(top: pathlib.Path, path: pathlib.Path) -> float:
    """Write into a file that is there, as a stream does."""
    target = top / 'qemu.raw'
    with target.open('wb') as made:
        made.truncate(path.stat().st_size)
    return timed_convert(path, target, '-n', '-W', '-f', 'raw')


def full_copy(top: pathlib.Path, path: pathlib.Path) -> float:
    return timed_convert(path, top / 'copy.raw', '-f', 'qcow2')


def timed_convert(
    path: pathlib.Path, target: pathlib.Path, *options: str
) -> float:
    os.sync()
    begun = time.perf_counter()
    subprocess.run(
        ['qemu-img', 'convert', '-t', 'none', '-O', 'raw', *options, path,
         target],
        check=True,
    )  # fmt: skip
    with target.open('rb') as made:
        os.fsync(made.fileno())
    seconds = time.perf_counter() - begun
    target.unlink()
    return seconds


def hash_alone(path: pathlib.Path) -> float:
    begun = time.perf_counter()
    with path.open('rb') as image:
        hashlib.file_digest(image, 'sha512')
    return time.perf_counter() - begun


def in_process_of_its_own(
    call: Callable[..., float], *arguments: object
) -> tuple[float, int]:
    """Call in a fresh process; return seconds and its peak memory."""
    context = multiprocessing.get_context('spawn')
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, call, *arguments).result()


def _measured(
    call: Callable[..., float], *arguments: object
) -> tuple[float, int]:
    seconds = call(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units.Ki
    return seconds, peak


def stream(
    top: pathlib.Path, path: pathlib.Path, claimed: str | None
) -> float:
    """Stream an image into a new volume, publish it, delete it."""
    root = top / 'backend'
    driver = file.FileDriver(root)
    os.sync()
    begun = time.perf_counter()
    _stream(driver, path, claimed)
    seconds = time.perf_counter() - begun
    shutil.rmtree(root)
    return seconds


def _stream(
    driver: file.FileDriver, path: pathlib.Path, claimed: str | None
) -> None:
    with image_source.FileSource(path) as source:
        image = image_source.describe(source, 'raw')
        if claimed:
            image = with_hash(image, claimed)
        with driver.open('v1', source.size) as writer:
            streaming.stream(writer, image, source, lambda *told: None)
            writer.close()


def stream_and_stat(top: pathlib.Path, path: pathlib.Path) -> os.stat_result:
    driver = file.FileDriver(top / 'backend')
    _stream(driver, path, None)
    found = os.stat(driver.show('v1').path)
    shutil.rmtree(top / 'backend')
    return found


def with_hash(image: images.ImageInfo, claimed: str) -> images.ImageInfo:
    import dataclasses

    return dataclasses.replace(
        image, os_hash_algo='sha512', os_hash_value=claimed
    )


# Clones


def qcow2_rows(top: pathlib.Path, runs: int) -> Iterator[str]:
    """Beside what upstream's file drivers do for each volume: a full copy."""
    raw, path = top / 'image.raw', top / 'image.qcow2'
    subprocess.run(['qemu-img', 'convert', '-O', 'qcow2', raw, path])
    first, later, copies = [], [], []
    for _ in range(runs):
        copies.append(full_copy(top, path))
        root = top / 'backend'
        with image_source.FileSource(path) as source:
            info = image_source.describe(source, None)
            driver = Manager(file.FileDriver(root))
            for name, seconds in (('v1', first), ('v2', later)):
                begun = time.perf_counter()
                driver.create_volume_from_image(name, info, source)
                seconds.append(time.perf_counter() - begun)
        shutil.rmtree(root)
    yield compared('first volume of a 2 GiB qcow2 [s]', first, copies)
    yield compared('every further volume of it [s]', later, copies)
    yield '    bare: a full copy (qemu-img convert -O raw -t none, fsync)'


def clone_rows(kind: str, mount: pathlib.Path, runs: int) -> Iterator[str]:
    driver = file.FileDriver(mount / 'backend')
    for gib in (2, 16):
        path = mount / f'{gib}.raw'
        with path.open('wb') as image:
            image.truncate(gib * units.Gi)
            for offset in range(0, gib * units.Gi, 64 * units.Mi):
                image.seek(offset)
                image.write(os.urandom(units.Mi))
        ours, bare = [], []
        with image_source.FileSource(path) as source:
            info = image_source.describe(source, 'raw')
            made = Manager(driver).create_volume_from_image(
                f'first-{gib}', info, source
            )
            parent = next(
                b for b in driver.list_bases() if b.name in made.location
            )
            for number in range(runs):
                name = f'v{gib}-{number}'
                begun = time.perf_counter()
                Manager(driver).create_volume_from_image(name, info, source)
                ours.append(time.perf_counter() - begun)
                bare.append(bare_clone(mount, parent, gib * units.Gi))
        yield compared(
            f'clone of a {gib} GiB image, {kind} [ms]', ours, bare, 1000
        )
    yield f'    bare: {BARE[kind]}, fsync of file and directory'


BARE = {'ext4': 'qemu-img create -b', 'xfs': 'FICLONE'}


def bare_clone(mount: pathlib.Path, parent: bases.Base, size: int) -> float:
    """Do what makes a clone, and nothing else."""
    image = mount / 'backend/cow-bases' / parent.name / 'image.raw'
    target = mount / 'bare'
    begun = time.perf_counter()
    with image.open('rb') as source, target.open('wb') as made:
        try:
            fcntl.ioctl(made, FICLONE, source.fileno())
        except OSError:
            subprocess.run(
                ['qemu-img', 'create', '-q', '-f', 'qcow2', '-u', '-b',
                 image, '-F', 'raw', target, str(size)],
                check=True,
            )  # fmt: skip
        os.fsync(made.fileno())
    directory = os.open(mount, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    seconds = time.perf_counter() - begun
    target.unlink()
    return seconds


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
