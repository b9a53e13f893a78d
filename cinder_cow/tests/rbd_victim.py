# SPDX-License-Identifier: Apache-2.0
"""Processes that make and delete volumes, and are killed at a chosen step.

One process loads all that is needed, and forks a victim for each order: that
takes milliseconds, and a victim has a connection of its own. A step is a call
of librados or librbd that changes something; see ``STEPS``.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import inspect
import os
import signal
import threading
import time
import traceback
from typing import Any

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import qemu_img
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import ceph
from cinder_cow.drivers import rbd
from cinder_cow.drivers import rbd_base_sink
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_options
from cinder_cow.drivers import rbd_owner
from cinder_cow.drivers import rbd_parents
from cinder_cow.tests import forks

# What changes something, by its name; all else only looks.
STEPS = frozenset({
    'put', 'remove', 'lock', 'forget_lock', 'create', 'clone', 'rename',
    'remove_name', 'unlist', 'remove_object', 'resize', 'aio_write', 'flush',
    'shut_out', 'open', 'close', 'create_snap', 'protect_snap',
    'unprotect_snap', 'remove_snap', 'set_metadata',
})  # fmt: skip
LIMIT = 60
_PR_SET_PDEATHSIG = 1
# A stream is of so many pieces, each an object.
PIECES = 3
PIECE = 4 * units.Mi


@dataclasses.dataclass
class Order:
    """What a victim does, and how it ends.

    :param work: clone, stream, qcow2 or delete; base, link or retire
    :param location: of the image that is cloned; the volume that is linked
    :param file: the image that qemu-img reads
    :param size: bytes of the volume
    :param step: the number of the step before which it is signalled; -1: it
        is not
    :param during: the name of a step in which it is, after ``delay`` seconds
    :param abroad: it looks as if it ran on another host
    :param seconds: of its leases
    :param slow: time passes between the pieces of a base
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
    slow: bool = False
    number: int = -1


def victims() -> forks.Forks:
    """Return where victims come from; a context manager."""
    return forks.Forks(__name__)


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


def key_of(name: str) -> bases.BaseKey:
    return bases.BaseKey(name, 'sha512:1')


def facts_of(order: Order) -> bases.BaseFacts:
    return bases.BaseFacts(
        key=key_of(order.name),
        image_name=order.name,
        source_format='raw',
        content_size=order.size,
        hash='',
        made_at=0,
    )


def write_base(begun: bases.Begun, order: Order) -> int:
    """Make a base of a stream; return how much of it was kept."""
    if isinstance(begun, bases.Base):
        return 0  # another one has made it
    assert isinstance(begun, rbd_base_sink.BaseSink), begun
    with begun as writer:
        kept = writer.kept
        start = 0
        for piece in content():
            end = start + len(piece)
            writer.write(piece[max(0, kept - start) :])
            start = end
            if order.slow:
                time.sleep(0.6)
        writer.publish(facts_of(order))
    return kept


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
    elif order.work == 'base':
        write_base(driver.begin_base(key_of(order.name), order.size), order)
    elif order.work == 'link':
        begun = driver.link_base(
            key_of(order.name), order.size, order.location
        )
        if isinstance(begun, rbd_base_sink.BaseSink):
            with begun:
                begun.publish(facts_of(order))
    elif order.work == 'retire':
        driver.retire_base(key_of(order.name).name)
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
        for kind in (ceph.Pool, ceph.Rows, ceph.Connection, ceph.Header):
            for name, method in inspect.getmembers(kind, inspect.isfunction):
                if name in STEPS and name not in ('open', 'close'):
                    setattr(kind, name, self._traced(name, method))
        for name in ('image', 'image_of'):
            setattr(ceph.Pool, name, self._image(getattr(ceph.Pool, name)))

    def begin(self, name: str) -> None:
        # The thread that renews the lease does so when it is time: in some
        # runs there would be a step more than in others.
        if threading.current_thread() is not threading.main_thread():
            return
        order = self._order
        if len(self.steps) == order.step:
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


def _live(order: Order) -> dict[str, Any]:
    """Be a victim: do the work, tell what became of it."""
    rbd_leases.SECONDS = order.seconds
    if order.abroad:
        me = dataclasses.replace(rbd_owner.Owner.me(), boot='another')
        setattr(rbd_owner.Owner, 'me', staticmethod(lambda: me))  # noqa: B010
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
    return told | {'steps': tracer.steps}


if __name__ == '__main__':
    forks.serve(Order, _live)
