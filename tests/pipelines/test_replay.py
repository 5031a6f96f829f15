"""Replay: bitmaps and kernels count exactly what plain booleans count, which is what decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimwheel_api.decide import as_compared, decide
from trimwheel_pipelines.replay import (
    NEVER,
    ReplayRecords,
    ReplayTable,
    exits_taken,
    losses,
    replay_reference,
)


def make_records(
    rows: int, exits: int, seed: int, *, ties: bool = False, weights: bool = False
) -> ReplayRecords:
    rng = np.random.default_rng(seed)
    scores = rng.random((rows, exits))
    if ties:
        scores = np.round(scores, 1)
    return ReplayRecords.build(
        scores,
        rng.random((rows, exits)) < 0.6,
        rng.random(rows) < 0.9,
        rng.choice([0.02, 0.2, 0.5], rows) if weights else None,
    )


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    thresholds=st.lists(
        st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, NEVER]), min_size=3, max_size=3
    ),
)
@settings(max_examples=100, deadline=None)
def test_reference_decides_like_the_contract(scores: list[float], thresholds: list[float]) -> None:
    assert exits_taken([scores], thresholds)[0] == decide(scores, thresholds)


@st.composite
def ties(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Scores, and thresholds that equal them or lie a rounding beside."""
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
    near = [
        draw(
            st.sampled_from([
                score,
                float(f"{score:.9f}"),
                float(np.nextafter(np.float32(score), np.float32(2))),
                float(np.nextafter(np.float32(score), np.float32(-1))),
                float(np.nextafter(score, 2.0)),
                float(np.nextafter(score, -1.0)),
            ])
        )
        for score in scores
    ]  # fmt: skip
    return scores, near


@given(case=ties())
@settings(max_examples=300, deadline=None)
def test_replay_decides_ties_and_roundings_like_the_contract(
    case: tuple[list[float], list[float]],
) -> None:
    scores, thresholds = case
    assert exits_taken([scores], thresholds)[0] == decide(scores, thresholds)
    compared = [as_compared(threshold) for threshold in thresholds]
    assert exits_taken([scores], compared)[0] == decide(scores, thresholds)


def test_bitmaps_decide_ties_like_the_contract() -> None:
    edges = np.arange(0.5, 1.0, 0.01).round(4)
    exact = edges.astype(np.float32)
    # Each level, hit exactly and missed by one rounding on either side.
    scores = np.concatenate([exact, np.nextafter(exact, np.float32(2)),
                             np.nextafter(exact, np.float32(0))])[:, None]  # fmt: skip
    records = ReplayRecords.build(scores, np.ones(scores.shape, bool))
    table = ReplayTable(records)
    for edge in table.edges[0]:
        for asked in (edge, as_compared(edge)):
            outcome = table.score_thresholds([[asked]], [0, 1])
            stay = [decide([score], [edge]) for score in scores[:, 0].tolist()]
            assert outcome.cost[0] == pytest.approx(np.mean(stay), abs=1e-12), edge
    assert set(edges) & set(table.edges[0].tolist()), "some levels are scores"


@given(
    rows=st.sampled_from([1, 63, 64, 65, 511, 513, 700]),
    exits=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    ties=st.booleans(),
    weights=st.booleans(),
    levels=st.sampled_from([2, 17, 256]),
)
@settings(max_examples=25, deadline=None)
def test_both_kernels_equal_the_boolean_reference(
    rows: int, exits: int, seed: int, ties: bool, weights: bool, levels: int
) -> None:
    records = make_records(rows, exits, seed, ties=ties, weights=weights)
    table = ReplayTable(records, levels)
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, table.never + 1, (40, exits)).astype(np.uint16)
    costs = np.sort(rng.random(exits + 1))
    cost, risk = replay_reference(records, table.thresholds_of(vectors), costs)
    for sorted_grid in (False, True):
        outcome = table.score(vectors, costs, sorted_grid=sorted_grid)
        assert outcome.cost == pytest.approx(cost, abs=1e-12)
        assert outcome.risk == pytest.approx(risk, abs=1e-12)


def test_a_sorted_grid_gives_what_single_vectors_give() -> None:
    table = ReplayTable(make_records(300, 3, seed=1), levels=9)
    axes = np.meshgrid(*[np.arange(table.never + 1)] * 3, indexing="ij")
    grid = np.stack(axes, axis=-1).reshape(-1, 3).astype(np.uint16)
    plain = table.score(grid, [1, 2, 3, 4])
    fast = table.score(grid, [1, 2, 3, 4], sorted_grid=True)
    assert fast.cost == pytest.approx(plain.cost, abs=1e-12)
    assert fast.risk == pytest.approx(plain.risk, abs=1e-12)


def test_never_exiting_costs_full_depth_and_differs_only_where_full_depth_does() -> None:
    records = make_records(500, 3, seed=2)
    outcome = ReplayTable(records).score_thresholds([[NEVER, NEVER, NEVER]], [1, 2, 3, 9])
    assert outcome.cost[0] == pytest.approx(9)
    assert outcome.risk[0] == pytest.approx(np.mean(~records.final_agree))


def test_levels_are_policy_thresholds_and_rounding_never_exits_more() -> None:
    records = make_records(2_000, 4, seed=3)
    table = ReplayTable(records)
    wanted = np.random.default_rng(4).random((200, 4))
    rounded = table.thresholds_of(table.levels_of(wanted))
    assert np.all(rounded >= np.round(wanted, 4) - 1e-12)
    assert np.allclose(np.round(rounded, 4), rounded)
    assert np.array_equal(table.levels_of(rounded), table.levels_of(wanted))
    asked, _ = replay_reference(records, wanted, [1, 2, 3, 4, 5])
    given_, _ = replay_reference(records, rounded, [1, 2, 3, 4, 5])
    assert np.all(given_ >= asked - 1e-12)


def test_weighting_by_propensity_removes_the_bias_of_targeted_audits() -> None:
    rng = np.random.default_rng(5)
    hard = rng.random(200_000) < 0.2
    wrong = rng.random(200_000) < np.where(hard, 0.1, 0.005)
    propensity = np.where(hard, 0.2, 0.05)
    audited = rng.random(200_000) < propensity
    records = ReplayRecords.build(
        np.full((audited.sum(), 1), 0.9), ~wrong[audited, None], propensity=propensity[audited]
    )
    _, risk = replay_reference(records, [[0.5]], [0, 1])
    assert risk[0] == pytest.approx(wrong.mean(), abs=0.002)
    assert losses(records, [0.5]).mean() > 1.5 * wrong.mean()  # what unweighted replay would say


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [[0.1], [0.2]], "agree": [[True]]}, "scores, agree"),
        ({"scores": [[np.nan]], "agree": [[True]]}, "scores: must be finite"),
        ({"scores": [[0.1]], "agree": [[True]], "propensity": [0.0]}, "propensity"),
        ({"scores": [[0.1]], "agree": [[True]], "final_agree": [True, True]}, "final_agree"),
    ],
)
def test_malformed_records_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayRecords.build(**arguments)  # type: ignore[arg-type]


def test_vectors_and_costs_that_do_not_fit_are_refused() -> None:
    table = ReplayTable(make_records(10, 2, seed=6))
    with pytest.raises(ValueError, match="vectors"):
        table.score(np.zeros((1, 3), np.uint16), [1, 2, 3])
    with pytest.raises(ValueError, match="vectors"):
        table.score(np.full((1, 2), table.never + 1, np.uint16), [1, 2, 3])
    with pytest.raises(ValueError, match="costs"):
        table.score(np.zeros((1, 2), np.uint16), [1, 2])
