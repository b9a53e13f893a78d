# SPDX-License-Identifier: Apache-2.0
"""Wait for a base that somebody else makes, and take over where he ends.

However many requests of a process wait for one base, one of them at a time
asks the back end: 64 that each asked five times a second would take a third
of a core.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import threading
import time

from cinder_cow import exception
from cinder_cow import refusal
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

# Seconds between two questions to the back end, and until one who does not
# ask looks whether somebody still does.
_POLL = 0.2
_LOOK = 1.0


class Turn:
    """The turn of one request: it has the base, or is its only maker.

    :ivar found: the base, or a writer for it
    """

    def __init__(
        self, queue: '_Queue', found: bases.Base | bases.BaseWriter
    ) -> None:
        self.found = found
        self._queue = queue

    def tell(self, progress: bases.Progress) -> None:
        """Let all who wait know how far it is."""
        self._queue.making = bases.Making('this process', progress=progress)
        if not isinstance(self.found, bases.Base):
            self.found.tell(progress)


@contextlib.contextmanager
def turn(
    backend: str,
    name: str,
    begin: Callable[[], bases.Begun],
    wait: float,
    waits: Callable[[bases.Making | None], None],
) -> Iterator[Turn]:
    """Wait until a base is there, or nobody else makes it.

    :param begin: asks the driver
    :param wait: seconds
    :param waits: is called while it waits, with who makes it
    :raises BackendError: BUSY: it was made for longer than that
    :raises ImageError: HASH_MISMATCH: it was fetched meanwhile, and is bad
    """
    deadline = time.monotonic() + wait
    with _queued(backend, name) as queue:
        known = queue.result
        while True:
            if queue.result is not known:
                yield Turn(queue, _told(queue.result))
                return
            if (found := queue.ask(begin)) is not None:
                break
            if time.monotonic() > deadline:
                raise exception.BackendError.because(
                    Reason.BUSY,
                    what=f'base {name}',
                    owner=queue.owner,
                    seconds=wait,
                )
            waits(queue.making)
            queue.wait(max(0, deadline - time.monotonic()))
        try:
            if isinstance(found, bases.Base):
                queue.result = found
            yield Turn(queue, found)
        except exception.ImageError as error:
            # Those who wait now would fetch all of it in turn, to see that.
            if error.reason is Reason.HASH_MISMATCH:
                queue.result = error.refusal
            raise
        finally:
            queue.pass_on()


def _told(result: bases.Base | refusal.Refusal | None) -> bases.Base:
    """Give what another request of this process has got.

    :raises ImageError: it has got none, for the image is bad
    """
    if isinstance(result, bases.Base):
        return result
    assert result is not None
    raise exception.ImageError(result)


class _Queue:
    """Those of this process who want one base.

    :ivar making: who makes it, by the last answer
    :ivar result: what the last one got that asked or fetched: the base, or
        why its image is not what it claims. It is for those alone who have
        waited for it: a base may go.
    :ivar users: how many they are
    """

    def __init__(self) -> None:
        self.making: bases.Making | None = None
        self.result: bases.Base | refusal.Refusal | None = None
        self.users = 0
        self._changed = threading.Condition()
        self._is_busy = False
        self._ask_after = 0.0
        # The thread that asked last, and will ask again.
        self._asker = 0

    @property
    def owner(self) -> str:
        return self.making.owner if self.making else 'this process'

    def ask(
        self, begin: Callable[[], bases.Begun]
    ) -> bases.Base | bases.BaseWriter | None:
        """Ask the driver, unless another one of us is at it, or just was.

        What is given back is for the caller alone, until ``pass_on``.
        """
        with self._changed:
            if self._is_busy or time.monotonic() < self._ask_after:
                return None
            self._is_busy = True
        try:
            found = begin()
        except BaseException:
            self.pass_on()
            raise
        if not isinstance(found, bases.Making):
            return found
        self.making = found
        self._asker = threading.get_ident()
        self._ask_after = time.monotonic() + _POLL
        with self._changed:
            self._is_busy = False
        return None

    def pass_on(self) -> None:
        with self._changed:
            self._is_busy = False
            self._ask_after = 0
            self._changed.notify_all()

    def wait(self, most: float) -> None:
        """Wait until it is worth asking again, for that long at most."""
        asks = self._asker == threading.get_ident()
        with self._changed:
            self._changed.wait(min(most, _POLL if asks else _LOOK))


_queues: dict[tuple[str, str], _Queue] = {}
_queues_lock = threading.Lock()


@contextlib.contextmanager
def _queued(backend: str, name: str) -> Iterator[_Queue]:
    key = (backend, name)
    with _queues_lock:
        queue = _queues.setdefault(key, _Queue())
        queue.users += 1
    try:
        yield queue
    finally:
        with _queues_lock:
            queue.users -= 1
            # Of a fork, it may be one of its parent's.
            if not queue.users and _queues.get(key) is queue:
                del _queues[key]


def _forget() -> None:
    """Wait for no thread of the parent: in a fork there is none of them."""
    global _queues_lock
    _queues_lock = threading.Lock()
    _queues.clear()


os.register_at_fork(after_in_child=_forget)
