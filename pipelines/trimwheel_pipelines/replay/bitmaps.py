"""Bitmaps of recorded scores, and the batched scoring of threshold vectors on them.

Used by `chain` and by the bench. A score axis is cut at up to 256 levels, each a threshold that a
policy can carry (four decimals), so a vector of levels *is* a policy and its replayed counts are
exact for that policy, not an approximation. Records of different weight (an audit rate that was
raised in between) go to separate tables, since there are only a few propensities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimwheel_api.decide import NEVER
from trimwheel_pipelines.replay.kernel import Levels, Words, count_sorted, vector_kernel
from trimwheel_pipelines.replay.records import ReplayRecords
from trimwheel_pipelines.replay.reference import as_compared

LEVELS = 256
DECIMALS = 4
_WORD_BITS = 64
_LINE_WORDS = 8


@dataclass(frozen=True)
class Outcome:
    """What a batch of V vectors would have done, as means over the (weighted) records."""

    cost: npt.NDArray[np.float64]  # [V], in the unit of the costs given
    risk: npt.NDArray[np.float64]  # [V], share whose answer differs from the dense model's


@dataclass(frozen=True)
class _Part:
    """The records of one weight."""

    weight: float  # weight of each record over the sum of all weights
    table: Words  # [E, levels + 1, W]; the last level is "never"
    differs: Words  # [E + 1, W]
    everyone: Words  # [W]


class ReplayTable:
    """Records prepared for scoring; build once, score many batches."""

    def __init__(self, records: ReplayRecords, levels: int = LEVELS) -> None:
        """`levels`: most thresholds an exit is cut at, at most 65,535.

        Raises ValueError when there is no record.
        """
        if not len(records):
            raise ValueError("records: replay needs at least one record, got none")
        self.exits = records.exits
        self.edges = [_edges(records.scores[:, e], levels) for e in range(records.exits)]
        self.levels = max(len(edges) for edges in self.edges)
        total = float(records.weights.sum())
        self._parts = [
            self._part(records.take(records.weights == weight), float(weight) / total)
            for weight in np.unique(records.weights)
        ]

    def _part(self, records: ReplayRecords, weight: float) -> _Part:
        table = _aligned(self.exits, self.levels + 1, _words(len(records)))
        for e, edges in enumerate(self.edges):
            limits = as_compared(edges)
            table[e, : len(limits)] = _bits(records.scores[:, e] >= limits[:, None])
        agree = np.concatenate([records.agree, records.final_agree[:, None]], axis=1)
        return _Part(weight, table, _bits(~agree.T), _bits(np.ones(len(records), bool)))

    @property
    def never(self) -> int:
        """The level index that means "do not use this exit"."""
        return self.levels

    def levels_of(self, vectors: npt.ArrayLike) -> Levels:
        """Level indices [V, E] of threshold vectors, each rounded *up* to the next level.

        Rounding up exits less, hence never looks cheaper than the vector asked for. Thresholds
        above every level become "never".
        """
        table = np.atleast_2d(as_compared(vectors))
        result = np.empty(table.shape, np.uint16)
        for e, edges in enumerate(self.edges):
            index = np.searchsorted(as_compared(edges), table[:, e], side="left")
            result[:, e] = np.where(index == len(edges), self.never, index)
        return result

    def thresholds_of(self, vectors: Levels) -> npt.NDArray[np.float64]:
        """The thresholds behind level indices: the inverse of `levels_of` on levels. [V, E]"""
        padded = np.full((self.exits, self.levels + 1), NEVER)
        for e, edges in enumerate(self.edges):
            padded[e, : len(edges)] = edges
        return padded[np.arange(self.exits), np.atleast_2d(vectors)]

    def score(self, vectors: Levels, costs: npt.ArrayLike, *, sorted_grid: bool = False) -> Outcome:
        """Replay level vectors [V, E] at `costs` [E + 1], the cost of leaving at each exit.

        `sorted_grid` picks the kernel that reuses the prefixes shared by consecutive vectors.
        Raises ValueError when a shape or a level does not fit this table.
        """
        batch = np.ascontiguousarray(np.atleast_2d(vectors), dtype=np.uint16)
        price = np.ascontiguousarray(costs, dtype=np.float64)
        if batch.shape[1] != self.exits or (batch.size and int(batch.max()) > self.never):
            raise ValueError(
                f"vectors: must be [V, {self.exits}] of levels up to {self.never}, "
                f"got shape {batch.shape}"
            )
        if price.shape != (self.exits + 1,):
            raise ValueError(
                f"costs: one for each exit and full depth ({self.exits + 1}), "
                f"got shape {price.shape}"
            )
        kernel = count_sorted if sorted_grid else vector_kernel(self.exits)
        total = Outcome(np.zeros(len(batch)), np.zeros(len(batch)))
        cost, wrong = np.empty(len(batch)), np.empty(len(batch))
        for part in self._parts:
            kernel(batch, part.table, part.differs, part.everyone, price, cost, wrong)
            total.cost[:] += part.weight * cost
            total.risk[:] += part.weight * wrong
        return total

    def score_thresholds(self, vectors: npt.ArrayLike, costs: npt.ArrayLike) -> Outcome:
        """`score` for thresholds instead of levels (rounded up as `levels_of` says)."""
        return self.score(self.levels_of(vectors), costs)


def _edges(scores: npt.NDArray[np.float32], levels: int) -> npt.NDArray[np.float64]:
    """Distinct four-decimal thresholds at the quantiles of one exit's scores, ascending.

    Floored, so that the top level still lets the highest scores out.
    """
    quantiles = np.quantile(scores.astype(np.float64), np.linspace(0.0, 1.0, levels))
    unit = 10.0**DECIMALS
    return np.unique(np.clip(np.floor(quantiles * unit) / unit, 0.0, 1.0))


def _words(records: int) -> int:
    """Words for this many records, in whole cache lines so that no vector load straddles two."""
    lines = -(-records // (_WORD_BITS * _LINE_WORDS))
    return lines * _LINE_WORDS


def _aligned(*shape: int) -> Words:
    """Zeroed words that start on a cache line."""
    size = int(np.prod(shape))
    raw = np.zeros(size + _LINE_WORDS, np.uint64)
    offset = (-raw.ctypes.data % (8 * _LINE_WORDS)) // 8
    return raw[offset : offset + size].reshape(shape)


def _bits(mask: npt.NDArray[np.bool_]) -> Words:
    """Pack boolean columns [..., N] into 64-bit words [..., W], zero-padded."""
    words = _aligned(*mask.shape[:-1], _words(mask.shape[-1]))
    packed = np.packbits(mask, axis=-1, bitorder="little")
    words.view(np.uint8)[..., : packed.shape[-1]] = packed
    return words
