"""Chains and certificates: exact numbers, refusals, and how often the promise is broken."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy.stats import binom

from trimwheel_pipelines.audit_window import AuditWindow, Outcome, Promise, select_audits
from trimwheel_pipelines.bench_pools import synthetic_pool
from trimwheel_pipelines.certificate import Finalist, certify
from trimwheel_pipelines.chain import Chain, decimal_threshold, search_chain, single_chain
from trimwheel_pipelines.loss_tests import p_value, upper_limit
from trimwheel_pipelines.replay import ReplayRecords, ReplayTable, replay_reference

OPENED = datetime(2026, 1, 1, tzinfo=UTC)


def window(rows: int, **changes: object) -> AuditWindow:
    values: dict[str, object] = {
        "u": np.linspace(0, 0.499, rows),
        "rate": np.full(rows, 0.5),
        "sessions": np.arange(rows),
        "opened": OPENED,
        "closed": OPENED + timedelta(hours=24),
    }
    return AuditWindow(**(values | changes))  # type: ignore[arg-type]


def one_exit_finalist(errors: list[int], audits: int) -> Finalist:
    """A chain of one-exit points: point j exits records with score >= 1 - j / 10; in any order."""
    scores = np.full((audits, 1), 0.05, np.float32)
    agree = np.ones((audits, 1), bool)
    start = 0
    for level, count in enumerate(errors, start=1):
        rows = slice(start, start + max(count, 10))
        scores[rows] = 1 - level / 10 + 0.01
        agree[start : start + count] = False
        start += max(count, 10)
    rng = np.random.default_rng(5)
    scores += rng.uniform(0.0, 0.03, scores.shape).astype(np.float32)
    order = rng.permutation(audits)
    records = ReplayRecords.build(scores[order], agree[order])
    points = [("1.01",)] + [(decimal_threshold(1 - j / 10),) for j in range(1, len(errors) + 1)]
    search = ReplayRecords.build([[0.5]], [[True]])
    return Finalist(
        "only", Chain("test", (0.0,), tuple(points)), (1.0, 2.0), 2.0, search, np.zeros(1), records
    )


def test_p_value_is_the_exact_binomial_tail_for_independent_audits() -> None:
    for errors, audits, bound in [(0, 346, 0.02), (13, 1_500, 0.02), (40, 1_000, 0.05)]:
        assert p_value(errors, audits, 1.0, bound) == pytest.approx(
            binom.cdf(errors, audits, bound), rel=1e-10
        )
    assert p_value(5, 5, 1.0, 0.02) == 1.0
    assert p_value(0, 5, 1.0, 0.0) == 1.0


def test_upper_limit_inverts_the_p_value() -> None:
    upper = upper_limit(13, 1_500, 1.7, 0.05)
    assert p_value(13, 1_500, 1.7, upper) == pytest.approx(0.05, rel=1e-9)


def test_the_walk_stops_at_the_first_failure_and_releases_the_point_before_it() -> None:
    promise = Promise(epsilon=0.02, delta=0.1, n=1_000)
    selection = select_audits(window(1_000), promise)
    # Errors add up along the chain: 0, 5, 5 + 20 (fails); a fourth point is never looked at.
    result = certify([one_exit_finalist([0, 5, 20, 0], 1_000)], selection, promise)
    assert result.outcome is Outcome.CERTIFIED
    assert result.thresholds == ("0.8",)
    assert result.errors == 5
    assert result.finalists[0].tested == 4
    assert result.p_value == pytest.approx(binom.cdf(5, 1_000, 0.02), rel=0.02)
    assert result.level == pytest.approx(0.05)
    assert result.upper is not None and result.errors / result.n < result.upper < 0.02


def test_nothing_passing_is_full_depth_with_its_reason() -> None:
    promise = Promise(epsilon=0.02, delta=0.1, n=1_000)
    selection = select_audits(window(1_000), promise)
    result = certify([one_exit_finalist([60], 1_000)], selection, promise)
    assert (result.outcome, result.thresholds, result.cost) == (Outcome.FULL_DEPTH, (), None)
    assert not result.certified
    tiny = Promise(epsilon=0.02, delta=0.1, n=50)
    result = certify([one_exit_finalist([0], 50)], select_audits(window(50), tiny), tiny)
    assert "50 audits cannot certify even a policy without errors" in result.reason


def test_the_document_is_plain_json_with_every_number() -> None:
    promise = Promise(epsilon=0.02, delta=0.1, n=1_000)
    result = certify(
        [one_exit_finalist([0, 5], 1_000)], select_audits(window(1_000), promise), promise
    )
    document = json.loads(json.dumps(result.document()))
    assert document["outcome"] == "Certified"
    assert document["opened"] == "2026-01-01T00:00:00+00:00"
    assert {"n", "errors", "p_value", "design_effect", "missing", "lowest_rate"} <= set(document)


@pytest.mark.parametrize(
    ("changes", "needed", "outcome", "says"),
    [
        ({}, 1_001, Outcome.TOO_FEW_AUDITS, "1000 of 1001"),
        ({"lost": 6}, 900, Outcome.VOID, "0.60%"),
        ({"lost": 5}, 900, None, ""),
    ],
)
def test_a_window_is_refused_before_any_loss_is_read(
    changes: dict[str, object], needed: int, outcome: Outcome | None, says: str
) -> None:
    promise = Promise(epsilon=0.02, delta=0.1, n=needed)
    selection = select_audits(window(1_000, **changes), promise)
    assert selection.refusal is outcome
    assert says in selection.reason
    if outcome is not None:
        assert certify([], selection, promise).outcome is outcome


def test_lost_audits_are_taken_off_epsilon() -> None:
    promise = Promise(epsilon=0.02, delta=0.1, n=1_000)
    finalist = one_exit_finalist([9], 1_000)
    clean = certify([finalist], select_audits(window(1_000), promise), promise)
    lossy = certify([finalist], select_audits(window(1_000, lost=4), promise), promise)
    assert clean.p_value == pytest.approx(binom.cdf(9, 1_000, 0.02), rel=0.02)
    assert lossy.p_value == pytest.approx(binom.cdf(9, 1_000, 0.02 - 4 / 1_004), rel=0.02)
    assert lossy.upper is not None and clean.upper is not None
    assert lossy.upper == pytest.approx(clean.upper + 4 / 1_004)


def test_only_audits_below_the_lowest_rate_count_and_the_first_of_them() -> None:
    rate = np.where(np.arange(1_000) < 500, 0.1, 0.5)
    u = np.random.default_rng(2).random(1_000) * rate
    selection = select_audits(
        window(1_000, u=u, rate=rate), Promise(epsilon=0.02, delta=0.1, n=400)
    )
    assert selection.lowest_rate == 0.1
    assert len(selection.rows) == 400
    assert np.all(u[selection.rows] < 0.1)
    assert np.all(np.diff(selection.rows) > 0)
    lower = select_audits(
        window(1_000, u=u, rate=rate, lowest_rate=0.05), Promise(epsilon=0.02, delta=0.1, n=400)
    )
    assert lower.refusal is Outcome.TOO_FEW_AUDITS


def test_short_windows_and_long_sessions_are_said_aloud() -> None:
    promise = Promise(epsilon=0.02, delta=0.1, n=900)
    selection = select_audits(
        window(1_000, closed=OPENED + timedelta(minutes=1), sessions=np.arange(1_000) // 2), promise
    )
    assert selection.short
    assert [text.split(":")[0] for text in selection.warnings] == ["short", "sessions"]


def test_clustered_sessions_cost_evidence() -> None:
    promise = Promise(epsilon=0.02, delta=0.1, n=1_000)
    finalist = one_exit_finalist([11], 1_000)
    alone = certify([finalist], select_audits(window(1_000), promise), promise)
    clustered = certify(
        [finalist],
        select_audits(window(1_000, sessions=np.arange(1_000) // 5), promise),
        promise,
    )
    assert alone.outcome is Outcome.CERTIFIED
    assert clustered.outcome is Outcome.FULL_DEPTH


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"n": 0}, "n:"),
        ({"look": 3}, "look"),
        ({"finalists": 0}, "finalists"),
    ],
)
def test_a_promise_out_of_range_is_refused_by_name(changes: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Promise(**({"epsilon": 0.02, "delta": 0.1, "n": 10} | changes))  # type: ignore[arg-type]


def test_looks_and_finalists_never_spend_more_than_delta() -> None:
    spent = sum(
        Promise(epsilon=0.02, delta=0.1, n=100, finalists=4, look=look).level * 4
        for look in range(3)
    )
    assert spent == pytest.approx(0.1)
    with pytest.raises(ValueError, match="finalists"):
        promise = Promise(epsilon=0.02, delta=0.1, n=1_000)
        certify([one_exit_finalist([0], 1_000)] * 2, select_audits(window(1_000), promise), promise)


def test_chains_are_nested_quantised_and_start_at_never() -> None:
    pool = synthetic_pool(2_000, 4, seed=3)
    table = ReplayTable(pool.records)
    for chain in (single_chain(table, pool.costs, 0.02), search_chain(table, pool.costs, 0.02, 0)):
        thresholds = chain.thresholds()
        assert chain.points[0] == ("1.01",) * 4
        assert np.all(np.diff(thresholds, axis=0) <= 0)
        assert all(len(text.partition(".")[2]) <= 4 for point in chain.points for text in point)
        cost, risk = replay_reference(pool.records, thresholds, pool.costs)
        assert np.all(np.diff(cost) <= 1e-12)
        assert risk[0] == 0 and risk[-1] > 0.02
    assert search_chain(table, pool.costs, 0.02, 7) == search_chain(table, pool.costs, 0.02, 7)


def test_the_search_nears_the_exhaustive_optimum_of_its_own_records() -> None:
    pool = synthetic_pool(3_000, 3, seed=4)
    table = ReplayTable(pool.records, levels=60)
    grid = np.array(list(itertools.product(range(table.never + 1), repeat=3)), np.uint16)
    outcome = table.score(grid, pool.costs, sorted_grid=True)
    best = outcome.cost[outcome.risk <= 0.02].min()

    def cheapest(chain: Chain) -> float:
        found = table.score_thresholds(chain.thresholds(), pool.costs)
        return float(found.cost[found.risk <= 0.02].min())

    searched = cheapest(search_chain(table, pool.costs, 0.02, seed=0))
    assert searched <= cheapest(single_chain(table, pool.costs, 0.02)) + 1e-9
    assert searched <= 1.02 * best


@pytest.mark.slow
def test_certificates_break_their_promise_no_more_often_than_they_say() -> None:
    pool = synthetic_pool(20_000, 4, seed=5, session_length=3)
    rng = np.random.default_rng(6)
    violations = certified = 0
    for draw in range(200):
        rows = rng.permutation(len(pool.records))[:1_800]
        search, fresh = pool.records.take(rows[:800]), pool.records.take(rows[800:])
        table = ReplayTable(search)
        promise = Promise(epsilon=0.03, delta=0.2, n=1_000, finalists=2)
        selection = select_audits(window(1_000, sessions=pool.sessions[rows[800:]]), promise)
        finalists = [
            Finalist(
                chain.name,
                chain,
                pool.costs,
                pool.costs[-1],
                search,
                pool.sessions[rows[:800]],
                fresh,
            )
            for chain in (
                search_chain(table, pool.costs, 0.03, seed=draw),
                single_chain(table, pool.costs, 0.03),
            )
        ]
        result = certify(finalists, selection, promise)
        if result.certified:
            certified += 1
            point = np.array(result.thresholds, float)[None]
            violations += bool(replay_reference(pool.records, point, pool.costs)[1][0] > 0.03)
    assert certified >= 190
    assert violations <= 59  # 99.9 % limit of Binomial(200, .2)
