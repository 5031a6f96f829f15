"""Verdicts: Pass, Fail or NotEnoughEvidence for each guard of a rollout.

Called by the operator on every look, and by `bench canary`, which measures the error rates of this
very code. Pure: counts in, verdict with its numbers out; looking more often costs nothing, because
each test is an e-value (`evidence`).

What is asked of each guard:

    disagreement  absolute   F1-over(eps) fails; F1-under(m eps) passes; m > 1 if certified
    parity        absolute   the same against the parity budget
    errors        relative   F2 against stable fails; F1-under(error budget) passes
    latency       relative   F2 fails only if the candidate's rate is above its budget too
    capacity      level      projected utilisation above 1 fails, below the target passes

Why not all relative: a legitimate early-exit policy disagrees more often than a dense stable one,
always, and the promise is epsilon. Why errors and latency are relative: a bad minute of the
cluster hits both arms. Without a stable arm in a block there is no background, hence no relative
evidence. No data is never Pass; absent and stale data give neither verdict, and while counters have
just restarted a Fail still counts (what was seen is true) but a Pass does not (some was lost).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from trimwheel_api import names
from trimwheel_telemetry.evidence import log_e_over, log_e_relative, log_e_under

Floats = npt.NDArray[np.float64]

CAPACITY_LIMIT: Final = 1.0
"""Projected utilisation above which a candidate cannot carry the traffic."""
CAPACITY_MIN_REQUESTS: Final = 100
"""Candidate requests behind a device-seconds estimate."""


COUNTED_ONCE: Final = 1.05
"""A design effect up to this needs no mention."""


class Verdict(StrEnum):
    """The three answers; spelled as in statuses and metrics."""

    PASS = names.VERDICT_PASS
    FAIL = names.VERDICT_FAIL
    NOT_ENOUGH_EVIDENCE = names.VERDICT_NOT_ENOUGH


class DataState(StrEnum):
    """Whether counts may be believed as a whole."""

    FRESH = "Fresh"
    STALE = "Stale"  # nobody has reported lately
    ABSENT = "Absent"  # nobody reports at all, or Prometheus is away
    RESET = "Reset"  # counters restarted: what is there is true, but not all of it


class Test(StrEnum):
    """How a guard fails."""

    __test__ = False  # not a test case

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    RELATIVE_ABOVE = "relative and above the bound"
    LEVEL = "level"


GUARD_TESTS: Final = {
    names.GUARD_DISAGREEMENT: Test.ABSOLUTE,
    names.GUARD_PARITY: Test.ABSOLUTE,
    names.GUARD_ERRORS: Test.RELATIVE,
    names.GUARD_LATENCY: Test.RELATIVE_ABOVE,
    names.GUARD_CAPACITY: Test.LEVEL,
}


@dataclass(frozen=True, slots=True)
class GuardRule:
    """What one guard promises, and how sure a verdict must be."""

    name: str
    bound: float  # largest event rate; for capacity the utilisation below which it passes
    alpha: float = 0.001  # chance of a Fail although the promise holds, over all looks
    beta: float = 0.05  # chance of a Pass although the rate is above pass_margin * bound
    pass_margin: float = 1.0  # m: Pass proves the rate below m * bound

    def __post_init__(self) -> None:
        rules = (
            ("name", self.name in GUARD_TESTS, f"must be one of {sorted(GUARD_TESTS)}", self.name),
            ("bound", 0.0 < self.bound < 1.0, "must lie inside (0, 1)", self.bound),
            ("alpha", 0.0 < self.alpha < 1.0, "must lie inside (0, 1)", self.alpha),
            ("beta", 0.0 < self.beta < 1.0, "must lie inside (0, 1)", self.beta),
            (
                "pass_margin",
                self.pass_margin >= 1.0 and self.pass_margin * self.bound < 1.0,
                "must be at least 1, and its product with the bound below 1",
                self.pass_margin,
            ),
        )
        for name, holds, rule, value in rules:
            if not holds:
                raise ValueError(f"{name}: {rule}, got {value!r}")

    @property
    def test(self) -> Test:
        """How this guard fails."""
        return GUARD_TESTS[self.name]


@dataclass(frozen=True, slots=True)
class GuardEvidence:
    """What is known about the candidate, and about stable at the same times.

    `blocks` is [B, 4] of (nc, ns, kc, ks), see `evidence.Block`. `level` is the capacity guard's
    projected utilisation.
    """

    trials: float = 0.0
    events: float = 0.0
    stable_trials: float = 0.0
    stable_events: float = 0.0
    blocks: Floats = field(default_factory=lambda: np.empty((0, 4)))
    state: DataState = DataState.FRESH
    reason: str = ""
    level: float | None = None
    effect: float = 1.0
    """Design effect of the counts: above 1 where pods counted the same sessions."""


NO_DATA: Final = GuardEvidence(state=DataState.ABSENT, reason="no data")


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """One guard's answer with the numbers behind it."""

    name: str
    verdict: Verdict
    value: float | None
    bound: float
    samples: int
    reason: str
    log_e_fail: float = 0.0  # natural log of the evidence for Fail; Fail at log(1 / alpha)
    log_e_pass: float = 0.0  # and for Pass; Pass at log(1 / beta)


def rollout_rules(
    *,
    max_disagreement: float,
    error_budget: float,
    latency_budget: float,
    capacity_target: float,
    parity_budget: float = 0.005,
    alpha: float = 0.001,
    beta: float = 0.05,
    pass_margin: float = 1.5,
    certified: bool = False,
) -> tuple[GuardRule, ...]:
    """The five guards of a rollout.

    `pass_margin` counts only for a certified candidate: its certificate already proved epsilon,
    so the canary need not prove it again. Without one the canary must, m = 1.
    """
    margin = pass_margin if certified else 1.0
    return (
        GuardRule(names.GUARD_DISAGREEMENT, max_disagreement, alpha, beta, margin),
        GuardRule(names.GUARD_ERRORS, error_budget, alpha, beta),
        GuardRule(names.GUARD_LATENCY, latency_budget, alpha, beta),
        GuardRule(names.GUARD_CAPACITY, capacity_target, alpha, beta),
        GuardRule(names.GUARD_PARITY, parity_budget, alpha, beta),
    )


def judge(rule: GuardRule, evidence: GuardEvidence) -> GuardVerdict:
    """The verdict of one guard on all evidence since the rollout began."""
    if evidence.state in (DataState.ABSENT, DataState.STALE):
        return _without(rule, evidence, evidence.reason or f"data is {evidence.state.lower()}")
    if rule.test is Test.LEVEL:
        return _judge_level(rule, evidence)
    if evidence.trials <= 0:
        return _without(rule, evidence, "no trials yet")
    rate = evidence.events / evidence.trials
    against = _log_e_fail(rule, evidence, rate)
    margin = rule.pass_margin * rule.bound
    favour = float(log_e_under(evidence.events, evidence.trials, margin)) / evidence.effect
    fails = against >= math.log(1.0 / rule.alpha)
    passes = favour >= math.log(1.0 / rule.beta)
    verdict = Verdict.NOT_ENOUGH_EVIDENCE
    reason = _counts(rule, evidence, rate)
    if fails:
        verdict = Verdict.FAIL
    elif passes and evidence.state is DataState.RESET:
        reason = f"{reason}; {evidence.reason}"
    elif passes:
        verdict = Verdict.PASS
    return GuardVerdict(
        rule.name, verdict, rate, rule.bound, int(evidence.trials), reason, against, favour
    )


def combine(verdicts: Iterable[GuardVerdict]) -> Verdict:
    """Fail if any guard fails, Pass if all pass and there is at least one, else neither."""
    answers = [verdict.verdict for verdict in verdicts]
    if Verdict.FAIL in answers:
        return Verdict.FAIL
    if answers and all(answer is Verdict.PASS for answer in answers):
        return Verdict.PASS
    return Verdict.NOT_ENOUGH_EVIDENCE


def capacity_evidence(
    *,
    arrivals: float,
    seconds: float,
    candidate_requests: float,
    candidate_device_seconds: float,
    workers: int,
    state: DataState = DataState.FRESH,
    reason: str = "",
) -> GuardEvidence:
    """What utilisation would be if the candidate answered everything.

    `arrivals` requests of all arms came in `seconds`; the candidate's took
    `candidate_device_seconds` of engine time; `workers` engines share the load.
    """
    level = None
    if candidate_requests > 0 and seconds > 0 and workers > 0:
        each = candidate_device_seconds / candidate_requests
        level = arrivals / seconds * each / workers
    return GuardEvidence(trials=candidate_requests, state=state, reason=reason, level=level)


def _log_e_fail(rule: GuardRule, evidence: GuardEvidence, rate: float) -> float:
    """Evidence for Fail; divided by the design effect, as if each session had been counted once."""
    if rule.test is Test.ABSOLUTE:
        against = float(log_e_over(evidence.events, evidence.trials, rule.bound))
        return against / evidence.effect
    against = log_e_relative(evidence.blocks) / evidence.effect
    if rule.test is Test.RELATIVE_ABOVE and rate <= rule.bound:
        return min(against, 0.0)  # slower than stable, and still within its promise
    return against


def _judge_level(rule: GuardRule, evidence: GuardEvidence) -> GuardVerdict:
    level = evidence.level
    if level is None or evidence.trials < CAPACITY_MIN_REQUESTS:
        return _without(
            rule,
            evidence,
            f"{evidence.trials:.0f} of {CAPACITY_MIN_REQUESTS} candidate requests timed so far",
        )
    verdict = Verdict.NOT_ENOUGH_EVIDENCE
    if level > CAPACITY_LIMIT:
        verdict = Verdict.FAIL
    elif level < rule.bound and evidence.state is DataState.FRESH:
        verdict = Verdict.PASS
    reason = (
        f"all traffic on the candidate would use {level:.0%} of the workers; passes below "
        f"{rule.bound:.0%}, fails above {CAPACITY_LIMIT:.0%}"
    )
    return GuardVerdict(rule.name, verdict, level, rule.bound, int(evidence.trials), reason)


def _counts(rule: GuardRule, evidence: GuardEvidence, rate: float) -> str:
    text = f"{evidence.events:.0f} of {evidence.trials:.0f} ({rate:.2%}) against {rule.bound:.2%}"
    if rule.test in (Test.RELATIVE, Test.RELATIVE_ABOVE):
        text += f"; stable {evidence.stable_events:.0f} of {evidence.stable_trials:.0f}"
    if evidence.effect > COUNTED_ONCE:
        text += f"; pods count a session {evidence.effect:.1f} times (no session affinity)"
    return text


def _without(rule: GuardRule, evidence: GuardEvidence, reason: str) -> GuardVerdict:
    value = evidence.events / evidence.trials if evidence.trials > 0 else None
    if rule.test is Test.LEVEL:
        value = evidence.level
    return GuardVerdict(
        rule.name,
        Verdict.NOT_ENOUGH_EVIDENCE,
        value,
        rule.bound,
        int(evidence.trials),
        reason,
    )
