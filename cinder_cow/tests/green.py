# SPDX-License-Identifier: Apache-2.0
"""The RBD driver in a process that eventlet has patched, as cinder-volume is.

Run by tests, in a process of its own: ``call`` starts it, and a function of
here does what it is to do, beside a ticker that tells how long no green
thread had a turn.
"""

from collections.abc import Callable
import importlib
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

from oslo_config import cfg
from oslo_log import log as oslo_logging

from cinder_cow import exception
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import image_source
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow.drivers import ceph
from cinder_cow.drivers import native
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_parents
from cinder_cow.tests import threads_seen

THREADS = 16
# Seconds between ticks.
TICK = 0.005
# Seconds that a cluster is given that does not answer.
TIMEOUT = 2
# Seconds in which a process ends that does not hang.
LIMIT = 100
_PATCHED = (
    'import eventlet; eventlet.monkey_patch();'
    f' from {__name__} import main; main()'
)


def call(function: Callable[..., Any], **facts: object) -> dict[str, Any]:
    """Run a function of this module in a patched process; return its answer.

    :raises AssertionError: it failed, or did not end
    """
    try:
        done = subprocess.run(
            [sys.executable, '-c', _PATCHED, function.__name__,
             json.dumps(facts)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
                # eventlet says on import that it is not to be used.
                'PYTHONWARNINGS': 'ignore',
            },
            timeout=LIMIT,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f'it hangs: {error.stderr!r}') from None
    if done.returncode:
        said = (done.stdout + done.stderr)[-5000:]
        raise AssertionError(f'{done.returncode}: {said}')
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    name, facts = sys.argv[1:]
    # With locks for native threads, as every service of OpenStack does.
    conf = cfg.ConfigOpts()
    oslo_logging.register_options(conf)
    conf([])
    oslo_logging.setup(conf, 'green')
    answer = globals()[name](**json.loads(facts))
    print(json.dumps(answer), flush=True)


def clones(conf: str, pool: str, url: str) -> dict[str, Any]:
    """Clone a location by green threads, all at once."""
    driver, image = _driver(conf, pool), _at(url)

    def work(number: int) -> str:
        return driver.clone(image, f'v{number}').name

    return {**_ticking(work), 'connections': threads_seen.connections()}


def streams(conf: str, pool: str, path: str) -> dict[str, Any]:
    """Copy a file into volumes by green threads, with a hash."""
    backend = _Backend(_driver(conf, pool))
    algorithm = 'sha256'

    def work(number: int) -> str:
        with image_source.FileSource(path) as source:
            claimed = f'{algorithm}:{pathlib.Path(path).stem}'
            image = image_source.describe(source, 'raw', claimed)
            made = backend.create_volume_from_image(
                f'v{number}', image, source
            )
        with backend.driver.read(made.volume.name) as reader:
            assert (
                reader.read(0, 4096) == pathlib.Path(path).read_bytes()[:4096]
            )
        return made.verified

    return _ticking(work, 4)


def hashes(length: int) -> dict[str, Any]:
    """Hash a hole, which is one piece."""
    image = images.ImageInfo('image', 'image', disk_format='raw')

    def work(_number: int) -> str:
        with hashing.hasher(image, always=True) as hasher:
            hasher.update(length)
            return hasher.check()

    return _ticking(work, 1)


def logs(lines: int) -> dict[str, Any]:
    """Log by native threads and by green ones at once."""
    log = logging.getLogger('green')
    # Slow, so that they meet.
    handler = logging.StreamHandler(open(os.devnull, 'w', buffering=1))  # noqa: SIM115
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)

    @native.threaded
    def natively(number: int) -> None:
        for line in range(lines):
            log.info('%d %d', number, line)

    def work(number: int) -> str:
        natively(number)
        for line in range(lines):
            log.info('%d %d', number, line)
            if not line % 10:
                time.sleep(0)
        return 'logged'

    return _ticking(work)


def unavailable(conf: str, pool: str) -> dict[str, Any]:
    """Call a cluster that does not answer, by green threads at once."""
    driver = _driver(conf, pool, TIMEOUT)

    def work(number: int) -> str:
        try:
            driver.exists('v1')
        except exception.BackendError as error:
            return error.reason.value
        return 'none'

    return _ticking(work)


def native_thread(conf: str, pool: str, url: str) -> dict[str, Any]:
    """Clone in a native thread that is none of eventlet's pool."""
    driver, image = _driver(conf, pool), _at(url)
    driver.exists('v1')
    made: list[str] = []
    thread = native.threading().Thread(
        target=lambda: made.append(driver.clone(image, 'v1').name),
        daemon=True,
    )
    thread.start()
    deadline = time.monotonic() + 20
    while thread.is_alive() and time.monotonic() < deadline:
        time.sleep(TICK)
    return {'made': made}


def forked(conf: str, pool: str, url: str) -> dict[str, Any]:
    """Clone, fork, and clone in parent and child."""
    driver, image = _driver(conf, pool), _at(url)
    driver.clone(image, 'before')
    child = os.fork()
    if not child:
        # As oslo.service does.
        importlib.import_module('eventlet.hubs').use_hub()
        driver.clone(image, 'child')
        os._exit(7)
    driver.clone(image, 'parent')
    deadline = time.monotonic() + 20
    status = (0, 0)
    while not status[0] and time.monotonic() < deadline:
        time.sleep(TICK)
        status = os.waitpid(child, os.WNOHANG)
    if not status[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return {
        'status': os.waitstatus_to_exitcode(status[1]) if status[0] else None
    }


class _Backend(manager.CreateVolumeFromImageMixin):
    def __init__(self, driver: rbd.RbdDriver) -> None:
        self.driver = driver
        self.settings = opts.Settings(cow_enabled=False)


def _driver(conf: str, pool: str, timeout: int = 10) -> rbd.RbdDriver:
    cluster = ceph.Cluster(
        conf=conf, user='admin', connect_timeout=timeout, op_timeout=timeout
    )
    return rbd.RbdDriver(
        rbd_options.RbdSettings(
            cluster=cluster,
            pool=pool,
            trust=rbd_parents.Trust(frozenset({'images'})),
        )
    )


def _at(url: str) -> images.ImageInfo:
    location = image_location.parse(url)
    assert isinstance(location, image_location.RbdLocation)
    image = images.ImageInfo(location.image, 'image', disk_format='raw')
    return image.at(location)


def _ticking(
    work: Callable[[int], str], threads: int = THREADS
) -> dict[str, Any]:
    """Let green threads work beside a ticker.

    :returns: their answers, the seconds they took, how often it ticked, and
        the longest time between two ticks
    """
    answers: list[str] = []
    gaps: list[float] = []
    over = threading.Event()

    def tick() -> None:
        before = time.monotonic()
        while not over.is_set():
            time.sleep(TICK)
            now = time.monotonic()
            gaps.append(now - before)
            before = now

    ticker = threading.Thread(target=tick)
    ticker.start()
    begun = time.monotonic()
    workers = [
        threading.Thread(target=lambda n=n: answers.append(work(n)))
        for n in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - begun
    over.set()
    ticker.join()
    return {
        'answers': sorted(answers),
        'seconds': round(seconds, 3),
        'ticks': len(gaps),
        'longest': round(max(gaps), 4),
    }
