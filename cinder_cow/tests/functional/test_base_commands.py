# SPDX-License-Identifier: Apache-2.0
"""The commands about bases, blank volumes and what is left."""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from typing import Any

import ddt
import fixtures
from oslotest import base as test_base

from cinder_cow import image_info as images
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow.cli import prepare
from cinder_cow.drivers import bases
from cinder_cow.drivers import file
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason
from cinder_cow.tests import program
from cinder_cow.tests import storage
from cinder_cow.tests.functional import test_glance
from cinder_cow.tests.unit import test_manager

MIB = 2**20
PIECE = 4 * MIB
ISO = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00')


class BasesTestCase(program.ProgramTestCase):
    def failed(self, *arguments):
        """Run a command that lists, and fails; return its rows and errors."""
        status, output, errors = self.finish(
            self.start(*arguments, '-f', 'json')
        )
        self.assertEqual(1, status, errors)
        self.assertNotIn('Traceback', errors)
        return json.loads(output), errors

    def prepared(self, image):
        (row,) = self.cow('base', 'prepare', image)
        return row['base']

    def file_of(self, base):
        return self.volumes / 'cow-bases' / base / 'image.raw'

    def rot(self, base, *offsets):
        """Change bytes of a base, as a disk does: nothing tells of it."""
        path = self.file_of(base)
        was = path.stat()
        path.chmod(0o600)
        with path.open('r+b') as file:
            for offset in offsets:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 1]))
        path.chmod(was.st_mode)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


class TestPrepare(BasesTestCase):
    def test_many_images_and_some_fail(self):
        raw = self.image()
        text = self.top / 'text'
        text.write_text('hello')
        rows, errors = self.failed(
            'base', 'prepare', raw, text, self.qcow2(raw),
            self.top / 'nothing', raw,
        )  # fmt: skip
        self.assertEqual(
            ['ok', 'not_an_image', 'ok', 'image_not_found', 'ok'],
            [row['state'] for row in rows],
        )
        self.assertEqual(
            [True, False, True, False, False], [row['made'] for row in rows]
        )
        self.assertEqual(rows[0]['base'], rows[4]['base'])
        self.assertEqual(str(raw), rows[0]['image'])
        self.assertEqual(2, errors.count('\n'), errors)
        for reason in ('not_an_image', 'image_not_found'):
            self.assertIn(f'({reason}). ', errors)
        self.assertEqual(2, len(self.cow('base', 'list')))

    def test_volumes_are_clones_of_it(self):
        image = self.qcow2(self.image())
        base = self.prepared(image)
        made = self.cow('volume', 'create', 'v1', '--image', image)
        self.assertEqual(('base', False), (made['method'], made['base_made']))
        self.assertIn(base, made['location'])

    def test_claims(self):
        luks = self.top / 'luks'
        luks.write_bytes(b'LUKS\xba\xbe\0\x01'.ljust(MIB, b'\0'))
        (row,), _ = self.failed('base', 'prepare', luks)
        self.assertEqual('format_mismatch', row['state'])
        (row,) = self.cow('base', 'prepare', luks, '--disk-format', 'luks')
        self.assertTrue(row['made'])
        (row,), _ = self.failed(
            'base', 'prepare', self.image(), '--hash', f'md5:{"0" * 32}'
        )
        self.assertEqual('hash_mismatch', row['state'])
        self.assertEqual(1, len(self.cow('base', 'list')))

    def test_its_manifest_is_made_at_once(self):
        base = self.prepared(self.image())
        (row,) = self.cow('base', 'scrub', base)
        self.assertEqual('ok', row['state'])

    def test_a_signal(self):
        image = self.qcow2(self.image(mib=900))
        for number in (signal.SIGINT, signal.SIGTERM):
            status, output, errors = self.interrupt(
                number, 'base', 'prepare', image
            )
            self.assertEqual((128 + number, ''), (status, output))
            self.assertNotIn('Traceback', errors)
            self.assertEqual([], self.cow('base', 'list'))
        self.assertEqual([], self.processes())
        self.assert_nothing_left()

    def test_two_at_once(self):
        image = self.image(mib=300)
        words = ('base', 'prepare', image, '-f', 'json')
        both = [self.finish(p) for p in [self.start(*words) for _ in 'ab']]
        self.assertEqual([0, 0], [one[0] for one in both], both)
        made = [json.loads(one[1])[0]['made'] for one in both]
        self.assertEqual([False, True], sorted(made))

    def test_who_waits_sees_who_is_at_it(self):
        image = self.image(mib=900)
        maker = self.start('base', 'prepare', image)
        self.wait_half_way(maker)
        # Until somebody waits for it, however long that one takes to start.
        maker.send_signal(signal.SIGSTOP)
        self.addCleanup(maker.send_signal, signal.SIGCONT)
        waiting = f'waiting for process {maker.pid} on'.encode()

        def look(shown):
            if waiting in shown:
                maker.send_signal(signal.SIGCONT)

        shown = self.on_terminal('base', 'prepare', image, look=look)
        self.assertEqual(0, self.finish(maker)[0])
        self.assertIn(waiting, shown)

    def test_progress_tells_the_time_left(self):
        shown = self.on_terminal('base', 'prepare', self.image(mib=300))
        self.assertIn(b'streaming', shown)
        self.assertRegex(shown, rb'\[\d\d:\d\d<\d\d:\d\d')

    def on_terminal(self, *arguments, look=lambda shown: None):
        ours, theirs = pty.openpty()
        # Of a terminal without a width nothing is shown.
        fcntl.ioctl(
            theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, 200, 0, 0)
        )
        process = subprocess.Popen(
            [program.PROGRAM, *map(str, arguments)],
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
            shown += data
            look(shown)
        os.close(ours)
        self.assertEqual(0, process.wait(program.LIMIT))
        return shown


class Manager(manager.CreateVolumeFromImageMixin):
    driver: Any

    def __init__(self):
        self.driver = memory.MemoryDriver()
        self.settings = opts.Settings()


class TestPrepareWhereNoneIsNeeded(test_base.BaseTestCase):
    """An image that the back end can clone where it is."""

    def setUp(self):
        super().setUp()
        self.manager = Manager()
        key = bases.BaseKey('other', 'x')
        with self.manager.driver.begin_base(key, MIB) as writer:
            writer.write(bytes(MIB))
            place = writer.publish(
                bases.BaseFacts(key, 'other', 'raw', MIB, '', 1.0)
            )
        self.image = images.ImageInfo(
            'i', 'i', 'raw', content_id='c', locations=(place.location,)
        )
        self.useFixture(
            fixtures.MonkeyPatch(
                'cinder_cow.cli.image_argument.opened', self.opened
            )
        )

    @contextlib.contextmanager
    def opened(self, words, backend):
        yield self.image, test_manager.Source(bytes(MIB))

    def prepare(self, force=False):
        words = argparse.Namespace(image='i', force=force)
        return prepare._prepare(self.manager, self.manager.driver, words)

    def test_only_by_force(self):
        row = self.prepare()
        self.assertEqual({'state': 'cloned from its location'}, row)
        row = self.prepare(force=True)
        self.assertEqual((True, 'ok'), (row['made'], row['state']))
        # Now that it is there it is told.
        row = self.prepare()
        self.assertEqual((False, 'ok'), (row['made'], row['state']))


class TestPin(BasesTestCase):
    def test_pin_and_unpin(self):
        base = self.prepared(self.image())
        self.assertFalse(self.cow('base', 'list')[0]['pinned'])
        for word, expected in (('pin', True), ('unpin', False)):
            for _ in range(2):
                self.do('base', word, base)
                self.assertIs(
                    expected, self.cow('base', 'show', base)['pinned']
                )

    def test_what_is_no_base(self):
        base = self.prepared(self.image())
        for name in ('nothing', '../..', '', 'cow-base-' + '0' * 40):
            for word in ('pin', 'unpin', 'scrub'):
                self.refused(Reason.BASE_NOT_FOUND, 'base', word, name)
        self.refused(Reason.BASE_NOT_FOUND, 'base', 'scrub', base, 'nothing')
        status, _output, _errors = self.finish(self.start('base', 'pin'))
        self.assertEqual(2, status)

    def test_facts_and_times(self):
        image = self.image()
        base = self.prepared(image)
        shown = self.cow('base', 'show', base)
        self.assertRegex(shown['made_at'], ISO)
        self.assertIsNone(shown['last_used'])
        self.assertIsNone(shown['missing_since'])
        for name in ('verified', 'hash', 'children', 'content_id'):
            self.assertIn(name, shown)
        self.cow('volume', 'create', 'v1', '--image', image)
        (row,) = self.cow('base', 'list')
        self.assertRegex(row['last_used'], ISO)


class TestScrub(BasesTestCase):
    def test_all_of_them_and_one_has_rotted(self):
        good = self.prepared(self.image('good.raw'))
        bad = self.prepared(self.image('bad.raw', mib=32))
        self.rot(bad, 5, 2 * PIECE, 32 * MIB - 1)
        rows, errors = self.failed('base', 'scrub')
        found = {row['name']: row for row in rows}
        self.assertEqual('ok', found[good]['state'])
        self.assertEqual('damaged', found[bad]['state'])
        self.assertEqual(
            [0, 2 * PIECE, 32 * MIB - PIECE], found[bad]['damaged']
        )
        self.assertEqual(1, errors.count('\n'), errors)
        self.assertIn('(base_changed). Export and delete', errors)
        self.assertEqual('ok', self.cow('base', 'scrub', good)[0]['state'])

    def test_a_damaged_base_is_not_cloned(self):
        image = self.image()
        base = self.prepared(image)
        self.rot(base, 17)
        self.failed('base', 'scrub')
        self.assertEqual('base_changed', self.cow('base', 'list')[0]['state'])
        shown = self.cow('base', 'show', base)
        self.assertEqual(
            (True, 'base_changed'), (shown['damaged'], shown['state'])
        )
        rows = self.cow('image', 'plan', image)
        self.assertEqual(
            ['base_changed', 'base_changed', None],
            [row['reason'] or None for row in rows],
        )
        self.assertIn('a scrub found it damaged', rows[0]['detail'])
        self.assertIn(f'"cinder-cow base remove {base}"', rows[0]['remedy'])
        made = self.cow('volume', 'create', 'v1', '--image', image)
        self.assertEqual('stream', made['method'])
        self.assertEqual(
            {'base_changed'}, {one['reason'] for one in made['refusals']}
        )
        self.assertTrue(
            self.exported('v1').startswith(image.read_bytes()), 'not whole'
        )
        (row,), errors = self.failed('base', 'prepare', image)
        self.assertEqual('base_changed', row['state'], errors)
        # The remedy.
        self.do('base', 'remove', base)
        made = self.cow('volume', 'create', 'v2', '--image', image)
        self.assertEqual(('base', True), (made['method'], made['base_made']))
        self.assertFalse(self.cow('base', 'show', base)['damaged'])

    def test_a_blank_base_that_is_damaged(self):
        words = ('--blank', 'swap', '--size', 1)
        self.cow('volume', 'create', 'v1', *words)
        (base,) = self.cow('base', 'list')
        self.cow('base', 'scrub')
        self.rot(base['name'], 4096 - 10)
        self.failed('base', 'scrub')
        self.refused(Reason.BASE_CHANGED, 'volume', 'create', 'v2', *words)
        self.do('volume', 'delete', 'v1')
        self.do('base', 'remove', base['name'])
        self.cow('volume', 'create', 'v2', *words)

    def test_none_recorded_yet(self):
        self.cow('volume', 'create', 'v1', '--image', self.image())
        for state in ('recorded', 'ok'):
            (row,) = self.cow('base', 'scrub')
            self.assertEqual(state, row['state'])
            # Its hole is not read.
            self.assertLess(row['bytes_read'], 6 * MIB)

    def test_the_hash_of_the_image_where_none_is_recorded(self):
        image = self.image()
        digest = subprocess.check_output(['sha256sum', image], text=True)
        self.cow(
            'volume', 'create', 'v1', '--image', image,
            '--hash', f'sha256:{digest.split()[0]}',
        )  # fmt: skip
        (base,) = self.cow('base', 'list')
        self.rot(base['name'], 17)
        for _ in range(2):
            (row,), errors = self.failed('base', 'scrub')
            self.assertEqual('damaged', row['state'])
            self.assertIn('sha256', errors)

    def test_a_base_that_was_changed_otherwise(self):
        base = self.prepared(self.image())
        other = self.prepared(self.image('other.raw'))
        os.utime(self.file_of(base))
        rows, errors = self.failed('base', 'scrub')
        self.assertEqual(
            {base: 'base_changed', other: 'ok'},
            {row['name']: row['state'] for row in rows},
        )
        self.assertIn('mtime_ns', errors)

    def test_a_manifest_that_is_no_manifest(self):
        base = self.prepared(self.image())
        path = self.file_of(base).with_name('manifest')
        path.chmod(0o600)
        path.write_bytes(b'\xffnonsense')
        (row,), errors = self.failed('base', 'scrub')
        self.assertEqual('manifest_damaged', row['state'])
        self.assertIn(f'cinder-cow base scrub --record {base}', errors)
        (row,) = self.cow('base', 'scrub', '--record', base)
        self.assertEqual('recorded', row['state'])
        self.assertEqual('ok', self.cow('base', 'scrub')[0]['state'])

    def test_record_needs_names(self):
        self.prepared(self.image())
        status, output, errors = self.finish(
            self.start('base', 'scrub', '--record')
        )
        self.assertEqual((2, ''), (status, output))
        self.assertIn('base scrub: error: --record needs', errors)

    def test_a_signal(self):
        base = self.prepared(self.image(mib=900))
        process = self.start('base', 'scrub', '--record', base)
        self.wait_read(process, 64 * 2**20)
        process.send_signal(signal.SIGTERM)
        status, _output, errors = self.finish(process)
        self.assertEqual(128 + signal.SIGTERM, status, errors)
        self.assertEqual('ok', self.cow('base', 'scrub')[0]['state'])

    def wait_read(self, process, count):
        """Wait until a program has read so many bytes."""
        deadline = time.monotonic() + program.LIMIT
        io = pathlib.Path(f'/proc/{process.pid}/io')
        # Its first line is rchar: of proc(5).
        while int(io.read_text().split()[1]) < count:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_it_takes_little_memory(self):
        image = self.top / 'large.raw'
        with image.open('wb') as file:
            file.truncate(64 * 2**30)
        base = self.prepared(image)
        process = self.start('base', 'scrub', base)
        self.assertLess(program.peak_memory(process), 200 * MIB)
        self.assertEqual(0, self.finish(process)[0])

    def test_no_bases(self):
        self.assertEqual([], self.cow('base', 'scrub'))


class TestTidy(BasesTestCase):
    """What goes beyond the limits, and stays; without a Glance."""

    def setUp(self):
        super().setUp()
        self.environment = {
            name: value
            for name, value in self.environment.items()
            if not name.startswith('OS_')
        }

    def limit(self, **options):
        for name, value in options.items():
            name = f'OS_BACKEND_DEFAULTS__COW_{name.upper()}'
            self.environment[name] = str(value)

    def age(self, base, days, **changes):
        """Have a base be made so long ago."""
        driver = file.FileDriver(self.volumes)
        changes['made_at'] = time.time() - days * 86400
        driver.set_base_facts(base, **changes)

    def base_of_glance(self):
        key = bases.BaseKey('00000000-0000-4000-8000-000000000001', 'x')
        begun: Any = file.FileDriver(self.volumes).begin_base(key, MIB)
        with begun as writer:
            writer.publish(
                bases.BaseFacts(key, 'i', 'raw', MIB, '', time.time())
            )

    def tidy(self):
        return {row['name']: row for row in self.cow('base', 'tidy')}

    def test_nothing_to_do(self):
        self.age(self.prepared(self.image()), 10000)
        self.assertEqual({}, self.tidy())
        self.limit(max_bases=1)
        self.assertEqual({}, self.tidy())

    def test_what_is_beyond_the_limits(self):
        names = ('used', 'pinned', 'old', 'new')
        image = {name: self.image(name) for name in names}
        base = {name: self.prepared(image[name]) for name in names}
        self.cow('volume', 'create', 'v1', '--image', image['used'])
        self.do('base', 'pin', base['pinned'])
        for days, name in enumerate(reversed(names)):
            self.age(base[name], days, last_used=0)
        self.limit(max_base_idle_days=7, max_bases=1)
        found = self.tidy()
        self.assertEqual(set(base.values()), set(found))
        stays = {name: found[base[name]]['stays'] for name in names}
        self.assertIn('is the parent of v1', stays.pop('used'))
        self.assertEqual('it is pinned', stays.pop('pinned'))
        self.assertEqual('', stays.pop('old'))
        self.assertIn('10 minutes', stays.pop('new'))
        self.assertEqual(
            [name == 'old' for name in names],
            [found[base[name]]['removed'] for name in names],
        )
        self.assertEqual('there are 4 bases', found[base['old']]['why'])
        self.assertEqual(
            {base[name] for name in names if name != 'old'},
            {row['name'] for row in self.cow('base', 'list')},
        )

    def test_what_cannot_be_removed(self):
        base = self.prepared(self.image())
        self.age(base, 10)
        self.limit(max_base_idle_days=7)
        with open(self.file_of(base), 'rb') as held:
            # As a clone that is being made has it.
            fcntl.flock(held, fcntl.LOCK_SH)
            (row,), errors = self.failed('base', 'tidy')
        self.assertFalse(row['removed'])
        self.assertIn('(busy)', errors)
        self.assertEqual(1, errors.count('\n'))
        self.assertTrue(self.tidy()[base]['removed'])

    def test_that_glance_was_not_asked(self):
        self.base_of_glance()
        status, output, errors = self.finish(
            self.start('base', 'tidy', '-f', 'json')
        )
        self.assertEqual((0, []), (status, json.loads(output)), errors)
        self.assertIn('Glance was not asked about the images of 1', errors)
        self.assertEqual(1, len(self.cow('base', 'list')))

    def test_a_glance_that_cannot_be_reached(self):
        old = self.prepared(self.image())
        self.age(old, 10)
        self.limit(max_base_idle_days=7)
        self.base_of_glance()
        self.environment['OS_CLOUD'] = 'none-such'
        rows, errors = self.failed('base', 'tidy')
        self.assertIn('(glance_unavailable)', errors)
        # The limits hold all the same.
        self.assertEqual([old], [row['name'] for row in rows])


class TestTidyWithGlance(test_glance.GlanceTestCase):
    """Bases of images that a real Glance has, or has no more."""

    def tidy(self, environment, *arguments, expected=0):
        done = subprocess.run(
            [program.PROGRAM, 'base', 'tidy', '-f', 'json', *arguments],
            capture_output=True,
            text=True,
            timeout=program.LIMIT,
            env={
                'PATH': os.environ['PATH'],
                'CINDER_COW_HOME': str(self.top),
                **environment,
            },
        )
        self.assertEqual(expected, done.returncode, done.stderr)
        rows = {row['image']: row for row in json.loads(done.stdout)}
        return rows, done.stderr

    def names(self):
        return {base.facts.image_name for base in self.driver.list_bases()}

    def later(self, hours):
        """Have what Glance said so far be so long ago, and all bases used."""
        for base in self.driver.list_bases():
            since = base.facts.missing_since
            self.driver.set_base_facts(
                base.name,
                missing_since=since and since - hours * 3600,
                made_at=base.facts.made_at - hours * 3600,
                last_used=0,
            )

    def test_images_that_are_gone(self):
        ids = {}
        for name in ('there', 'gone', 'used', 'pinned'):
            ids[name] = self.private(os.urandom(MIB), name=name)
            self.create(ids[name])
        path = self.top / 'a file'
        path.write_bytes(os.urandom(MIB))
        for base in self.driver.list_bases():
            name = base.facts.image_name
            if name != 'used':
                for child in self.driver.children(base, 9):
                    self.driver.delete(child)
            if name == 'pinned':
                self.driver.set_base_facts(base.name, pinned=True)
        for name in ('gone', 'used', 'pinned'):
            self.glance.delete(ids[name])
        # Who does not see all images is not believed.
        member = self.glance.environment(test_glance.MEMBER)
        admin = self.glance.environment()
        rows, errors = self.tidy(member, expected=1)
        self.assertEqual({}, rows)
        self.assertIn('Of the images of 3 bases Glance did not tell', errors)
        rows, errors = self.tidy(admin)
        self.assertEqual(('', {'gone', 'used', 'pinned'}), (errors, {*rows}))
        for row in rows.values():
            self.assertFalse(row['removed'])
            self.assertEqual('its image is gone', row['why'])
            self.assertIn('Glance said so first 0 minutes ago', row['stays'])
        self.later(2)
        rows, _ = self.tidy(admin)
        self.assertEqual(
            {'gone': True, 'used': False, 'pinned': False},
            {name: row['removed'] for name, row in rows.items()},
        )
        self.assertEqual('it is pinned', rows['pinned']['stays'])
        self.assertIn('is the parent of', rows['used']['stays'])
        self.assertEqual({'there', 'used', 'pinned'}, self.names())

    def test_a_cloud_of_clouds_yaml(self):
        image = self.private(os.urandom(MIB), name='gone')
        self.create(image)
        self.glance.delete(image)
        clouds = self.top / 'clouds.yaml'
        options = {
            'auth_type': 'none',
            'auth': {'endpoint': self.glance.url},
        }
        clouds.write_text(json.dumps({'clouds': {'one': options}}))
        files = {'OS_CLIENT_CONFIG_FILE': str(clouds)}
        rows, errors = self.tidy(files)
        self.assertEqual({}, rows)
        self.assertIn('Glance was not asked', errors)
        rows, errors = self.tidy(files, '--os-cloud', 'one')
        self.assertEqual((['gone'], ''), ([*rows], errors))


@ddt.ddt
class TestBlank(BasesTestCase):
    @ddt.data('ext4', 'xfs', 'swap')
    def test_a_clone_each(self, kind):
        words = ('--blank', kind, '--size', 2)
        first = self.cow('volume', 'create', 'v1', *words)
        second = self.cow('volume', 'create', 'v2', *words)
        self.assertEqual(
            [True, False], [first['base_made'], second['base_made']]
        )
        self.assertEqual(2 * 2**30, second['size'])
        self.do('volume', 'export', 'v2', self.top / 'out')
        told = subprocess.check_output(
            ['blkid', '-p', '-o', 'value', '-s', 'TYPE', self.top / 'out'],
            text=True,
            env=self.environment,
        )
        self.assertEqual(kind, told.strip())
        (base,) = self.cow('base', 'list')
        self.assertIn(f'blank {kind} of 2 GiB', base['image'])

    def test_where_blocks_are_shared_uuids_are_new(self):
        self.use_home(storage.directory('xfs'))
        uuids = set()
        for name in ('v1', 'v2'):
            made = self.cow(
                'volume', 'create', name, '--blank', 'ext4', '--size', 1
            )
            self.assertEqual(
                ('raw', 'its own'), (made['format'], made['uuid'])
            )
            with open(made['path'], 'rb') as file:
                file.seek(1024 + 0x68)
                uuids.add(file.read(16))
        self.assertEqual(2, len(uuids))
        (base,) = self.cow('base', 'list')
        self.assertEqual('ok', base['state'])
        self.assertEqual('recorded', self.cow('base', 'scrub')[0]['state'])

    @ddt.data(
        ['--blank', 'ext4'],
        ['--blank', 'none'],
        ['--blank', 'ntfs', '--size', '1'],
        ['--blank', 'ext4', '--size', '0'],
        ['--blank', 'ext4', '--size', '1', '--image', 'x'],
        ['--blank', 'ext4', '--size', '1', '--disk-format', 'raw'],
        ['--blank', 'ext4', '--size', '1', '--os-cloud', 'x'],
        ['--size', '1'],
    )
    def test_wrong_usage(self, words):
        status, output, errors = self.finish(
            self.start('volume', 'create', 'v1', *words)
        )
        self.assertEqual((2, ''), (status, output), errors)
        self.assertNotIn('Traceback', errors)
        self.assertFalse(self.volumes.exists())

    def test_a_size_that_no_file_has(self):
        status, output, errors = self.finish(
            self.start(
                'volume',
                'create',
                'v1',
                '--blank',
                'ext4',
                '--size',
                2**33 - 1,
            )
        )
        self.assertEqual((1, ''), (status, output), errors)
        self.assertEqual(1, errors.count('\n'), errors)
        self.assert_nothing_left()


class TestFsck(BasesTestCase):
    def kill(self, *arguments):
        status, _output, _errors = self.interrupt(signal.SIGKILL, *arguments)
        self.assertEqual(-signal.SIGKILL, status)

    def half_made(self):
        return list(self.volumes.glob('cow-partial/*/**/image.*'))

    def wait_for(self, happened):
        deadline = time.monotonic() + program.LIMIT
        while not happened():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.002)

    def test_nothing_is_left(self):
        self.prepared(self.image())
        self.assertEqual([], self.cow('fsck'))
        self.assertEqual([], self.cow('fsck', '--repair'))

    def test_what_kill_leaves(self):
        raw = self.image(mib=900)
        base = self.prepared(self.image('small.raw'))
        # Both at once: each command sweeps what those before it left.
        makers = [
            self.start('base', 'prepare', path)
            for path in (raw, self.qcow2(raw))
        ]
        self.wait_for(lambda: len(self.half_made()) == len(makers))
        for maker in makers:
            maker.kill()
            self.finish(maker)
        before = sorted(self.volumes.rglob('*'))
        for _ in range(2):
            rows, errors = self.failed('fsck')
            self.assertEqual('', errors)
            self.assertEqual(2, len(rows))
            for row in rows:
                self.assertIn('half-made', row['what'])
                self.assertTrue(row['removable'])
                self.assertFalse(row['removed'])
        # It has changed nothing, not even what any other command removes.
        self.assertEqual(before, sorted(self.volumes.rglob('*')))
        status, output, _errors = self.finish(
            self.start('fsck', '--repair', '-f', 'json')
        )
        self.assertEqual(0, status)
        rows = json.loads(output)
        self.assertEqual([True, True], [row['removed'] for row in rows])
        self.assertEqual([], self.cow('fsck'))
        self.assertEqual(
            [base], [row['name'] for row in self.cow('base', 'list')]
        )

    def test_other_commands_sweep(self):
        self.kill('base', 'prepare', self.qcow2(self.image(mib=900)))
        self.assertEqual(1, len(self.failed('fsck')[0]))
        self.finish(self.start('volume', 'list'))
        self.assertEqual([], self.cow('fsck'))

    def test_who_lives_is_no_orphan(self):
        maker = self.start('base', 'prepare', self.image(mib=900))
        self.wait_half_way(maker)
        self.assertEqual([], self.cow('fsck', '--repair'))
        self.assertEqual(0, self.finish(maker)[0])

    def test_what_a_person_has_to_look_at(self):
        base = self.prepared(self.image())
        other = self.volumes / 'cow-whatever'
        other.write_text('?')
        for words in (['fsck'], ['fsck', '--repair']):
            (row,), _ = self.failed(*words)
            self.assertIn('cow-whatever', row['what'])
            self.assertEqual(
                (False, False), (row['removable'], row['removed'])
            )
        other.unlink()
        self.assertEqual([], self.cow('fsck'))
        self.assertEqual('ok', self.cow('base', 'show', base)['state'])

    def test_known_volumes(self):
        image = self.image()
        for name in ('a', 'b', 'c'):
            self.cow('volume', 'create', name, '--image', image)
        known = self.top / 'known'
        known.write_text(
            '# all of them\n\na\n  b # the second\n../x\x1b\nlost\n'
        )
        for words in ([], ['--repair']):
            rows, _ = self.failed('fsck', '--known-volumes', known, *words)
            self.assertEqual(
                ['volume c', 'volume ../x?', 'volume lost'],
                [row['what'] for row in rows],
            )
            self.assertEqual({False}, {row['removable'] for row in rows})
            self.assertIn('cinder-cow volume delete c', rows[0]['remedy'])
        self.assertEqual(3, len(self.cow('volume', 'list')))
        self.do('volume', 'delete', 'c')
        known.write_text('a\nb\n')
        self.assertEqual([], self.cow('fsck', '--known-volumes', known))

    def test_known_volumes_from_standard_input(self):
        self.cow('volume', 'create', 'a', '--image', self.image())
        for text, status in ((b'a\n', 0), (b'', 1), (b'\xff\n', 2)):
            done = subprocess.run(
                [program.PROGRAM, 'fsck', '--known-volumes', '-'],
                input=text,
                capture_output=True,
                env=self.environment,
            )
            self.assertEqual(status, done.returncode, done.stderr)
            self.assertNotIn(b'Traceback', done.stderr)

    def test_a_list_that_cannot_be_read(self):
        for path in (self.top, self.top / 'nothing'):
            status, output, errors = self.finish(
                self.start('fsck', '--known-volumes', path)
            )
            self.assertEqual((2, ''), (status, output))
            self.assertIn('cinder-cow fsck: error: --known-volumes', errors)
            self.assertEqual(1, errors.count('\n'))
        self.assertFalse(self.volumes.exists())
