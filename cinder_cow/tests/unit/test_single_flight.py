# SPDX-License-Identifier: Apache-2.0
"""Who asks the same at the same time is given one answer."""

from concurrent import futures
import os
import threading
import time

import ddt
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import image_info as images
from cinder_cow import plan
from cinder_cow import single_flight
from cinder_cow.drivers import memory
from cinder_cow.refusal import Reason
from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server

LIMIT_SECONDS = 30
DATA = http_place.image('qcow2')


def slowly(length):
    time.sleep(0.5)
    return str(length)


class Asked:
    """Asks something that takes until it is told to land.

    :ivar count: how often
    """

    def __init__(self, *answers):
        self.count = 0
        self._answers = list(answers)
        self._may_land = threading.Event()

    def __call__(self):
        self.count += 1
        answer = self._answers.pop(0)
        if not self._may_land.wait(LIMIT_SECONDS):
            raise AssertionError('it was never told to land')
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def land(self):
        self._may_land.set()


@ddt.ddt
class TestShare(test_base.BaseTestCase):
    def setUp(self):
        super().setUp()
        self.pool = futures.ThreadPoolExecutor(8)
        self.addCleanup(self.pool.shutdown)

    def ask(self, ask, count, question='what'):
        """Have some ask; return when they should all be waiting."""
        asking = [
            self.pool.submit(single_flight.share, question, ask)
            for _ in range(count)
        ]
        # Nothing tells that a thread waits.
        time.sleep(0.2)
        return asking

    def test_one_asks_for_all(self):
        ask = Asked('answer')
        asking = self.ask(ask, 8)
        ask.land()
        self.assertEqual(['answer'] * 8, [one.result() for one in asking])
        self.assertEqual(1, ask.count)

    def test_an_answer_is_for_those_who_waited(self):
        for answer in 'one', 'two':
            ask = Asked(answer)
            ask.land()
            self.assertEqual(answer, single_flight.share('what', ask))

    def test_another_question(self):
        one, two = Asked(1), Asked(2)
        asking = [*self.ask(one, 1), *self.ask(two, 1, 'else')]
        one.land()
        two.land()
        self.assertEqual([1, 2], [each.result() for each in asking])

    def test_each_has_an_error_of_its_own(self):
        error = exception.ImageError.because(
            Reason.SOURCE_FAILED, image='i', problem='p'
        )
        ask = Asked(error)
        asking = self.ask(ask, 3)
        ask.land()
        errors = [one.exception() for one in asking]
        self.assertEqual(1, ask.count)
        self.assertEqual(3, len(set(map(id, errors))))
        for one in errors:
            self.assertIsInstance(one, exception.ImageError)
            self.assertEqual(error.refusal, one.refusal)

    @ddt.data(KeyboardInterrupt, ValueError)
    def test_who_asked_is_stopped(self, stopped):
        ask = Asked(stopped(), 1, 2)
        asking = self.ask(ask, 3)
        ask.land()
        found = []
        for one in asking:
            try:
                found.append(one.result())
            except stopped:
                found.append(0)
        self.assertEqual([0, 1, 2], sorted(found))

    def test_a_fork_waits_for_no_thread_of_its_parent(self):
        ask = Asked('answer')
        asking = self.ask(ask, 1)
        child = os.fork()
        if not child:
            mine = Asked('mine')
            mine.land()
            found = single_flight.share('what', mine)
            os._exit(0 if found == 'mine' else 1)
        self.assertEqual(0, os.waitpid(child, 0)[1])
        ask.land()
        self.assertEqual('answer', asking[0].result())


class TestLook(http_place.HttpTestCase):
    """What plans share."""

    def plans(self, names):
        """Make plans at the same time; return what the server was asked."""
        place = http_place.Place(self.top)
        means = plan.Means(memory.MemoryDriver(), place.settings)
        barrier = threading.Barrier(len(names))

        def make(name):
            url = server.url(f'/{name}')
            image = images.ImageInfo(
                id=name,
                name=name,
                disk_format='qcow2',
                size=len(DATA),
                content_id='1',
            )
            with place.source(url) as source:
                barrier.wait(LIMIT_SECONDS)
                return plan.make(image, source, means).content_size

        # An answer takes so long that all of them wait for it.
        slow = http_behaviour.Behaviour(DATA, content_length=slowly)
        paths = {f'/{name}': slow for name in names}
        with http_server.Server(paths) as server:
            with futures.ThreadPoolExecutor(len(names)) as pool:
                sizes = set(pool.map(make, names))
            self.assertEqual(1, len(sizes))
            return len(server.requests)

    def test_of_one_image(self):
        self.assertEqual(1, self.plans(['image'] * 8))

    def test_of_others(self):
        self.assertEqual(2, self.plans(['image', 'other']))
