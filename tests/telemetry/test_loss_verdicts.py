"""Verdicts on losses: one contract for counted and bet losses, and their levels at every look."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from trimwheel_telemetry.loss_verdicts import BetLosses, CountedLosses, LossVerdict, Promise
from trimwheel_telemetry.verdicts import Verdict

Make = Callable[[Promise], LossVerdict]
BOTH = pytest.mark.parametrize("make", [CountedLosses, BetLosses])
RUNS, TRIALS, EVERY = 300, 6_000, 50


def first_answer(judge: LossVerdict, losses: np.ndarray) -> Verdict:
    """The first verdict that is one, looking after every few losses."""
    for place in range(0, len(losses), EVERY):
        judge.observe(losses[place : place + EVERY])
        if judge.verdict() is not Verdict.NOT_ENOUGH_EVIDENCE:
            return judge.verdict()
    return Verdict.NOT_ENOUGH_EVIDENCE


@BOTH
def test_nothing_observed_proves_nothing(make: Make) -> None:
    assert make(Promise(0.02)).verdict() is Verdict.NOT_ENOUGH_EVIDENCE


@BOTH
@pytest.mark.parametrize(("rate", "expected"), [(0.08, Verdict.FAIL), (0.004, Verdict.PASS)])
def test_what_is_far_from_the_bound_is_found(make: Make, rate: float, expected: Verdict) -> None:
    rng = np.random.default_rng(0)
    answers = [
        first_answer(make(Promise(0.02)), (rng.random(TRIALS) < rate).astype(float))
        for _ in range(20)
    ]
    assert answers.count(expected) == 20


@BOTH
def test_at_the_bound_neither_answer_comes_more_often_than_its_level(make: Make) -> None:
    rng = np.random.default_rng(1)
    promise = Promise(0.02, alpha=0.05, beta=0.05)
    answers = [
        first_answer(make(promise), (rng.random(TRIALS) < 0.02).astype(float)) for _ in range(RUNS)
    ]
    assert answers.count(Verdict.FAIL) <= binom.ppf(0.999, RUNS, 0.05)
    assert answers.count(Verdict.PASS) <= binom.ppf(0.999, RUNS, 0.05)


def test_graded_losses_keep_the_levels_and_are_found() -> None:
    rng = np.random.default_rng(2)
    promise = Promise(0.02, alpha=0.05, beta=0.05)

    def graded(mean: float) -> np.ndarray:
        return (rng.random(TRIALS) < 2 * mean) * rng.uniform(0.0, 1.0, TRIALS)

    at_bound = [first_answer(BetLosses(promise), graded(0.02)) for _ in range(RUNS)]
    for answer in (Verdict.FAIL, Verdict.PASS):
        assert at_bound.count(answer) <= binom.ppf(0.999, RUNS, 0.05)
    assert first_answer(BetLosses(promise), graded(0.08)) is Verdict.FAIL
    assert first_answer(BetLosses(promise), graded(0.004)) is Verdict.PASS


@BOTH
def test_the_order_and_size_of_parts_do_not_matter(make: Make) -> None:
    losses = (np.random.default_rng(3).random(900) < 0.05).astype(float)
    whole, parts = make(Promise(0.02)), make(Promise(0.02))
    whole.observe(losses)
    for part in np.split(losses[::-1], 9):
        parts.observe(part)
    assert whole.verdict() is parts.verdict() is Verdict.FAIL


@BOTH
@pytest.mark.parametrize("bad", [[-0.1], [1.1], [float("nan")]])
def test_what_is_no_loss_is_refused(make: Make, bad: list[float]) -> None:
    with pytest.raises(ValueError, match="losses"):
        make(Promise(0.02)).observe(bad)


def test_counts_take_no_graded_loss() -> None:
    with pytest.raises(ValueError, match="must be 0 or 1"):
        CountedLosses(Promise(0.02)).observe([0.5])


@pytest.mark.parametrize(("bound", "margin"), [(0.0, 1.0), (1.0, 1.0), (0.6, 2.0), (0.1, 0.5)])
def test_a_promise_out_of_range_is_refused(bound: float, margin: float) -> None:
    with pytest.raises(ValueError, match="bound"):
        Promise(bound, margin=margin)
