"""Tests of "the mean loss is at most epsilon", for losses of 0 and 1 and for losses between.

Called by `certificate`. One interface, two implementations: the binomial tail is exact for a loss
that is right or wrong; betting against the mean holds for any loss in [0, 1], such as the share of
differing tokens. Both take a design effect: the binomial shrinks its counts by it, betting tempers
its capital (an effect of 1 is the plain test).

Sources: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting"
(aGRAPA bets); Ville (1939) for the bound on the largest capital.
"""

from __future__ import annotations

import math
from typing import Any, Final, Protocol

import numba
import numpy as np
import numpy.typing as npt
from scipy.special import betaincc, betainccinv

Floats = npt.NDArray[np.float64]

BET_CAPS: Final = (0.5, 0.75, 0.95)
"""Shares of the largest admissible bet at which aGRAPA is capped; the capital is split evenly.

A careful cap survives an early loss of 1, a bold one needs half the audits without a loss."""
PRIOR_AUDITS: Final = 10.0
"""Weight of the guess (half the bound) that the first bets rest on."""
_HALVINGS: Final = 40


class LossTest(Protocol):
    """A one-sided test of a mean loss and the limit that inverts it."""

    name: str

    def p_value(self, losses: npt.ArrayLike, effect: float, bound: float) -> float:
        """Chance of losses so small if their mean were `bound`: losses [N] in order of time."""
        ...

    def upper_limit(self, losses: npt.ArrayLike, effect: float, level: float) -> float:
        """The largest mean that is not refuted at `level`; at most 1."""
        ...

    def least_audits(self, bound: float, level: float) -> int:
        """Independent audits without any loss that just pass."""
        ...


class BinomialTest:
    """Losses are 0 or 1: the exact tail P(Bin(N, bound) <= errors), counts over the effect."""

    name = "binomial"

    def p_value(self, losses: npt.ArrayLike, effect: float, bound: float) -> float:
        """As `LossTest.p_value`."""
        values = np.asarray(losses, dtype=np.float64)
        return p_value(int(values.sum()), len(values), effect, bound)

    def upper_limit(self, losses: npt.ArrayLike, effect: float, level: float) -> float:
        """As `LossTest.upper_limit`."""
        values = np.asarray(losses, dtype=np.float64)
        return upper_limit(int(values.sum()), len(values), effect, level)

    def least_audits(self, bound: float, level: float) -> int:
        """As `LossTest.least_audits`."""
        return math.ceil(math.log(level) / math.log1p(-bound)) if bound > 0 else 2**31


class BettingTest:
    """Losses lie in [0, 1]: the largest capital won by betting that the mean is below the bound."""

    name = "betting"

    def p_value(self, losses: npt.ArrayLike, effect: float, bound: float) -> float:
        """As `LossTest.p_value`."""
        values = np.ascontiguousarray(losses, dtype=np.float64)
        if bound <= 0.0 or not len(values):
            return 1.0
        won = _largest_log_capital(values, min(bound, 1.0 - 1e-9), np.asarray(BET_CAPS))
        return float(math.exp(-max(won, 0.0) / effect))

    def upper_limit(self, losses: npt.ArrayLike, effect: float, level: float) -> float:
        """As `LossTest.upper_limit`: found by halving, to 1e-9 or better."""
        low, high = 0.0, 1.0
        if self.p_value(losses, effect, high) > level:
            return 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            refuted = self.p_value(losses, effect, middle) <= level
            low, high = (low, middle) if refuted else (middle, high)
        return high

    def least_audits(self, bound: float, level: float) -> int:
        """As `LossTest.least_audits`."""
        if bound <= 0:
            return 2**31
        size = 64
        while self.p_value(np.zeros(size), 1.0, bound) > level:
            size *= 2
        low, high = size // 2, size
        while high - low > 1:
            middle = (low + high) // 2
            passes = self.p_value(np.zeros(middle), 1.0, bound) <= level
            low, high = (low, middle) if passes else (middle, high)
        return high


BINOMIAL: Final = BinomialTest()
BETTING: Final = BettingTest()


def p_value(errors: int, audits: int, effect: float, bound: float) -> float:
    """Chance of so few errors at a rate of `bound`, with counts shrunk by the design effect.

    For effect 1 this is the exact binomial tail P(Bin(audits, bound) <= errors).
    """
    if errors >= audits or bound <= 0.0:
        return 1.0
    return float(betaincc(errors / effect + 1.0, (audits - errors) / effect, bound))


def upper_limit(errors: int, audits: int, effect: float, level: float) -> float:
    """One-sided upper confidence limit of the rate: the bound at which `p_value` equals `level`."""
    if errors >= audits:
        return 1.0
    return float(betainccinv(errors / effect + 1.0, (audits - errors) / effect, level))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _largest_log_capital(losses: Any, bound: float, caps: Any) -> float:
    """log of the largest capital reached by betting against "the mean is at least `bound`"."""
    capital = np.zeros(len(caps))
    weight = PRIOR_AUDITS
    total = weight * bound / 2
    squares = weight * bound / 4
    largest = 0.0
    for loss in losses:
        mean = total / weight
        spread = max(squares / weight - mean * mean, 1e-12)
        edge = bound - mean
        bet = max(0.0, edge / (spread + edge * edge))
        peak = -np.inf
        for place in range(len(caps)):
            capped = min(bet, caps[place] / (1.0 - bound))
            capital[place] += np.log1p(-capped * (loss - bound))
            peak = max(peak, capital[place])
        won = 0.0
        for place in range(len(caps)):
            won += np.exp(capital[place] - peak)
        largest = max(largest, peak + np.log(won / len(caps)))
        weight += 1.0
        total += loss
        squares += loss * loss
    return largest
