# SPDX-License-Identifier: Apache-2.0
"""The only caller of qemu-img.

Every call is told the format, has limits on memory, processor time, file
size and wall time, and dies with us. Files are named by block nodes, handed
over as ``json:`` text made by the json module, so that no name is ever
parsed as an option or a protocol.

Limits are set by util-linux's ``prlimit`` and the death signal by its
``setpriv`` rather than by oslo.concurrency: its prlimit wrapper starts a
second Python, which takes longer than all the rest of a clone, and
``preexec_fn`` is not safe with threads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from typing import Any, IO, Self

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import refusal

Progress = Callable[[float], None]

_PERCENT = re.compile(rb'\((\d+\.\d+)/100%\)')
_NO_SPACE = ('No space left on device', 'Disk quota exceeded')
# What it says of what is in a cluster alone, never of a file.
_UNREACHABLE = ('Connection timed out', 'transport endpoint shutdown')
_UNREADABLE = ('error while reading', 'Could not open')
# A report is a few hundred bytes.
_MAX_OUTPUT = units.Mi


# What QEMU calls a format, where it is not as in the image's claim.
_DRIVERS = {'vhd': 'vpc'}
# What it is told about a format, unless we say otherwise: it reads no file
# but the one we name, and believes the size in a VHD rather than its
# geometry, of which it is the size of some creators' disks only.
_SAFE: dict[str, dict[str, Any]] = {
    'qcow2': {'backing': None},
    'vmdk': {'backing': None},
    'vhd': {'force_size_calc': 'current_size'},
}

# What is run, and the Debian packages that have it.
_TOOLS = {
    'qemu-img': 'qemu-utils',
    'setpriv': 'util-linux',
    'prlimit': 'util-linux',
}


def missing_tool() -> refusal.Refusal | None:
    """Tell what must be installed before qemu-img can be run, if anything."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return refusal.refuse(
                refusal.Reason.TOOL_MISSING, tool=tool, package=package
            )
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class QemuNode:
    """A block node for QEMU, in the terms of its ``blockdev-add``.

    :param options: of the protocol node, e.g. driver and filename
    :param direct: the page cache can be bypassed
    :param descriptors: open files that the options refer to
    """

    options: Mapping[str, Any]
    direct: bool = False
    descriptors: tuple[int, ...] = ()

    @classmethod
    def path(cls, path: str | os.PathLike[str], direct: bool = False) -> Self:
        return cls({'driver': 'file', 'filename': os.fspath(path)}, direct)

    @classmethod
    def descriptor(cls, descriptor: int) -> Self:
        """Name an open file: what is opened is what was inspected."""
        options = {'driver': 'file', 'filename': f'/dev/fd/{descriptor}'}
        return cls(options, descriptors=(descriptor,))


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """A node read as a format, told so; its backing file is ours to name.

    :param format: as images claim it
    :param backing: None overrules whatever the header asks for
    """

    node: QemuNode
    format: str
    backing: 'Disk | None' = None

    @property
    def text(self) -> str:
        """The file name argument for qemu-img."""
        return 'json:' + json.dumps(self._options())

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            'driver': _DRIVERS.get(self.format, self.format),
            'file': dict(self.node.options),
            **_SAFE.get(self.format, {}),
        }
        if self.backing is not None:
            options['backing'] = self.backing._options()
        return options


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one qemu-img process may use: bytes and seconds."""

    memory: int = 2 * units.Gi
    cpu_seconds: int = 3600
    timeout: float = 14400
    file_size: int | None = None


class QemuImgError(Exception):
    """qemu-img failed.

    :param problem: why, in its own words
    :param limited: it was ended for what it used
    """

    def __init__(self, problem: str, limited: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.limited = limited

    @property
    def no_space(self) -> bool:
        return any(text in self.problem for text in _NO_SPACE)

    @property
    def in_use(self) -> bool:
        return 'Is another process using the image' in self.problem

    @property
    def unreachable(self) -> bool:
        """Whether a cluster did not answer, or has shut this client out."""
        return any(text in self.problem for text in _UNREACHABLE)

    @property
    def unreadable(self) -> bool:
        """Whether the source is at fault: it cannot be opened or read."""
        return self.problem.startswith(_UNREADABLE)


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """What ``qemu-img check`` found.

    :param damaged: it found corruption, or could not check all
    :param end: offset behind the last cluster in use, bytes
    :param used: part of the disk that has data, 0.0 to 1.0
    """

    damaged: bool
    end: int
    used: float


def check(disk: Disk, limits: Limits) -> Check:
    """Check the inner consistency of an image.

    :raises QemuImgError: it cannot be opened as that format
    """
    # 2 is corruption, 3 is leaks: both come with a report.
    output = _run(
        ['check', '--output=json', disk.text], limits, disk, good=(0, 2, 3)
    )
    report = _json(output)
    return Check(
        damaged=bool(report.get('corruptions') or report['check-errors']),
        end=report.get('image-end-offset', 0),
        used=report.get('allocated-clusters', 0)
        / (report.get('total-clusters') or 1),
    )


def virtual_size(disk: Disk, limits: Limits) -> int:
    """Tell how many bytes QEMU takes a disk to have.

    :raises QemuImgError: it cannot be opened as that format
    """
    report = _json(_run(['info', '--output=json', disk.text], limits, disk))
    return int(report['virtual-size'])


def mapping(disk: Disk, limits: Limits) -> Iterator[dict[str, Any]]:
    """Tell where each run of bytes of a disk lies.

    :returns: the objects of ``qemu-img map --output=json``, one by one: of a
        large fragmented disk there are millions
    :raises QemuImgError: it cannot be read, or is in use by a writer
    """
    arguments = ['map', '--output=json', disk.text]
    with _running(arguments, limits, disk) as lines:
        for line in lines:
            yield _json(line.strip(b' [],\n'))


def convert(
    source: Disk,
    target: Disk,
    *,
    zeroed: bool,
    limits: Limits,
    progress: Progress | None = None,
) -> None:
    """Write all of a disk into an existing target.

    :param zeroed: the target is known to read as zeros
    :param progress: called with the fraction done, 0.0 to 1.0
    :raises QemuImgError: what is in the target then is not to be used
    """
    arguments = ['convert', '-p', '-n', '-W', '-O', target.format]
    arguments += ['-t', 'none' if target.node.direct else 'writeback']
    if zeroed:
        arguments.append('--target-is-zero')
    arguments += [source.text, target.text]
    with _running(arguments, limits, source, target) as output:
        while chunk := os.read(output.fileno(), units.Ki):
            found = _PERCENT.findall(chunk)
            if found and progress is not None:
                progress(float(found[-1]) / 100)


def create_overlay(
    path: str | os.PathLike[str], backing: str, size: int
) -> None:
    """Make a qcow2 file over a raw backing file.

    :param backing: its path as seen from the directory of the finished
        overlay; it is not opened now
    :param size: bytes
    :raises QemuImgError: it cannot be written
    """
    _run(
        ['create', '-q', '-f', 'qcow2', '-u', '-b', backing, '-F', 'raw',
         os.fspath(path), str(size)],
        Limits(),
    )  # fmt: skip


def resize(path: str | os.PathLike[str], size: int) -> None:
    """Make a qcow2 file larger.

    :raises QemuImgError: it cannot be written, or is in use
    """
    _run(['resize', '-q', '-f', 'qcow2', os.fspath(path), str(size)], Limits())


def _json(output: bytes) -> Any:  # noqa: ANN401 - whatever qemu-img tells
    try:
        return json.loads(output)
    except ValueError:
        raise QemuImgError('its answer is not JSON') from None


def _run(
    arguments: Sequence[str],
    limits: Limits,
    *disks: Disk,
    good: Sequence[int] = (0,),
) -> bytes:
    """Run qemu-img and return what it printed.

    :raises QemuImgError: an exit status that is not good, or a limit reached
    :raises BackendError: TOOL_MISSING
    """
    with _running(arguments, limits, *disks, good=good) as output:
        return output.read(_MAX_OUTPUT)


@contextlib.contextmanager
def _running(
    arguments: Sequence[str],
    limits: Limits,
    *disks: Disk,
    good: Sequence[int] = (0,),
) -> Iterator[IO[bytes]]:
    """Give the output of qemu-img; when the block is left, it has ended."""
    if missing := missing_tool():
        raise exception.BackendError(missing)
    descriptors = [fd for disk in disks for fd in disk.node.descriptors]
    environment = {'PATH': os.environ.get('PATH', os.defpath), 'LC_ALL': 'C'}
    with subprocess.Popen(
        [*_prefix(limits), 'qemu-img', *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = _Errors(process.stderr)
        timer = threading.Timer(limits.timeout, process.kill)
        timer.start()
        try:
            yield process.stdout
            # What nobody reads must not keep it waiting.
            process.stdout.close()
            status = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
            errors.join()
        said = errors.text
    if status not in good:
        for disk in disks:
            said = said.replace(f"'{disk.text}'", 'it')
        raise _error(status, said, timed_out)


class _Errors(threading.Thread):
    """Reads standard error to its end, and keeps how it begins.

    Of a damaged image qemu-img prints a line per cluster: 120 MiB were seen.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._kept = b''
        self.start()

    def run(self) -> None:
        while chunk := self._stream.read(64 * units.Ki):
            self._kept = self._kept or chunk

    @property
    def text(self) -> str:
        return self._kept.decode(errors='replace').strip()


def _prefix(limits: Limits) -> list[str]:
    prefix = ['setpriv', '--pdeathsig', 'KILL', '--']
    prefix += ['prlimit', f'--as={limits.memory}', '--core=0']
    prefix.append(f'--cpu={limits.cpu_seconds}')
    if limits.file_size is not None:
        prefix.append(f'--fsize={limits.file_size}')
    return [*prefix, '--']


def _error(status: int, said: str, timed_out: bool) -> QemuImgError:
    if timed_out:
        return QemuImgError('it took too long and was ended', limited=True)
    if status < 0:
        name = signal.Signals(-status).name
        return QemuImgError(f'it was ended by {name}', limited=True)
    # The first lines are the cause; those after them are consequences.
    lines = [line.removeprefix('qemu-img: ') for line in said.splitlines()]
    first = ' '.join(dict.fromkeys(lines[:2])) or f'exit status {status}'
    return QemuImgError(refusal.printable(first, 300))
