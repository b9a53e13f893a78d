# SPDX-License-Identifier: Apache-2.0
"""Refusals: every reason can be told, with its facts and a remedy."""

import dataclasses

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import refusal
from cinder_cow.refusal import Reason


def facts_of(reason):
    """Find the facts that a reason needs; each is a number of its own.

    A fact that is missing must be found at once, or there are none.
    """
    facts: dict[str, int] = {}
    while True:
        try:
            refusal.refuse(reason, **facts)
        except KeyError as error:
            facts[error.args[0]] = 1001 + len(facts)
        else:
            return facts


@ddt.ddt
class TestReasons(test_base.BaseTestCase):
    @ddt.data(*Reason)
    def test_has_a_detail_and_a_remedy_with_its_facts(self, reason):
        facts = facts_of(reason)
        told = refusal.Refusal(reason, facts)
        self.assertTrue(told.detail)
        self.assertTrue(told.remedy)
        for text in (told.detail, told.remedy, str(told)):
            self.assertNotIn('%(', text)
            self.assertEqual(text.strip(), text)
        self.assertFalse(told.detail.endswith('.'))
        self.assertTrue(facts)
        for fact in facts.values():
            self.assertIn(str(fact), str(told))
        self.assertIn(told.detail, str(told))
        self.assertIn(told.remedy, str(told))
        self.assertIn(reason.value, str(told))

    @ddt.data(*Reason)
    def test_a_missing_fact_is_found_at_once(self, reason):
        facts = facts_of(reason)
        self.assertEqual(facts, refusal.refuse(reason, **facts).facts)
        for missing in facts:
            rest = {name: facts[name] for name in facts if name != missing}
            self.assertRaises(KeyError, refusal.refuse, reason, **rest)
            self.assertRaises(KeyError, refusal.no, reason, **rest)
            self.assertRaises(
                KeyError, exception.CowError.because, reason, **rest
            )

    @ddt.data(*Reason)
    def test_the_code_is_its_name(self, reason):
        self.assertEqual(reason.name.lower(), reason.value)


class TestRefusal(test_base.BaseTestCase):
    def test_is_told(self):
        told = refusal.refuse(
            Reason.SHRINK, volume='v1', size=2048, new_size=1024
        )
        self.assertEqual(
            "volume 'v1' has 2048 bytes, more than 1024 (shrink). A volume is"
            ' never shrunk: give at least its size.',
            str(told),
        )

    def test_a_fact_is_no_format(self):
        told = refusal.refuse(Reason.EMPTY_IMAGE, image='%(x)s %s %d %%')
        self.assertEqual("image '%(x)s %s %d %%' has no bytes", told.detail)

    def test_hostile_facts_are_told_safely(self):
        for fact in ('\x1b[2J', 'a\nb', '\u202e', '\ud800', 'x' * 100_000):
            for told in (
                refusal.refuse(Reason.EMPTY_IMAGE, image=fact),
                refusal.refuse(
                    Reason.BACKEND_UNKNOWN, problem='x', remedy=fact
                ),
            ):
                for text in (told.detail, told.remedy, str(told)):
                    self.assertTrue(text.isprintable(), ascii(text))
                    self.assertLess(len(text), 5000)

    def test_is_frozen(self):
        told = refusal.refuse(Reason.EMPTY_IMAGE, image='x')
        self.assertRaises(
            dataclasses.FrozenInstanceError,
            setattr,
            told,
            'reason',
            Reason.SHRINK,
        )

    def test_a_verdict_is_true_or_has_a_refusal(self):
        self.assertTrue(refusal.YES)
        self.assertIsNone(refusal.YES.refusal)
        verdict = refusal.no(Reason.EMPTY_IMAGE, image='x')
        self.assertFalse(verdict)
        assert verdict.refusal is not None
        self.assertIs(Reason.EMPTY_IMAGE, verdict.refusal.reason)

    def test_an_error_tells_its_refusal(self):
        told = refusal.refuse(Reason.EMPTY_IMAGE, image='x')
        for kind in (
            exception.RequestError,
            exception.ImageError,
            exception.BackendError,
        ):
            error = kind(told)
            self.assertEqual(str(told), str(error))
            self.assertIs(Reason.EMPTY_IMAGE, error.reason)
            made = kind.because(Reason.EMPTY_IMAGE, image='x')
            self.assertIs(kind, type(made))
            self.assertEqual(told, made.refusal)
            self.assertIsInstance(made, exception.CowError)


@ddt.ddt
class TestPrintable(test_base.BaseTestCase):
    @ddt.named_data(
        ['plain', 'Ubuntu 24.04 ü€😀', 'Ubuntu 24.04 ü€😀'],
        ['empty', '', ''],
        ['escape', 'a\x1b[31mb', 'a?[31mb'],
        ['lines', 'a\r\n\tb', 'a???b'],
        ['nul', 'a\0', 'a?'],
        ['c1', '\x80\x9b\x9f\x7f', '????'],
        ['direction', '\u202e\u2066\u200f', '???'],
        ['separators', '\u2028\u2029\x85\xa0', '????'],
        ['surrogate', 'a\ud800b', 'a?b'],
        ['long', 'x' * 200, 'x' * 200],
    )
    def test_is(self, text, expected):
        self.assertEqual(expected, refusal.printable(text))

    def test_is_cut(self):
        self.assertEqual('xxx', refusal.printable('xxxx', 3))
        self.assertLess(len(refusal.printable('x' * 100_000)), 5000)

    @hypothesis.settings(deadline=None)
    @hypothesis.given(st.text(st.characters(codec=None)), st.integers(0, 20))
    def test_cuts_and_cleans(self, text, limit):
        told = refusal.printable(text, limit)
        self.assertEqual(min(len(text), limit), len(told))
        self.assertTrue(told.isprintable())
        told.encode()
        for before, after in zip(text, told, strict=False):
            self.assertIn(after, (before, '?'))
            if before.isalnum():
                self.assertEqual(before, after)
