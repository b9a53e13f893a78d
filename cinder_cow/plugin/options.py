# SPDX-License-Identifier: Apache-2.0
"""Our options, in the configuration that Cinder has read."""

from collections.abc import Sequence

from oslo_config import cfg

from cinder_cow import opts


class CinderOptions(opts.BackendOptions):
    """The options of a back end; Cinder's own are registered by Cinder."""

    def register(self, opts: Sequence[cfg.Opt]) -> None:
        """Make options readable, those that Cinder has not registered.

        A release of Cinder may describe one of them in other words than we
        do, and oslo.config takes that for another option.
        """
        super().register([opt for opt in opts if not self._is_known(opt.name)])

    def _is_known(self, name: str) -> bool:
        try:
            self.get(name)
        except (cfg.NoSuchGroupError, cfg.NoSuchOptError):
            return False
        return True
