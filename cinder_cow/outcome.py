# SPDX-License-Identifier: Apache-2.0
"""What was done to make a volume, and what did not work on the way."""

import dataclasses
from typing import Self

from cinder_cow import exception
from cinder_cow import plan as plans
from cinder_cow.drivers import base
from cinder_cow.refusal import Reason
from cinder_cow.refusal import Refusal


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A candidate that was refused, or failed when it was tried.

    :param tried: it was possible by the plan, and failed
    :param undo: what could not be undone then, and is left to a sweep
    """

    candidate: plans.Candidate
    refusal: Refusal
    tried: bool = False
    undo: tuple[str, ...] = ()

    @classmethod
    def of(cls, candidate: plans.Candidate, error: exception.CowError) -> Self:
        """Keep why a candidate failed; undoing leaves notes on the error."""
        undo = tuple(getattr(error, '__notes__', ()))
        return cls(candidate, error.refusal, tried=True, undo=undo)


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """One step: its seconds, and the bytes written in it."""

    name: str
    seconds: float
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """A volume was made.

    :param candidate: the one that was used
    :param base_made: its base was made just now, by us
    :param location: what was cloned; empty for a full copy
    :param verified: 'algorithm:value' that its bytes were compared with, now
        or when its base was made; empty for nothing
    :param failures: the candidates before it
    """

    volume: base.VolumeInfo
    candidate: plans.Candidate
    base_made: bool
    location: str
    verified: str
    phases: tuple[Phase, ...]
    failures: tuple[Failure, ...]

    @property
    def method(self) -> plans.Method:
        return {
            plans.Kind.CLONE_LOCATION: plans.Method.CLONE,
            plans.Kind.CLONE_BASE: plans.Method.BASE,
            plans.Kind.PREPARE_BASE: plans.Method.BASE,
            plans.Kind.STREAM: plans.Method.STREAM,
        }[self.candidate.kind]

    @property
    def refusal(self) -> Refusal | None:
        """What mattered most of why no candidate before it was used."""
        found = _cause(_telling(self.failures)) if self.failures else None
        return found if found and found.reason not in _NO_NEWS else None

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def bytes_copied(self) -> int:
        return sum(phase.bytes for phase in self.phases)


# What stands at the end of the candidates anyway.
_NO_NEWS = {Reason.NO_BASE, Reason.FALLBACK_REFUSED}


class NoCandidateError(exception.CowError):
    """No candidate is left; holds them all, and why each one failed.

    What stands in the way of every candidate, an image's fault for
    instance, is what matters; without such a thing, what failed last.
    """

    def __init__(
        self, volume_name: str, failures: tuple[Failure, ...]
    ) -> None:
        self.volume_name = volume_name
        self.failures = failures
        self._telling = _telling(failures)
        super().__init__(self._telling[-1])

    @property
    def cause(self) -> Refusal:
        """What mattered most, besides that copies are forbidden."""
        return _cause(self._telling)

    def __str__(self) -> str:
        reasons = ' Also: '.join(map(str, self._telling))
        return f"Volume '{self.volume_name}' cannot be made: {reasons}"


def _telling(failures: tuple[Failure, ...]) -> list[Refusal]:
    """Pick the refusals that a person should read, each once."""
    candidates: dict[str, set[str]] = {}
    for failure in failures:
        told = candidates.setdefault(str(failure.candidate), set())
        told.add(str(failure.refusal))
    common = set.intersection(*candidates.values())
    refusals = {str(f.refusal): f.refusal for f in failures}
    told_by_all = [r for text, r in refusals.items() if text in common]
    # That there is no base yet is no news where none could be made.
    others = [r for r in refusals.values() if r.reason is not Reason.NO_BASE]
    return told_by_all or others or list(refusals.values())


def _cause(telling: list[Refusal]) -> Refusal:
    news = [r for r in telling if r.reason not in _NO_NEWS]
    return (news or telling)[-1]
