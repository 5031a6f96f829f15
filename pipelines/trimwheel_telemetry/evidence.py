"""E-values: three formulas that stay valid however often one looks.

Called by `verdicts` (rollout guards) and by `trimwheel_pipelines.drift`. An e-value is a bet
against a null hypothesis that cannot win on average when the null holds, so the chance that it
ever reaches `1 / level` is at most `level` (Ville's inequality). A look therefore costs nothing,
and a restarted process recomputes the same number from the same counts.

F1  `log_e_over`, `log_e_under`: events in trials against a fixed bound (a beta mixture).
F2  `log_e_relative`: candidate against stable while the background moves (conditional binomial).
F3  `ShiryaevRoberts`: has the rate risen above its bound since some unknown moment?

Everything is in natural logarithms: the numbers themselves overflow. Leaves out the decision
itself (levels, margins, states of the data), which is `verdicts`.

Sources: Robbins (1970) for mixtures truncated at the null, Shafer (2021) for testing by betting,
Pollak (1985) for Shiryaev-Roberts and its run length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincc, betaln, logsumexp, xlog1py, xlogy

Floats = npt.NDArray[np.float64]

# Prior of `log_e_over`: Beta(1, 0.4 / bound), i.e. a typical violation is a few times the bound.
OVER_PRIOR_SCALE: Final = 0.4
# Multiples of the stable arm's event rate that `log_e_relative` bets on, in equal shares.
RELATIVE_RATIOS: Final = (1.5, 2.0, 4.0, 8.0, 16.0)
# Multiples of the bound that `ShiryaevRoberts` watches for, in equal shares.
CHANGE_RATIOS: Final = (1.5, 2.0, 3.0, 5.0)
# Below this a regularised incomplete beta has lost digits to underflow: use the fraction instead.
_TINY: Final = 1e-280
_FRACTION_STEPS: Final = 10_000
_FRACTION_PRECISION: Final = 1e-15


def log_e_over(events: npt.ArrayLike, trials: npt.ArrayLike, bound: float) -> Floats:
    """Log e-value against "the event rate is at most `bound`" (F1, over).

    `events` and `trials` broadcast against each other; the result has their common shape (a
    0-d array for scalars). Reject, that is conclude that the rate is *above* the bound, at
    `log(1 / level)`. Depends on the two counts alone.

    Raises ValueError when `bound` is not inside (0, 1) or counts are not 0 <= events <= trials.
    """
    return _log_e_count(events, trials, bound, upper=True)


def log_e_under(events: npt.ArrayLike, trials: npt.ArrayLike, bound: float) -> Floats:
    """Log e-value against "the event rate is at least `bound`" (F1, under).

    Reject, that is conclude that the rate is *below* the bound, at `log(1 / level)`. Arguments,
    shape and errors as `log_e_over`.
    """
    return _log_e_count(events, trials, bound, upper=False)


def _log_e_count(events: npt.ArrayLike, trials: npt.ArrayLike, bound: float, upper: bool) -> Floats:
    """Mixture over rates on one side of `bound`, against the likelihood at `bound` itself."""
    k, n = np.broadcast_arrays(
        np.asarray(events, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    )
    if not 0.0 < bound < 1.0:
        raise ValueError(f"bound: must lie inside (0, 1), got {bound!r}")
    if np.any(k < 0) or np.any(k > n):
        raise ValueError("events: must satisfy 0 <= events <= trials in every cell")
    a, c = (1.0, OVER_PRIOR_SCALE / bound) if upper else (1.0, 1.0)
    tail = log_betaincc if upper else log_betainc
    mixture = betaln(a + k, c + n - k) + tail(a + k, c + n - k, bound)
    mixture = mixture - betaln(a, c) - tail(np.float64(a), np.float64(c), bound)
    return np.asarray(mixture - xlogy(k, bound) - xlog1py(n - k, -bound))


def log_betainc(a: npt.ArrayLike, b: npt.ArrayLike, x: float) -> Floats:
    """Log of the regularised incomplete beta I_x(a, b); finite where I itself underflows.

    Relative error about 1e-12 of the logarithm for a, b up to 1e8. `a` and `b` broadcast.
    """
    first, second = np.broadcast_arrays(
        np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    )
    lower = np.asarray(betainc(first, second, x))
    with np.errstate(divide="ignore"):
        # Near 1 the complement keeps the digits that the value itself has rounded away.
        result = np.where(
            lower > 0.5, np.log1p(-np.asarray(betaincc(first, second, x))), np.log(lower)
        )
    lost = lower < _TINY
    if np.any(lost):
        result = np.array(result)
        result[lost] = [
            _log_lower_tail(float(p), float(q), x)
            for p, q in zip(first[lost], second[lost], strict=True)
        ]
    return np.asarray(result)


def log_betaincc(a: npt.ArrayLike, b: npt.ArrayLike, x: float) -> Floats:
    """Log of the complement 1 - I_x(a, b), with the same care as `log_betainc`."""
    return log_betainc(b, a, 1.0 - x)


def _log_lower_tail(a: float, b: float, x: float) -> float:
    """log I_x(a, b) far below the mean, by Lentz's continued fraction (DLMF 8.17.22).

    Only called where I_x(a, b) < 1e-280, hence x << a / (a + b), where it converges in few steps.
    """
    tiny = 1e-300
    front = a * math.log(x) + b * math.log1p(-x) - float(betaln(a, b)) - math.log(a)
    c = 1.0
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny)
    fraction = d
    for m in range(1, _FRACTION_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d, tiny)
            c = _away_from_zero(1.0 + term / c, tiny)
            fraction *= d * c
        if abs(d * c - 1.0) < _FRACTION_PRECISION:
            return front + math.log(fraction)
    raise ArithmeticError(f"log I_x(a, b) did not converge at a={a}, b={b}, x={x}")


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


@dataclass(frozen=True, slots=True)
class Block:
    """Counts of one scrape interval (at most 15 s), summed over workers.

    Short blocks are what makes the comparison fair: within one the background cannot move much,
    so a candidate that gets more traffic during a bad hour is not blamed for the hour.
    """

    candidate_trials: float
    stable_trials: float
    candidate_events: float
    stable_events: float


def log_e_relative(
    blocks: Sequence[Block] | npt.ArrayLike, ratios: Sequence[float] = RELATIVE_RATIOS
) -> float:
    """Log e-value against "the candidate's event rate is at most the stable arm's" (F2).

    `blocks`: `Block` objects, or an array [B, 4] of (nc, ns, kc, ks). Given the events of a block,
    each falls to the candidate with probability `pi_1 = nc / (nc + ns)` under equal rates and
    `pi_r = r nc / (r nc + ns)` when the candidate's rate is r times as high; the e-value is the
    mean over r of the likelihood ratios. The background rate cancels, however it drifts.

    A block in which either arm has no trials says nothing: there is no background to compare
    with (all traffic on the candidate), or an event whose trial was counted a scrape earlier.
    """
    table = blocks_as_array(blocks)
    table = table[(table[:, 0] > 0) & (table[:, 1] > 0)]
    nc, ns, kc, ks = table.T
    r = np.asarray(ratios, dtype=np.float64)[:, None]
    denominator = np.log(r * nc + ns) - np.log(nc + ns)
    log_ratio = kc * (np.log(r) - denominator) - ks * denominator
    return float(logsumexp(log_ratio.sum(axis=1)) - math.log(len(ratios)))


def blocks_as_array(blocks: Sequence[Block] | npt.ArrayLike) -> Floats:
    """[B, 4] of (nc, ns, kc, ks) from `Block` objects or anything array-like of that shape."""
    if not isinstance(blocks, np.ndarray):
        rows: Any = blocks
        blocks = [
            (b.candidate_trials, b.stable_trials, b.candidate_events, b.stable_events)
            if isinstance(b, Block)
            else b
            for b in rows
        ]
    return np.asarray(blocks, dtype=np.float64).reshape(-1, 4)


@dataclass(slots=True)
class ShiryaevRoberts:
    """Has the event rate risen above `bound`? (F3)

    One statistic per watched rate, `R <- (R + 1) * likelihood ratio`; alarm when their mean reaches
    `threshold`. While the rate is at most `bound` the average number of trials to a false alarm
    is at least `threshold`. `statistics` is the whole state: store it and pass it back to resume,
    or feed all trials since the start again, which gives the same.
    """

    bound: float
    threshold: float
    ratios: tuple[float, ...] = CHANGE_RATIOS
    statistics: list[float] = field(default_factory=list)
    trials: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.bound < 1.0 or max(self.ratios) * self.bound >= 1.0:
            raise ValueError(
                f"bound: {max(self.ratios)} times the bound must stay below 1, got {self.bound!r}"
            )
        if not self.statistics:
            self.statistics = [0.0] * len(self.ratios)

    @property
    def value(self) -> float:
        """The mean of the statistics: what is compared with `threshold`."""
        return float(np.mean(self.statistics))

    @property
    def alarmed(self) -> bool:
        """Whether the alarm has been raised (the statistics freeze from then on)."""
        return self.value >= self.threshold

    def update(self, events: npt.ArrayLike) -> int | None:
        """Take trials in order (1-d, true = event); return the index at which it alarms, or None.

        Once alarmed nothing changes: a change has been found, and only a reset (a promotion,
        a new policy) starts anew.
        """
        outcomes = np.atleast_1d(np.asarray(events, dtype=bool))
        if self.alarmed or not len(outcomes):
            return None
        with np.errstate(divide="ignore"):
            log_start = np.log(np.asarray(self.statistics, dtype=np.float64))
        path = _log_shiryaev_roberts(outcomes, self.bound, self.ratios, log_start)
        fired = np.flatnonzero(_log_mean(path) >= math.log(self.threshold))
        last = int(fired[0]) if len(fired) else len(outcomes) - 1
        self.statistics = [float(value) for value in np.exp(path[last])]
        self.trials += last + 1
        return last if len(fired) else None

    def to_state(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        return {
            "bound": self.bound,
            "threshold": self.threshold,
            "ratios": list(self.ratios),
            "statistics": list(self.statistics),
            "trials": self.trials,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ShiryaevRoberts:
        """The inverse of `to_state`."""
        return cls(**{**state, "ratios": tuple(state["ratios"])})


def shiryaev_roberts_run_lengths(
    outcomes: npt.NDArray[np.bool_], bound: float, threshold: float
) -> npt.NDArray[np.int64]:
    """Alarm times of many independent streams at once: `outcomes` [S, T] -> [S], T when none.

    For simulations and backtests; the same recursion as `ShiryaevRoberts.update`.
    """
    start = np.full(len(CHANGE_RATIOS), -np.inf)
    path = _log_shiryaev_roberts(outcomes, bound, CHANGE_RATIOS, start)
    fired = _log_mean(path) >= math.log(threshold)
    return np.asarray(np.where(fired.any(axis=-1), fired.argmax(axis=-1), outcomes.shape[-1]))


def _log_shiryaev_roberts(
    outcomes: npt.NDArray[np.bool_], bound: float, ratios: Sequence[float], log_start: Floats
) -> Floats:
    """log R_j after each trial: outcomes [..., T], log_start [J] -> [..., T, J].

    The recursion unrolled, `R_n = exp(S_n) (R_0 + sum_{i<n} exp(-S_i))` with S the running log
    likelihood ratio, so that a million trials cost one cumulative log-sum-exp.
    """
    rates = np.asarray(ratios) * bound
    step = np.where(outcomes[..., None], np.log(rates / bound), np.log((1 - rates) / (1 - bound)))
    walk = np.cumsum(step, axis=-2)
    before = np.concatenate([np.zeros_like(walk[..., :1, :]), walk[..., :-1, :]], axis=-2)
    terms = -before
    terms[..., 0, :] = np.logaddexp(terms[..., 0, :], log_start)
    return np.asarray(walk + np.logaddexp.accumulate(terms, axis=-2))


def _log_mean(path: Floats) -> Floats:
    """Log of the mean over the last axis of values given as logarithms."""
    return np.asarray(logsumexp(path, axis=-1) - math.log(path.shape[-1]))
