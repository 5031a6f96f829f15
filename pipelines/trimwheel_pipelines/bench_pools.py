"""Pools of audit records for the benches: synthetic ones, and those of a trained model.

A pool stands for a whole population: draws are taken from it, and what was decided on a draw is
judged on all of it. Used by `bench_replay` and `bench_certificate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from trimwheel_pipelines.replay import ReplayRecords

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Pool:
    """A population of records with the cost of leaving at each exit."""

    name: str
    records: ReplayRecords
    costs: tuple[float, ...]  # [E + 1]
    sessions: npt.NDArray[np.int64]  # [N]


def synthetic_pool(rows: int, exits: int, seed: int, session_length: int = 1) -> Pool:
    """Made-up records in which deeper exits agree more and scores are honest but noisy.

    Each request has a difficulty that its session shares in part; exit e agrees with full depth
    with a probability falling in difficulty, and its score is a noisy estimate of that
    probability. Costs are layers: exit e costs e + 1 of `exits + 1`.
    """
    rng = np.random.default_rng(seed)
    sessions = np.arange(rows) // session_length
    shared = rng.normal(size=sessions[-1] + 1)[sessions]
    difficulty = np.sqrt(0.5) * (shared + rng.normal(size=rows))
    depth = np.linspace(0.5, 3.5, exits)
    logit = 1.2 * (depth - 1.6 * difficulty[:, None]) + 1.0
    agree = rng.random((rows, exits)) < expit(logit)
    scores = expit(logit + rng.normal(scale=0.7, size=logit.shape))
    return Pool(
        SYNTHETIC,
        ReplayRecords.build(scores, agree),
        tuple(float(e + 1) for e in range(exits + 1)),
        sessions,
    )
