# SPDX-License-Identifier: Apache-2.0
"""What differs between the releases of Cinder, from 27 on."""

import importlib
from typing import Any, TypeVar

from cinder import utils

_Target = TypeVar('_Target')


def tpool_wrap(target: _Target) -> _Target:
    """Let the methods of an object run in native threads under eventlet.

    Releases before 29 run under eventlet only, and have no call for it.
    """
    if hasattr(utils, 'tpool_wrap'):
        wrapped: _Target = utils.tpool_wrap(target)
        return wrapped
    tpool: Any = importlib.import_module('eventlet.tpool')
    proxy: _Target = tpool.Proxy(target)
    return proxy
