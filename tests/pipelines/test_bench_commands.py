"""The statistical benches as a script sees them: JSON, exit codes, limits that can be broken."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from trimwheel_api.errors import InvalidInput, NotEnoughData
from trimwheel_pipelines import (
    bench_canary,
    bench_certificate,
    bench_drift,
    bench_pools,
    bench_replay,
)
from trimwheel_pipelines.bench_pools import load_pool, synthetic_pool


def invoke(command: click.Command, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(command, [*arguments, "-o", "json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


def test_replay_reports_rates_and_that_all_methods_agree() -> None:
    code, result = invoke(
        bench_replay.command, "--records", "500", "--vectors", "4096", "--rounds", "2"
    )
    assert code == 0
    assert result["agreement"]["ok"]
    assert set(result["speeds"]) == {"kernel", "sorted_grid", "numpy"}
    assert all(speed["median"] > 0 for speed in result["speeds"].values())
    assert result["host"]["cpus"] >= 1


def test_replay_exits_with_one_when_a_method_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench_replay.NumpyReplay.score

    def wrong(self: Any, vectors: Any, costs: Any) -> Any:
        outcome = honest(self, vectors, costs)
        outcome.risk[0] += 1.0
        return outcome

    monkeypatch.setattr(bench_replay.NumpyReplay, "score", wrong)
    code, result = invoke(
        bench_replay.command, "--records", "200", "--vectors", "512", "--rounds", "1"
    )
    assert (code, result["agreement"]["ok"]) == (1, False)


def test_certificate_judges_draws_on_the_whole_pool() -> None:
    code, result = invoke(
        bench_certificate.command,
        "--population",
        "independent",
        "--draws",
        "12",
        "--pool-size",
        "12000",
        "--certify",
        "1000",
    )
    assert code == 0
    assert result["looks"] == 1
    assert result["violations"] <= result["allowed"]
    assert result["cost"]["earliest_agree_oracle"] < result["cost"]["best_single_threshold"] < 1
    assert sum(result["released_by"].values()) == 12


def test_certificate_exits_with_one_when_promises_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimwheel_pipelines.loss_tests.p_value", lambda *_: 0.0)
    code, result = invoke(
        bench_certificate.command,
        "--population",
        "independent",
        "--draws",
        "8",
        "--pool-size",
        "12000",
        "--certify",
        "1000",
    )
    assert (code, result["violations"]) == (1, 8)


def test_a_pool_too_small_for_its_draws_is_refused() -> None:
    with pytest.raises(NotEnoughData, match="1830 are needed"):
        bench_certificate.sizes_for(synthetic_pool(1_000, 2, 0), 0.02, 0.1, 500, 1_500)
    small = bench_certificate.sizes_for(synthetic_pool(9_000, 2, 0), 0.02, 0.1, 500, 1_500)
    assert (small.certify, small.looks) == (900, 1)


def test_best_single_threshold_is_the_cheapest_that_keeps_the_promise() -> None:
    pool = synthetic_pool(4_000, 3, seed=1)
    best = bench_certificate.best_single(pool, 0.02)
    risks = []
    for threshold in np.arange(0.5, 1.0, 0.01):
        cost, risk = bench_certificate.replay_reference(
            pool.records, np.full((1, 3), threshold), pool.costs
        )
        risks.append((risk[0], cost[0] / pool.costs[-1]))
    assert best <= min(cost for risk, cost in risks if risk <= 0.02)


def test_canary_keeps_its_level_and_finds_the_regression() -> None:
    code, result = invoke(
        bench_canary.command, "--runs", "10", "--detection-runs", "10", "--weight", "0.5"
    )
    assert code == 0
    for kind in ("requests", "sessions"):
        found = result["identical_arms"][kind]
        assert max(found["by_guard"].values()) <= result["identical_arms"]["allowed"]
    assert result["regression"][0]["found"] == 10
    assert 0 < result["regression"][0]["median_seconds"] < 300


def test_canary_exits_with_one_when_a_regression_goes_unfound() -> None:
    code, result = invoke(
        bench_canary.command, "--runs", "1", "--detection-runs", "3", "--factor", "1"
    )
    assert code == 1
    assert result["regression"][0]["found"] < 3


def test_sticky_sessions_carry_few_events_and_keep_their_totals() -> None:
    ramp = bench_canary.falling_ramp(100.0)
    rng = np.random.default_rng(0)
    sessions, requests, effects = bench_canary.simulate(ramp, rng, sticky=True)
    assert set(effects) == {1.0}
    assert sessions[:, :2].sum() == ramp.blocks * (ramp.requests // bench_canary.SESSION_REQUESTS)
    assert requests[:, :2].sum() == pytest.approx(ramp.blocks * ramp.requests, rel=0.02)
    assert requests[:, 2:].sum() > 1.2 * sessions[:, 2:].sum()


def test_pods_count_sessions_again_and_their_samples_say_how_often() -> None:
    ramp = bench_canary.falling_ramp(100.0)
    rng = np.random.default_rng(0)
    sessions, _, effects = bench_canary.simulate(ramp, rng, sticky=True, pods=12)
    once = ramp.blocks * (ramp.requests // bench_canary.SESSION_REQUESTS)
    assert sessions[:, :2].sum() > 2 * once
    assert 4.0 < np.median(effects) < 8.0


@pytest.mark.slow
def test_certificates_of_clustered_traffic_keep_their_promise_and_are_issued() -> None:
    code, result = invoke(
        bench_certificate.command, "--population", "repeat:20", "--population", "bursts:10",
        "--draws", "12", "--pool-size", "20000",
    )  # fmt: skip
    assert code == 0
    assert result["violations"] <= result["allowed"]
    assert [case["population"] for case in result["cases"]] == ["repeat:20", "bursts:10"]
    assert all(case["certified"] >= 6 for case in result["cases"])
    assert result["cases"][0]["certify"] > 2_000  # as many as were asked for


def test_too_few_clusters_keep_full_depth_and_say_how_many_are_asked_for() -> None:
    code, result = invoke(
        bench_certificate.command, "--population", "repeat:60", "--draws", "3",
        "--pool-size", "20000", "--certify", "1000",
    )  # fmt: skip
    assert (code, result["violations"], result["certified"]) == (0, 0, 0)
    assert result["too_few_clusters"] == 3


def test_graded_losses_are_certified_by_betting() -> None:
    code, result = invoke(
        bench_certificate.command, "--population", "independent", "--loss", "graded",
        "--draws", "6", "--pool-size", "20000", "--certify", "1000",
    )  # fmt: skip
    assert code == 0
    assert result["certified"] == 6
    assert result["cost"]["released"]["mean"] < 1


def test_drift_bench_reports_false_alarms_and_delays() -> None:
    code, result = invoke(bench_drift.command, "--streams", "16", "--audits", "5000")
    assert code == 0
    assert result["false_harmful_share_runs_of_3"] == 0
    assert 300 < result["median_delay_audits_3x"] < 1_100
    assert result["if_audits_were_independent"]["5"] >= 1
    assert not result["nine_in_a_row_harmful"]


def test_pools_come_by_name_and_unknown_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"rows": 10, "exits": 2, "seed": 0, "session_length": 1}
    with pytest.raises(InvalidInput, match="must be one of"):
        load_pool("nowhere", **sizes)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="URI#NAMESPACE/MODEL"):
        load_pool("", records="file:///tmp", **sizes)  # type: ignore[arg-type]
    entry = EntryPoint("small", f"{__name__}:unused", bench_pools.POOL_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda seed: synthetic_pool(7, 2, seed))
    monkeypatch.setattr(bench_pools, "entry_points", lambda group: [entry])
    assert len(load_pool("small", **sizes).records) == 7  # type: ignore[arg-type]
