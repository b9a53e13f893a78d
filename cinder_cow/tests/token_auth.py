# SPDX-License-Identifier: Apache-2.0
"""Paste filters for a Glance without Keystone: who asks, and what was asked.

The Python of the service loads this file, by a copy; it has none of our
modules.
"""

import itertools
import json
import os
import time
from urllib import parse

# What Keystone's bootstrap makes each role imply.
IMPLIED = {'admin': 'manager', 'manager': 'member', 'member': 'reader'}
# Clients that authenticate with nobody send no token, keystoneauth's "none"
# this word. Cinder does so too, with auth_strategy=noauth, and expects to be
# an administrator.
NOT_USED = 'notused'
ADMINISTRATOR = 'admin:admin:admin'


class TokenAuth:
    """Stands where keystonemiddleware stands.

    A token is ``user:project:role[,role]``. Any other, such as ``expired``,
    is one that Keystone does not confirm; the service answers 401.
    """

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        # glanceclient quotes the token, curl does not.
        token = parse.unquote(environ.get('HTTP_X_AUTH_TOKEN', ''))
        if token in {'', NOT_USED}:
            token = ADMINISTRATOR
        for name in ('USER_ID', 'PROJECT_ID', 'ROLES'):
            environ.pop(f'HTTP_X_{name}', None)
        environ['HTTP_X_IDENTITY_STATUS'] = 'Invalid'
        words = token.split(':')
        if len(words) == 3 and all(words):
            user, project, roles = words
            environ.update(
                HTTP_X_IDENTITY_STATUS='Confirmed',
                HTTP_X_USER_ID=user,
                HTTP_X_PROJECT_ID=project,
                HTTP_X_ROLES=','.join(_with_implied(roles.split(','))),
            )
        return self.app(environ, start_response)


def _with_implied(roles):
    for role in roles:
        while role:
            yield role
            role = IMPLIED.get(role)


class Recorder:
    """Writes a line when a request begins, and one when its answer ended.

    gunicorn's access log has the second one only, and a client can be ahead
    of it. A line is one write, so that those of threads do not mix.
    """

    def __init__(self, app, path):
        self.app = app
        self.numbers = itertools.count()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.file = os.open(path, flags, 0o600)

    def __call__(self, environ, start_response):
        number = next(self.numbers)
        answer = {'number': number, 'status': 500, 'size': 0}
        self.write(
            number=number,
            method=environ['REQUEST_METHOD'],
            path=environ['PATH_INFO'],
            range=environ.get('HTTP_RANGE'),
        )

        def start(status, headers, exc_info=None):
            answer['status'] = int(status.split()[0])
            return start_response(status, headers, exc_info)

        try:
            return _Body(self, self.app(environ, start), answer)
        except BaseException:
            self.write(**answer)
            raise

    def write(self, **facts):
        os.write(self.file, json.dumps(facts).encode() + b'\n')


class _Body:
    """Counts the bytes that the server takes; closed however it ends."""

    def __init__(self, recorder, chunks, answer):
        self.recorder = recorder
        self.chunks = chunks
        self.answer = answer
        self.begun = time.monotonic()

    def __iter__(self):
        for chunk in self.chunks:
            self.answer['size'] += len(chunk)
            yield chunk

    def close(self):
        try:
            if hasattr(self.chunks, 'close'):
                self.chunks.close()
        finally:
            seconds = time.monotonic() - self.begun
            self.recorder.write(**self.answer, seconds=seconds)


def token_auth(_global_conf, **_conf):
    return TokenAuth


def recorder(_global_conf, path):
    return lambda app: Recorder(app, path)
