"""One look at a rollout: what five guards learn from one Prometheus, and from a silent one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trimwheel_api import metrics, names
from trimwheel_telemetry.answers import Answer, Empty, Ok, Partial, Series, Unreachable
from trimwheel_telemetry.rollout import Attempt, gather, judge_all
from trimwheel_telemetry.verdicts import DataState, Verdict, combine, rollout_rules

SINCE, NOW = 1_000.0, 1_300.0
CANDIDATE, STABLE = "sha256:c", "sha256:s"
ATTEMPT = Attempt("shop", "search", CANDIDATE, STABLE, SINCE, NOW, max_age=30, workers=2)
RULES = rollout_rules(
    max_disagreement=0.02,
    error_budget=0.01,
    latency_budget=0.01,
    capacity_target=0.8,
    certified=True,
)


class Answers:
    """Stands where the client stands; answers raw queries from a table by metric name."""

    def __init__(self, table: dict[str, Answer]) -> None:
        self.table = table
        self.asked: list[tuple[str, float, float]] = []

    def raw(self, selector: str, start: float, end: float) -> Answer:
        self.asked.append((selector, start, end))
        return self.table[selector.partition("{")[0]]


def grows(per_second: float, **labels: str) -> Series:
    """A counter scraped every 10 s, from before the rollout."""
    times = np.arange(SINCE - 40, NOW + 1, 10)
    return Series({**labels, "pod": "a"}, times, (times - times[0]) * per_second)


def guard_lines(value: Callable[[str, str], float]) -> Ok:
    digests = {"candidate": CANDIDATE, "stable": STABLE}
    return Ok(
        series=tuple(
            grows(value(arm, guard), arm=arm, digest=digests[arm], guard=guard)
            for arm in names.ARMS
            for guard in names.GUARDS
            if guard != names.GUARD_CAPACITY
        )
    )


def healthy() -> dict[str, Answer]:
    return {
        metrics.GUARD_TRIALS.name: guard_lines(lambda arm, guard: 20.0),
        metrics.GUARD_EVENTS.name: guard_lines(lambda arm, guard: 0.0),
        metrics.REQUESTS.name: Ok(series=tuple(grows(50.0, arm=arm) for arm in names.ARMS)),
        metrics.DEVICE_SECONDS.name: Ok(series=tuple(grows(0.25, arm=arm) for arm in names.ARMS)),
    }


def look(table: dict[str, Answer]) -> dict[str, Verdict]:
    evidence = gather(Answers(table), ATTEMPT)  # type: ignore[arg-type]
    return {verdict.name: verdict.verdict for verdict in judge_all(RULES, evidence)}


def test_a_healthy_candidate_passes_every_guard() -> None:
    assert look(healthy()) == dict.fromkeys(names.GUARDS, Verdict.PASS)


def test_queries_name_the_model_and_reach_back_for_baselines() -> None:
    answers = Answers(healthy())
    evidence = gather(answers, ATTEMPT)  # type: ignore[arg-type]
    assert len(answers.asked) == 4
    for selector, start, end in answers.asked:
        assert '{namespace="shop",model="search"}' in selector
        assert (start, end) == (SINCE - 300, NOW)
    assert evidence["errors"].trials == 20 * 300  # the 40 s before the rollout are baselined
    level = evidence["capacity"].level
    assert level == pytest.approx(100 * 0.005 / 2)  # 100 requests/s at 5 ms over two workers


@pytest.mark.parametrize("guard", ["disagreement", "errors", "latency", "parity"])
def test_each_counted_guard_fails_alone(guard: str) -> None:
    table = healthy()
    table[metrics.GUARD_EVENTS.name] = guard_lines(
        lambda arm, name: 3.0 if (arm, name) == ("candidate", guard) else 0.0
    )
    verdicts = look(table)
    assert [name for name, verdict in verdicts.items() if verdict is Verdict.FAIL] == [guard]


def test_a_candidate_too_slow_for_all_traffic_fails_capacity() -> None:
    table = healthy()
    table[metrics.DEVICE_SECONDS.name] = Ok(
        series=(grows(0.2, arm="stable"), grows(2.0, arm="candidate"))
    )
    assert look(table)["capacity"] is Verdict.FAIL


@pytest.mark.parametrize(
    "answer",
    [
        Unreachable("connection refused"),
        Empty("no series matches"),
        Partial(("shard away",), "shard away"),
    ],
)
def test_without_a_whole_answer_no_guard_says_anything(answer: Answer) -> None:
    evidence = gather(Answers(dict.fromkeys(healthy(), answer)), ATTEMPT)  # type: ignore[arg-type]
    verdicts = judge_all(RULES, evidence)
    assert combine(verdicts) is Verdict.NOT_ENOUGH_EVIDENCE
    assert {verdict.verdict for verdict in verdicts} == {Verdict.NOT_ENOUGH_EVIDENCE}
    assert {verdict.reason for verdict in verdicts} == {answer.reason}


def test_workers_that_fell_silent_are_stale_for_every_guard() -> None:
    late = Attempt("shop", "search", CANDIDATE, STABLE, SINCE, NOW + 600, max_age=30, workers=2)
    evidence = gather(Answers(healthy()), late)  # type: ignore[arg-type]
    assert {item.state for item in evidence.values()} == {DataState.STALE}


def test_a_guard_that_was_not_gathered_is_judged_on_nothing() -> None:
    assert {verdict.verdict for verdict in judge_all(RULES, {})} == {Verdict.NOT_ENOUGH_EVIDENCE}
