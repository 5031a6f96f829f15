"""Pools of audit records for the benches: made-up, served, or of a trained model.

A pool stands for a whole population: draws are taken from it, and what was decided on a draw is
judged on all of it. Used by `bench_replay` and `bench_certificate`. Trained models come through the
entry-point group `trimwheel.pools` (a function `seed -> Pool`), because this package must not know
the packages that train them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from trimwheel_api.errors import InvalidInput, NotEnoughData
from trimwheel_api.values import NAME_PATTERN
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.replay import ReplayRecords

SYNTHETIC: Final = "synthetic"
POOL_GROUP: Final = "trimwheel.pools"


@dataclass(frozen=True)
class Pool:
    """A population of records with the cost of leaving at each exit."""

    name: str
    records: ReplayRecords
    costs: tuple[float, ...]  # [E + 1]
    sessions: npt.NDArray[np.int64]  # [N]


def load_pool(
    name: str, *, rows: int, exits: int, seed: int, session_length: int, records: str = ""
) -> Pool:
    """The pool that a bench's options name; `records` (`URI#namespace/model`) wins over `name`.

    Raises InvalidInput for an unknown pool, NotEnoughData for an empty one.
    """
    if records:
        return served_pool(records)
    if name == SYNTHETIC:
        return synthetic_pool(rows, exits, seed, session_length)
    known = {entry.name: entry for entry in entry_points(group=POOL_GROUP)}
    if name not in known:
        raise InvalidInput("pool", f"must be one of {sorted([SYNTHETIC, *known])}", name)
    pool = known[name].load()(seed)
    if not isinstance(pool, Pool):
        raise InvalidInput("pool", f"entry point {name!r} must return a Pool", type(pool).__name__)
    return pool


def served_pool(address: str) -> Pool:
    """All audit records that the workers of one model have stored; costs are exits passed."""
    uri, _, model = address.partition("#")
    namespace, _, name = model.partition("/")
    good = re.fullmatch(NAME_PATTERN, namespace) and re.fullmatch(NAME_PATTERN, name)
    if not (uri and good) or ".." in model:
        raise InvalidInput("records", "must look like URI#NAMESPACE/MODEL", address)
    stored = RecordReader(uri, namespace, name).read(0.0)
    if not len(stored):
        raise NotEnoughData(f"audit records of {model} below {uri}", 0, 1)
    predictions = stored.matrix("predictions")
    _, sessions = np.unique(stored.column("session").astype(str), return_inverse=True)
    return Pool(
        address,
        ReplayRecords.from_predictions(stored.matrix("scores"), predictions, predictions[:, -1]),
        tuple(float(depth + 1) for depth in range(predictions.shape[1])),
        sessions.astype(np.int64),
    )


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


def graded_pool(pool: Pool, seed: int) -> Pool:
    """The same requests with losses in [0, 1]: where an exit disagrees it loses a share of the
    answer, drawn once for each request, as when tokens or labels differ in part."""
    share = np.random.default_rng(seed).uniform(0.05, 1.0, len(pool.records))
    wrong = ~np.concatenate([pool.records.agree, pool.records.final_agree[:, None]], axis=1)
    records = pool.records.with_losses(wrong * share[:, None])
    return Pool(f"{pool.name}, graded losses", records, pool.costs, pool.sessions)
