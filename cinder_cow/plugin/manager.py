# SPDX-License-Identifier: Apache-2.0
"""Cinder's volume manager, which also looks after bases.

``volume_manager = cinder_cow.plugin.manager.CowVolumeManager`` in [DEFAULT]
of cinder.conf is for the whole of a cinder-volume. Where the driver of a back
end is not ours, it does nothing there.
"""

from collections.abc import Callable
import functools
from typing import Any

from cinder import context as cinder_context
from cinder import coordination
from cinder.volume import manager
from oslo_config import cfg
from oslo_log import log as logging
from oslo_service import periodic_task

from cinder_cow import opts
from cinder_cow.plugin import own_glance
from cinder_cow.plugin import tasks

LOG = logging.getLogger(__name__)

CONF = cfg.CONF
# Cinder imports this when it has read its configuration.
CONF.register_opts(opts.MANAGER_OPTS)


class CowVolumeManager(manager.VolumeManager):
    """Puts bases in order at the start, keeps them so, and prepares some."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._cow_rounds = tasks.Rounds()

    def init_host(
        self,
        added_to_cluster: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().init_host(added_to_cluster=added_to_cluster, **kwargs)
        backend = self._cow_backend()
        if backend is not None:
            backend.init_handlers()

    @periodic_task.periodic_task(spacing=CONF.cow_tidy_interval)
    def cow_tidy(self, context: cinder_context.RequestContext) -> None:
        """Begin to remove bases that should go."""
        self._cow_begin('tidy', tasks.tidy)

    @periodic_task.periodic_task(
        spacing=CONF.cow_prepare_interval, run_immediately=True
    )
    def cow_prepare(self, context: cinder_context.RequestContext) -> None:
        """Begin to make bases of images that are to have one."""
        work = functools.partial(
            tasks.prepare, most=CONF.cow_prepare_max_images
        )
        self._cow_begin('prepare', work)

    # Private

    def _cow_backend(self) -> tasks.Backend | None:
        """Return what makes volumes here; None: Cinder's driver does."""
        if not self.driver.initialized:
            return None
        backend: tasks.Backend | None = getattr(
            self.driver, 'cow_backend', None
        )
        return backend

    def _cow_begin(
        self,
        name: str,
        work: Callable[[tasks.Backend, tasks.Opened], None],
    ) -> None:
        backend = self._cow_backend()
        if backend is None:
            return
        full_name = f'cow-{name}-{backend.settings.backend}'
        opened = functools.partial(own_glance.opened, backend.settings)
        alone = functools.partial(
            _alone, full_name, functools.partial(work, backend, opened)
        )
        if not self._cow_rounds.begin(full_name, alone):
            LOG.info('%s: the round before has not ended', full_name)


def _alone(name: str, work: Callable[[], None]) -> None:
    """Work, unless another service of the back end is at it.

    Two would do no harm, but ask Glance twice. They know of each other where
    Cinder's coordination has a back end that they share.
    """
    lock = coordination.COORDINATOR.get_lock(name)
    if not lock.acquire(blocking=False):
        LOG.debug('%s is done by another service', name)
        return
    try:
        work()
    finally:
        lock.release()
