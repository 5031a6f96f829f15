"""A covariate signal as sums by block: what stage one of drift needs of millions of samples.

Used by `signals` (telemetry) and `drift_sums` (the first exit's score); `covariates.Signal` holds
the samples themselves and is the slow reference. Twenty-four bytes a block, whatever the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from trimwheel_pipelines.covariates import Blocks, CovariateSettings, Cut

Floats = npt.NDArray[np.float64]

MOST_BLOCKS: Final = 20_000
"""Of one signal: 208 days of 15 minutes. A longer watch starts again with a new reference."""


@dataclass
class BlockSums:
    """Count, sum and sum of squares in blocks of `block` seconds since `origin`."""

    name: str
    origin: float
    block: float
    sums: Floats = field(default_factory=lambda: np.zeros((3, 0)))
    """[3, blocks]: counts, sums, sums of squares."""

    def add(self, times: Floats, values: Floats) -> None:
        """Take samples, in any order. Those before the origin or beyond the last block are left."""
        index = np.floor((times - self.origin) / self.block)
        inside = (times > self.origin) & (index < MOST_BLOCKS) & np.isfinite(values)
        place, taken = index[inside].astype(np.int64), values[inside]
        if not len(place):
            return
        width = int(place.max()) + 1
        if width > self.sums.shape[1]:
            room = min(MOST_BLOCKS, max(width, 2 * self.sums.shape[1]))
            grown = np.zeros((3, room))
            grown[:, : self.sums.shape[1]] = self.sums
            self.sums = grown
        for row, weights in enumerate((np.ones(len(taken)), taken, taken * taken)):
            self.sums[row, :width] += np.bincount(place, weights=weights, minlength=width)

    def forget(self, before: float) -> None:
        """Drop whole blocks that ended before a moment; the grid stays where it is."""
        count = int((before - self.origin) // self.block)
        if count > 0:
            self.sums = self.sums[:, count:].copy()
            self.origin += count * self.block

    def cut(self, settings: CovariateSettings, since: float, now: float) -> Cut:
        """The whole blocks from the first one that begins at `since` or later."""
        first = max(0, int(np.ceil((since - self.origin) / self.block - 1e-9)))
        start = self.origin + first * self.block
        whole = max(0, int((now - start) // self.block))
        sums = np.zeros((3, whole))
        held = self.sums[:, first : first + whole]
        sums[:, : held.shape[1]] = held
        counts, totals, squares = sums
        early = slice(int(np.ceil(settings.reference / self.block - 1e-9)))
        kept = counts >= settings.minimum_count
        ends = start + (np.arange(whole, dtype=np.float64) + 1.0) * self.block
        blocks = Blocks(ends[kept], totals[kept] / counts[kept], counts[kept])
        spread = _spread(counts[early].sum(), totals[early].sum(), squares[early].sum())
        return Cut(blocks, spread, start)


def _spread(count: float, total: float, square: float) -> float:
    """Standard deviation from sums; 0 where rounding is all there is."""
    if count < 2:
        return 0.0
    mean = total / count
    variance = square / count - mean * mean
    return float(np.sqrt(variance)) if variance > 1e-12 * max(1.0, mean * mean) else 0.0
