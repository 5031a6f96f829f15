"""What Prometheus may answer, as values: an absent, stale or partial answer is not an exception.

Made by `client`, matched by whoever decides:

    match prometheus.raw(selector, since, now):
        case Ok(series): ...
        case Empty() | NotANumber() | Stale() | Partial() | Unreachable() as gap:
            ...  # never a Pass; gap.reason is a sentence for people

Holds data only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of an instant query."""

    labels: Mapping[str, str]
    time: float  # Unix seconds; of the evaluation, not of the scrape
    value: float


@dataclass(frozen=True, slots=True)
class Series:
    """One labelled line of samples, oldest first, without NaN."""

    labels: Mapping[str, str]
    times: Floats  # Unix seconds
    values: Floats

    def __post_init__(self) -> None:
        if len(self.times) != len(self.values):
            raise ValueError(
                f"series: {len(self.times)} times for {len(self.values)} values of {self.labels}"
            )


@dataclass(frozen=True, slots=True)
class Ok:
    """A whole, fresh answer; exactly one of the two lists is filled, by the kind of query."""

    series: tuple[Series, ...] = ()
    samples: tuple[Sample, ...] = ()
    reason: str = field(default="", init=False)


@dataclass(frozen=True, slots=True)
class Empty:
    """The query is right and there is nothing: no series matches."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotANumber:
    """Series match, and every value is NaN (0 / 0 in a ratio without traffic)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stale:
    """The newest sample is older than it may be; what there is comes along for display."""

    age: float  # seconds
    reason: str
    series: tuple[Series, ...] = ()


@dataclass(frozen=True, slots=True)
class Partial:
    """Prometheus answered with warnings, or some values were NaN; the rest comes along."""

    warnings: tuple[str, ...]
    reason: str
    series: tuple[Series, ...] = ()
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer in time, or not from a Prometheus."""

    reason: str


Answer = Ok | Empty | NotANumber | Stale | Partial | Unreachable


def series_of(answer: Answer) -> tuple[Series, ...]:
    """The series of an answer that may be used as evidence: those of `Ok`, else none."""
    return answer.series if isinstance(answer, Ok) else ()
