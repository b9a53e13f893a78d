# SPDX-License-Identifier: Apache-2.0
"""Processes that make and delete volumes, and are killed at a chosen step.

One process loads all that is needed, and forks a victim for each order: that
takes milliseconds, and a victim has a connection of its own. A step is a call
of librados or librbd that changes something; see ``STEPS``.
"""

from collections.abc import Callable, Iterator
import contextlib
import ctypes
import dataclasses
import functools
import inspect
import itertools
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, Self

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import qemu_img
from cinder_cow.drivers import base
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_parents

# What changes something, by its name; all else only looks.
STEPS = frozenset({
    'put', 'remove', 'lock', 'forget_lock', 'create', 'clone', 'rename',
    'remove_name', 'unlist', 'remove_object', 'resize', 'aio_write', 'flush',
    'shut_out', 'open', 'close',
})  # fmt: skip
LIMIT = 60
_PR_SET_PDEATHSIG = 1
# A stream is of so many pieces, each an object.
PIECES = 3
PIECE = 4 * units.Mi


@dataclasses.dataclass
class Order:
    """What a victim does, and how it ends.

    :param work: clone, stream, qcow2 or delete
    :param location: of the image that is cloned
    :param file: the image that qemu-img reads
    :param size: bytes of the volume
    :param step: the number of the step before which it is signalled; -1: it
        is not
    :param during: the name of a step in which it is, after ``delay`` seconds
    :param abroad: it looks as if it ran on another host
    :param seconds: of its leases
    """

    conf: str
    pool: str
    work: str
    name: str
    location: str = ''
    file: str = ''
    size: int = 16 * units.Mi
    step: int = -1
    during: str = ''
    delay: float = 0
    signal: int = signal.SIGKILL
    abroad: bool = False
    seconds: int = 3
    user: str = 'admin'
    number: int = -1


class Victim:
    """A process that was ordered; see ``Victims.order``."""

    def __init__(self, number: int, pid: int) -> None:
        self.number = number
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self.told: dict[str, Any] = {}

    def send(self, number: int) -> None:
        signal.pidfd_send_signal(self._descriptor, number)

    def wait(self, seconds: float = LIMIT) -> None:
        """Wait for its end.

        :raises TimeoutError: it goes on
        """
        if not select.select([self._descriptor], [], [], seconds)[0]:
            raise TimeoutError(f'victim {self.number} goes on')

    def wait_stopped(self, seconds: float = LIMIT) -> bool:
        """Wait until it has got SIGSTOP; False: it has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self._descriptor], [], [], 0)[0]:
                return False
            stat = pathlib.Path(f'/proc/{self.pid}/stat')
            with contextlib.suppress(OSError):
                if stat.read_text().rpartition(')')[2].split()[0] == 'T':
                    return True
            time.sleep(0.002)
        raise TimeoutError(f'victim {self.number} goes on')

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        os.close(self._descriptor)


class Victims:
    """Where victims come from; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-m', __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What victims log is no fault, and would hide those of tests.
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
            text=True,
        )
        self._numbers = itertools.count()
        self._victims: dict[int, Victim] = {}
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def order(self, order: Order) -> Victim:
        order.number = next(self._numbers)
        assert self._process.stdin
        line = json.dumps(dataclasses.asdict(order))
        self._process.stdin.write(f'{line}\n')
        self._process.stdin.flush()
        with self._changed:
            assert self._changed.wait_for(
                lambda: order.number in self._victims, LIMIT
            )
            return self._victims[order.number]

    def told(self, victim: Victim) -> dict[str, Any]:
        """Return what it has to say; for one that is not killed.

        :raises TimeoutError: it goes on, or has crashed
        """
        victim.wait()
        with self._changed:
            if not self._changed.wait_for(lambda: victim.told, 1):
                raise TimeoutError(f'victim {victim.number} said nothing')
        return victim.told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        for victim in self._victims.values():
            victim.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            found = json.loads(line)
            number = found['number']
            with self._changed:
                if 'pid' in found:
                    self._victims[number] = Victim(number, found['pid'])
                else:
                    self._victims[number].told = found
                self._changed.notify_all()


def settings(
    conf: str, pool: str, user: str = 'admin', op_timeout: int = 5
) -> rbd_options.RbdSettings:
    return rbd_options.RbdSettings(
        cluster=ceph.Cluster(
            conf=conf, user=user, connect_timeout=10, op_timeout=op_timeout
        ),
        pool=pool,
        trust=rbd_parents.Trust(frozenset({'images'})),
    )


def image_at(location: str) -> images.ImageInfo:
    found = image_location.parse(location)
    assert isinstance(found, image_location.RbdLocation)
    return images.ImageInfo(
        found.image, found.image, disk_format='raw', locations=(found,)
    )


def content() -> Iterator[bytes]:
    """Give the pieces of a stream."""
    for number in range(PIECES):
        yield bytes([number + 1]) * PIECE


def do(order: Order, driver: rbd.RbdDriver) -> None:
    """Do a work in this process."""
    if order.work == 'clone':
        driver.bound(base.VolumeRequest(order.size)).clone(
            image_at(order.location), order.name
        )
    elif order.work == 'stream':
        with driver.open(order.name, order.size) as writer:
            for piece in content():
                writer.write(piece)
            writer.close()
    elif order.work == 'qcow2':
        source = qemu_img.Disk(qemu_img.QemuNode.path(order.file), 'qcow2')
        with driver.open(order.name, order.size) as writer:
            assert isinstance(writer, base.QemuTarget)
            target = qemu_img.Disk(writer.qemu_target(), 'raw')
            limits = qemu_img.Limits()
            qemu_img.convert(source, target, zeroed=True, limits=limits)
            writer.close()
    else:
        driver.delete(order.name)


class _Tracer:
    """Counts the steps, and sends itself the signal at the one it is told."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.steps: list[str] = []

    def trace(self) -> None:
        for kind in (ceph.Pool, ceph.Rows, ceph.Connection):
            for name, method in inspect.getmembers(kind, inspect.isfunction):
                if name in STEPS and name not in ('open', 'close'):
                    setattr(kind, name, self._traced(name, method))
        setattr(ceph.Pool, 'image', self._image(ceph.Pool.image))  # noqa: B010

    def begin(self, name: str) -> None:
        order = self._order
        if len(self.steps) == order.step:
            # The thread that renews the lease has steps too.
            order.step = -1
            os.kill(os.getpid(), order.signal)
        self.steps.append(name)
        if name == order.during:
            timer = threading.Timer(
                order.delay, os.kill, (os.getpid(), order.signal)
            )
            timer.daemon = True
            timer.start()

    def _traced(
        self, name: str, method: Callable[..., Any]
    ) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **named: Any) -> Any:
            self.begin(name)
            return method(*args, **named)

        return call

    def _image(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def image(*args: Any, **named: Any) -> Iterator[Any]:
            if not named.get('write'):
                with method(*args, **named) as opened:
                    yield opened
                return
            self.begin('open')
            with method(*args, **named) as opened:
                yield _Image(self, opened)
                self.begin('close')

        return image


class _Image:
    """An open image whose steps are counted."""

    def __init__(self, tracer: _Tracer, image: Any) -> None:
        self._tracer = tracer
        self._image = image

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._image, name)
        if name in STEPS:
            return self._tracer._traced(name, method)
        return method


def _live(order: Order) -> None:
    """Be a victim: do the work, tell what became of it."""
    rbd_leases.SECONDS = order.seconds
    if order.abroad:
        me = dataclasses.replace(rbd_leases.Owner.me(), boot='another')
        setattr(rbd_leases.Owner, 'me', lambda: me)  # noqa: B010
    tracer = _Tracer(order)
    driver = rbd.RbdDriver(
        settings(order.conf, order.pool, order.user), 'rbd1'
    )
    told: dict[str, Any] = {'error': '', 'reason': ''}
    tracer.trace()
    try:
        do(order, driver)
        # The last of them was done: the end is one more moment.
        tracer.begin('end')
    except exception.CowError as error:
        told = {'error': str(error), 'reason': error.reason.value}
    except BaseException:  # noqa: BLE001
        told = {'error': traceback.format_exc(), 'reason': 'bug'}
    told |= {'number': order.number, 'steps': tracer.steps}
    os.write(1, f'{json.dumps(told)}\n'.encode())


def main() -> None:
    # Victims need not be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    for line in sys.stdin:
        order = Order(**json.loads(line))
        if pid := os.fork():
            told = {'number': order.number, 'pid': pid}
            os.write(1, f'{json.dumps(told)}\n'.encode())
            continue
        try:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # What it may start is waited for.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _live(order)
        finally:
            os._exit(0)


if __name__ == '__main__':
    main()
