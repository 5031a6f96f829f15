"""Clusters: what audits are worth before any loss is read, and what losses make of it."""

from __future__ import annotations

import numpy as np
import pytest

from trimwheel_api.errors import InvalidInput
from trimwheel_pipelines.bench_pools import Pool, synthetic_pool
from trimwheel_pipelines.bench_populations import population
from trimwheel_pipelines.clustering import (
    LOSS_LAG,
    Clusters,
    _alike_pairs,
    _near_covariance,
    observed_effect,
)

AUDITS = 1_500


@pytest.fixture(scope="module")
def pool() -> Pool:
    return synthetic_pool(20_000, 5, seed=0)


def assumed(pool: Pool, name: str, seed: int = 1, audits: int = AUDITS) -> float:
    records, sessions = population(name).stream(pool, audits, np.random.default_rng(seed))
    return Clusters.of(records.scores, sessions).assumed_effect


def test_independent_audits_are_worth_their_number(pool: Pool) -> None:
    effects = [assumed(pool, "independent", seed) for seed in range(10)]
    assert max(effects) < 1.2
    assert np.median(effects) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("name", "kish"),
    [
        ("repeat:4", 4.0),
        ("repeat:20", 20.0),
        ("bursts:3", 1 + 0.3 * 2),
        ("bursts:10", 1 + 0.3 * 9),
        ("bursts:30", 1 + 0.3 * 29),
        ("bursts:30:0.5", 1 + 0.5 * 29),
    ],
)
def test_clusters_are_seen_before_any_loss(pool: Pool, name: str, kish: float) -> None:
    effects = [assumed(pool, name, seed) for seed in range(5)]
    assert 0.75 * kish < np.median(effects) < 1.25 * kish


def test_a_popular_text_and_a_day_that_swings_are_no_clusters(pool: Pool) -> None:
    rng = np.random.default_rng(2)
    rows = rng.integers(0, len(pool.records), AUDITS)
    rows[rng.random(AUDITS) < 0.1] = 7
    popular = Clusters.of(pool.records.take(rows).scores, np.arange(AUDITS))
    assert popular.assumed_effect < 1.6
    order = np.argsort(pool.records.scores[:, 0])
    swing = rng.random(AUDITS) ** np.exp(0.7 * np.sin(2 * np.pi * np.arange(AUDITS) / AUDITS))
    day = pool.records.take(order[(swing * len(order)).astype(int)])
    assert Clusters.of(day.scores, np.arange(AUDITS)).assumed_effect < 1.4


def test_one_session_is_one_observation() -> None:
    clusters = Clusters.of(np.random.default_rng(3).random((200, 2)), np.zeros(200))
    assert clusters.assumed_effect == 200
    assert clusters.effective == 1
    assert clusters.design_effect(np.arange(200) % 2) == 200


def test_losses_of_0_leave_the_assumed_effect_and_errors_replace_it() -> None:
    rng = np.random.default_rng(4)
    sessions = np.arange(4_000) // 4
    clusters = Clusters.of(rng.random((4_000, 3)), sessions)
    assert clusters.design_effect(np.zeros(4_000)) == clusters.assumed_effect
    few, many = np.zeros(4_000), (rng.random(4_000) < 0.2).astype(float)
    few[[5, 1_000, 3_000]] = 1.0
    assert 2.5 < clusters.design_effect(few) < 4.0
    assert clusters.design_effect(many) < 2.0
    together = np.repeat(rng.random(1_000) < 0.2, 4).astype(float)
    assert clusters.design_effect(together) == pytest.approx(4.0, rel=0.2)


def test_errors_in_runs_of_different_sessions_are_seen_where_scores_show_nothing() -> None:
    rng = np.random.default_rng(5)
    scores = rng.random((6_000, 3))
    wrong = np.repeat(rng.random(1_200) < 0.05, 5).astype(float)
    assert Clusters.of(scores, np.arange(6_000)).design_effect(wrong) == pytest.approx(5.0, rel=0.5)


def test_the_kernels_count_as_plain_loops_do() -> None:
    rng = np.random.default_rng(6)
    ranks, sessions = rng.random((60, 2)), rng.integers(0, 20, 60)
    alike, pairs = _alike_pairs(ranks, sessions, 10, 50.0)
    for distance in range(1, 10):
        rows = [row for row in range(distance, 60) if sessions[row] != sessions[row - distance]]
        gaps = [((ranks[row] - ranks[row - distance]) ** 2).sum() * 50.0 for row in rows]
        assert pairs[distance] == len(rows)
        assert alike[distance] == pytest.approx(np.exp(-np.array(gaps)).sum(), abs=1e-6)
    residuals = rng.normal(size=60)
    plain = sum(
        residuals[i] * residuals[j]
        for i in range(60)
        for j in range(max(0, i - 9), i)
        if sessions[i] != sessions[j]
    )
    assert _near_covariance(residuals, sessions, 10) == pytest.approx(plain)


def test_observed_effects_of_graded_losses_are_those_of_their_clusters() -> None:
    rng = np.random.default_rng(7)
    losses = np.repeat(rng.random(2_000) * (rng.random(2_000) < 0.3), 3)
    sessions = np.repeat(np.arange(2_000), 3)
    sizes = np.full(2_000, 3.0)
    assert observed_effect(losses, sessions, sizes) == pytest.approx(3.0, rel=0.15)
    assert observed_effect(np.full(90, 0.5), np.arange(90), np.ones(90)) == 1.0
    assert LOSS_LAG < 90


@pytest.mark.parametrize(
    "text",
    ["", "repeat", "repeat:0", "repeat:-1", "repeat:x", "repeat:1:2", "bursts:3:0", "bursts:3:nan",
     "bursts:3:1", "bursts:1e9", "bursts", "mixed:2", "independent:1", "repeat:99999999999"],
)  # fmt: skip
def test_a_population_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="population"):
        population(text)


@pytest.mark.parametrize("name", ["independent", "repeat:7", "bursts:5", "bursts:5:0.6", "mixed"])
def test_every_population_draws_requests_of_the_pool_evenly(pool: Pool, name: str) -> None:
    rng = np.random.default_rng(8)
    means = []
    for _ in range(6):
        records, sessions = population(name).stream(pool, 6_000, rng)
        assert len(records) == len(sessions) == 6_000
        means.append(1 - records.agree[:, 0].mean())
    assert np.mean(means) == pytest.approx(1 - pool.records.agree[:, 0].mean(), rel=0.1)
