# SPDX-License-Identifier: Apache-2.0
"""Read an image over the network, going on where a connection broke.

A remote opens connections; what is common to all is here: the head is kept
so that no byte is fetched twice, and a connection that breaks is opened
again at the byte it had reached, as long as it gets on.
"""

from collections.abc import Callable, Generator, Hashable, Iterator
import functools
import time
from typing import Protocol, TypeVar

from oslo_log import log as logging
from oslo_utils import units

from cinder_cow import exception
from cinder_cow import handles
from cinder_cow import http_session
from cinder_cow import opts
from cinder_cow.refusal import Reason

_Answer = TypeVar('_Answer')

LOG = logging.getLogger(__name__)

# A connection that gave this much has got on; its break starts a new count.
_PROGRESS = units.Mi
# Seconds before the next try: 1, 2, 4, 8, ...
_MAX_WAIT = 30


class Body(Protocol):
    """What one connection gives.

    :ivar start: the offset that it begins at
    """

    @property
    def start(self) -> int: ...

    def read(self) -> bytes:
        """Return the next bytes; empty at the end.

        :raises Broken: from :mod:`.http_session`
        """

    def close(self) -> None: ...


class Remote(Protocol):
    """An image on a server.

    :ivar label: the image, for messages
    :ivar size: bytes; negative until it was opened
    :ivar resumable: that a later connection goes on with the same bytes is
        told by it, or by a hash
    :ivar checkable: opening it again shows whether it changed
    :ivar question: as of ``image_source.Resumable``
    """

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def resumable(self) -> bool: ...

    @property
    def checkable(self) -> bool: ...

    @property
    def question(self) -> Hashable: ...

    def open(self, offset: int) -> Body:
        """Ask for the bytes from an offset on.

        A server that cannot do that begins at the start.

        :raises Broken: it may be tried again
        :raises ImageError: it may not, or the image is another one now
        """

    def check_readable(self) -> None:
        """Make sure that the image may be read; errors as of ``open``."""

    def close(self) -> None: ...


class RemoteSource(handles.Closing):
    """An image source on a server; a context manager.

    Nothing is opened before something is asked.
    """

    def __init__(self, remote: Remote, settings: opts.Settings) -> None:
        self._remote = remote
        self._attempts = settings.fetch_attempts
        self._head = self._tail = b''
        # What goes on where the head ends.
        self._rest: Generator[bytes] | None = None

    @property
    def label(self) -> str:
        return self._remote.label

    @property
    def question(self) -> Hashable:
        return self._remote.question

    @property
    def size(self) -> int:
        if self._remote.size < 0:
            self.head(1)
        return self._remote.size

    def head(self, length: int) -> bytes:
        if self._rest is None and len(self._head) < length:
            self._rest = self._from(len(self._head))
        while self._rest and len(self._head) < length:
            piece = next(self._rest, b'')
            if not piece:
                break
            self._head += piece
        return self._head[:length]

    def tail(self, length: int) -> bytes:
        start = max(0, self.size - length)
        if len(self._head) == self.size:
            return self._head[start:]
        if len(self._tail) < length and self._remote.resumable:
            self._tail = b''.join(self._from(start, skip=False))
        return self._tail[-length:]

    def pieces(self) -> Iterator[bytes]:
        return self.pieces_from(0)

    def pieces_from(self, offset: int) -> Iterator[bytes]:
        head, rest, self._rest = self._head, self._rest, None
        if rest is None or offset > len(head):
            if rest is not None:
                rest.close()
            yield from self._from(offset)
            return
        if head[offset:]:
            yield head[offset:]
        del head
        yield from rest

    def release(self) -> None:
        if self._rest is not None:
            self._rest.close()
            self._rest = None

    def check_unchanged(self) -> None:
        if self._remote.checkable:
            self._open(self.size - 1, _Patience(self._attempts)).close()

    def check_readable(self) -> None:
        patience = _Patience(self._attempts)
        self._persist(self._remote.check_readable, 0, patience)

    def close(self) -> None:
        self.release()
        self._remote.close()

    # Private

    def _from(self, offset: int, skip: bool = True) -> Generator[bytes]:
        """Read on from an offset, over as many connections as it takes.

        :param skip: where the server begins at the start, read up to the
            offset; else end
        """
        patience = _Patience(self._attempts)
        body = self._open(offset, patience)
        try:
            if not skip and body.start != offset:
                return
            while True:
                try:
                    for piece in self._read(body, offset):
                        offset += len(piece)
                        patience.reward(len(piece))
                        yield piece
                except http_session.Broken as error:
                    body.close()
                    self._wait(patience, error, offset)
                    body = self._open(offset, patience)
                else:
                    return
        finally:
            body.close()

    def _read(self, body: Body, offset: int) -> Iterator[bytes]:
        """Give what a connection gives from an offset to the end."""
        at = body.start
        while at < self._remote.size:
            piece = body.read()
            if not piece:
                raise http_session.Broken(
                    f'it ended at byte {at} of {self._remote.size}'
                )
            at += len(piece)
            if at > offset:
                # It may have begun before the offset.
                yield piece[-(at - offset) :]
                offset = at

    def _open(self, offset: int, patience: '_Patience') -> Body:
        ask = functools.partial(self._remote.open, offset)
        return self._persist(ask, offset, patience)

    def _persist(
        self, ask: Callable[[], _Answer], offset: int, patience: '_Patience'
    ) -> _Answer:
        while True:
            try:
                return ask()
            except http_session.Broken as error:
                self._wait(patience, error, offset)

    def _wait(
        self, patience: '_Patience', error: http_session.Broken, offset: int
    ) -> None:
        """Wait for the next attempt, if there is to be one."""
        if offset and not self._remote.resumable:
            raise self._failed(
                f'{error.problem}, at byte {offset}; the server gives neither'
                ' ETag nor date by which to go on'
            ) from None
        if not patience.take():
            raise self._failed(
                f'{error.problem}, at byte {offset}, after'
                f' {self._attempts} attempts'
            ) from None
        LOG.info(
            'Image %s: the connection broke at byte %d: %s',
            self.label, offset, error.problem,
        )  # fmt: skip
        wait = 2 ** (patience.breaks - 1) if error.wait is None else error.wait
        time.sleep(min(wait, _MAX_WAIT))

    def _failed(self, problem: str) -> exception.ImageError:
        return exception.ImageError.because(
            Reason.SOURCE_FAILED, image=self.label, problem=problem
        )


class _Patience:
    """How many more breaks are borne before there is progress."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._gained = 0
        self.breaks = 0

    def reward(self, gained: int) -> None:
        self._gained += gained
        if self._gained >= _PROGRESS:
            self._gained = self.breaks = 0

    def take(self) -> bool:
        self.breaks += 1
        return self.breaks < self._attempts
