# SPDX-License-Identifier: Apache-2.0
"""Properties of what is read as text: URLs, records, options.

They are checked by ``unit/test_fuzz.py``, each in a process of its own.
"""

import argparse
from collections.abc import Iterator
import contextlib
import json
import pathlib
import tempfile
from typing import Any

import hypothesis
from hypothesis import strategies as st

from cinder_cow import exception
from cinder_cow import formats
from cinder_cow import hashing
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow.cli import app
from cinder_cow.cli import backend
from cinder_cow.cli import image_argument
from cinder_cow.drivers import bases
from cinder_cow.drivers import file

# Longer than any message has to be.
LENGTH = 5000
UUID = '0b5bf0b5-5c1d-4f6e-9d6b-0f5a4c3b2a19'
URLS = [
    f'rbd://{UUID}/images/{UUID}/snap',
    f'cinder://nfs/{UUID}',
    'file:///srv/images/a%20b.qcow2',
    'https://user:secret@host:8443/a/b.img?signature=x#part',
    'http://[::1]:80/image',
    's3+https://key:secret@host/bucket/object',
]
RECORD = {
    'id': UUID,
    'name': 'debian',
    'disk_format': 'qcow2',
    'container_format': 'bare',
    'size': 4096,
    'virtual_size': 8192,
    'min_disk': 1,
    'status': 'active',
    'owner': 'me',
    'visibility': 'public',
    'checksum': 32 * 'a',
    'os_hash_algo': 'sha512',
    'os_hash_value': 128 * 'b',
    'created_at': '2026-01-01T00:00:00Z',
    'direct_url': URLS[0],
    'locations': [{'url': URLS[0], 'metadata': {'store': 'ceph'}}],
}


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Take an error of ours, which must be fit to be told."""
    try:
        yield
    except exception.CowError as error:
        check_told(str(error))


def check_told(text: str) -> None:
    assert text.isprintable(), ascii(text)
    assert len(text) < LENGTH, len(text)


@st.composite
def spliced(draw: st.DrawFn, wholes: Any, pieces: Any) -> Any:
    """Replace short parts of something good by others."""
    whole = draw(wholes)
    for _turn in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(whole)))
        end = draw(st.integers(at, min(len(whole), at + 8)))
        whole = whole[:at] + draw(pieces) + whole[end:]
    return whole


ANY_TEXT = st.text(st.characters(codec=None), max_size=60)
LATIN = st.text(st.characters(max_codepoint=255), max_size=30)
ODD_DIGITS = (
    *'059²٣', '-1', '+5', '1_0', '0x10', ' 5', '5, 5', '1e9', '',
    '9' * 19, '9' * 20, '9' * 5000,
)  # fmt: skip
DIGITS = st.sampled_from(ODD_DIGITS) | st.integers(-(2**65), 2**65).map(str)
NAMES = st.sampled_from([*RECORD, 'x'])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
    | st.sampled_from(URLS),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(ANY_TEXT | NAMES, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@hypothesis.given(ANY_TEXT | spliced(st.sampled_from(URLS), ANY_TEXT))
def locations(text: str) -> None:
    with ours():
        image_location.parse(text)
    location = image_location.from_record(text, {})
    assert 'secret@' not in str(location)
    with ours():
        hash(location)
        repr(location)


@st.composite
def records(draw: st.DrawFn) -> Any:
    fields = draw(st.dictionaries(NAMES, JSON, max_size=3))
    text = json.dumps({**RECORD, **fields})
    pieces = st.sampled_from([*'"{}[],:0-', 'null', '[' * 300, '\\ud800'])
    try:
        return json.loads(draw(spliced(st.just(text), pieces)))
    except ValueError:
        return draw(st.dictionaries(ANY_TEXT | NAMES, JSON, max_size=9))


@hypothesis.given(records())
def glance_records(record: Any) -> None:
    if not isinstance(record, dict):
        return
    with ours():
        image = images.ImageInfo.from_glance(record)
        check_told(image.label[:LENGTH])
        bases.BaseKey.of(image)
        found = formats.inspect(bytes(512))
        if refusal := formats.check_claim(image, found):
            check_told(str(refusal))
        hashing.expected(image)


@hypothesis.example('--hash', '--')
@hypothesis.given(
    st.sampled_from(['--hash', '--size', '--disk-format']),
    ANY_TEXT
    | DIGITS
    | spliced(st.just('sha256:' + 64 * 'a'), ANY_TEXT)
    | st.sampled_from(['md5:' + 32 * 'A', 'shake_128:', 'SHA1:', ':']),
)
def command_line(option: str, value: str) -> None:
    words = [f'{option}={value}']
    if app.lost_value(words):
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    image_argument.add_options(parser)
    try:
        found = parser.parse_args(words)
    except argparse.ArgumentError:
        return
    assert isinstance(found.size, int | None)
    if found.hash is not None:
        algorithm, _, digits = found.hash.partition(':')
        assert len(digits) == hashing.LENGTHS[algorithm]
        int(digits, 16)


OPTIONS = [
    option.name
    for option in [*opts.OPTS, *file.FileDriver.OPTS]
    # These would have us write anywhere.
    if option.name not in ('cow_file_dir', 'cow_scratch_dir')
]
LINE = st.text(st.characters(exclude_characters='\r\n'), max_size=30)


@hypothesis.given(
    st.lists(
        LINE
        | st.builds(
            '{} = {}'.format,
            st.sampled_from(OPTIONS),
            LINE | DIGITS | st.sampled_from(['file', 'memory', '$cow_driver']),
        ),
        max_size=4,
    ),
    st.sampled_from(['utf-8', 'latin-1', 'utf-16']),
)
@hypothesis.example(['cow_driver = $cow_driver'], 'utf-8')
@hypothesis.example(['\x80'], 'latin-1')
def configuration(lines: list[str], encoding: str) -> None:
    with tempfile.TemporaryDirectory() as top:
        path = pathlib.Path(top, 'cinder.conf')
        lines = ['[x]', *lines, f'cow_file_dir = {top}/volumes']
        path.write_bytes('\n'.join(lines).encode(encoding, 'replace'))
        with ours():
            backend.from_arguments(
                argparse.Namespace(config_file=[str(path)], backend='x')
            )
