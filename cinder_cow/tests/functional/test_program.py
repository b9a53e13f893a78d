# SPDX-License-Identifier: Apache-2.0
"""The program as its users run it: commands, refusals, ends."""

import fcntl
import json
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from typing import Any
import unittest

import cliff
import ddt

from cinder_cow.refusal import Reason
import cinder_cow.tests
from cinder_cow.tests import program
from cinder_cow.tests import storage

# Where this package and those it needs are found.
OURS = [
    str(pathlib.Path(str(module.__file__)).parents[up])
    for module, up in ((cinder_cow.tests, 2), (cliff, 1))
]
NOBODY: dict[str, Any] = {'user': 65534, 'group': 65534, 'extra_groups': ()}
PROGRAM = 'import sys; from cinder_cow.cli import app; sys.exit(app.main())'


class TestCommands(program.ProgramTestCase):
    def test_a_volume_from_a_raw_image(self):
        image = self.image()
        made = self.cow('volume', 'create', 'v1', '--image', image)
        self.assertEqual('v1', made['name'])
        self.assertEqual(2**30, made['size'])
        self.assertEqual('base', made['method'])
        self.assertTrue(made['base_made'])
        self.assertIn('cow-base-', made['location'])
        self.assertGreater(made['seconds'], 0)
        self.assertEqual(
            [('clone of its base', 'no_base')],
            [(r['candidate'], r['reason']) for r in made['refusals']],
        )
        for refusal in made['refusals']:
            self.assertTrue(refusal['detail'])
            self.assertTrue(refusal['remedy'])
        again = self.cow('volume', 'create', 'v2', '--image', image)
        self.assertEqual(
            ('base', False), (again['method'], again['base_made'])
        )
        self.assertEqual((0, []), (again['bytes_copied'], again['refusals']))
        content = image.read_bytes().ljust(2**30, b'\0')
        for name in ('v1', 'v2'):
            self.assertTrue(storage.same(content, self.exported(name)))

    def test_a_volume_from_a_qcow2(self):
        raw = self.image()
        made = self.cow('volume', 'create', 'v1', '--image', self.qcow2(raw))
        self.assertEqual('base', made['method'])
        content = raw.read_bytes().ljust(2**30, b'\0')
        self.assertTrue(storage.same(content, self.exported('v1')))

    def test_list_show_extend_delete(self):
        image = self.image()
        for name in ('b', 'a'):
            self.cow('volume', 'create', name, '--image', image)
        self.assertEqual(
            ['a', 'b'], [v['name'] for v in self.cow('volume', 'list')]
        )
        self.do('volume', 'extend', 'a', 3)
        shown = self.cow('volume', 'show', 'a')
        self.assertEqual(3 * 2**30, shown['size'])
        self.assertIn(shown['format'], ('raw', 'qcow2'))
        told = subprocess.run(
            ['qemu-img', 'info', '--output=json', '-f', shown['format'],
             shown['path']],
            check=True, capture_output=True,
        )  # fmt: skip
        self.assertEqual(3 * 2**30, json.loads(told.stdout)['virtual-size'])
        self.refused(Reason.SHRINK, 'volume', 'extend', 'a', 2)
        self.do('volume', 'delete', 'a', 'b', 'never-was')
        self.assertEqual([], self.cow('volume', 'list'))

    def test_bases(self):
        image = self.image()
        self.cow('volume', 'create', 'v1', '--image', image)
        (base,) = self.cow('base', 'list')
        self.assertEqual('ok', base['state'])
        self.assertEqual(image.stat().st_size, base['size'])
        shown = self.cow('base', 'show', base['name'])
        self.assertEqual(str(image), shown['image_id'])
        if self.cow('volume', 'show', 'v1')['parent']:
            self.assertEqual(['v1'], shown['children'])
            told = self.refused(
                Reason.BASE_IN_USE, 'base', 'remove', base['name']
            )
            self.assertIn('v1', told)
        self.do('volume', 'delete', 'v1')
        self.do('base', 'remove', base['name'])
        self.refused(Reason.BASE_NOT_FOUND, 'base', 'remove', base['name'])
        self.refused(Reason.BASE_NOT_FOUND, 'base', 'show', '../..')
        self.assert_nothing_left()

    def test_a_plan(self):
        image = self.image()
        plan = self.cow('image', 'plan', image)
        self.assertEqual(
            [
                ('clone of its base', False, 'no_base'),
                ('make a base by fetching it, clone it', True, ''),
                ('full copy', True, ''),
            ],
            [(c['candidate'], c['possible'], c['reason']) for c in plan],
        )
        self.assert_nothing_left()

    def test_the_image_changes_after_its_base(self):
        image = self.image()
        self.cow('volume', 'create', 'v1', '--image', image)
        self.image()
        made = self.cow('volume', 'create', 'v2', '--image', image)
        self.assertTrue(made['base_made'])
        content = image.read_bytes()
        self.assertTrue(
            storage.same(content, self.exported('v2')[: len(content)])
        )
        self.assertFalse(
            storage.same(content, self.exported('v1')[: len(content)])
        )

    def test_a_change_is_noticed_though_mtime_is_put_back(self):
        image = self.image()
        self.cow('volume', 'create', 'v1', '--image', image)
        was = image.stat()
        with image.open('r+b') as file:
            file.write(b'changed')
        os.utime(image, ns=(was.st_atime_ns, was.st_mtime_ns))
        made = self.cow('volume', 'create', 'v2', '--image', image)
        self.assertTrue(made['base_made'])
        self.assertTrue(self.exported('v2').startswith(b'changed'))

    def test_standard_files_that_are_closed(self):
        image = self.qcow2(self.image())
        for number in range(3):
            command = f'exec "$0" "$@" {number}>&-'
            done = subprocess.run(
                ['bash', '-c', command, program.PROGRAM, 'volume', 'create',
                 f'v{number}', '--image', image],
                capture_output=True,
                env=self.environment,
            )  # fmt: skip
            self.assertEqual((0, b''), (done.returncode, done.stderr))
        self.assertEqual(3, len(self.cow('volume', 'list')))

    def test_a_hostile_path_is_shown_safely(self):
        image = self.image('esc\x1b[31m\a\u202e.raw')
        self.cow('volume', 'create', 'v1', '--image', image)
        (base,) = self.cow('base', 'list')
        for kind in ('table', 'value', 'shell'):
            _status, output, _errors = self.finish(
                self.start('base', 'show', base['name'], '-f', kind)
            )
            for line in output.splitlines():
                self.assertTrue(line.isprintable(), line)

    def test_no_export_becomes_a_volume(self):
        self.cow('volume', 'create', 'v1', '--image', self.image())
        self.refused(
            Reason.EXPORT_FAILED,
            'volume', 'export', 'v1', self.volumes / 'v2.raw',
        )  # fmt: skip
        self.assertEqual(1, len(self.cow('volume', 'list')))

    def test_export_never_overwrites(self):
        self.cow('volume', 'create', 'v1', '--image', self.image())
        taken = self.top / 'taken'
        taken.write_text('precious')
        self.refused(Reason.EXPORT_EXISTS, 'volume', 'export', 'v1', taken)
        self.assertEqual('precious', taken.read_text())
        nowhere = self.top / 'no' / 'where'
        self.refused(Reason.EXPORT_FAILED, 'volume', 'export', 'v1', nowhere)
        before = sorted(self.top.iterdir())
        self.refused(Reason.VOLUME_NOT_FOUND, 'volume', 'export', 'v2', 'x')
        self.assertEqual(before, sorted(self.top.iterdir()))


@ddt.ddt
class TestRefusals(program.ProgramTestCase):
    @ddt.data('a/b', '..', '../x', 'a\nb', 'a\x1b[31mb', '', 'cow-x', '.x')
    def test_a_bad_name(self, name):
        told = self.refused(
            Reason.INVALID_NAME,
            'volume', 'create', f'--image={self.image()}', '--', name,
        )  # fmt: skip
        self.assertTrue(told.replace('\n', '').isprintable())
        self.assert_nothing_left()

    def test_a_name_in_use(self):
        image = self.image()
        self.cow('volume', 'create', 'v1', '--image', image)
        before = sorted(self.volumes.rglob('*'))
        for name in ('image.raw', 'other.raw'):
            path = self.image(name)
            self.refused(
                Reason.VOLUME_EXISTS, 'volume', 'create', 'v1', '--image', path
            )
        self.assertEqual(before, sorted(self.volumes.rglob('*')))

    def test_too_small(self):
        image = self.top / 'large.raw'
        with image.open('wb') as file:
            file.truncate(2**30 + 512)
        told = self.refused(
            Reason.VOLUME_TOO_SMALL,
            'volume', 'create', 'v1', '--image', image, '--size', 1,
        )  # fmt: skip
        self.assertIn('at least 2 GiB', told)
        self.assert_nothing_left()

    @ddt.data(
        ['volume'],
        ['volume', 'create', 'v1'],
        ['volume', 'create', 'v1', '--image', 'x', '--size', '0'],
        ['volume', 'create', 'v1', '--image', 'x', '--size', 'much'],
        ['volume', 'create', 'v1', '--image', 'x', '--hash=--'],
        ['volume', 'create', 'v1', '--image', 'x', '--size=--'],
        ['volume', 'extend', 'v1', '-1'],
        ['volume', 'list', '-f', 'nonsense'],
        ['nonsense'],
        [],
    )
    def test_wrong_usage(self, words):
        status, _output, errors = self.finish(self.start(*words))
        self.assertEqual(2, status, errors)
        self.assertNotIn('Traceback', errors)

    def test_a_signal_before_all_is_imported(self):
        begin = (
            'import sys; from cinder_cow.cli import start; '
            'heed = start.heed_signals; '
            'start.heed_signals = lambda: (heed(), print(flush=True)); '
            'sys.exit(start.main())'
        )
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = subprocess.Popen(
                [sys.executable, '-c', begin, 'volume', 'list'],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stdout
            process.stdout.readline()
            process.send_signal(number)
            _said, error = process.communicate(timeout=60)
            self.assertEqual(status, process.returncode, error)
            self.assertEqual(f'Ended by {number.name}.\n', error)

    def test_help_is_about_the_command(self):
        words = ('base', 'prepare')
        for asked in ((*words, '--help'), ('-h', *words), ('help', *words)):
            status, output, errors = self.finish(self.start(*asked))
            self.assertEqual((0, ''), (status, errors))
            self.assertIn('cinder-cow base prepare', output)
            self.assertIn('--force', output)

    def test_a_traceback_only_with_debug(self):
        words = ('volume', 'show', 'nothing')
        self.refused(Reason.VOLUME_NOT_FOUND, *words)
        status, _output, errors = self.finish(self.start('--debug', *words))
        self.assertEqual(1, status)
        self.assertIn('Traceback', errors)

    def test_a_directory_that_is_not_ours(self):
        self.volumes.mkdir(parents=True)
        (self.volumes / 'precious.raw').write_text('precious')
        self.refused(Reason.LAYOUT_UNKNOWN, 'volume', 'list')
        self.assertEqual(['precious.raw'], os.listdir(self.volumes))

    def test_a_layout_of_another_version(self):
        self.cow('volume', 'list')
        (self.volumes / 'cow-layout').write_text('2\n')
        told = self.refused(Reason.LAYOUT_UNKNOWN, 'volume', 'list')
        self.assertIn('layout 2', told)


class TestConfiguration(program.ProgramTestCase):
    def write(self, text):
        path = self.top / 'cinder.conf'
        path.write_text(text)
        return path

    def test_a_back_end_of_a_cinder_conf(self):
        conf = self.write(
            f"""
[DEFAULT]
enabled_backends = lvm1,files
[backend_defaults]
cow_driver = file
[lvm1]
volume_driver = cinder.volume.drivers.lvm.LVMVolumeDriver
[files]
cow_file_dir = {self.top}/files
cow_enabled = false
"""
        )
        self.refused(
            Reason.BACKEND_UNKNOWN, '--config-file', conf, 'volume', 'list'
        )
        image = self.image()
        made = self.cow(
            '--config-file', conf, '--backend', 'files',
            'volume', 'create', 'v1', '--image', image,
        )  # fmt: skip
        self.assertEqual('stream', made['method'])
        self.assertEqual('', made['location'])
        self.assertIn('cow_disabled', [r['reason'] for r in made['refusals']])
        self.assertTrue((self.top / 'files/v1.raw').exists())

    def test_refuse_forbids_only_the_full_copy(self):
        conf = self.write(
            f"""
[DEFAULT]
enabled_backends = files
[files]
cow_file_dir = {self.top}/files
cow_fallback = refuse
"""
        )
        words = ('--config-file', conf, 'volume', 'create')
        made = self.cow(*words, 'v1', '--image', self.image())
        self.assertEqual(('base', True), (made['method'], made['base_made']))
        conf.write_text(conf.read_text() + 'cow_enabled = false\n')
        self.refused(
            Reason.FALLBACK_REFUSED, *words, 'v2', '--image', self.image()
        )

    def test_a_configuration_that_does_not_do(self):
        section = '[DEFAULT]\nenabled_backends = files\n[files]\n'
        for text in (
            section,
            section + 'cow_file_dir = /x\ncow_fallback = perhaps\n',
            section + 'cow_file_dir = /x\ncow_driver = nonsense\n',
            '[DEFAULT]\nenabled_backends = files\n',
            'no section',
        ):
            self.refused(
                Reason.BACKEND_UNKNOWN,
                '--config-file', self.write(text), 'volume', 'list',
            )  # fmt: skip
        self.refused(
            Reason.BACKEND_UNKNOWN, '--config-file', '/nothing', 'base', 'list'
        )
        self.refused(
            Reason.BACKEND_UNKNOWN, '--backend', 'nothing', 'base', 'list'
        )


@ddt.ddt
class TestEnds(program.ProgramTestCase):
    """However a create ends, nothing half-made is taken for a volume."""

    def create(self, image):
        return ('volume', 'create', 'v1', '--image', image)

    @ddt.data('sigint', 'sigterm')
    def test_a_signal_while_streaming(self, name):
        number = program.SIGNALS[name]
        image = self.image(mib=900)
        status, output, errors = self.interrupt(number, *self.create(image))
        self.assertEqual((128 + number, ''), (status, output))
        self.assertNotIn('Traceback', errors)
        self.assertEqual([], self.cow('base', 'list'))
        self.assertEqual([], self.cow('volume', 'list'))
        # What the next maker can go on with has stayed, at most.
        self.finish(self.start('fsck', '--repair'))
        self.assert_nothing_left()

    @ddt.data('sigint', 'sigterm')
    def test_a_signal_while_converting(self, name):
        number = program.SIGNALS[name]
        image = self.qcow2(self.image(mib=900))
        status, output, errors = self.interrupt(number, *self.create(image))
        self.assertEqual((128 + number, ''), (status, output))
        self.assertNotIn('Traceback', errors)
        self.assert_nothing_left()

    @ddt.data('raw', 'qcow2')
    def test_kill_and_the_next_command(self, kind):
        image = self.image(mib=900)
        if kind == 'qcow2':
            image = self.qcow2(image)
        status, _output, _errors = self.interrupt(
            signal.SIGKILL, *self.create(image)
        )
        self.assertEqual(-signal.SIGKILL, status)
        # It says what it removes, and does what it was asked.
        status, _output, errors = self.finish(self.start('volume', 'list'))
        self.assertEqual(0, status)
        self.assertIn('half-made', errors)
        self.assert_nothing_left()
        self.cow(*self.create(self.image()))

    def test_who_waits_for_a_base_takes_over(self):
        image = self.image(mib=900)
        leader = self.start(*self.create(image))
        self.wait_half_way(leader)
        waiter = self.start(
            'volume', 'create', 'v2', '--image', image, '-f', 'json'
        )
        leader.kill()
        self.finish(leader)
        status, output, errors = self.finish(waiter)
        self.assertEqual(0, status, errors)
        self.assertTrue(json.loads(output)['base_made'])
        self.assertEqual(1, len(self.cow('base', 'list')))
        self.assertEqual(
            ['v2'], [v['name'] for v in self.cow('volume', 'list')]
        )

    def test_two_make_one_name(self):
        image = self.image(mib=64)
        makers = [self.start(*self.create(image)) for _ in range(4)]
        answers = [self.finish(maker) for maker in makers]
        self.assertEqual([0, 1, 1, 1], sorted(a[0] for a in answers))
        for status, _output, errors in answers:
            if status:
                self.assertIn('(volume_exists)', errors)
        content = image.read_bytes()
        self.assertTrue(
            storage.same(content, self.exported('v1')[: len(content)])
        )
        self.assertEqual(1, len(self.cow('base', 'list')))

    def test_many_from_one_image_at_once_make_one_base(self):
        image = self.qcow2(self.image(mib=200))
        makers = [
            self.start(
                'volume', 'create', f'v{n}', '--image', image, '-f', 'json'
            )
            for n in range(6)
        ]
        answers = [self.finish(maker) for maker in makers]
        self.assertEqual([0] * 6, [a[0] for a in answers], answers)
        made = [json.loads(a[1])['base_made'] for a in answers]
        self.assertEqual(1, made.count(True))

    @ddt.data('raw', 'qcow2')
    def test_a_full_disk(self, kind):
        image = self.image(mib=600)
        if kind == 'qcow2':
            image = self.qcow2(image)
        with storage.mounted('ext4', 200 * 2**20) as mount:
            self.use_home(mount)
            told = self.refused(Reason.NO_SPACE, *self.create(image))
            self.assertIn('Free some space', told)
            self.assert_nothing_left()
            # What is left of the space is enough for another.
            self.cow(*self.create(self.image('small.raw', mib=8)))

    def test_a_full_disk_for_an_export(self):
        self.cow(*self.create(self.image(mib=300)))
        with storage.mounted('ext4', 100 * 2**20) as mount:
            before = os.statvfs(mount).f_bfree
            self.refused(
                Reason.EXPORT_FAILED, 'volume', 'export', 'v1', mount / 'out'
            )
            self.assertEqual(['lost+found'], os.listdir(mount))
            self.assertEqual(before, os.statvfs(mount).f_bfree)


class TestTerminal(program.ProgramTestCase):
    def test_progress_on_a_terminal(self):
        image = self.image(mib=300)
        ours, theirs = pty.openpty()
        # Of a terminal without a width nothing is shown.
        fcntl.ioctl(
            theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, 80, 0, 0)
        )
        process = subprocess.Popen(
            [program.PROGRAM, 'volume', 'create', 'v1', '--image', image],
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env=self.environment,
        )
        os.close(theirs)
        shown = b''
        while select.select([ours], [], [], program.LIMIT)[0]:
            try:
                data = os.read(ours, 4096)
            except OSError:
                break  # the other side is closed
            if not data:
                break
            shown += data
        os.close(ours)
        self.assertEqual(0, process.wait(program.LIMIT))
        self.assertIn(b'streaming', shown)
        self.assertIn(b'%', shown)


class TestWithoutRoot(program.ProgramTestCase):
    def test_it_needs_no_root(self):
        if os.geteuid():
            raise unittest.SkipTest('machine: all of this ran without root')
        self.top.chmod(0o777)
        made = subprocess.run(
            [self.python(), '-c', PROGRAM, 'volume', 'create', 'v1',
             '--image', self.image(), '-f', 'json'],
            capture_output=True,
            text=True,
            env={**self.environment, 'PYTHONPATH': ':'.join(OURS)},
            **NOBODY,
        )  # fmt: skip
        self.assertEqual((0, ''), (made.returncode, made.stderr))
        self.assertEqual('base', json.loads(made.stdout)['method'])

    def python(self):
        """Find a Python that others than root may run."""
        version = f'{sys.version_info.major}.{sys.version_info.minor}'
        for path in (sys.executable, f'/usr/bin/python{version}'):
            try:
                subprocess.run([path, '-c', ''], check=True, **NOBODY)
            except OSError:
                continue
            return path
        raise unittest.SkipTest('machine: only root may run this Python')
