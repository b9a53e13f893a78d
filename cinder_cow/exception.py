# SPDX-License-Identifier: Apache-2.0
"""Errors. Each holds a refusal: a reason, its facts and the remedy.

Three kinds, told apart by what can be done next:

* :class:`RequestError`: what was asked for cannot be; ask for something else.
* :class:`ImageError`: the image is at fault; no way of making it will do.
* :class:`BackendError`: this attempt failed; another candidate may succeed.
"""

from typing import Any, Self

from cinder_cow import refusal as refusals


class CowError(Exception):
    """Base of all our errors."""

    def __init__(self, refusal: refusals.Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal

    @classmethod
    def because(cls, reason: refusals.Reason, **facts: Any) -> Self:  # noqa: ANN401
        """Make the error from a reason and its facts."""
        return cls(refusals.refuse(reason, **facts))

    @property
    def reason(self) -> refusals.Reason:
        return self.refusal.reason

    def __str__(self) -> str:
        return str(self.refusal)


class RequestError(CowError):
    """The request itself cannot be met: a name in use, a size too small."""


class ImageError(CowError):
    """The image is not what it claims, or is not safe."""


class BackendError(CowError):
    """The back end or a tool failed; nothing half-made was published."""
