# SPDX-License-Identifier: Apache-2.0
"""Cinder's RBD driver, which leaves bases and partials to us.

They are named with a prefix that no volume of Cinder's has. An operator is
not offered them as volumes, cannot make volumes of them, and their size is
none of what was given to users.
"""

from collections.abc import Mapping
import sys
from typing import Any

from cinder import exception
from cinder import objects
from cinder.i18n import _
from cinder.volume import volume_utils

from cinder_cow.drivers import base
from cinder_cow.plugin import rbd_life

Listed = list[dict[str, Any]]


class _Rbd:
    """Module rbd's RBD, which does not tell of our images."""

    def __init__(self, rbd: Any) -> None:  # noqa: ANN401 - an rbd.RBD
        self._rbd = rbd

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any of RBD
        return getattr(self._rbd, name)

    def list(self, ioctx: Any) -> list[str]:  # noqa: ANN401 - rados.Ioctx
        return [name for name in self._rbd.list(ioctx) if not _is_ours(name)]


class NamesRBDDriver(rbd_life.LeakFreeRBDDriver):
    """Upstream's driver without our images and snapshots."""

    def RBDProxy(self) -> _Rbd:
        return _Rbd(super().RBDProxy())

    def manage_existing(
        self, volume: objects.Volume, existing_ref: Mapping[str, str]
    ) -> dict[str, Any]:
        _check_not_ours(existing_ref)
        update: dict[str, Any] = super().manage_existing(volume, existing_ref)
        return update

    def manage_existing_get_size(
        self, volume: objects.Volume, existing_ref: Mapping[str, str]
    ) -> int:
        _check_not_ours(existing_ref)
        size: int = super().manage_existing_get_size(volume, existing_ref)
        return size

    def manage_existing_snapshot(
        self, snapshot: objects.Snapshot, existing_ref: Mapping[str, str] | str
    ) -> None:
        _check_not_ours(existing_ref)
        super().manage_existing_snapshot(snapshot, existing_ref)

    def manage_existing_snapshot_get_size(
        self, snapshot: objects.Snapshot, existing_ref: Mapping[str, str] | str
    ) -> int:
        _check_not_ours(existing_ref)
        size: int = super().manage_existing_snapshot_get_size(
            snapshot, existing_ref
        )
        return size

    def get_manageable_snapshots(  # noqa: PLR0913 - as Cinder calls it
        self,
        cinder_snapshots: Listed,
        marker: Mapping[str, str] | None,
        limit: int | None,
        offset: int,
        sort_keys: list[str],
        sort_dirs: list[str],
    ) -> Listed:
        # A base that was linked hangs on a snapshot of a user's volume.
        found = super().get_manageable_snapshots(
            cinder_snapshots, None, sys.maxsize, 0, sort_keys, sort_dirs
        )
        theirs = [one for one in found if not _is_ours(_name(one))]
        page: Listed = volume_utils.paginate_entries_list(
            theirs, marker, limit, offset, sort_keys, sort_dirs
        )
        return page


def _name(listed: Mapping[str, Any]) -> str:
    return str(listed['reference']['source-name'])


def _is_ours(name: str) -> bool:
    return name.startswith(base.RESERVED_PREFIX)


def _check_not_ours(existing_ref: Mapping[str, str] | str) -> None:
    """Refuse to make a volume or snapshot of what is ours.

    :raises ManageExistingInvalidReference: it is
    """
    name = existing_ref
    if isinstance(existing_ref, Mapping):
        # A missing name is refused by upstream.
        name = existing_ref.get('source-name', '')
    if _is_ours(str(name)):
        raise exception.ManageExistingInvalidReference(
            existing_ref=existing_ref,
            reason=_(
                'Its name begins with "%(prefix)s": it is kept by cinder_cow'
                ' to make volumes of an image. Create a volume from the image'
                ' instead.'
            )
            % {'prefix': base.RESERVED_PREFIX},
        )
