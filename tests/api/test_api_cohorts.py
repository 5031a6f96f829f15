"""The cohort hash: fixed vectors, monotone ramps, uniform shares, independence between rollouts."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.cohorts import COHORTS, audit_score, cohort, in_candidate

KEY = st.text(min_size=1, max_size=40)
SALT = st.text(st.characters(codec="ascii"), max_size=64)


@pytest.mark.parametrize(
    ("key", "salt", "expected"),
    [("user-1", "s", 7085), ("user-2", "s", 5844), ("user-1", "other", 5667),
     ("ключ", "s", 6894), ("", "", 9876)],
)  # fmt: skip
def test_cohorts_never_change(key, salt, expected):
    """Workers of two versions serve one canary: another hash would flip sessions."""
    assert cohort(key, salt) == expected


@given(KEY, SALT)
def test_a_cohort_is_the_keyed_hash_that_the_interface_names(key, salt):
    digest = blake2b(key.encode("utf-8"), key=salt.encode(), digest_size=8).digest()
    assert cohort(key, salt) == int.from_bytes(digest, "big") % 10000


@given(KEY, SALT, st.integers(0, COHORTS), st.integers(0, COHORTS))
def test_a_growing_weight_never_takes_a_session_back(key, salt, one, other):
    low, high = sorted((one, other))
    assert not in_candidate(key, salt, low) or in_candidate(key, salt, high)


@given(KEY, SALT)
def test_weight_zero_serves_nobody_and_full_weight_everybody(key, salt):
    assert not in_candidate(key, salt, 0)
    assert in_candidate(key, salt, COHORTS)


@pytest.mark.parametrize("weight", [100, 500, 2500, 5000])
def test_the_candidate_gets_its_share(weight):
    keys = 20_000
    served = sum(in_candidate(f"session-{number}", "salt", weight) for number in range(keys))
    share = weight / COHORTS
    # Five standard deviations of a binomial; the hash is fixed, so this cannot flicker.
    assert abs(served / keys - share) < 5 * (share * (1 - share) / keys) ** 0.5


def test_two_rollouts_expose_different_sessions():
    chosen = [
        {number for number in range(10_000) if in_candidate(f"s-{number}", salt, 1000)}
        for salt in ("first", "second")
    ]
    both = len(chosen[0] & chosen[1])
    assert 60 < both < 140  # independent choices share a tenth of a tenth: 100 of 10,000


@given(st.text(max_size=40), SALT)
def test_audit_scores_lie_in_the_unit_interval(server_id, key):
    assert 0 <= audit_score(server_id, key) < 1


@given(st.text(max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_a_raised_audit_rate_keeps_every_audit(server_id, one, other):
    low, high = sorted((one, other))
    score = audit_score(server_id, "m")
    assert not score < low or score < high


def test_audits_are_a_uniform_sample():
    scores = sorted(audit_score(f"{number:032x}", "m") for number in range(10_000))
    worst = max(abs(score - index / 10_000) for index, score in enumerate(scores))
    assert worst < 1.95 / 100  # Kolmogorov-Smirnov at level .001 for 10,000
