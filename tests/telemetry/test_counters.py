"""Raw counters to evidence: resets, new series, baselines, blocks, states of the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimwheel_telemetry.answers import Series
from trimwheel_telemetry.counters import Window, guard_evidence, increments, total
from trimwheel_telemetry.verdicts import DataState

WINDOW = Window(since=1_000.0, until=1_100.0, max_age=30.0)
CANDIDATE, STABLE = "sha256:c", "sha256:s"


def line(times: list[float], values: list[float], **labels: str) -> Series:
    return Series(labels, np.array(times, float), np.array(values, float))


def guard_line(
    arm: str, values: list[float], *, times: list[float] | None = None, guard: str = "errors"
) -> Series:
    digest = CANDIDATE if arm == "candidate" else STABLE
    moments = times if times is not None else [995.0 + 15 * i for i in range(len(values))]
    return line(moments, values, arm=arm, digest=digest, guard=guard, pod="a")


@pytest.mark.parametrize(
    ("times", "values", "history", "expected"),
    [
        pytest.param([990, 1010, 1020], [5, 7, 9], True, [2, 2], id="baselined-before-the-window"),
        pytest.param([1000, 1010], [5, 7], True, [2], id="a-sample-at-since-is-the-baseline"),
        pytest.param([1010, 1020], [3, 4], True, [3, 1], id="a-new-series-counts-from-zero"),
        pytest.param([1010, 1020], [3, 4], False, [1], id="lost-history-makes-the-first-a-base"),
        pytest.param([990, 1010, 1020], [50, 4, 6], True, [4, 2], id="after-a-reset-the-new-value"),
        pytest.param([990, 1010, 1200], [1, 2, 9], True, [1], id="after-the-window-is-ignored"),
        pytest.param([990], [5], True, [], id="nothing-new"),
        pytest.param([], [], True, [], id="no-sample"),
    ],
)
def test_increments_are_what_the_counter_added(
    times: list[float], values: list[float], history: bool, expected: list[float]
) -> None:
    found = increments(line(times, values), WINDOW, history=history)
    assert found.amounts.tolist() == expected
    assert found.total == sum(expected)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40),
    base=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_every_event_that_a_scrape_saw_is_counted_once_despite_restarts(
    steps: list[tuple[int, bool]], base: int
) -> None:
    value, truth, values = base, 0, [float(base)]
    for added, restarts in steps:
        if restarts and value > added:  # a restart is visible when the counter falls
            value = added
        else:
            value += added
        truth += added
        values.append(float(value))
    times = np.linspace(1_000.0, 1_099.0, len(values))
    found = increments(Series({}, times, np.array(values)), WINDOW)
    assert found.total == truth


def test_a_series_appearing_later_is_new_only_if_the_answer_reaches_back() -> None:
    old, new = line([990, 1010], [7, 9], pod="a"), line([1010, 1020], [3, 4], pod="b")
    assert total([old, new], WINDOW) == 2 + 4
    assert total([new], WINDOW) == 1


def silent(lines: list[Series]) -> list[Series]:
    """Event lines that stayed at 0, one for each trial line."""
    return [Series(entry.labels, entry.times, entry.values * 0) for entry in lines]


def test_evidence_sums_pods_and_keeps_blocks_of_both_arms_together() -> None:
    trials = [guard_line("candidate", [0, 10, 30]), guard_line("stable", [500, 600, 650])]
    events = [guard_line("candidate", [0, 0, 2]), guard_line("stable", [9, 10, 10])]
    second = [
        Series({**entry.labels, "pod": "b"}, entry.times + 1, entry.values) for entry in trials
    ]
    evidence = guard_evidence(
        trials + second,
        events + silent(second),
        guard="errors",
        candidate=CANDIDATE,
        window=Window(1_000.0, 1_030.0, 30.0),
    )
    assert (evidence.trials, evidence.events) == (60, 2)
    assert (evidence.stable_trials, evidence.stable_events) == (300, 1)
    assert evidence.blocks.tolist() == [[20, 200, 0, 1], [40, 100, 2, 0]]
    assert evidence.state is DataState.FRESH


def test_other_guards_arms_and_digests_are_not_evidence() -> None:
    trials = [
        guard_line("candidate", [0, 10]),
        guard_line("candidate", [0, 99], guard="latency"),
        line([995, 1010], [0, 99], arm="candidate", digest="sha256:x", guard="errors"),
        line([995, 1010], [0, 99], arm="stable", digest=CANDIDATE, guard="errors"),
    ]
    evidence = guard_evidence(
        trials,
        silent(trials),
        guard="errors",
        candidate=CANDIDATE,
        window=WINDOW,
    )
    assert (evidence.trials, evidence.stable_trials) == (10, 0)


def test_stable_is_the_background_whatever_policy_it_became() -> None:
    """A certificate expired under the canary, and everyone else went to full depth."""
    trials = [
        guard_line("candidate", [0, 10, 20, 30]),
        guard_line("stable", [0, 100, 100, 100]),
        line([1_011, 1_025, 1_040], [0, 90, 180], arm="stable", digest="sha256:d", guard="errors"),
    ]
    events = [guard_line("candidate", [0, 0, 5, 10]), *silent(trials[1:])]
    evidence = guard_evidence(trials, events, guard="errors", candidate=CANDIDATE, window=WINDOW)
    assert (evidence.stable_trials, evidence.stable_events) == (280, 0)
    assert evidence.blocks[:, :3].tolist() == [[10, 100, 0], [10, 90, 5], [10, 90, 5]]


def test_an_increment_over_a_scrape_gap_counts_but_compares_nothing() -> None:
    times = [995.0, 1_010.0, 1_080.0]
    trials = [guard_line(arm, [0, 10, 80], times=times) for arm in ("candidate", "stable")]
    evidence = guard_evidence(
        trials,
        silent(trials),
        guard="errors",
        candidate=CANDIDATE,
        window=WINDOW,
    )
    assert evidence.trials == 80
    assert evidence.blocks[:, :2].tolist() == [[10, 10]]


@pytest.mark.parametrize(
    ("values", "times", "until", "state", "says"),
    [
        pytest.param([], [], 1_100.0, DataState.ABSENT, "no worker", id="absent"),
        pytest.param([1, 2], [995, 1_010], 1_100.0, DataState.STALE, "90 s old", id="stale"),
        pytest.param([9, 2], [995, 1_090], 1_100.0, DataState.RESET, "10 s ago", id="just-reset"),
        pytest.param([9, 2, 3], [995, 1_010, 1_090], 1_100.0, DataState.FRESH, "", id="settled"),
        pytest.param(
            [1, 2], [1_080, 1_090], 1_100.0, DataState.RESET, "20 s ago", id="lost-history"
        ),
        pytest.param([1, 2], [1_010, 1_090], 1_100.0, DataState.FRESH, "", id="history-regrown"),
    ],
)
def test_the_state_of_the_data_is_named(
    values: list[float], times: list[float], until: float, state: DataState, says: str
) -> None:
    trials = [guard_line("candidate", values, times=times)]
    evidence = guard_evidence(
        trials,
        silent(trials),
        guard="errors",
        candidate=CANDIDATE,
        window=Window(1_000.0, until, 30.0),
    )
    assert evidence.state is state
    assert says in evidence.reason


def test_an_event_whose_trial_was_before_the_window_never_exceeds_the_trials() -> None:
    evidence = guard_evidence(
        [guard_line("candidate", [5, 5])],
        [guard_line("candidate", [0, 1])],
        guard="errors",
        candidate=CANDIDATE,
        window=WINDOW,
    )
    assert (evidence.trials, evidence.events) == (0, 0)


def test_missing_event_counters_are_absent_data_not_success() -> None:
    trials = [guard_line("candidate", [0, 500])]
    evidence = guard_evidence(trials, [], guard="errors", candidate=CANDIDATE, window=WINDOW)
    assert evidence.state is DataState.ABSENT
    assert "not its events" in evidence.reason


def test_blocks_longer_than_fifteen_seconds_are_refused() -> None:
    with pytest.raises(ValueError, match="block"):
        Window(0, 1, 1, block=16)
