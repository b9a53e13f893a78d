# SPDX-License-Identifier: Apache-2.0
"""The corpus from an HTTP server: same bytes, same reasons as from a file."""

import ddt

from cinder_cow import exception
from cinder_cow.tests import corpus
from cinder_cow.tests import corpus_disks
from cinder_cow.tests import http_behaviour
from cinder_cow.tests import http_place
from cinder_cow.tests import http_server


class ImageTestCase(http_place.HttpTestCase):
    def setUp(self):
        super().setUp()
        self.path = self.top / 'image'

    def served(self):
        behaviour = http_behaviour.Behaviour(self.path)
        server = http_server.Server({'/image': behaviour})
        return self.enter(server)

    def enter(self, context):
        self.addCleanup(context.__exit__, None, None, None)
        return context.__enter__()

    def places(self):
        """Give a back end that makes a base of it, and one that does not."""
        for cow in (True, False):
            yield http_place.Place(self.top / f'{cow}', cow_enabled=cow)


@ddt.ddt
class TestGoodImages(ImageTestCase):
    @ddt.named_data(*[
        (image.name, image) for image in [*corpus.GOOD, *corpus_disks.GOOD]
    ])  # fmt: skip
    def test_is_made(self, image):
        image.make(self.path)
        expected = corpus.expected(self.path, image.claimed)
        url = self.served().url('/image')
        for place in self.places():
            place.create(url, claimed=image.claimed)
            self.assertTrue(place.is_right(expected))
            self.assertEqual({}, place.kept())


@ddt.ddt
class TestBadImages(ImageTestCase):
    @ddt.named_data(*[
        (image.name, image) for image in [*corpus.BAD, *corpus_disks.BAD]
    ])  # fmt: skip
    def test_is_refused(self, image):
        image.make(self.path)
        url = self.served().url('/image')
        for place in self.places():
            try:
                place.create(url, claimed=image.claimed)
            except exception.CowError as error:
                self.assertEqual(image.reason, error.reason, str(error))
                self.assertNotIn('\n', str(error))
            else:
                raise AssertionError('it was taken')
            self.assertEqual([], place.made())
            self.assertEqual({}, place.kept())
