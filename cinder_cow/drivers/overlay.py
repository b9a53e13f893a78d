# SPDX-License-Identifier: Apache-2.0
"""Read a qcow2 file over a raw one: what a clone is without reflinks."""

import bisect
from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib

from cinder_cow import exception
from cinder_cow import qcow2
from cinder_cow import qemu_img
from cinder_cow import sparse
from cinder_cow.drivers import common
from cinder_cow.drivers import file_layout
from cinder_cow.drivers import file_reader
from cinder_cow.refusal import Reason


@contextlib.contextmanager
def translated(backend: str) -> Iterator[None]:
    """Turn a failure of qemu-img on our own files into ours.

    :raises BackendError: BUSY, NO_SPACE, BACKEND_ERROR
    """
    try:
        yield
    except qemu_img.QemuImgError as error:
        if error.in_use:
            raise file_reader.in_use() from error
        raise exception.BackendError.because(
            Reason.NO_SPACE if error.no_space else Reason.BACKEND_ERROR,
            backend=backend,
            problem=error.problem,
        ) from error


def overlays_of(root: pathlib.Path, base_name: str) -> Iterator[str]:
    """Name the overlays of a base, by their files and not by volumes.

    Whatever its name, an overlay dies with its base; one that cannot be read
    may be a child, so that is an error.
    """
    for name in sorted(os.listdir(root)):
        path = root / name
        if path.suffix != '.qcow2':
            continue
        with contextlib.suppress(FileNotFoundError):
            backing = qcow2.read_header(path).backing
            if pathlib.Path(backing).parent.name == base_name:
                yield path.stem


class OverlayReader(common.ReaderMixin):
    """Reads an overlay: from its own file what is there, else its backing.

    The map is taken once, when it is opened; QEMU refuses it while another
    process writes to the overlay.

    :param path: of the overlay
    :param backing: path of its raw backing file, which may be shorter
    :raises QemuImgError: the map cannot be had
    """

    def __init__(
        self, path: pathlib.Path, backing: pathlib.Path, backend: str
    ) -> None:
        self._backend = backend
        self.size = qcow2.read_header(path).size
        self._status = path.stat()
        parent = qemu_img.Disk(qemu_img.QemuNode.path(backing), 'raw')
        disk = qemu_img.Disk(qemu_img.QemuNode.path(path), 'qcow2', parent)
        self._map = [
            _Run.of(entry)
            for entry in qemu_img.mapping(disk, qemu_img.Limits())
        ]
        # Depth in the chain, as the map tells it: 0 is the overlay.
        self._files = [path.open('rb', buffering=0)]
        try:
            self._files.append(backing.open('rb', buffering=0))
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise ValueError('read beyond the size')
        with file_layout.translated(self._backend):
            return b''.join(
                map(self._read_run, self._runs(offset, offset + length))
            )

    def check_unchanged(self) -> None:
        file_reader.check_unchanged(self._files[0], self._status)

    def extents(self) -> Iterator[sparse.Extent]:
        for run in self._map:
            yield sparse.Extent(run.start, run.length, run.hole)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _read_run(self, run: '_Run') -> bytes:
        if run.hole:
            return bytes(run.length)
        file = self._files[run.depth]
        return file_reader.read_exactly(file, run.length, run.file_offset)

    def _runs(self, start: int, end: int) -> Iterator['_Run']:
        """Cut the runs between two offsets out of the map."""
        first = bisect.bisect_right(self._map, start, key=lambda r: r.start)
        for index in range(first - 1, len(self._map)):
            run = self._map[index]
            if run.start >= end:
                return
            yield run.cut(max(start, run.start), min(end, run.end))


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """Bytes that lie together in one file of the chain, or are zeros."""

    start: int
    length: int
    depth: int
    file_offset: int
    hole: bool

    @classmethod
    def of(cls, entry: dict[str, int]) -> '_Run':
        hole = bool(entry['zero'] or not entry['data'])
        if not hole and 'offset' not in entry:
            raise qemu_img.QemuImgError('it holds compressed clusters')
        return cls(
            entry['start'],
            entry['length'],
            entry['depth'],
            entry.get('offset', 0),
            hole,
        )

    @property
    def end(self) -> int:
        return self.start + self.length

    def cut(self, start: int, end: int) -> '_Run':
        moved = self.file_offset + start - self.start
        return _Run(start, end - start, self.depth, moved, self.hole)
