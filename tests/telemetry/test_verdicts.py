"""Verdicts: three values, what each guard asks, and no data is never Pass."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimwheel_telemetry.verdicts import (
    NO_DATA,
    DataState,
    GuardEvidence,
    GuardRule,
    GuardVerdict,
    Verdict,
    capacity_evidence,
    combine,
    judge,
    rollout_rules,
)

PASS, FAIL, NEITHER = Verdict.PASS, Verdict.FAIL, Verdict.NOT_ENOUGH_EVIDENCE
DISAGREEMENT = GuardRule("disagreement", 0.02)
ERRORS = GuardRule("errors", 0.01)
LATENCY = GuardRule("latency", 0.01)
CAPACITY = GuardRule("capacity", 0.8)


def paired(nc: int, kc: int, ns: int, ks: int, blocks: int = 1, **more: object) -> GuardEvidence:
    """The same counts in each of some blocks."""
    return GuardEvidence(
        trials=nc * blocks,
        events=kc * blocks,
        stable_trials=ns * blocks,
        stable_events=ks * blocks,
        blocks=np.tile(np.array([[nc, ns, kc, ks]], float), (blocks, 1)),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("rule", "evidence", "expected"),
    [
        pytest.param(DISAGREEMENT, GuardEvidence(200, 20), FAIL, id="ten-percent-disagreement"),
        pytest.param(DISAGREEMENT, GuardEvidence(2_000, 20), PASS, id="one-percent-long-enough"),
        pytest.param(DISAGREEMENT, GuardEvidence(200, 2), NEITHER, id="one-percent-too-early"),
        pytest.param(DISAGREEMENT, GuardEvidence(945, 13), NEITHER, id="near-epsilon"),
        pytest.param(ERRORS, paired(50, 4, 50, 0, 10), FAIL, id="errors-of-the-candidate-alone"),
        pytest.param(ERRORS, paired(50, 4, 50, 4, 10), NEITHER, id="a-bad-hour-hits-both"),
        pytest.param(ERRORS, paired(50, 0, 50, 0, 20), PASS, id="no-error-in-a-thousand"),
        pytest.param(ERRORS, paired(500, 40, 0, 0, 5), NEITHER, id="no-background-at-all"),
        pytest.param(LATENCY, paired(900, 8, 900, 0, 10), NEITHER, id="slower-but-in-budget"),
        pytest.param(LATENCY, paired(100, 8, 100, 0, 10), FAIL, id="slower-and-over-budget"),
        pytest.param(CAPACITY, GuardEvidence(500, level=0.5), PASS, id="room-to-spare"),
        pytest.param(CAPACITY, GuardEvidence(500, level=0.9), NEITHER, id="tight"),
        pytest.param(CAPACITY, GuardEvidence(500, level=1.2), FAIL, id="cannot-carry-the-traffic"),
        pytest.param(CAPACITY, GuardEvidence(50, level=1.2), NEITHER, id="timed-too-few"),
        pytest.param(GuardRule("parity", 0.005), GuardEvidence(300, 12), FAIL, id="parity-broken"),
    ],
)
def test_each_guard_asks_its_own_question(
    rule: GuardRule, evidence: GuardEvidence, expected: Verdict
) -> None:
    verdict = judge(rule, evidence)
    assert verdict.verdict is expected, verdict
    assert verdict.samples == evidence.trials
    assert verdict.reason


@pytest.mark.parametrize("guard", ["disagreement", "errors", "latency", "capacity", "parity"])
def test_no_data_and_no_trials_are_neither_verdict(guard: str) -> None:
    rule = GuardRule(guard, 0.02)
    for evidence in (NO_DATA, GuardEvidence(), GuardEvidence(state=DataState.STALE)):
        verdict = judge(rule, evidence)
        assert (verdict.verdict, verdict.value, verdict.samples) == (NEITHER, None, 0)


@pytest.mark.parametrize(
    ("state", "good", "bad"),
    [
        (DataState.FRESH, PASS, FAIL),
        (DataState.RESET, NEITHER, FAIL),
        (DataState.STALE, NEITHER, NEITHER),
        (DataState.ABSENT, NEITHER, NEITHER),
    ],
)
def test_only_fresh_whole_data_passes(state: DataState, good: Verdict, bad: Verdict) -> None:
    assert judge(ERRORS, paired(100, 0, 100, 0, 20, state=state)).verdict is good
    assert judge(ERRORS, paired(100, 9, 100, 0, 20, state=state)).verdict is bad


def test_a_certificate_lets_the_canary_prove_less() -> None:
    numbers = {
        "max_disagreement": 0.02,
        "error_budget": 0.01,
        "latency_budget": 0.01,
        "capacity_target": 0.8,
        "pass_margin": 2.0,
    }
    evidence = GuardEvidence(700, 11)
    certified, plain = (rollout_rules(**numbers, certified=flag)[0] for flag in (True, False))  # type: ignore[arg-type]
    assert judge(certified, evidence).verdict is PASS
    assert judge(plain, evidence).verdict is NEITHER
    assert judge(certified, evidence).bound == 0.02  # what is promised stays the same


def test_combination_is_fail_over_all_and_pass_only_of_all() -> None:
    def answer(verdict: Verdict) -> GuardVerdict:
        return GuardVerdict("errors", verdict, None, 0.1, 0, "")

    assert combine([]) is NEITHER
    for triple in itertools.product(Verdict, repeat=3):
        expected = FAIL if FAIL in triple else PASS if set(triple) == {PASS} else NEITHER
        assert combine([answer(verdict) for verdict in triple]) is expected


def test_capacity_projects_the_candidate_onto_all_traffic() -> None:
    evidence = capacity_evidence(
        arrivals=6_000,
        seconds=60,
        candidate_requests=500,
        candidate_device_seconds=6.0,
        workers=2,
    )
    assert evidence.level == pytest.approx(100 * 0.012 / 2)
    assert judge(CAPACITY, evidence).value == pytest.approx(0.6)
    none = capacity_evidence(
        arrivals=5, seconds=60, candidate_requests=0, candidate_device_seconds=0, workers=2
    )
    assert judge(CAPACITY, none).verdict is NEITHER


@given(trials=st.integers(1, 2_000), share=st.floats(0, 1), extra=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_more_bad_events_never_turn_fail_into_anything_milder(
    trials: int, share: float, extra: int
) -> None:
    events = int(trials * share)
    order = {PASS: 0, NEITHER: 1, FAIL: 2}
    before = judge(DISAGREEMENT, GuardEvidence(trials, events)).verdict
    after = judge(DISAGREEMENT, GuardEvidence(trials + extra, events + extra)).verdict
    assert order[after] >= order[before]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": "speed"}, "name"),
        ({"bound": 0.0}, "bound"),
        ({"alpha": 1.0}, "alpha"),
        ({"beta": 0.0}, "beta"),
        ({"pass_margin": 0.5}, "pass_margin"),
        ({"bound": 0.6, "pass_margin": 2.0}, "pass_margin"),
    ],
)
def test_rules_out_of_range_are_refused_by_name(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        GuardRule(**({"name": "errors", "bound": 0.1} | arguments))  # type: ignore[arg-type]
