# SPDX-License-Identifier: Apache-2.0
"""The documentation tells of the code as it is."""

import contextlib
import importlib.metadata
import io
import pathlib
import re
import shlex
import shutil
import tempfile
from typing import Any
import unittest

import ddt
from oslotest import base as test_base

from cinder_cow import opts
from cinder_cow import refusal
from cinder_cow.cli import app
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.drivers import file
from cinder_cow.drivers import memory
from cinder_cow.drivers import rbd_leases
from cinder_cow.drivers import rbd_parents
from cinder_cow.plugin import capabilities
from cinder_cow.plugin import tasks

ROOT = pathlib.Path(__file__).parents[3]
DOCS = ROOT / 'doc/source'

# An entry of the page of reasons: a term and its fields, by indentation.
_ENTRY = re.compile(r'^   (\w+)\n((?:      .*\n)+)', re.MULTILINE)
_FIELD = re.compile(r'^      :(\w+): ', re.MULTILINE)
_FACT = re.compile(r'%\((\w+)\)[ds]')
_BLOCK = re.compile(
    r'^( *)\.\. code-block:: console\n\n((?:\1   .*\n|\n)+)', re.MULTILINE
)
_CODE = re.compile(r'``(cinder-cow [^`]+)``')
_MENTION = re.compile(r'\bcinder-cow ([a-z]+) ([a-z]+)\b')
_OPTION = re.compile(r'\bcow_[a-z_]+\b')
_TERM = re.compile(r':term:`(?:[^`<]+<)?([a-z]+_[a-z_]+)>?`')


def read(name):
    return (DOCS / name).read_text()


def one_line(text):
    return ' '.join(text.split())


def abilities(driver):
    """Ask a driver for its optional abilities."""
    with driver.open('v1', 4096) as sink:
        return {
            'Cloner': isinstance(driver, base.Cloner),
            'BaseKeeper': isinstance(driver, bases.BaseKeeper),
            'ImagePlaces': isinstance(driver, base.ImagePlaces),
            'ImageReader': isinstance(driver, base.ImageReader),
            'QemuTarget': isinstance(sink, base.QemuTarget),
            'FileTarget': isinstance(sink, base.FileTarget),
        }


def told_abilities(name):
    """Tell what the table in the reference has of a driver."""
    _, _, table = read('reference/index.rst').partition('list-table')
    head, *rows = re.findall(
        r'\* - (\S+)\n +- (\w+)\n +- (\w+)\n +- (\w+)\n', table
    )
    column = head.index(name)
    return {row[0].strip('`'): row[column] == 'yes' for row in rows}


class DocsTestCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        if not DOCS.is_dir():
            raise unittest.SkipTest('machine: installed without doc/')

    def pages(self):
        """Tell all pages, the first one too: their path and text."""
        paths = [ROOT / 'README.rst', *sorted(DOCS.rglob('*.rst'))]
        return [(path, path.read_text()) for path in paths]


class TestReasons(DocsTestCase):
    def setUp(self):
        super().setUp()
        self.entries = dict(_ENTRY.findall(read('user/reasons.rst')))

    def fields(self, reason):
        """Tell the fields of an entry, each in one line."""
        _, *parts = _FIELD.split(self.entries[reason.value])
        texts = map(one_line, parts[1::2])
        return dict(zip(parts[::2], texts, strict=True))

    def test_every_reason_and_no_other_in_their_order(self):
        self.assertEqual(
            [reason.value for reason in refusal.Reason], list(self.entries)
        )

    def test_messages_and_remedies_are_those_of_the_code(self):
        for reason in refusal.Reason:
            fields = self.fields(reason)
            self.assertEqual(['Message', 'When', 'Remedy'], list(fields))
            self.assertTrue(fields['When'].endswith('.'), reason)
            text = refusal._TEXTS[reason]
            for told, printed in (
                (fields['Message'], text.detail),
                (fields['Remedy'], text.remedy),
            ):
                facts = _FACT.sub(lambda m: m.group(1).upper(), printed)
                self.assertEqual(one_line(facts), told)

    def test_reasons_named_elsewhere_exist(self):
        named = {
            term for _, text in self.pages() for term in _TERM.findall(text)
        }
        self.assertIn('base_changed', named)
        self.assertLessEqual(named, set(self.entries))


class TestCommands(DocsTestCase):
    def setUp(self):
        super().setUp()
        self.app = app.CowApp()

    def lines(self):
        """Tell the command lines of the pages."""
        for path, text in self.pages():
            for _, block in _BLOCK.findall(text):
                for line in block.replace('\\\n', ' ').splitlines():
                    words = line.strip().removeprefix('$ ')
                    if line.strip() == f'$ {words}' and 'cinder-cow' in words:
                        yield path, words
            for words in _CODE.findall(one_line(text)):
                yield path, words

    def parse(self, words):
        """Parse a command line as the program does.

        :raises SystemExit: an argument is wrong
        :raises ValueError: there is no such command
        """
        program, *rest = shlex.split(words)
        self.assertEqual('cinder-cow', pathlib.PurePath(program).name)
        _, rest = self.app.parser.parse_known_args(rest)
        factory, name, arguments = self.app.command_manager.find_command(rest)
        parser = factory(self.app, None, cmd_name=name).get_parser(name)
        with contextlib.redirect_stderr(io.StringIO()):
            parser.parse_args(arguments)

    def test_command_lines_parse(self):
        seen = set()
        for path, words in self.lines():
            if '--version' in words:
                continue  # ends at once
            try:
                self.parse(words)
            except (SystemExit, ValueError) as error:
                raise AssertionError(f'{path}: {words}') from error
            seen |= {' '.join(found) for found in _MENTION.findall(words)}
        for words in ('volume create', 'image plan', 'base list'):
            self.assertIn(words, seen)

    def test_what_is_no_command_is_found(self):
        for words in (
            'cinder-cow volume make v1',
            'cinder-cow volume create v1',
            'cinder-cow volume list --nonsense',
            'cinder-cow volume extend v1 much',
        ):
            self.assertRaises((SystemExit, ValueError), self.parse, words)

    def test_commands_named_in_sentences_exist(self):
        points = importlib.metadata.entry_points(group='cinder_cow.cli')
        known = {tuple(point.name.split('_')) for point in points}
        for path, text in self.pages():
            for found in _MENTION.findall(one_line(text)):
                if found[0] != 'help':
                    self.assertIn(found, known, path)

    def test_every_command_is_shown(self):
        text = one_line(' '.join(text for _, text in self.pages()))
        for point in importlib.metadata.entry_points(group='cinder_cow.cli'):
            self.assertIn(point.name.replace('_', ' '), text)


class TestOptions(DocsTestCase):
    def known(self):
        return {o.name for _, options in opts.list_opts() for o in options}

    def test_every_option_is_shown(self):
        page = read('configuration/index.rst')
        rendered = re.search(
            r'^\.\. show-options::\n\n   cinder_cow$', page, re.MULTILINE
        )
        if rendered is None:
            for name in self.known():
                self.assertIn(f'``{name}``', page)
        # What the directive renders is what this entry point gives.
        (point,) = importlib.metadata.entry_points(
            group='oslo.config.opts', name='cinder_cow'
        )
        self.assertIs(opts.list_opts, point.load())

    def test_options_that_are_named_exist(self):
        # Some codes begin like an option, and what we keep in a pool, tell
        # a scheduler, or read of an image.
        known = self.known() | {reason.value for reason in refusal.Reason}
        known |= {rbd_leases.OBJECT, rbd_parents._VERDICTS}
        known |= {*capabilities.NAMES, tasks.PREPARE}
        for path, text in self.pages():
            for name in _OPTION.findall(text):
                self.assertIn(name, known, path)


@ddt.ddt
class TestPages(DocsTestCase):
    def test_every_decision_is_in_the_list(self):
        folder = DOCS / 'contributor/decisions'
        records = {path.stem for path in folder.glob('[0-9]*.rst')}
        self.assertTrue(records)
        _, _, entries = (folder / 'index.rst').read_text().partition('toctree')
        globs = ':glob:' in entries
        listed = {
            path.stem
            for name in re.findall(r'^   ([\w*-]+)$', entries, re.MULTILINE)
            for path in folder.glob(f'{name}.rst')
            if globs or '*' not in name
        }
        self.assertLessEqual(records, listed)
        numbers = sorted(int(name[:4]) for name in records)
        self.assertEqual(list(range(1, len(records) + 1)), numbers)

    def test_every_decision_has_its_parts(self):
        for path in (DOCS / 'contributor/decisions').glob('[0-9]*.rst'):
            parts = re.findall(r'^(\w+)\n=+$', path.read_text(), re.MULTILINE)
            self.assertEqual(['Context', 'Decision', 'Consequences'], parts)

    def test_files_that_are_named_exist(self):
        named = re.compile(r'``((?:cinder_cow|doc|tools)/[\w./-]+)``')
        for path in DOCS.rglob('*.rst'):
            for name in named.findall(path.read_text()):
                self.assertTrue((ROOT / name).exists(), f'{path}: {name}')

    def test_names_of_the_code_that_are_named_exist(self):
        package = ROOT / 'cinder_cow'
        words = {
            word
            for path in package.rglob('*.py')
            if path.name != pathlib.Path(__file__).name
            for word in re.findall(r'\w+', path.read_text())
        }
        for path in (DOCS / 'contributor').glob('*.rst'):
            text = path.read_text()
            for name in re.findall(r'``((?:\w+/)*\w+\.py)``', text):
                places = (
                    package / name,
                    package / 'tests' / name,
                    ROOT / name,
                )
                self.assertTrue(any(p.is_file() for p in places), name)
            for name in re.findall(r'``(\w*(?:_|[a-z][A-Z])\w*)``', text):
                self.assertIn(name, words, path)

    @ddt.data('file', 'memory')
    def test_the_table_of_abilities_is_true(self, name):
        top = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, top)
        driver: Any = memory.MemoryDriver()
        if name == 'file':
            driver = file.FileDriver(top / 'volumes')
        self.assertEqual(abilities(driver), told_abilities(name))
