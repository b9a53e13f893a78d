# SPDX-License-Identifier: Apache-2.0
"""Image handlers: one base however many ask, waiting, resuming, linking."""

import hashlib
import threading
from typing import Any

import ddt
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import image_location
from cinder_cow import opts
from cinder_cow import volume_records
from cinder_cow.drivers import bases
from cinder_cow.drivers import memory
from cinder_cow.handlers import base
from cinder_cow.handlers import downloading
from cinder_cow.handlers import making
from cinder_cow.handlers import volume_linking
from cinder_cow.handlers import waiting
from cinder_cow.refusal import Reason

# The head of an image is written when all of it was seen: 2 MiB.
PIECE = units.Mi
CONTENT = b''.join(bytes([number]) * PIECE for number in b'ABCDEFGH')
SIZE = len(CONTENT)
LIMIT = 30
VOLUME = '0b9c8d7e-0000-4000-8000-00000000000a'


class Source:
    """An image on a server, that can break, wait, and go on.

    :param breaks_at: the byte at which the connection ends for good
    """

    label = 'an image'

    def __init__(self, content=CONTENT, breaks_at=None):
        self.content = content
        self.size = len(content)
        self.breaks_at = breaks_at
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.opened = []
        self.released = False
        self.read = 0

    def head(self, length):
        return self.content[:length]

    def tail(self, length):
        return self.content[-length:]

    def pieces(self):
        return self.pieces_from(0)

    def pieces_from(self, offset):
        self.opened.append(offset)
        for start in range(offset, self.size, PIECE):
            self.begun.set()
            assert self.go_on.wait(LIMIT)
            if self.breaks_at is not None and start >= self.breaks_at:
                raise exception.ImageError.because(
                    Reason.SOURCE_FAILED, image=self.label, problem='gone'
                )
            piece = self.content[start : start + PIECE]
            self.read += len(piece)
            yield piece

    @property
    def question(self):
        return id(self)

    def release(self):
        self.released = True

    def check_readable(self):
        pass

    def check_unchanged(self):
        pass


def image(content=CONTENT, **facts):
    return images.ImageInfo(
        id='image-1',
        name='an image',
        disk_format='raw',
        os_hash_algo='sha256',
        os_hash_value=hashlib.sha256(content).hexdigest(),
        **facts,
    )


def quiet(phase, done, total):
    pass


class HandlerCase(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.driver: Any = memory.MemoryDriver()
        self.settings = opts.Settings(
            backend='memory', glance_project='glance', base_wait=LIMIT
        )

    def handler(self, kind=downloading.Downloading, **facts):
        return kind(base.Backend(self.driver, self.settings, **facts))

    def fetch(self, source, handler=None, report=quiet, **facts):
        handler = handler or self.handler()
        return handler.fetch_image(image(**facts), source, source.size, report)

    def content(self, found):
        with self.driver.read(found.location) as reader:
            return reader.read(0, reader.size)

    def refused(self, reason, call, *args):
        error = self.assertRaises(exception.CowError, call, *args)
        self.assertIs(reason, error.reason, error)
        return error


class Requests:
    """Requests in threads of their own."""

    def __init__(self, count, call):
        self.answers = []
        self.threads = [
            threading.Thread(target=self._run, args=(call,), daemon=True)
            for _number in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, call):
        try:
            self.answers.append(call())
        except exception.CowError as error:
            self.answers.append(error)

    def join(self):
        for thread in self.threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        return self.answers


class TestDownloading(HandlerCase):
    def test_makes_the_base(self):
        fetched = self.fetch(Source())
        self.assertTrue(fetched.made)
        self.assertEqual(SIZE, fetched.bytes_copied)
        facts = fetched.base.facts
        self.assertEqual('hash', facts.verified)
        self.assertEqual(f'sha256:{image().os_hash_value}', facts.hash)
        self.assertEqual(SIZE, facts.content_size)
        self.assertEqual(CONTENT, self.content(fetched.base))

    def test_once_however_many_ask(self):
        source = Source()
        source.go_on.clear()
        requests = Requests(16, lambda: self.fetch(source))
        self.assertTrue(source.begun.wait(LIMIT))
        source.go_on.set()
        answers = requests.join()
        self.assertEqual([0], source.opened)
        self.assertEqual(SIZE, source.read)
        self.assertEqual(1, sum(answer.made for answer in answers))
        self.assertEqual({answers[0].base}, {one.base for one in answers})
        self.assertEqual({}, waiting._queues)

    def test_once_for_handlers_of_other_processes(self):
        # What one process has of another is the driver's answer only.
        source = Source()
        key: Any = bases.BaseKey.of(image())
        with self.driver.begin_base(key, SIZE) as writer:
            writer.tell(bases.Progress('streaming', 3, 8))
            told = []
            requests = Requests(
                3,
                lambda: self.fetch(source, report=lambda *x: told.append(x)),
            )
            while len(told) < 3:
                self.assertTrue(requests.threads[0].is_alive())
            writer.write(CONTENT)
            made = writer.publish(bases.BaseFacts(key, '', 'raw', SIZE, '', 0))
        answers = requests.join()
        self.assertEqual([made] * 3, [answer.base for answer in answers])
        self.assertEqual([], source.opened)
        self.assertTrue(source.released)
        self.assertIn(('waiting for another thread (streaming)', 3, 8), told)

    def test_the_next_takes_over_where_one_fails(self):
        broken, whole = Source(breaks_at=4 * PIECE), Source()
        broken.go_on.clear()
        first = Requests(1, lambda: self.fetch(broken))
        self.assertTrue(broken.begun.wait(LIMIT))
        rest = Requests(4, lambda: self.fetch(whole))
        broken.go_on.set()
        (error,) = first.join()
        self.assertIs(Reason.SOURCE_FAILED, error.reason)
        answers = rest.join()
        self.assertEqual(1, sum(answer.made for answer in answers))
        # It went on behind what the first one had.
        self.assertEqual([4 * PIECE], whole.opened)
        self.assertEqual(CONTENT, self.content(answers[0].base))

    def test_a_bad_image_is_not_kept(self):
        bad = Source(b'x' * SIZE)
        self.refused(Reason.HASH_MISMATCH, self.fetch, bad)
        good = Source()
        self.fetch(good)
        self.assertEqual([0], good.opened)

    def test_what_was_kept_may_be_at_fault(self):
        self.refused(
            Reason.SOURCE_FAILED,
            self.fetch,
            Source(b'x' * SIZE, breaks_at=3 * PIECE),
        )
        good = Source()
        fetched = self.fetch(good)
        self.assertEqual([3 * PIECE, 0], good.opened)
        self.assertEqual(CONTENT, self.content(fetched.base))

    def test_waits_no_longer_than_it_may(self):
        self.settings = opts.Settings(backend='memory', base_wait=0.3)
        key: Any = bases.BaseKey.of(image())
        with self.driver.begin_base(key, SIZE):
            error = self.refused(Reason.BUSY, self.fetch, Source())
        self.assertIn('another thread', str(error))
        self.assertEqual({}, waiting._queues)

    def test_a_lost_base_is_tried_again(self):
        begin = self.driver.begin_base
        lost: list[Any] = []

        def lose(key, size):
            writer = begin(key, size)
            if len(lost) < making._ATTEMPTS - 1:
                lost.append(writer)
                writer.publish = self.raise_lost
            return writer

        self.driver.begin_base = lose
        source = Source()
        self.assertTrue(self.fetch(source).made)
        self.assertEqual([0] * making._ATTEMPTS, source.opened)

    def test_a_base_that_is_always_lost(self):
        begin = self.driver.begin_base

        def lose(key, size):
            writer = begin(key, size)
            writer.publish = self.raise_lost
            return writer

        self.driver.begin_base = lose
        self.refused(Reason.BASE_LOST, self.fetch, Source())

    def raise_lost(self, facts):
        raise exception.BackendError.because(Reason.BASE_LOST, base='x')

    def test_the_base_is_removed(self):
        handler = self.handler()
        self.fetch(Source())
        handler.remove_image(image())
        handler.remove_image(image())
        self.assertEqual([], list(self.driver.list_bases()))


class Records:
    """What Cinder says, from a dictionary."""

    def __init__(self, **changes):
        self.record = volume_records.VolumeRecord(
            name='image-volume',
            backend='memory',
            project_id='glance',
            image_id='image-1',
            readonly=True,
            attached=False,
        )
        for name, value in changes.items():
            object.__setattr__(self.record, name, value)

    def volume(self, volume_id):
        return self.record if volume_id == VOLUME else None


@ddt.ddt
class TestVolumeLinking(HandlerCase):
    def setUp(self):
        super().setUp()
        with self.driver.open('image-volume', SIZE + PIECE) as writer:
            writer.write(CONTENT + b'y')
            writer.close()
        self.image = image(locations=(image_location.CinderLocation(VOLUME),))

    def linking(self, records):
        return self.handler(volume_linking.VolumeLinking, volumes=records)

    def reason(self, records, info=None):
        handler = self.linking(records)
        (refused,) = handler.refuse(info or self.image, Source())
        return refused

    def test_makes_a_base_of_the_volume(self):
        handler, source = self.linking(Records()), Source()
        self.assertTrue(handler.concerns(self.image))
        self.assertEqual((), handler.refuse(self.image, source))
        fetched = handler.fetch_image(self.image, source, SIZE, quiet)
        self.assertTrue(fetched.made)
        self.assertEqual(0, fetched.bytes_copied)
        self.assertEqual([], source.opened)
        self.assertEqual('location', fetched.base.facts.verified)
        self.assertEqual('', fetched.base.facts.hash)
        self.assertEqual(CONTENT, self.content(fetched.base))
        # What is done to the volume does not show.
        self.driver.delete('image-volume')
        self.assertEqual(CONTENT, self.content(fetched.base))

    def test_reads_it_where_that_is_wanted(self):
        self.settings = opts.Settings(
            backend='memory', glance_project='glance', verify_linked=True
        )
        handler, source = self.linking(Records()), Source()
        fetched = handler.fetch_image(self.image, source, SIZE, quiet)
        self.assertEqual([0], source.opened)
        self.assertEqual('hash', fetched.base.facts.verified)
        bad = Source(b'x' * SIZE)
        handler.remove_image(self.image)
        self.refused(
            Reason.HASH_MISMATCH,
            handler.fetch_image,
            self.image,
            bad,
            SIZE,
            quiet,
        )
        self.assertEqual([], list(self.driver.list_bases()))

    def test_concerns_no_other_image(self):
        self.assertFalse(self.linking(Records()).concerns(image()))

    @ddt.data(
        ({'project_id': 'mallory'}, 'not that of Glance'),
        ({'image_id': 'image-2'}, 'holds another image'),
        ({'readonly': False}, 'can be written to'),
        ({'attached': True}, 'is attached'),
    )
    @ddt.unpack
    def test_believes_no_other_volume(self, changes, problem):
        refused = self.reason(Records(**changes))
        self.assertIs(Reason.LOCATION_UNTRUSTED, refused.reason)
        self.assertIn(problem, refused.detail)
        self.assertTrue(refused.remedy)

    def test_a_volume_of_another_back_end(self):
        refused = self.reason(Records(backend='other'))
        self.assertIs(Reason.NOT_IN_BACKEND, refused.reason)

    def test_a_volume_that_is_not_there(self):
        location = image_location.CinderLocation(VOLUME[:-1] + 'b')
        refused = self.reason(Records(), image(locations=(location,)))
        self.assertIn('no such volume', refused.detail)

    def test_the_first_that_is_believed(self):
        other = image_location.CinderLocation(VOLUME[:-1] + 'b')
        info = image(locations=(other, *self.image.locations))
        self.assertEqual((), self.linking(Records()).refuse(info, Source()))

    def test_nobody_to_ask(self):
        self.assertIn('nobody can ask', self.reason(None).detail)

    def test_a_project_that_is_not_set(self):
        self.settings = opts.Settings(backend='memory')
        refused = self.reason(Records())
        self.assertIn('cow_glance_project_id', refused.remedy)
        self.assertIn('[memory]', refused.remedy)

    def test_another_format(self):
        info = images.ImageInfo(
            'image-1',
            'an image',
            'qcow2',
            content_id='x',
            locations=self.image.locations,
        )
        self.assertIs(Reason.NOT_RAW, self.reason(Records(), info).reason)

    def test_content_that_is_another_format(self):
        content = b'QFI\xfb' + bytes(SIZE)
        handler = self.linking(Records())
        self.refused(
            Reason.FORMAT_MISMATCH,
            handler.fetch_image,
            self.image,
            Source(content),
            SIZE,
            quiet,
        )
        self.assertEqual([], list(self.driver.list_bases()))


class TestLoad(HandlerCase):
    def load(self, *names):
        settings = opts.Settings(backend='memory', image_handlers=names)
        return base.load(base.Backend(self.driver, settings))

    def test_in_the_order_of_the_option(self):
        for names in (
            ('volume_linking', 'downloading'),
            ('downloading', 'volume_linking'),
            ('downloading',),
        ):
            found = [handler.name for handler in self.load(*names)]
            self.assertEqual(list(names), found)

    def test_one_that_is_not_installed(self):
        error = self.refused(
            Reason.BACKEND_UNKNOWN, self.load, 'downloading', 'beaming'
        )
        self.assertIn('beaming', str(error))
        self.assertIn('cow_image_handlers', str(error))
