# SPDX-License-Identifier: Apache-2.0
"""What drivers share: names, size checks, and how sinks are left."""

import abc
import re

from oslo_utils import units

from cinder_cow import exception
from cinder_cow import handles
from cinder_cow import image_location
from cinder_cow import refusal
from cinder_cow.drivers import base

# LVM's set, the strictest of our back ends, so that one name fits all.
_VOLUME_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+-]{0,199}')


def check_volume_name(name: str) -> None:
    """Refuse what cannot be a volume's name on every back end.

    :raises RequestError: INVALID_NAME
    """
    if not _VOLUME_NAME.fullmatch(name):
        problem = 'it is empty, too long or has other characters'
    elif '..' in name:
        problem = 'it has ".." in it'
    elif name.startswith(base.RESERVED_PREFIX):
        problem = f'names that begin with "{base.RESERVED_PREFIX}" are ours'
    else:
        return
    raise exception.RequestError.because(
        refusal.Reason.INVALID_NAME,
        name=refusal.printable(name),
        problem=problem,
    )


def clone_size(
    request: base.VolumeRequest, parent_size: int, label: str
) -> int:
    """Return the size of a clone, in bytes: as asked for, or the parent's.

    :raises RequestError: VOLUME_TOO_SMALL; a clone is never a truncation
    """
    size = parent_size if request.size is None else request.size
    if size < parent_size:
        raise exception.RequestError.because(
            refusal.Reason.VOLUME_TOO_SMALL,
            image=label,
            needed=parent_size,
            needed_gib=-(-parent_size // units.Gi),
            size=size,
        )
    return size


def own_base(location: image_location.Location, backend: str) -> str:
    """Return the name of the base that a location of this back end names.

    :raises BackendError: NOT_IN_BACKEND
    """
    if (
        isinstance(location, image_location.BaseLocation)
        and location.backend == backend
    ):
        return location.name
    raise exception.BackendError.because(
        refusal.Reason.NOT_IN_BACKEND,
        location=str(location),
        backend=backend,
    )


class SinkMixin(handles.Handle):
    """A sink that is aborted where it was not finished."""

    @abc.abstractmethod
    def abort(self) -> None: ...

    def _let_go(self) -> None:
        self.abort()


class ReaderMixin(handles.Closing):
    """A reader that is closed."""
