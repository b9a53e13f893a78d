# SPDX-License-Identifier: Apache-2.0
"""How HTTP servers behave, and what is to become of an image on each."""

from collections.abc import Callable
import dataclasses
from typing import Any, TypeAlias

from oslo_utils import units

from cinder_cow.refusal import Reason
from cinder_cow.tests import http_behaviour
from cinder_cow.tests.http_behaviour import Behaviour
from cinder_cow.tests.http_behaviour import Break
from cinder_cow.tests.http_behaviour import Endless
from cinder_cow.tests.http_behaviour import Framing
from cinder_cow.tests.http_behaviour import Part

# Behind the head, which is read before anything is made.
LATE = 3 * units.Mi

Files: TypeAlias = Callable[[bytes, bytes], dict[str, Behaviour]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A server, and what is to become of an image on it.

    :param files: makes the files of the image, which is at /image, and of
        another one of the same size
    :param raw: why there is no volume of a raw image; None: it has its bytes
    :param qcow2: the same of a qcow2 image
    :param claimed: whether a raw image is said to be one
    :param hashed: whether the hash of the image is given
    :param kept: whether what was fetched of a qcow2 image is kept
    """

    name: str
    files: Files
    raw: Reason | None = None
    qcow2: Reason | None = None
    claimed: bool = False
    hashed: bool = False
    kept: bool = False

    def reason(self, kind: str) -> Reason | None:
        return self.raw if kind == 'raw' else self.qcow2


def good(name: str, files: Files, **options: Any) -> Case:
    return Case(name, files, **options)


def bad(
    name: str,
    files: Files,
    reason: Reason = Reason.SOURCE_FAILED,
    **options: Any,
) -> Case:
    return Case(name, files, reason, reason, **options)


def no_end(name: str, files: Files) -> Case:
    """A raw image is refused: it might be a fixed VHD."""
    return Case(name, files, Reason.NOT_AN_IMAGE)


def serves(**fields: Any) -> Files:
    return lambda content, other: {'/image': Behaviour(content, **fields)}


def breaks(how: Break, **fields: Any) -> Files:
    """Break the first answer that comes so far, and no other."""
    return serves(break_after=LATE, break_how=how, breaks=1, **fields)


def changes(now: dict[str, Any], later: dict[str, Any]) -> Files:
    """Have another content in the middle of the first answer."""
    return lambda content, other: {
        '/image': Behaviour(
            content,
            becomes=Behaviour(other, **later),
            becomes_after=LATE,
            **now,
        )
    }


def becomes(now: dict[str, Any] | None = None, **later: Any) -> Files:
    """Break the first answer, and give all others in another way."""
    return lambda content, other: {
        '/image': Behaviour(
            content,
            **(now or {}),
            break_after=LATE,
            becomes=Behaviour(content, **later),
            becomes_after=LATE,
        )
    }


def redirects(to: str, **fields: Any) -> Files:
    redirect = dataclasses.replace(http_behaviour.redirect(to), **fields)
    return lambda content, other: {
        '/image': redirect,
        '/there': Behaviour(content),
    }


def chain(count: int) -> Files:
    return lambda content, other: {
        **http_behaviour.chain('/image', count, '/there'),
        '/there': Behaviour(content),
    }


def shifted(start: int, stop: int) -> tuple[int, int]:
    return start - 512, stop - 512


NOTHING_TELLS: dict[str, Any] = {'etag': None, 'last_modified': None}
SECOND = {'etag': '"two"'}
IN_HEAD = {'break_in': Part.HEAD}

HONEST = [
    good('plain', serves()),
    good('hashed', serves(), hashed=True),
    good('date_only', serves(etag=None)),
    good('weak_etag', serves(etag='W/"one"')),
    no_end('no_validator', serves(**NOTHING_TELLS)),
    good('no_validator_claimed', serves(**NOTHING_TELLS), claimed=True),
    no_end('no_ranges', serves(ranges=False)),
    good('no_ranges_claimed', serves(ranges=False), claimed=True),
    bad('missing', serves(status=404), Reason.IMAGE_NOT_FOUND),
    bad('gone', serves(status=410), Reason.IMAGE_NOT_FOUND),
    bad('forbidden', serves(status=403), Reason.SOURCE_DENIED),
    bad('no_password', serves(auth=('a', 'b')), Reason.SOURCE_DENIED),
    bad('error', serves(status=500)),
    bad('no_content', serves(status=204)),
    bad('not_modified', serves(status=304)),
    bad('empty', lambda *_: {'/image': Behaviour()}, Reason.EMPTY_IMAGE),
    good('busy', serves(statuses=(503,))),
    good('redirect', redirects('/there')),
    good('redirect_five_times', chain(5)),
]

BREAKS = [
    good('reset', breaks(Break.RESET)),
    good('truncation', breaks(Break.CLOSE)),
    good('stall', breaks(Break.STALL)),
    good('slow_loris', breaks(Break.DRIP)),
    good('reset_date_only', breaks(Break.RESET, etag=None)),
    good('reset_no_ranges', breaks(Break.RESET, ranges=False), claimed=True),
    bad(
        'reset_no_validator',
        breaks(Break.RESET, **NOTHING_TELLS),
        claimed=True,
    ),
    good(
        'reset_no_validator_hashed',
        breaks(Break.RESET, **NOTHING_TELLS),
        hashed=True,
    ),
    good('reset_in_the_head', serves(break_after=units.Mi + 9, breaks=1)),
    good('reset_each_time', serves(break_after=units.Mi + 9)),
    bad('reset_before_progress', serves(break_after=1000)),
    bad('reset_for_good', becomes(status=503), kept=True),
    bad(
        'reset_for_good_hashed',
        becomes(NOTHING_TELLS, status=503, **NOTHING_TELLS),
        hashed=True,
        kept=True,
    ),
    bad('silent_for_good', becomes(silent=True), kept=True),
    bad('silent', serves(silent=True)),
]

CHANGES = [
    bad('change', changes({'mid_answer': True}, SECOND), Reason.IMAGE_CHANGED),
    bad(
        'change_no_ranges',
        changes(
            {'mid_answer': True, 'ranges': False}, {'ranges': False, **SECOND}
        ),
        Reason.IMAGE_CHANGED,
        claimed=True,
    ),
    bad(
        'change_of_date',
        changes(
            {'mid_answer': True, 'etag': None},
            {'etag': None, 'last_modified': 'Thu, 02 Jan 2025 00:00:00 GMT'},
        ),
        Reason.IMAGE_CHANGED,
    ),
    bad(
        'change_and_reset',
        changes({'break_after': LATE}, SECOND),
        Reason.IMAGE_CHANGED,
    ),
    bad(
        'change_if_range_ignored',
        changes({'break_after': LATE}, {'if_range': False, **SECOND}),
        Reason.IMAGE_CHANGED,
    ),
    bad(
        'shorter_same_etag',
        lambda content, other: {
            '/image': Behaviour(
                content,
                ranges=False,
                break_after=LATE,
                becomes=Behaviour(content[:-512], ranges=False),
                becomes_after=LATE,
            )
        },
        Reason.IMAGE_CHANGED,
        claimed=True,
    ),
    bad(
        'change_same_etag',
        changes({'mid_answer': True}, {}),
        Reason.HASH_MISMATCH,
        hashed=True,
    ),
    bad(
        'change_no_validator',
        changes({'mid_answer': True, **NOTHING_TELLS}, NOTHING_TELLS),
        Reason.HASH_MISMATCH,
        hashed=True,
    ),
]

LIES = [
    bad(
        'length_too_large',
        serves(content_length=lambda n: str(n + 512)),
        kept=True,
    ),
    Case(
        'length_too_small',
        serves(content_length=lambda n: str(n - 512)),
        Reason.SOURCE_FAILED,
        Reason.IMAGE_CORRUPT,
    ),
    bad(
        'length_no_number',
        serves(content_length=lambda n: f'{n}x'),
        Reason.SIZE_UNKNOWN,
    ),
    bad(
        'length_negative',
        serves(content_length=lambda n: '-1'),
        Reason.SIZE_UNKNOWN,
    ),
    bad(
        'length_of_many_digits',
        serves(content_length=lambda n: '9' * 5000),
        Reason.SIZE_UNKNOWN,
    ),
    bad('two_lengths', serves(headers=(('Content-Length', '512'),))),
    bad('chunks', serves(framing=Framing.CHUNKED), Reason.SIZE_UNKNOWN),
    bad(
        'until_close', serves(framing=Framing.UNTIL_CLOSE), Reason.SIZE_UNKNOWN
    ),
    bad('chunks_later', becomes(framing=Framing.CHUNKED), kept=True),
    # In the line before a chunk each byte could take a time-out.
    bad(
        'chunks_drip_later',
        becomes(
            framing=Framing.CHUNKED,
            break_after=0,
            break_in=Part.FRAMING,
            break_how=Break.DRIP,
            drip_seconds=1,
        ),
        kept=True,
    ),
    bad('gzip', lambda one, _: {'/image': http_behaviour.gzipped(one)}),
    bad('another_range', serves(serves=shifted)),
    bad(
        'another_range_as_if_asked',
        breaks(
            Break.RESET,
            serves=shifted,
            content_range=lambda start, last, total: (
                f'bytes {start + 512}-{last + 512}/{total}'
            ),
        ),
        Reason.HASH_MISMATCH,
        hashed=True,
        claimed=True,
    ),
    bad('no_content_range', serves(content_range=lambda *_: None)),
    bad('multipart', serves(multipart=True)),
    bad('range_unasked', serves(unasked=(0, 1000))),
    good('endless_body', serves(endless=Endless.BODY)),
    # More than int() takes, and digits that it does not.
    good(
        'retry_after_ages',
        serves(statuses=(503,), headers=(('Retry-After', '9' * 5000),)),
    ),
    good(
        'retry_after_exponent',
        serves(statuses=(503,), headers=(('Retry-After', '\xb2'),)),
    ),
]

HEADS = [
    bad('no_http', serves(raw=b'SSH-2.0-OpenSSH_9.2\r\n' * 9)),
    bad('noise', lambda one, _: {'/image': Behaviour(raw=one)}),
    bad('nothing', serves(raw=b'')),
    bad(
        'head_truncated',
        serves(raw=b'HTTP/1.1 200 OK\r\nContent-Le'),
        Reason.SIZE_UNKNOWN,
    ),
    bad('head_reset', serves(break_after=20, **IN_HEAD)),
    bad('head_drips', serves(break_after=0, break_how=Break.DRIP, **IN_HEAD)),
    bad(
        'head_stalls', serves(break_after=20, break_how=Break.STALL, **IN_HEAD)
    ),
    bad('headers_many', serves(headers=(('X-More', 'x'),) * 10_000)),
    bad('header_endless', serves(endless=Endless.HEADER)),
    bad('headers_endless', serves(endless=Endless.HEADERS)),
    bad('continue_endless', serves(endless=Endless.CONTINUE)),
    good('header_without_colon', serves(headers=(('No\r\nX', 'x'),))),
    good('etag_escapes', serves(etag='"\x1b[31m\x00"')),
    good('etag_folded', serves(etag='"a\r\n b"'), claimed=True),
    good('etag_long', serves(etag=f'"{"a" * 60_000}"')),
]

REDIRECTS = [
    bad('redirect_six_times', chain(6)),
    bad('redirect_loop', redirects('/image')),
    bad('redirect_file', redirects('file:///etc/passwd')),
    bad('redirect_ftp', redirects('ftp://127.0.0.1/x')),
    bad('redirect_bracket', redirects('http://[/')),
    bad('redirect_no_label', redirects('http://a..b/')),
    bad('redirect_long_label', redirects(f'http://{"a" * 70}.invalid/')),
    bad('redirect_port', redirects('http://127.0.0.1:99999/')),
    bad('redirect_no_port', redirects('http://127.0.0.1:x/')),
    bad('redirect_latin', redirects('http://\xff\xfe/')),
    bad('redirect_nowhere', serves(status=302)),
    # Its body is of no interest.
    good(
        'redirect_drips',
        redirects('/there', break_after=0, break_how=Break.DRIP),
    ),
    good(
        'redirect_endless',
        redirects(
            '/there', endless=Endless.BODY, content_length=lambda n: None
        ),
    ),
]

CASES = [*HONEST, *BREAKS, *CHANGES, *LIES, *HEADS, *REDIRECTS]
