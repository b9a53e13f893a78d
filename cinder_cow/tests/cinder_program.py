# SPDX-License-Identifier: Apache-2.0
"""Cinder's API, scheduler and volume services in one process.

``cinder_service`` runs it, with the Python of ``.venv-services``. Its words
are the descriptor of a socket that listens, and Cinder's own options. One
process needs no broker; and where SQLite is the database, three of them fail
with "database is locked".
"""

# mypy: disable-error-code="import-not-found"
# ruff: noqa: E402, TID251

from cinder_cow.tests import monkey_patch

# Before all other imports, as in Cinder's own programs.
monkey_patch.patch()

import os
import shlex
import socket
import socketserver
import sys
import threading
import time
from typing import Any
from wsgiref import simple_server

from cinder import coordination
from cinder import objects
from cinder import privsep
from cinder import rpc
from cinder import service
from cinder import utils
from cinder import version
from cinder.cmd import volume
from cinder.common import config
from cinder.common import constants
from cinder.volume import volume_utils
import os_brick
from os_brick import privileged
from oslo_config import cfg
from oslo_log import log as logging
import oslo_messaging
from oslo_messaging._drivers import common
from oslo_messaging._drivers import impl_fake
from oslo_privsep import priv_context
from oslo_serialization import jsonutils
from oslo_service import service as launchers
from oslo_service import wsgi

CONF = cfg.CONF
# Between two looks for a message; 50 ms in the transport itself. A volume
# takes several messages, one after the other.
_POLL_SECONDS = 0.005

# What has backups made at all; Cinder's default needs Swift.
_BACKUPS = 'cinder.backup.drivers.posix.PosixBackupDriver'

_send = impl_fake.FakeDriver._send


class _Service(service.Service):
    """A service whose heartbeat is its own.

    Cinder keeps the number of its row in the class: of several services in a
    process, the last one would get the heartbeats of all.
    """

    _reporting = threading.Lock()

    def report_state(self) -> None:
        with self._reporting:
            service.Service.service_id = self.origin_service_id
            super().report_state()


def main() -> None:
    listener, *words = sys.argv[1:]
    _prepare(words)
    _make_transport_a_wire()
    rpc.init(CONF)
    scheduler = _Service.create(binary=constants.SCHEDULER_BINARY)
    volumes = list(map(_volume_service, CONF.enabled_backends))
    _make_work_its_own(scheduler, volumes)
    started = [scheduler, *volumes]
    CONF.import_opt('backup_driver', 'cinder.backup.manager')
    if CONF.backup_driver == _BACKUPS:
        started.append(_backup_service())
    sock = socket.socket(fileno=int(listener))
    serve = _serve_green if monkey_patch.is_patched() else _serve_natively
    serve(started, sock)


def _serve_green(started: list[Any], sock: socket.socket) -> None:
    # cinder-api makes a socket of its own; ours listened before it began.
    wsgi.Server._get_socket = lambda *_args: sock
    launcher = launchers.ServiceLauncher(CONF)
    for one in (*started, service.WSGIService('osapi_volume')):
        launcher.launch_service(one)
    launcher.wait()


class _Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """Cinder's own server and launcher want eventlet, or processes."""

    daemon_threads = True

    def __init__(self, sock: socket.socket) -> None:
        handler = simple_server.WSGIRequestHandler
        super().__init__(sock.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_name, self.server_port = sock.getsockname()
        self.setup_environ()


def _serve_natively(started: list[Any], sock: socket.socket) -> None:
    for one in started:
        # The scheduler waits in it for the others.
        threading.Thread(target=one.start).start()
    server = _Server(sock)
    server.set_app(wsgi.Loader(CONF).load_app('osapi_volume'))
    server.serve_forever()


def _prepare(words: list[str]) -> None:
    """Do what Cinder's programs do before they start a service."""
    objects.register_all()
    CONF(words, project='cinder', version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(CONF, 'cinder')
    if os.geteuid():
        # All is done by who runs us. Cinder has "sudo" here and no option,
        # and who is not root has no privileges to give to a helper.
        utils.get_root_helper = lambda: 'env'
        privsep.sys_admin_pctxt.set_client_mode(False)
        privileged.default.set_client_mode(False)
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    os_brick.setup(CONF)
    coordination.COORDINATOR.start()


def _volume_service(backend: str) -> Any:
    CONF.register_opt(volume.host_opt, group=backend)
    return _Service.create(
        host=f'{CONF[backend].backend_host or CONF.host}@{backend}',
        service_name=backend,
        binary=constants.VOLUME_BINARY,
        coordination=True,
    )


def _backup_service() -> Any:
    return _Service.create(
        binary='cinder-backup',
        coordination=True,
        service_name='backup',
        process_number=1,
        semaphore=utils.semaphore_factory(0, 1),
    )


def _make_work_its_own(scheduler: Any, volumes: list[Any]) -> None:
    """Have what a service works at say so, and not another one.

    That is what it cleans up when it starts again, after it was killed. It
    is told by the class, too: see ``_Service``.
    """
    numbers = {one.host: one.origin_service_id for one in volumes}
    base = objects.cleanable.CinderCleanableObject
    set_worker = base.set_worker

    def set_own(worked: Any) -> None:
        # A volume has no host until the scheduler has chosen one.
        one = scheduler.origin_service_id
        if worked.host:
            one = numbers[volume_utils.extract_host(worked.host)]
        service.Service.service_id = one
        set_worker(worked)

    base.set_worker = set_own


def _make_transport_a_wire() -> None:
    """Have fake:// give a copy of what is sent, as other transports do.

    By default the receiver has the sender's own objects, which some of
    Cinder's calls cannot take, and it polls slowly.
    """
    impl_fake.FakeDriver._send = _send_copies
    impl_fake.FakeListener.poll = _poll


def _send_copies(
    driver: Any,
    target: Any,
    ctxt: Any,
    message: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    try:
        answer = _send(
            driver, target, _copy(ctxt), _copy(message), *args, **kwargs
        )
    except oslo_messaging.MessagingTimeout:
        raise
    except Exception:  # noqa: BLE001
        # Callers tell an error from elsewhere by its class.
        data = common.serialize_remote_exception(sys.exc_info())
        raise common.deserialize_remote_exception(
            data, driver._allowed_remote_exmods
        ) from None
    return _copy(answer)


def _copy(value: Any) -> Any:
    return jsonutils.loads(jsonutils.dumps(value))


@impl_fake.base.batch_poll_helper
def _poll(listener: Any, timeout: float | None = None) -> Any:
    deadline = None if timeout is None else time.monotonic() + timeout
    while not listener._stopped.is_set():
        for target in listener._targets:
            exchange = listener._exchange_manager.get_exchange(target.exchange)
            found = exchange.poll(target, listener._pool)
            if found[1] is not None:
                return impl_fake.FakeIncomingMessage(*found)
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    return None


if __name__ == '__main__':
    main()
