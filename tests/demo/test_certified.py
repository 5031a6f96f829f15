"""The benchmarks' certificate: it keeps its promise, and gives full depth when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from trimwheel_api.decide import NEVER
from trimwheel_demo import certified
from trimwheel_pipelines.replay import ReplayRecords


def records(count: int, seed: int) -> ReplayRecords:
    """Two exits whose scores are the true probabilities of agreeing."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(6, 0.4, size=(count, 2)).astype(np.float32)
    return ReplayRecords.build(scores, rng.random((count, 2)) < scores)


def test_promises_break_no_more_often_than_delta_allows() -> None:
    pool = records(50_000, seed=0)
    broken = 0
    for seed in range(100):
        rows = np.random.default_rng(seed).integers(0, len(pool), 1000)
        policy = certified.certify(pool.take(rows), epsilon=0.02, delta=0.1)
        broken += certified.apply(pool, policy, (1, 2, 3)).disagreement > 0.02
    assert broken <= 20  # 99.9 % limit of a binomial(100, 0.1)


def test_too_few_texts_certify_nothing() -> None:
    policy = certified.certify(records(40, seed=1), epsilon=0.02, delta=0.1)
    assert policy == (NEVER, NEVER)
    point = certified.apply(records(40, seed=1), policy, (1, 2, 3))
    assert (point.disagreement, point.cost) == (0.0, 1.0)


def test_cost_is_layers_over_full_depth() -> None:
    table = ReplayRecords.build([[0.9, 0.0], [0.0, 0.9], [0.0, 0.0]], np.ones((3, 2), bool))
    point = certified.apply(table, (0.5, 0.5), (1, 2, 4))
    assert point.cost == pytest.approx((1 + 2 + 4) / 12)
