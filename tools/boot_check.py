# SPDX-License-Identifier: Apache-2.0
"""Boot a disk in QEMU and tell whether GRUB was reached.

The exit status is 0 if it was, 1 if not and 3 if QEMU is not installed. The
screen is read from VGA text memory, so a GRUB that goes to a graphics mode
at once may be missed.

QEMU inherits its end of the QMP socket, and an unnamed file in memory for
the screen. So nothing is left on disk however this script ends, and setpriv
lets no QEMU outlive it.
"""

import argparse
from collections.abc import Iterator
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import Any, BinaryIO

# The boot sector prints "GRUB" too, even before "Hard Disk Error", so these
# are what only GRUB itself says once it runs.
GRUB_SAYS = ('Welcome to GRUB!', 'GNU GRUB')
TEXT_MEMORY = 0xB8000
TEXT_SIZE = 4000
POLL_SECONDS = 0.5
TOOLS = ('qemu-system-x86_64', 'setpriv')
# TCG as KVM opens on some machines and then hangs.
QEMU = (
    'setpriv', '--pdeathsig', 'KILL', '--', 'qemu-system-x86_64',
    '-accel', 'tcg', '-machine', 'pc', '-m', '256', '-display', 'none',
    '-nodefaults', '-vga', 'std', '-no-user-config', '-no-reboot',
    '-net', 'none',
)  # fmt: skip


class QmpError(Exception):
    """QEMU refused a command."""


class Monitor:
    """QMP over a connected socket; no wait goes beyond the deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._unread = b''

    def connect(self) -> None:
        """Leave negotiation mode, where other commands are refused."""
        self._read()
        self.execute('qmp_capabilities')

    def execute(self, command: str, **arguments: str | int) -> None:
        """Run a command and wait until it is done.

        :raises QmpError: it was refused
        :raises ConnectionError: QEMU ended
        :raises TimeoutError: the deadline has come
        """
        request = json.dumps({'execute': command, 'arguments': arguments})
        self._connection.settimeout(self._left())
        self._connection.sendall(request.encode())
        # Events may come before the answer.
        while 'return' not in (answer := self._read()):
            if 'error' in answer:
                raise QmpError(answer['error']['desc'])

    def pause(self) -> None:
        """Let the guest go on before the next look."""
        time.sleep(min(POLL_SECONDS, self._left()))

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _read(self) -> Any:
        while b'\n' not in self._unread:
            self._connection.settimeout(self._left())
            received = self._connection.recv(65536)
            if not received:
                raise ConnectionError('QEMU ended')
            self._unread += received
        line, _, self._unread = self._unread.partition(b'\n')
        return json.loads(line)


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Boot a disk in QEMU and tell whether GRUB was reached.'
    )
    parser.add_argument('path', help='the disk; it is only read')
    parser.add_argument('format', choices=('raw', 'qcow2'))
    parser.add_argument(
        '--seconds', type=int, default=60, help='how long to wait for GRUB'
    )
    arguments = parser.parse_args()
    for tool in TOOLS:
        if shutil.which(tool) is None:
            print(f'not shown: {tool} is not installed')
            return 3
    # SystemExit, unlike death by signal, lets QEMU be reaped.
    signal.signal(signal.SIGINT, _exit)
    signal.signal(signal.SIGTERM, _exit)
    return check(arguments.path, arguments.format, arguments.seconds)


def check(path: str, disk_format: str, seconds: int) -> int:
    """Boot the disk, print what came of it and return the exit status."""
    started = time.monotonic()
    with (
        open(os.memfd_create('screen'), 'rb') as screen,
        tempfile.TemporaryFile() as errors,
        running(path, disk_format, screen, errors) as connection,
    ):
        monitor = Monitor(connection, started + seconds)
        try:
            wait_for_grub(monitor, screen)
        except TimeoutError:
            why = f' within {seconds} s'
        except ConnectionError:
            why = f': {_first_line(errors) or "QEMU ended"}'
        except QmpError as error:
            why = f': {error}'
        else:
            print(f'GRUB was reached after {time.monotonic() - started:.1f} s')
            return 0
        shown = ' '.join(shown_by(screen).split()) or 'nothing'
        print(f'GRUB was not seen{why}; the screen shows: {shown}')
        return 1


@contextlib.contextmanager
def running(
    path: str, disk_format: str, screen: BinaryIO, errors: BinaryIO
) -> Iterator[socket.socket]:
    """Run QEMU on the disk and give our end of its QMP socket.

    The disk is read-only, so the boot cannot change it. It is a virtio one
    because QEMU has no read-only IDE disk.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inherited = (theirs.fileno(), screen.fileno())
        command = [*QEMU, '-chardev', f'socket,id=qmp,fd={theirs.fileno()}']
        command += ['-mon', 'chardev=qmp,mode=control']
        command += ['-blockdev', _node(path, disk_format)]
        command += ['-device', 'virtio-blk-pci,drive=disk']
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=inherited,
        ) as qemu:
            try:
                # While we hold it too, the end of QEMU would go unseen.
                theirs.close()
                yield ours
            finally:
                qemu.kill()


def wait_for_grub(monitor: Monitor, screen: BinaryIO) -> None:
    """Look at the screen again and again until GRUB shows.

    :raises TimeoutError: it did not in time
    """
    monitor.connect()
    while True:
        monitor.execute(
            'pmemsave',
            val=TEXT_MEMORY,
            size=TEXT_SIZE,
            filename=f'/dev/fd/{screen.fileno()}',
        )
        shown = shown_by(screen)
        if any(text in shown for text in GRUB_SAYS):
            return
        monitor.pause()


def shown_by(screen: BinaryIO) -> str:
    """Return the text of the screen; anything but ASCII becomes a space."""
    # Each character is followed by a byte that tells its colour.
    characters = os.pread(screen.fileno(), TEXT_SIZE, 0)[::2]
    return ''.join(chr(c) if 32 <= c < 127 else ' ' for c in characters)


def _node(path: str, disk_format: str) -> str:
    """Describe the disk in JSON, so that a comma in its name is no option."""
    file = {'driver': 'file', 'filename': os.path.abspath(path)}
    node = {'driver': disk_format, 'node-name': 'disk', 'read-only': True}
    return json.dumps({**node, 'file': file})


def _first_line(errors: BinaryIO) -> str:
    """Return what QEMU said first: the lines after it are consequences."""
    errors.seek(0)
    line = errors.readline(1000).decode(errors='replace').strip()
    return line.removeprefix('qemu-system-x86_64: ')


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == '__main__':
    sys.exit(main())
