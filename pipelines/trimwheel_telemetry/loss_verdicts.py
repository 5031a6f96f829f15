"""Is a mean loss above its bound, below it, or not known yet? For losses of 0 and 1, and between.

One interface, two implementations: `CountedLosses` for a loss that is right or wrong (F1 of
`evidence`, exact, from two counts) and `BetLosses` for any loss in [0, 1]. Both may be asked after
every loss: the chance of a Fail while the mean is at most `bound`, over all looks, is at most
`alpha`, and of a Pass while it is at least `margin * bound` at most `beta`.

Guards judge counters and use F1 through `verdicts`; this is what judges losses themselves, in
benches today. Pure. Source: Waudby-Smith and Ramdas (2024) for bets against a mean, here on a fixed
grid, so that sums in any order give the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from trimwheel_telemetry.evidence import log_e_over, log_e_under
from trimwheel_telemetry.verdicts import Verdict

Floats = npt.NDArray[np.float64]

RATIOS_ABOVE: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Multiples of the bound that bets against "at most the bound" are best for, in equal shares."""
SHARES_BELOW: Final = (0.1, 0.25, 0.5, 0.75, 0.95)
"""Parts of the largest admissible bet against "at least the bound", in equal shares."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A bound on a mean loss, and how sure a verdict must be."""

    bound: float
    alpha: float = 0.001
    beta: float = 0.05
    margin: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.bound < 1.0 and self.margin >= 1.0 and self.margin * self.bound < 1.0):
            raise ValueError(
                f"bound, margin: the bound and margin times the bound must lie inside (0, 1), with "
                f"a margin of at least 1, got {self.bound!r} and {self.margin!r}"
            )


class LossVerdict(Protocol):
    """Takes losses and says what they prove."""

    def observe(self, losses: npt.ArrayLike) -> None:
        """Take losses, each in [0, 1]. Raises ValueError for one that is not."""
        ...

    def verdict(self) -> Verdict:
        """Pass, Fail or NotEnoughEvidence on everything observed so far."""
        ...


@dataclass(slots=True)
class CountedLosses:
    """Losses of 0 and 1, by their two counts."""

    promise: Promise
    events: float = 0.0
    trials: float = 0.0

    def observe(self, losses: npt.ArrayLike) -> None:
        """As `LossVerdict.observe`; anything but 0 and 1 is refused, not rounded."""
        values = _checked(losses)
        if np.any((values != 0.0) & (values != 1.0)):
            raise ValueError("losses: must be 0 or 1; graded losses are bet on (BetLosses)")
        self.events += float(values.sum())
        self.trials += len(values)

    def verdict(self) -> Verdict:
        """As `LossVerdict.verdict`."""
        promise = self.promise
        over = float(log_e_over(self.events, self.trials, promise.bound))
        under = float(log_e_under(self.events, self.trials, promise.margin * promise.bound))
        return _decided(over, under, promise)


@dataclass(slots=True)
class BetLosses:
    """Losses in [0, 1], by the capital of a fixed grid of bets."""

    promise: Promise
    above: Floats = field(default_factory=lambda: np.zeros(len(RATIOS_ABOVE)))
    below: Floats = field(default_factory=lambda: np.zeros(len(SHARES_BELOW)))

    def observe(self, losses: npt.ArrayLike) -> None:
        """As `LossVerdict.observe`."""
        values = _checked(losses)[:, None]
        bound, limit = self.promise.bound, self.promise.margin * self.promise.bound
        # A bet of (r - 1) / (1 - b) is the likelihood ratio of r b against b where losses are 0, 1.
        up = np.minimum((np.array(RATIOS_ABOVE) - 1.0) / (1.0 - bound), 0.95 / bound)
        down = np.array(SHARES_BELOW) / (1.0 - limit)
        self.above = self.above + np.log1p(up * (values - bound)).sum(axis=0)
        self.below = self.below + np.log1p(down * (limit - values)).sum(axis=0)

    def verdict(self) -> Verdict:
        """As `LossVerdict.verdict`."""
        over = float(logsumexp(self.above)) - math.log(len(self.above))
        under = float(logsumexp(self.below)) - math.log(len(self.below))
        return _decided(over, under, self.promise)


def _checked(losses: npt.ArrayLike) -> Floats:
    values = np.atleast_1d(np.asarray(losses, dtype=np.float64))
    if not np.all((values >= 0.0) & (values <= 1.0)):
        raise ValueError("losses: must lie in [0, 1]")
    return values


def _decided(over: float, under: float, promise: Promise) -> Verdict:
    if over >= math.log(1.0 / promise.alpha):
        return Verdict.FAIL
    if under >= math.log(1.0 / promise.beta):
        return Verdict.PASS
    return Verdict.NOT_ENOUGH_EVIDENCE
