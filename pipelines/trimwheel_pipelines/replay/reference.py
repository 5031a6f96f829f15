"""Replay with plain booleans: the slow, obvious form that the bitmap kernel is tested against.

Also the exact form for the few chain points that a certificate tests: there it is fast enough.
Agrees with `trimwheel_api.decide.decide` for each single record, ties and roundings included.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trimwheel_api.decide import NEVER
from trimwheel_pipelines.replay.records import ReplayRecords


def as_compared(thresholds: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """`trimwheel_api.decide.as_compared` of each."""
    given = np.asarray(thresholds, dtype=np.float64)
    return np.where(given > 1, NEVER, given).astype(np.float32)


def exits_taken(scores: npt.ArrayLike, thresholds: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Index of the exit that answers each record, E for full depth.

    `scores` [N, E]; `thresholds` [E]. The vectorised form of `decide`.
    """
    table = np.asarray(scores, dtype=np.float32)
    limits = as_compared(thresholds)
    if limits.shape != (table.shape[1],):
        raise ValueError(
            f"thresholds: one for each of the {table.shape[1]} exits, got shape {limits.shape}"
        )
    reached = np.concatenate([table >= limits, np.ones((len(table), 1), bool)], axis=1)
    return np.asarray(reached.argmax(axis=1))


def losses(records: ReplayRecords, thresholds: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """What each record's answer would lose against the dense model's: [N], in [0, 1]."""
    return losses_at(records, exits_taken(records.scores, thresholds))


def losses_at(records: ReplayRecords, taken: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The loss of each record at the exit it takes: [N]; 0 or 1 where losses are not graded."""
    if records.graded is None:
        return wrong_at(records, taken).astype(np.float64)
    return records.graded[np.arange(len(records)), taken].astype(np.float64)


def wrong_at(records: ReplayRecords, taken: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether each record's answer at the exit it takes differs from the dense model's: [N]."""
    agree = np.concatenate([records.agree, records.final_agree[:, None]], axis=1)
    return np.asarray(~agree[np.arange(len(records)), taken])


def replay_reference(
    records: ReplayRecords, vectors: npt.ArrayLike, costs: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean cost and disagreement of each threshold vector.

    `vectors` [V, E]; `costs` [E + 1], what one request costs that leaves at each exit (last: full
    depth). Returns two arrays [V], weighted by `records.weights`.
    """
    table = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
    price = np.asarray(costs, dtype=np.float64)
    weights = records.weights / records.weights.sum()
    cost = np.empty(len(table))
    risk = np.empty(len(table))
    for index, thresholds in enumerate(table):
        cost[index] = weights @ price[exits_taken(records.scores, thresholds)]
        risk[index] = weights @ losses(records, thresholds)
    return cost, risk
