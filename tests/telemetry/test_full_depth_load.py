"""Projected utilisation at full depth: from counters, or unknown."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from trimwheel_telemetry.answers import Series
from trimwheel_telemetry.counters import Window
from trimwheel_telemetry.load import LoadCounters, full_depth_utilisation

NOW = 1_000_000.0
WINDOW = Window(since=NOW - 300, until=NOW, max_age=20)


def line(
    rate: float,
    arm: str = "stable",
    since: float = NOW - 600,
    until: float = NOW,
    code: str = "200",
    pod: str = "a",
) -> Series:
    """A counter that grows by `rate` a second, scraped every 5 s."""
    times = np.arange(since, until + 0.1, 5.0)
    return Series({"arm": arm, "code": code, "pod": pod}, times, (times - since) * rate + 7)


def counters(**changes: Any) -> LoadCounters:
    """50 stable requests a second of 4 ms, on half of the layers."""
    made = LoadCounters([line(50)], [line(0.2)], [line(300)], [line(600)])
    return dataclasses.replace(made, **changes)


def test_skipped_layers_are_paid_for() -> None:
    assert full_depth_utilisation(counters(), WINDOW, 1) == pytest.approx(0.4)


def test_the_load_is_shared_by_the_workers() -> None:
    four = LoadCounters(
        *([line(rate / 4, pod=pod) for pod in "abcd"] for rate in (50.0, 0.2, 300.0, 600.0))
    )
    assert full_depth_utilisation(four, WINDOW, 4) == pytest.approx(0.1)


def test_a_candidates_requests_arrive_but_their_cost_says_nothing() -> None:
    both = counters(
        requests=[line(50), line(50, "candidate")],
        device_seconds=[line(0.2), line(9, "candidate")],
    )
    assert full_depth_utilisation(both, WINDOW, 1) == pytest.approx(0.8)


def test_refused_requests_arrive_but_do_not_make_answers_look_cheap() -> None:
    overloaded = counters(requests=[line(50), line(150, code="429")])
    assert full_depth_utilisation(overloaded, WINDOW, 1) == pytest.approx(1.6)


def test_young_counters_are_spread_over_their_own_time() -> None:
    young = LoadCounters(*([line(rate, since=NOW - 60)] for rate in (50.0, 0.2, 300.0, 600.0)))
    assert full_depth_utilisation(young, WINDOW, 1) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("missing", "found", "workers"),
    [
        ("requests", counters(requests=[]), 1),
        ("stable requests", counters(requests=[line(50, "candidate")]), 1),
        ("layers", counters(layers_run=[]), 1),
        ("fresh samples", counters(requests=[line(50, until=NOW - 60)]), 1),
        ("workers", counters(), 0),
        ("a worker's samples", counters(), 2),
        (
            "a worker's fresh samples",
            counters(requests=[line(50), line(9, until=NOW - 60, pod="b")]),
            2,
        ),
    ],
)
def test_without_data_the_answer_is_unknown(
    missing: str, found: LoadCounters, workers: int
) -> None:
    assert full_depth_utilisation(found, WINDOW, workers) is None, missing
