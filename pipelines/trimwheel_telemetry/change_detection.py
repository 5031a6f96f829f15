"""Has the mean loss risen above its bound since some unknown moment, when losses come in clusters?

Called by `trimwheel_pipelines.drift` and `drift_sums` (is the stable policy's promise broken?) and
by `bench drift`.
`evidence.ShiryaevRoberts` treats every audit as independent: nine wrong audits in a row, one burst
of copies, are then as good as nine. `ChangeDetector` runs the same statistic over blocks of audits
and believes each block less, in two ways:

* a block proves no more than `BLOCK_CAP` losses would, so no burst can decide by itself;
* its log likelihood ratio is divided by the design effect: how many times more neighbouring blocks
  differ than those of independent audits. Differences of neighbours see neither the change that is
  looked for, which is a step, nor a slow swing of the traffic.

A loss lies in [0, 1]; for 0 and 1 the ratio is the likelihood ratio of `evidence`, else the bet on
the mean with the same expectation under the bound. State is a few numbers: kept, or recomputed from
all losses since the start, it gives the same. Leaves out sessions (one trial each, the caller's).
Sources: Pollak (1985) for Shiryaev-Roberts, von Neumann (1941) for the variance by differences,
Waudby-Smith and Ramdas (2024) for the bet.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trimwheel_telemetry.evidence import CHANGE_RATIOS

BLOCK_LOSS: Final = 0.5
"""Loss that a block is expected to hold at the bound: 25 audits at 2 %."""
BLOCK_CAP: Final = 4.0
"""Losses of 1 that a block counts at most: at five times the bound it is expected to hold 2.5."""
EFFECT_ERRORS: Final = 0.5
"""Standard errors taken off the design effect, so that chance alone seldom delays an alarm."""


@dataclass(slots=True)
class ChangeDetector:
    """One Shiryaev-Roberts statistic a watched rate, over blocks of trials in order of time.

    Alarms when their mean reaches `threshold / size`, so that independent trials at the bound run
    on average at least `threshold` trials to a false alarm.
    """

    bound: float
    threshold: float
    ratios: tuple[float, ...] = CHANGE_RATIOS
    statistics: list[float] = field(default_factory=list)
    blocks: int = 0
    loss: float = 0.0  # of whole blocks
    squares: float = 0.0  # sum of squared losses of whole blocks
    differences: float = 0.0  # half the sum of squared differences of neighbouring blocks
    last: float = 0.0  # loss of the newest whole block
    partial: list[float] = field(default_factory=list)
    alarmed: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.bound < 1.0 or max(self.ratios) * self.bound >= 1.0:
            raise ValueError(
                f"bound: {max(self.ratios)} times the bound must stay below 1, got {self.bound!r}"
            )
        if not self.statistics:
            self.statistics = [0.0] * len(self.ratios)

    @property
    def size(self) -> int:
        """Trials of a block."""
        return max(1, math.ceil(BLOCK_LOSS / self.bound))

    @property
    def trials(self) -> int:
        """Trials taken so far."""
        return self.blocks * self.size + len(self.partial)

    @property
    def progress(self) -> float:
        """The mean of the statistics over the alarm level; 1 alarms."""
        return float(np.mean(self.statistics)) * self.size / self.threshold

    @property
    def design_effect(self) -> float:
        """How many times more blocks vary than independent trials would; at least 1."""
        trials = self.blocks * self.size
        if self.blocks < 2 or self.loss <= 0.0:
            return 1.0
        mean = self.loss / trials
        spread = self.size * max(self.squares / trials - mean * mean, 1e-12)
        pairs = self.blocks - 1
        observed = self.differences / pairs / spread
        chance = math.sqrt((3.0 + 1.0 / spread) / pairs)
        return max(1.0, observed - EFFECT_ERRORS * chance)

    def update(self, losses: npt.ArrayLike) -> int | None:
        """Take losses in order (1-d, in [0, 1]); return the index that completes the alarm.

        Once alarmed nothing changes: a change has been found, and only a reset (a promotion, a new
        policy) starts again.
        """
        values = np.atleast_1d(np.asarray(losses, dtype=np.float64))
        begun = len(self.partial)
        pending = np.concatenate([np.asarray(self.partial), values])
        whole = len(pending) // self.size * self.size
        for place in range(0, whole, self.size):
            if self.alarmed:
                return None
            self._take(pending[place : place + self.size])
            if self.alarmed:
                self.partial = []
                return place + self.size - begun - 1
        self.partial = [] if self.alarmed else pending[whole:].tolist()
        return None

    def to_state(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        return {**asdict(self), "ratios": list(self.ratios)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ChangeDetector:
        """The inverse of `to_state`."""
        return cls(**{**state, "ratios": tuple(state["ratios"])})

    def _take(self, block: npt.NDArray[np.float64]) -> None:
        total = float(block.sum())
        if self.blocks:
            self.differences += (total - self.last) ** 2 / 2.0
        self.blocks += 1
        self.loss += total
        self.squares += float(block @ block)
        self.last = total
        effect = self.design_effect
        for place, ratio in enumerate(self.ratios):
            bet = (ratio - 1.0) / (1.0 - self.bound)
            won = float(np.log1p(bet * (block - self.bound)).sum())
            most = BLOCK_CAP * math.log1p(bet * (1.0 - self.bound))
            most += (self.size - BLOCK_CAP) * math.log1p(-bet * self.bound)
            evidence = min(won, most) / effect
            self.statistics[place] = (self.statistics[place] + 1.0) * math.exp(evidence)
        self.alarmed = self.progress >= 1.0
