# SPDX-License-Identifier: Apache-2.0
"""Locations: every URL comes back, and no secret comes out."""

import traceback
import uuid

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_location
from cinder_cow.refusal import Reason

PROPERTY = hypothesis.settings(deadline=None)
UUID = '0b5bf0b5-5c1d-4f6e-9d6b-0f5a4c3b2a19'
SECRET = 'S3CR3T'
WITH_A_HOLE = ('rbd://a{}b', 'file:///{}', 'x://{}', 'http://h/{}', '{}x://a')

# Any text that can be encoded: with slashes, percent signs, controls.
PART = st.text(min_size=1, max_size=30) | st.sampled_from(
    ['/', '%', '%2F', '@', 'a/b', '..', ' ', '\0', 'ü€😀', '?', '#', 'a%00']
)
# What may stand in a URL as it is.
VISIBLE = st.text(st.characters(categories=['L', 'N', 'P', 'S']), max_size=30)
# Lone surrogates too: json.loads() makes them from '"\ud800"'.
ANY_TEXT = st.text(st.characters(codec=None), max_size=60)
SCHEME = st.sampled_from(
    ['rbd', 'cinder', 'file', 'http', 'https', 's3', 'base', 'RBD', 'Http']
)
LIKE_A_URL = st.builds('{}://{}'.format, SCHEME, ANY_TEXT)

RBD = (
    st.builds(image_location.RbdLocation, PART)
    | st.builds(image_location.RbdLocation, PART, PART)
    | st.builds(image_location.RbdLocation, PART, PART, PART, PART)
)
CINDER = st.builds(
    image_location.CinderLocation, st.uuids().map(str), st.none() | PART
)
FILE = PART.filter(lambda path: '\0' not in path).map(
    lambda path: image_location.FileLocation('/' + path)
)
HTTP = st.builds(
    '{}://{}{}{}/{}'.format,
    st.sampled_from(['http', 'https']),
    st.sampled_from(['', 'user@', 'user:password@']),
    st.from_regex(r'[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?', fullmatch=True),
    st.sampled_from(['', ':80', ':65535']),
    VISIBLE,
).map(image_location.HttpLocation)
UNKNOWN = st.builds(
    image_location.UnknownLocation,
    st.from_regex(r'[a-z][a-z0-9+.-]{0,20}', fullmatch=True).filter(
        lambda scheme: scheme not in image_location._PARSERS
    ),
    VISIBLE,
)


def refused(url):
    """Parse what is no location; return the error."""
    try:
        location = image_location.parse(url)
    except exception.ImageError as error:
        return error
    raise AssertionError(f'{url!r} was parsed: {location!r}')


def message(url):
    """Return the message of parsing a URL, empty if it can be parsed."""
    try:
        image_location.parse(url)
    except exception.ImageError as error:
        return str(error)
    return ''


def told(url):
    """Return all that anybody is told of a URL."""
    location = image_location.from_record(url, {'token': SECRET})
    texts = [str(location), repr(location)]
    try:
        image_location.parse(url)
    except exception.ImageError as error:
        texts += [repr(error), *traceback.format_exception(error)]
    return '\n'.join(texts)


class TestRoundTrip(test_base.BaseTestCase):
    def check(self, location):
        parsed = image_location.parse(location.url)
        self.assertEqual(location, parsed)
        self.assertIs(type(location), type(parsed))

    @PROPERTY
    @hypothesis.given(RBD)
    def test_rbd(self, location):
        self.check(location)

    @PROPERTY
    @hypothesis.given(CINDER)
    def test_cinder(self, location):
        self.check(location)

    @PROPERTY
    @hypothesis.given(FILE)
    def test_file(self, location):
        self.check(location)

    @PROPERTY
    @hypothesis.given(HTTP)
    def test_http(self, location):
        self.check(location)

    @PROPERTY
    @hypothesis.given(UNKNOWN)
    def test_unknown(self, location):
        self.check(location)

    def test_what_grows_when_it_is_encoded(self):
        for prefix in ('rbd://', f'cinder://{UUID}/', 'file:///', 's3://'):
            for count in (100, 909, 910, 1000, 8000):
                url = prefix + '€' * count
                location = image_location.from_record(url, {})
                if not isinstance(location, image_location.MalformedLocation):
                    self.check(location)


class TestAnyText(test_base.BaseTestCase):
    @PROPERTY
    @hypothesis.given(ANY_TEXT | LIKE_A_URL)
    @hypothesis.example('rbd://%80')
    @hypothesis.example('http://[/')
    @hypothesis.example('http://h:²/')
    def test_is_a_location_or_an_image_error(self, text):
        try:
            location = image_location.parse(text)
        except exception.ImageError as error:
            self.assertIs(Reason.LOCATION_INVALID, error.reason)
        else:
            self.assertNotIsInstance(location, image_location.BaseLocation)
            self.assertNotIsInstance(
                location, image_location.MalformedLocation
            )

    @PROPERTY
    @hypothesis.given(
        ANY_TEXT | LIKE_A_URL, st.dictionaries(st.text(), st.integers())
    )
    def test_is_a_location_of_a_record(self, text, metadata):
        location = image_location.from_record(text, metadata)
        self.assertNotIsInstance(location, image_location.BaseLocation)
        self.assertEqual(metadata, location.metadata)

    @PROPERTY
    @hypothesis.given(ANY_TEXT | LIKE_A_URL)
    @hypothesis.example('rbd://\ud800')
    @hypothesis.example('file:///\ud800')
    @hypothesis.example('cinder://\ud800/' + UUID)
    def test_can_be_told(self, text):
        location = image_location.from_record(text, {})
        self.assertIsInstance(str(location), str)
        self.assertIsInstance(repr(location), str)
        hash(location)

    @PROPERTY
    @hypothesis.given(st.builds('{}://{}'.format, SCHEME, VISIBLE))
    def test_what_is_parsed_comes_back(self, text):
        location = image_location.from_record(text, {})
        if not isinstance(location, image_location.MalformedLocation):
            assert not isinstance(location, image_location.BaseLocation)
            self.assertEqual(location, image_location.parse(location.url))


@ddt.ddt
class TestParse(test_base.BaseTestCase):
    @ddt.named_data(
        ['rbd_1', 'rbd://i', image_location.RbdLocation('i')],
        ['rbd_2', 'rbd://p/i', image_location.RbdLocation('i', 'p')],
        [
            'rbd_4',
            'rbd://f/p/i/s',
            image_location.RbdLocation('i', 'p', 'f', 's'),
        ],
        ['slash', 'rbd://a%2Fb/c', image_location.RbdLocation('c', 'a/b')],
        ['once', 'rbd://a%252Fb', image_location.RbdLocation('a%2Fb')],
        ['cinder_1', f'cinder://{UUID}', image_location.CinderLocation(UUID)],
        [
            'cinder_2',
            f'cinder://s/{UUID.upper()}',
            image_location.CinderLocation(UUID, 's'),
        ],
        [
            'cinder_short',
            f'cinder://{uuid.UUID(UUID).hex}',
            image_location.CinderLocation(UUID),
        ],
        [
            'file',
            'file:///a%20b/%C3%BC',
            image_location.FileLocation('/a b/ü'),
        ],
        ['case', 'FILE:///a', image_location.FileLocation('/a')],
        ['http', 'HTTP://h/p', image_location.HttpLocation('http://h/p')],
        [
            'unknown',
            'swift+https://x/y',
            image_location.UnknownLocation('swift+https', 'x/y'),
        ],
        # What a driver calls a base is nothing a record can say.
        [
            'base',
            'base://file/cow-base-1',
            image_location.UnknownLocation('base', 'file/cow-base-1'),
        ],
    )
    def test_is(self, url, expected):
        self.assertEqual(expected, image_location.parse(url))

    @ddt.named_data(
        ['empty', '', 'no scheme'],
        ['path', '/etc/passwd', 'no scheme'],
        ['one_slash', 'rbd:/a', 'no scheme'],
        ['scheme_of_digits', '1://a', 'no scheme'],
        ['rbd_0', 'rbd://', 'empty part'],
        ['rbd_3', 'rbd://a/b/c', 'has 3'],
        ['rbd_5', 'rbd://a/b/c/d/e', 'has 5'],
        ['rbd_empty_first', 'rbd:///a', 'empty part'],
        ['rbd_empty_last', 'rbd://a/', 'empty part'],
        ['rbd_empty_middle', 'rbd://a//c/d', 'empty part'],
        ['rbd_not_utf8', 'rbd://a%ff', 'UTF-8'],
        ['cinder_0', 'cinder://', 'empty part'],
        ['cinder_empty_store', f'cinder:///{UUID}', 'empty part'],
        ['cinder_empty_id', 'cinder://store/', 'empty part'],
        ['cinder_3', f'cinder://a/b/{UUID}', '1 or 2 parts'],
        ['cinder_name', 'cinder://volume', 'UUID'],
        ['cinder_swapped', f'cinder://{UUID}/store', 'UUID'],
        ['cinder_not_utf8', f'cinder://%ff/{UUID}', 'UTF-8'],
        ['file_0', 'file://', 'not absolute'],
        ['file_host', 'file://host/path', 'not absolute'],
        ['file_encoded', 'file://%2Fetc', 'not absolute'],
        ['file_nul', 'file:///a%00b', 'NUL'],
        ['file_not_utf8', 'file:///a%ff', 'UTF-8'],
        ['http_0', 'http://', 'no host'],
        ['http_no_host', 'http:///p', 'no host'],
        ['http_port_only', 'http://:80/p', 'no host'],
        ['http_port', 'http://h:99999/', ''],
        ['http_port_text', 'http://h:x/', ''],
        ['http_bracket', 'http://[::1/', ''],
        ['long', 'rbd://' + 'a' * image_location.MAX_URL_LENGTH, 'longer'],
    )
    def test_is_refused(self, url, problem):
        error = refused(url)
        self.assertIs(Reason.LOCATION_INVALID, error.reason)
        self.assertIn(problem, str(error))
        kept = image_location.from_record(url, {'store': 's'})
        self.assertIsInstance(kept, image_location.MalformedLocation)
        self.assertIn(problem, getattr(kept, 'problem', ''))
        self.assertEqual({'store': 's'}, kept.metadata)

    def test_the_longest(self):
        name = 'a' * (image_location.MAX_URL_LENGTH - len('rbd://'))
        self.assertEqual(
            image_location.RbdLocation(name),
            image_location.parse(f'rbd://{name}'),
        )

    def test_control_characters_and_spaces_are_refused(self):
        for code in (*range(0x21), 0x7F):
            for url in WITH_A_HOLE:
                error = refused(url.format(chr(code)))
                self.assertIs(Reason.LOCATION_INVALID, error.reason)

    def test_control_characters_beyond_ascii_are_refused(self):
        for code in range(0x80, 0xA0):
            for url in WITH_A_HOLE:
                refused(url.format(chr(code)))

    @ddt.data(0, 0x0A, 0x1B, 0x7F, 0x9B, 0x2028, 0x202E)
    def test_no_control_character_is_told(self, code):
        for url in WITH_A_HOLE:
            text = url.format(chr(code))
            for told in (
                str(image_location.from_record(text, {})),
                repr(image_location.from_record(text, {})),
                message(text),
            ):
                self.assertTrue(told.isprintable(), ascii(told))


@ddt.ddt
class TestSecrets(test_base.BaseTestCase):
    @ddt.named_data(
        ['password', f'http://u:{SECRET}@h/p'],
        ['user', f'http://{SECRET}@h/p'],
        ['unknown_scheme', f'swift+https://t%3Au:{SECRET}@h/c/o'],
        ['query', f'https://h/p?X-Amz-Signature={SECRET}'],
        ['query_of_unknown', f's3://h/p?sig={SECRET}'],
        ['query_with_at', f'https://h/p?a@b={SECRET}'],
        ['query_before_at', f'https://h/p?sig={SECRET}@x'],
        ['two_queries', f'https://h/p?a?{SECRET}'],
        ['slash_before', f's3://k:a/{SECRET}@h/b/o'],
        ['slash_behind', f's3://k:{SECRET}/a@h/b/o'],
        ['slash_before_http', f'http://u:a/{SECRET}@h/p'],
        ['slash_behind_http', f'http://u:{SECRET}/a@h/p'],
        ['slashes', f's3://k:/{SECRET}/@h/b/o'],
        ['at_then_slash', f's3://k:a@b/{SECRET}@h/o'],
        ['slash_then_at', f's3://k:a/b@{SECRET}@h/o'],
        ['question_mark_before', f's3://k:a?{SECRET}@h/o'],
        ['question_mark_behind', f's3://k:{SECRET}?a@h/o'],
        ['question_mark_http', f'http://u:{SECRET}?a@h/p'],
        ['bracketed', f'http://u:[{SECRET}]@h/p'],
        ['not_normal_host', f'http://u:{SECRET}@h\u2100st/p'],
        ['not_normal', f'http://u:{SECRET}\u2100@h/p'],
        ['no_scheme', f'u:{SECRET}@h/p'],
        ['one_slash', f'http:/u:{SECRET}@h/p'],
        ['no_slash', f'http:u:{SECRET}@h/p'],
        ['query_without_scheme', f'h/p?sig={SECRET}'],
        ['space', f'http://u:{SECRET}@h/a b'],
        ['space_in_password', f'http://u:a {SECRET}@h/p'],
        ['rbd', f'rbd://u:{SECRET}@%ff'],
        ['bad_port', f'http://u:{SECRET}@h:99999/p'],
        ['longer_than_the_message', f'x y://u:{SECRET}{"a" * 300}@h/p'],
        ['too_long', f'http://u:{SECRET}{"a" * 9000}@h/p'],
        ['too_long_elsewhere', f'http://u:{SECRET}@h/{"a" * 9000}'],
    )
    def test_is_not_told(self, url):
        self.assertNotIn(SECRET, told(url))

    @PROPERTY
    @hypothesis.given(
        st.sampled_from(['http', 'https', 's3', 'swift+https']),
        st.text('ab:/?#@[]%& ü\n', max_size=5),
        st.text('ab:/?#@[]%& ü\n', max_size=5),
        st.sampled_from(['h', 'h:80', 'h:x', '[::1]', '']),
    )
    def test_no_password_is_told(self, scheme, before, behind, host):
        url = f'{scheme}://user:{before}{SECRET}{behind}@{host}/bucket/object'
        self.assertNotIn(SECRET, told(url))

    @ddt.named_data(
        ['http', f'http://u:{SECRET}@h:80/p/q', 'http://***@h:80/p/q'],
        ['unknown', f's3://k:{SECRET}@h/b/o', 's3://***@h/b/o'],
        ['query', f'https://h/p?s={SECRET}', 'https://h/p?***'],
        ['nothing_to_hide', 'https://h/p', 'https://h/p'],
        ['rbd', 'rbd://p/i', 'rbd://p/i'],
    )
    def test_the_rest_is_told(self, url, expected):
        self.assertEqual(expected, str(image_location.parse(url)))


class TestMetadata(test_base.BaseTestCase):
    def test_is_kept_and_makes_no_difference(self):
        locations = [
            image_location.from_record('rbd://p/i', metadata)
            for metadata in ({'store': 'one'}, {'store': 'two', 'x': [1]}, {})
        ]
        self.assertEqual({'store': 'one'}, locations[0].metadata)
        self.assertEqual({'store': 'two', 'x': [1]}, locations[1].metadata)
        self.assertEqual(locations[0], locations[1])
        self.assertEqual([locations[0]], list(dict.fromkeys(locations)))
        self.assertNotEqual(
            locations[0], image_location.from_record('rbd://p/j', {})
        )

    def test_a_location_is_frozen(self):
        location = image_location.parse('rbd://p/i')
        self.assertRaises(AttributeError, setattr, location, 'image', 'j')
