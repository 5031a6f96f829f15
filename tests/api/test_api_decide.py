"""The reference exit decision: properties that every faster form must keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.decide import NEVER, as_compared, decide, single
from trimwheel_api.policy import parse_policy

EXITS = st.integers(1, 8)
SCORE = st.floats(0, 1, allow_nan=False, width=32)
ULP = 2.0**-24
"""Between 32-bit floats in [0.5, 1)."""


@st.composite
def cases(draw):
    count = draw(EXITS)
    scores = draw(st.lists(SCORE, min_size=count, max_size=count))
    limits = draw(st.lists(SCORE | st.just(NEVER), min_size=count, max_size=count))
    cap = draw(st.none() | st.integers(0, count + 2))
    return scores, limits, cap


@given(cases())
def test_the_answer_is_the_first_exit_whose_score_reaches_its_threshold(case):
    scores, limits, cap = case
    chosen = decide(scores, limits, cap)
    last = len(scores) if cap is None else min(cap, len(scores))
    assert 0 <= chosen <= last
    assert all(scores[index] < limits[index] for index in range(chosen))
    assert chosen == last or scores[chosen] >= limits[chosen]


@given(cases(), st.integers(0, 7), st.floats(0, 1))
def test_raising_a_threshold_never_makes_an_answer_earlier(case, index, step):
    scores, limits, cap = case
    raised = list(limits)
    raised[index % len(limits)] += step
    assert decide(scores, raised, cap) >= decide(scores, limits, cap)


@given(cases(), st.integers(0, 8))
def test_a_lower_depth_cap_never_makes_an_answer_later(case, cap):
    scores, limits, _ = case
    assert decide(scores, limits, cap) <= decide(scores, limits)
    assert decide(scores, limits, cap) <= cap


@given(st.lists(SCORE, min_size=1, max_size=8))
def test_never_means_full_depth_whatever_the_scores(scores):
    assert decide(scores, [NEVER] * len(scores)) == len(scores)


@given(st.lists(SCORE, min_size=1, max_size=8))
def test_a_threshold_of_zero_answers_at_once(scores):
    assert decide(scores, [0.0] * len(scores)) == 0


def test_a_score_equal_to_its_threshold_answers():
    assert decide([0.5, 0.9], [0.5, 0.9]) == 0
    nearest = 0.89999998  # of the 32-bit floats to 0.9, and below it
    assert decide([single(nearest)], [0.9]) == 0, "a recorded score meets the policy's decimal"
    assert decide([single(0.9) - ULP], [0.9]) == 1


@given(st.floats(0.5 + ULP, 1 - ULP, width=32), st.floats(-0.49, 0.49))
def test_what_rounds_to_a_score_ties_with_it(score, share):
    assert decide([score], [score + share * ULP]) == 0
    assert decide([score + share * ULP], [score]) == 0
    assert decide([score], [score + ULP]) == 1


@given(SCORE, st.floats(0, 1.99))
def test_a_compared_threshold_decides_alike_in_64_bits(score, threshold):
    assert (score >= as_compared(threshold)) is (decide([score], [threshold]) == 0)


def test_a_threshold_just_above_one_is_still_never():
    policy = parse_policy({"exit": {"enabled": True, "thresholds": ["1.000000001", "1", "0.9"]}})
    assert policy.thresholds(3) == (NEVER, 1.0, single(0.9))
    assert decide([1.0, 1.0, 1.0], [1.000000001, 1.0, 0.9]) == 1


def test_thresholds_must_match_the_exits():
    with pytest.raises(ValueError, match="2 exits, but got 1"):
        decide([0.1, 0.2], [0.5])
