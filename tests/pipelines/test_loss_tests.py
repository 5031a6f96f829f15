"""Tests of a mean loss: one contract, two implementations; levels held, limits that invert."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from trimwheel_pipelines.loss_tests import BETTING, BINOMIAL, LossTest

BOTH = pytest.mark.parametrize("test", [BINOMIAL, BETTING], ids=lambda test: test.name)


@BOTH
def test_the_limit_inverts_the_p_value(test: LossTest) -> None:
    losses = np.zeros(1_500)
    losses[np.random.default_rng(0).choice(1_500, 9, replace=False)] = 1.0
    limit = test.upper_limit(losses, 1.5, 0.05)
    assert losses.mean() < limit < 0.03
    assert test.p_value(losses, 1.5, limit) == pytest.approx(0.05, rel=1e-3)


@BOTH
def test_the_least_audits_just_pass(test: LossTest) -> None:
    least = test.least_audits(0.02, 0.025)
    assert test.p_value(np.zeros(least), 1.0, 0.02) <= 0.025
    assert test.p_value(np.zeros(least - 1), 1.0, 0.02) > 0.025
    assert test.least_audits(0.0, 0.025) > 1_000_000


@BOTH
def test_evidence_falls_with_the_effect_and_with_loss(test: LossTest) -> None:
    clean, worse = np.zeros(600), np.zeros(600)
    worse[[100, 300, 500]] = 1.0
    values = [test.p_value(clean, effect, 0.02) for effect in (1.0, 2.0, 4.0)]
    assert values == sorted(values)
    assert test.p_value(worse, 1.0, 0.02) > test.p_value(clean, 1.0, 0.02)
    assert test.p_value(clean, 1.0, 0.0) == 1.0
    assert test.p_value(np.ones(50), 1.0, 0.02) == 1.0


@BOTH
def test_a_mean_at_the_bound_passes_no_more_often_than_the_level(test: LossTest) -> None:
    rng, level, draws = np.random.default_rng(1), 0.05, 2_000
    passed = sum(
        test.p_value((rng.random(800) < 0.02).astype(float), 1.0, 0.02) <= level
        for _ in range(draws)
    )
    assert passed <= binom.ppf(0.999, draws, level)


def test_graded_losses_at_the_bound_keep_the_level_too() -> None:
    rng, level, draws = np.random.default_rng(2), 0.05, 2_000
    passed = 0
    for _ in range(draws):
        losses = (rng.random(800) < 0.04) * rng.uniform(0.0, 1.0, 800)
        passed += BETTING.p_value(losses, 1.0, 0.02) <= level
    assert passed <= binom.ppf(0.999, draws, level)


def test_graded_losses_certify_with_fewer_audits_than_counting_answers() -> None:
    rng = np.random.default_rng(3)
    answers = rng.random(1_000) < 0.05
    losses = answers * rng.uniform(0.0, 0.2, 1_000)  # half a percent of the tokens differ
    assert BETTING.p_value(losses, 1.0, 0.02) < 1e-3
    assert BINOMIAL.p_value(answers.astype(float), 1.0, 0.02) > 0.5
