# SPDX-License-Identifier: Apache-2.0
"""Find the back end that a command is about."""

import argparse
import os
import pathlib
from typing import cast

from oslo_config import cfg
from stevedore import driver as drivers
from stevedore import exception as stevedore_errors

from cinder_cow import exception
from cinder_cow import manager
from cinder_cow import opts
from cinder_cow import scratch
from cinder_cow.drivers import base
from cinder_cow.drivers import bases
from cinder_cow.refusal import Reason

CINDER_CONF = '/etc/cinder/cinder.conf'
EMBEDDED = 'file'
# The classes of Cinder's and our own.
_RBD_DRIVERS = ('.RBDDriver', '.CowRBDDriver')


class Backend(manager.CreateVolumeFromImageMixin):
    """A driver and its settings."""

    def __init__(self, options: opts.BackendOptions) -> None:
        self.settings = opts.Settings.read(options)
        scratch.Scratch(self.settings).sweep()
        self.driver = _load(_driver_of(options)).from_options(options)


def from_arguments(
    arguments: argparse.Namespace | None, sweep: bool = True
) -> Backend:
    """Make the back end that the global options name.

    :param sweep: finish or undo what dead makers left
    :raises RequestError: BACKEND_UNKNOWN, LAYOUT_UNKNOWN
    """
    found = _made(arguments)
    if sweep and isinstance(found.driver, bases.Checker):
        found.driver.sweep()
    return found


def _made(arguments: argparse.Namespace | None) -> Backend:
    assert arguments is not None  # cliff has parsed them by now
    files = list(arguments.config_file)
    if not files and arguments.backend is None:
        return _embedded()
    if not files and os.access(CINDER_CONF, os.R_OK):
        files = [CINDER_CONF]
    if not files:
        raise _unknown(
            f'{CINDER_CONF} cannot be read', 'Give --config-file PATH.'
        )
    conf = cfg.ConfigOpts()
    conf.register_opt(cfg.ListOpt('enabled_backends', default=[]))
    try:
        conf(args=[], project='cinder_cow', default_config_files=files)
        name = arguments.backend or _only_backend(conf)
        if name not in conf.list_all_sections():
            raise _unknown(
                f"there is no section '{name}' in {', '.join(files)}",
                'Name one that there is with --backend.',
            )
        return Backend(opts.BackendOptions(conf, name))
    except (cfg.Error, UnicodeDecodeError) as error:
        raise _unknown(str(error), 'Correct the configuration.') from error
    except RecursionError:
        # oslo.config follows "a = $a" until it fails.
        raise _unknown(
            'an option refers to itself', 'Correct the configuration.'
        ) from None


def _embedded() -> Backend:
    """Return the default: files of this user's own."""
    home = os.environ.get('CINDER_COW_HOME')
    if not home:
        data = os.environ.get('XDG_DATA_HOME')
        share = pathlib.Path(data or pathlib.Path.home() / '.local/share')
        home = str(share / 'cinder-cow')
    conf = cfg.ConfigOpts()
    conf(
        args=[],
        project='cinder_cow',
        default_config_files=[],
        default_config_dirs=[],
    )
    options = opts.BackendOptions(conf, EMBEDDED)
    options.override('cow_file_dir', os.path.join(home, 'volumes'))
    return Backend(options)


def _only_backend(conf: cfg.ConfigOpts) -> str:
    names: list[str] = conf.enabled_backends
    if len(names) == 1:
        return names[0]
    raise _unknown(
        'the configuration has not exactly one back end enabled',
        f'Name one with --backend: {", ".join(names) or "its section"}.',
    )


def _driver_of(options: opts.BackendOptions) -> str:
    """Name the driver; for an operator's own cinder.conf, by Cinder's."""
    options.register([cfg.StrOpt('volume_driver', default='')])
    named: str | None = options.get('cow_driver')
    if named:
        return named
    is_rbd = options.get('volume_driver').endswith(_RBD_DRIVERS)
    return 'rbd' if is_rbd else EMBEDDED


def _load(name: str) -> type[base.Driver]:
    try:
        found = drivers.DriverManager[base.Driver](
            opts.DRIVERS, name, warn_on_missing_entrypoint=False
        )
    except stevedore_errors.NoMatches:
        raise _unknown(
            f"there is no driver '{name}'",
            'Set cow_driver to one that is installed, for instance "file".',
        ) from None
    return cast(type[base.Driver], found.driver)


def _unknown(problem: str, remedy: str) -> exception.RequestError:
    return exception.RequestError.because(
        Reason.BACKEND_UNKNOWN, problem=problem, remedy=remedy
    )
