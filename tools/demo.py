# SPDX-License-Identifier: Apache-2.0
"""Show the main job on the default back end, with real images.

Everything is done by the program cinder-cow, as a user would. The work is in
a temporary directory that is removed at the end.
"""

import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
from typing import Any

MORE = 20
GRUB = pathlib.Path('/usr/lib/grub-rescue/grub-rescue-cdrom.iso')
TOOLS = pathlib.Path(__file__).parent


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = os.environ.get('TMPDIR', '/var/tmp')
    with tempfile.TemporaryDirectory(prefix='cow-demo-', dir=place) as top:
        os.environ['CINDER_COW_HOME'] = f'{top}/home'
        return Demo(pathlib.Path(top)).run()


def say(text: str) -> None:
    print(f'\n== {text}', flush=True)


def run(*command: str | os.PathLike[str]) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = ' '.join(map(str, command))
        sys.exit(f'{words} failed:\n{done.stdout}{done.stderr}')
    return done.stdout


def cow(*arguments: str | os.PathLike[str]) -> Any:
    return json.loads(run('cinder-cow', *arguments, '-f', 'json'))


class Demo:
    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.volumes = top / 'home/volumes'

    def run(self) -> int:
        images = self.make_images()
        say(f'One volume from each image, then {MORE} more of each')
        header = ('image', 'disk', 'method', 'first', f'next {MORE}: median',
                  'max', 'space taken', 'full copies')  # fmt: skip
        line = '{:<12} {:>8} {:>14} {:>9} {:>16} {:>9} {:>12} {:>12}'
        print(line.format(*header))
        for name, image in images.items():
            print(line.format(*self.make_volumes(name, image)), flush=True)
        print(
            'Times are those of making the volume, in one process; the first '
            'one makes the base.\n"Full copies" is what the same volumes '
            'take when each holds the data of its image.'
        )
        say('The contents equal the image, and nobody sees a write of another')
        for name, image in images.items():
            self.prove(name, image)
        say('What the program tells of a volume')
        print(run('cinder-cow', 'volume', 'show', 'ext4-7'), end='')
        if 'grub' in images:
            say('A clone boots (QEMU, at most 60 s)')
            self.boot('grub-3')
        say('An image that cannot be cloned: the plan, with the remedies')
        self.refuse(images['ext4'])
        say('Done. The program is .venv/bin/cinder-cow; try: cinder-cow help')
        return 0

    def make_images(self) -> dict[str, pathlib.Path]:
        images: dict[str, pathlib.Path] = {}
        say('Images')
        if GRUB.exists():
            images['grub'] = GRUB
            print(f'grub: {GRUB}, a bootable hybrid iso ({mib(GRUB)})')
        else:
            print('grub: not shown, Debian package grub-rescue-pc is missing')
        raw, qcow2 = self.top / 'ext4.raw', self.top / 'ext4.qcow2'
        content = TOOLS.parent / '.venv/lib'
        run('mke2fs', '-q', '-t', 'ext4', '-d', content, raw, '4G')
        run('qemu-img', 'convert', '-O', 'qcow2', raw, qcow2)
        raw.unlink()
        images['ext4'] = qcow2
        print(f'ext4: a qcow2 of 4 GiB, an ext4 with {mib(qcow2)} of files')
        return images

    def make_volumes(self, name: str, image: pathlib.Path) -> list[str]:
        create = ('volume', 'create', '--image', image)
        before = self.used()
        first = cow(*create, f'{name}-0')
        base_taken = self.used() - before
        before = self.used()
        rest = [cow(*create, f'{name}-{n + 1}') for n in range(MORE)]
        taken = self.used() - before
        times = [volume['seconds'] for volume in rest]
        methods = {volume['method'] for volume in rest}
        return [
            name,
            f'{first["size"] / 2**30:.0f} GiB',
            '/'.join(methods) + f' ({rest[0]["format"]})',
            ms(first['seconds']),
            ms(statistics.median(times)),
            ms(max(times)),
            f'{(base_taken + taken) / 2**20:.1f} MiB',
            f'{base_taken * (MORE + 1) / 2**20:.1f} MiB',
        ]

    def used(self) -> int:
        """Bytes the back end takes; reflinked blocks are counted once."""
        files = [p for p in self.volumes.rglob('*') if p.is_file()]
        if any(p.suffix == '.qcow2' for p in files) or not files:
            return sum(p.stat().st_blocks * 512 for p in files)
        os.sync()
        found = os.statvfs(self.volumes)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def prove(self, name: str, image: pathlib.Path) -> None:
        for number in (0, 1, MORE):
            self.compare(f'{name}-{number}', image)
        print(f'{name}: volumes 0, 1 and {MORE} are identical to the image')
        written = cow('volume', 'show', f'{name}-1')
        run('qemu-io', '-f', written['format'], '-c',
            'write -q -P 0xab 1M 64k', written['path'])  # fmt: skip
        if self.same(f'{name}-1', image):
            sys.exit(f'{name}-1 does not show what was written to it')
        for number in (0, 2, MORE):
            self.compare(f'{name}-{number}', image)
        run('cinder-cow', 'volume', 'create', f'{name}-after', '--image',
            image)  # fmt: skip
        self.compare(f'{name}-after', image)
        print(
            f'{name}: 64 KiB written to volume 1 show there, and not in '
            f'volumes 0, 2, {MORE}, nor in one made afterwards'
        )

    def compare(self, volume_name: str, image: pathlib.Path) -> None:
        if not self.same(volume_name, image):
            sys.exit(f'{volume_name} differs from {image}')

    def same(self, volume_name: str, image: pathlib.Path) -> bool:
        volume = cow('volume', 'show', volume_name)
        image_format = 'qcow2' if image.suffix == '.qcow2' else 'raw'
        done = subprocess.run(
            ['qemu-img', 'compare', '-q', '-f', volume['format'], '-F',
             image_format, volume['path'], image]
        )  # fmt: skip
        if done.returncode > 1:
            sys.exit(f'qemu-img compare failed on {volume_name}')
        return done.returncode == 0

    def boot(self, volume_name: str) -> None:
        volume = cow('volume', 'show', volume_name)
        sys.stdout.flush()
        done = subprocess.run(
            [sys.executable, TOOLS / 'boot_check.py', volume['path'],
             volume['format'], '--seconds', '60']
        )  # fmt: skip
        if done.returncode not in (0, 3):
            sys.exit(f'{volume_name} did not boot')

    def refuse(self, image: pathlib.Path) -> None:
        overlay = self.top / 'overlay.qcow2'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', image, '-F',
            'qcow2', overlay)  # fmt: skip
        os.chdir(self.top)
        sys.stdout.flush()
        subprocess.run(
            ['cinder-cow', 'image', 'plan', 'overlay.qcow2', '--size', '2']
        )
        done = subprocess.run(
            ['cinder-cow', 'volume', 'create', 'v', '--image',
             'overlay.qcow2'], capture_output=True, text=True,
        )  # fmt: skip
        print(f'Exit status {done.returncode}: {done.stderr.strip()}')
        run('qemu-img', 'convert', '-O', 'qcow2', 'overlay.qcow2', 'merged')
        made = cow('volume', 'create', 'v', '--image', 'merged')
        print(
            'The remedy carried out, the volume is made by the method '
            f'"{made["method"]}".'
        )


def ms(seconds: float) -> str:
    return f'{seconds * 1000:.1f} ms'


def mib(path: pathlib.Path) -> str:
    return f'{path.stat().st_size / 2**20:.0f} MiB'


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
