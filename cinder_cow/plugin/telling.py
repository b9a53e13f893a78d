# SPDX-License-Identifier: Apache-2.0
"""Where operators and users look: what was done, and why not otherwise.

Operators find it in the admin metadata of a volume, which the API shows to
nobody; users in their messages, where the volume was copied or failed. That
it cannot be told is logged, and never fails a volume.
"""

import functools
from typing import TypeAlias

from cinder import context as cinder_context
from cinder import objects
from cinder.message import api as message_api
from cinder.message import message_field
from oslo_log import log as logging

from cinder_cow import plan as plans
from cinder_cow import refusal as refusals
from cinder_cow.refusal import Reason

LOG = logging.getLogger(__name__)

# Besides those of :class:`.plan.Method`: Cinder makes it, or nobody does.
CINDER = 'cinder'
REFUSED = 'refused'

# Characters that Cinder's database keeps of a value.
_MOST = 255

_Detail: TypeAlias = tuple[str, str]

# A user is shown one of Cinder's own sentences: the nearest.
_NEAREST: dict[Reason, _Detail] = {
    **dict.fromkeys(
        (
            Reason.NO_SPACE,
            Reason.NO_SCRATCH_SPACE,
            Reason.IMAGE_TOO_LARGE,
            Reason.EXPANDS_TOO_FAR,
            Reason.VOLUME_TOO_SMALL,
        ),
        message_field.Detail.NOT_ENOUGH_SPACE_FOR_IMAGE,
    ),
    **dict.fromkeys(
        (
            Reason.NOT_RAW,
            Reason.FORMAT_MISMATCH,
            Reason.FORMAT_UNSUPPORTED,
            Reason.BACKING_FILE,
            Reason.DATA_FILE,
            Reason.UNKNOWN_FEATURES,
            Reason.ENCRYPTED,
            Reason.OWN_KEY,
        ),
        message_field.Detail.IMAGE_FORMAT_UNACCEPTABLE,
    ),
    Reason.SIGNATURE_INVALID: (
        message_field.Detail.SIGNATURE_VERIFICATION_FAILED
    ),
}


def tell(
    context: cinder_context.RequestContext,
    volume: objects.Volume,
    method: str,
    refusal: refusals.Refusal | None,
) -> None:
    """Tell how a volume was made, or is left to Cinder, or refused.

    :param context: of who asked for it
    :param method: a value of ``plans.Method``, CINDER or REFUSED
    :param refusal: why not by a method that comes before this one
    """
    try:
        _tell_operators(volume, method, refusal)
        if refusal and method not in _WITHOUT_COPY:
            _tell_users(context, volume, method, refusal)
    except Exception:
        LOG.exception('How volume %s was made is not told', volume.name)


_WITHOUT_COPY = {plans.Method.CLONE.value, plans.Method.BASE.value}


def _tell_operators(
    volume: objects.Volume, method: str, refusal: refusals.Refusal | None
) -> None:
    told = {'cow:method': method, 'cow:reason': '', 'cow:remedy': ''}
    if refusal:
        code = refusal.reason.value
        told['cow:reason'] = _bounded(f'{code}: {refusal.detail}')
        told['cow:remedy'] = _bounded(refusal.remedy)
    # All three, so that nothing is left of an attempt on another host.
    with volume.obj_as_admin():
        volume.admin_metadata_update(told, delete=False)
    # It is written. Else each later save() of the volume would write it
    # again, and delete what others have added meanwhile.
    volume.obj_reset_changes(['admin_metadata'])


def _tell_users(
    context: cinder_context.RequestContext,
    volume: objects.Volume,
    method: str,
    refusal: refusals.Refusal,
) -> None:
    _messages().create(
        context,
        message_field.Action.COPY_IMAGE_TO_VOLUME,
        resource_uuid=volume.id,
        detail=_NEAREST.get(
            refusal.reason, message_field.Detail.DRIVER_FAILED_CREATE
        ),
        level='ERROR' if method == REFUSED else 'WARNING',
    )


@functools.cache
def _messages() -> message_api.API:
    # Once: making it throws away the connections to the database.
    return message_api.API()


def _bounded(text: str) -> str:
    return refusals.printable(text, _MOST)
