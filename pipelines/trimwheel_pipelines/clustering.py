"""Clusters: how many independent observations a window of audits is worth.

Called by `certificate` for the audits that search and certify. Audits depend on each other in ways
that errors show too late: two sessions of a hundred audits without one error look like two hundred
good audits. So the design effect is *assumed* from what is known before a loss is read, and gives
way to the *observed* one as errors come in:

* sessions: Kish's sum(m^2) / sum(m), as if all audits of a session had the same loss;
* near-copies, whoever sent them: the excess of pairs with alike exit scores at short distances in
  the stream over the share at longer ones. A text that is popular all day is alike at every
  distance and costs nothing (its share is part of the traffic), a burst of copies is not; slow
  swings of the traffic cancel in the difference;
* losses: their covariance within sessions and within `LOSS_LAG` audits.

Pure, deterministic; rows are in order of time. Leaves out the test itself (`loss_tests`).
Sources: Kish (1965) for the effect of equal clusters; the pair form is the variance of a mean of a
stationary sequence, 1 + 2 sum of autocorrelations, with a Gaussian kernel as the correlation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]

SIMILARITY_SCALES: Final = ((0.1, 64), (0.05, 64), (0.01, 0))
"""(bandwidth in ranks, distance in audits); distance 0 is a sixth of the window.

Wide kernels see copies that were edited, and must stay near; the narrow one sees exact copies
scattered over longer, and is blind to a mix of traffic that drifts."""
WINDOW_SHARE: Final = 6
"""A distance is at most this part of the window: the baseline takes up to three times as much."""
LOSS_LAG: Final = 64
"""Audits within which losses of different sessions may be dependent."""
ERROR_GAP: Final = LOSS_LAG // 2
"""Errors in one stretch of so many audits count as one independent error."""
PRIOR_ERRORS: Final = 10.0
"""Independent errors at which the observed effect weighs as much as the assumed one."""
_FAR: Final = 20.0


@dataclass(frozen=True)
class Clusters:
    """What audits belong to, known before any loss is read. N audits in order of time."""

    sessions: npt.NDArray[np.int64]  # [N], numbered from 0
    copies: float  # added to the design effect by near-copies from different sessions

    @classmethod
    def of(cls, scores: npt.ArrayLike, sessions: npt.ArrayLike) -> Clusters:
        """Clusters of audits with exit `scores` [N, E] and a session each [N]."""
        _, member = np.unique(np.asarray(sessions), return_inverse=True)
        table = np.asarray(scores, dtype=np.float64).reshape(len(member), -1)
        return cls(member.astype(np.int64), _copies(table, member.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.sessions)

    @cached_property
    def sizes(self) -> Floats:
        """Audits of each session."""
        return np.bincount(self.sessions).astype(np.float64)

    @property
    def session_effect(self) -> float:
        """Kish's effect of sessions whose audits all share one loss; at least 1."""
        return float(self.sizes @ self.sizes / len(self)) if len(self) else 1.0

    @property
    def assumed_effect(self) -> float:
        """The design effect before any loss is read; from 1 to N."""
        return min(max(float(len(self)), 1.0), self.session_effect + self.copies)

    @property
    def effective(self) -> float:
        """Independent observations that the audits are worth before any loss is read."""
        return len(self) / self.assumed_effect

    def design_effect(self, losses: npt.ArrayLike) -> float:
        """How many times more the mean of `losses` [N] varies than if audits were independent.

        The assumed effect, replaced by the observed one as independent errors come in; from 1 to
        N, and the assumed one while all losses are equal.
        """
        values = np.asarray(losses, dtype=np.float64)
        if not len(values):
            return 1.0
        seen = float(self._independent_errors(values))
        observed = observed_effect(values, self.sessions, self.sizes) if seen else 1.0
        blended = observed * seen + self.assumed_effect * PRIOR_ERRORS
        return float(np.clip(blended / (seen + PRIOR_ERRORS), 1.0, len(self)))

    def _independent_errors(self, losses: Floats) -> int:
        """Losses above 0 in sessions of their own and apart in time."""
        places = np.flatnonzero(losses > 0)
        if not len(places):
            return 0
        apart = len(np.unique(places // ERROR_GAP))
        return min(apart, len(np.unique(self.sessions[places])))


def observed_effect(losses: Floats, sessions: npt.NDArray[np.int64], sizes: Floats) -> float:
    """The design effect that losses show: covariance within sessions and within `LOSS_LAG`.

    1 when all losses are equal; may be below 1 by chance.
    """
    total, mean = len(losses), float(losses.mean())
    spread = float(((losses - mean) ** 2).sum())
    if spread <= 0.0:
        return 1.0
    within = np.bincount(sessions, weights=losses) - mean * sizes
    correction = len(sizes) / (len(sizes) - 1) if len(sizes) > 1 else 1.0
    if len(sizes) == 1:
        return float(total)  # one session is one observation
    near = float(_near_covariance(losses - mean, sessions, min(LOSS_LAG, total // 2)))
    return (correction * float(within @ within) + 2.0 * max(near, 0.0)) / spread


def _copies(scores: Floats, sessions: npt.NDArray[np.int64]) -> float:
    """What near-copies of different sessions add to the design effect; at least 0."""
    total = len(scores)
    if total < 2 * WINDOW_SHARE or scores.shape[1] == 0:
        return 0.0
    ranks = rankdata(scores, axis=0) / total
    longest = total // WINDOW_SHARE
    added = [
        _excess(ranks, sessions, min(reach or longest, longest), bandwidth)
        for bandwidth, reach in SIMILARITY_SCALES
    ]
    return max(0.0, *added)


def _excess(ranks: Floats, sessions: npt.NDArray[np.int64], reach: int, bandwidth: float) -> float:
    """Twice the alike pairs nearer than `reach`, beyond what farther ones let expect, an audit."""
    alike, pairs = _alike_pairs(ranks, sessions, 3 * reach, 0.5 / bandwidth**2)
    far = float(pairs[reach:].sum())
    if not far:
        return 0.0
    baseline = min(float(alike[reach:].sum()) / far, 1.0 - 1e-9)
    near = float((alike[:reach] - baseline * pairs[:reach]).sum())
    # One standard error is chance: without it, independent audits would pay for what is not there.
    chance = math.sqrt(baseline * float(pairs[:reach].sum()))
    return 2.0 * (near - chance) / len(ranks) / (1.0 - baseline)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _alike_pairs(ranks: Any, sessions: Any, reach: int, scale: float) -> Any:
    """Sum of the kernel over pairs of different sessions, and their number, by distance [reach]."""
    total, exits = ranks.shape
    alike = np.zeros(reach)
    pairs = np.zeros(reach)
    for distance in range(1, min(reach, total)):
        for row in range(distance, total):
            other = row - distance
            if sessions[row] == sessions[other]:
                continue
            pairs[distance] += 1.0
            apart = 0.0
            for column in range(exits):
                gap = ranks[row, column] - ranks[other, column]
                apart += gap * gap * scale
                if apart > _FAR:
                    break
            if apart <= _FAR:
                alike[distance] += np.exp(-apart)
    return alike, pairs


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _near_covariance(residuals: Any, sessions: Any, reach: int) -> float:
    """Sum of products of residuals of different sessions less than `reach` audits apart."""
    total = 0.0
    for row in range(len(residuals)):
        for other in range(max(0, row - reach + 1), row):
            if sessions[row] != sessions[other]:
                total += residuals[row] * residuals[other]
    return float(total)
