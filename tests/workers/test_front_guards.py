"""Evidence: at most one trial and one event a session, policy and guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api import metrics as table
from trimwheel_workers.front.guards import REMEMBERED_POLICIES, Guards, SessionMemory
from trimwheel_workers.front.metrics import WorkerMetrics

STABLE = {"stable": "sha256:a"}
BOTH = STABLE | {"candidate": "sha256:b"}


class Evidence:
    """Guards on a fresh registry, and what it shows."""

    def __init__(self) -> None:
        self.metrics = WorkerMetrics("m", 0.25)
        self.guards = Guards(self.metrics)

    def count(self, kind: str, guard: str, arm: str = "stable") -> float:
        metric = table.GUARD_TRIALS if kind == "trials" else table.GUARD_EVENTS
        digest = BOTH[arm]
        child = self.metrics.counter(metric).labels("m", arm, digest, guard)
        value: float = child._value.get()
        return value

    def both(self, guard: str, arm: str = "stable") -> tuple[float, float]:
        return self.count("trials", guard, arm), self.count("events", guard, arm)


@pytest.fixture
def evidence() -> Evidence:
    made = Evidence()
    made.guards.reside("salt", BOTH)
    return made


def test_a_session_is_one_trial_and_one_event_whatever_it_sends(evidence: Evidence) -> None:
    stable = evidence.guards.of("stable", "sha256:a")
    assert stable is not None
    for failed, slow in [(False, False), (True, False), (True, True), (False, True)]:
        stable.served("s1", failed=failed, slow=slow)
    assert evidence.both("errors") == (1, 1)
    assert evidence.both("latency") == (1, 1)
    assert evidence.both("errors", "candidate") == (0, 0)


def test_a_request_without_a_session_is_its_own(evidence: Evidence) -> None:
    stable = evidence.guards.of("stable", "sha256:a")
    assert stable is not None
    for _ in range(3):
        stable.served("", failed=True, slow=False)
    assert evidence.both("errors") == (3, 3)


def test_only_the_first_audit_of_a_session_is_evidence(evidence: Evidence) -> None:
    candidate = evidence.guards.of("candidate", "sha256:b")
    assert candidate is not None
    candidate.audited("s1", disagrees=False)
    candidate.audited("s1", disagrees=True)
    candidate.audited("s2", disagrees=True)
    assert evidence.both("disagreement", "candidate") == (2, 1)


def test_parity_counts_a_session_once_a_rollout_also_one_that_outlives_it(
    evidence: Evidence,
) -> None:
    candidate = evidence.guards.of("candidate", "sha256:b")
    assert candidate is not None
    for differs in (False, True, True):
        candidate.replayed("s1", differs=differs)
    assert evidence.both("parity", "candidate") == (1, 0)
    evidence.guards.reside("another salt", BOTH)
    candidate.replayed("s1", differs=True)
    assert evidence.both("parity", "candidate") == (2, 1)


def test_evidence_begins_anew_with_another_rollout(evidence: Evidence) -> None:
    stable = evidence.guards.of("stable", "sha256:a")
    assert stable is not None
    stable.served("s1", failed=False, slow=False)
    evidence.guards.reside("salt", BOTH)
    stable.served("s1", failed=False, slow=False)
    assert evidence.both("errors") == (1, 0), "a step of the same rollout changes nothing"
    evidence.guards.reside("another salt", BOTH)
    stable.served("s1", failed=False, slow=False)
    assert evidence.both("errors") == (2, 0)


def test_series_of_policies_that_are_resident_no_longer_vanish(evidence: Evidence) -> None:
    for number in range(3 * REMEMBERED_POLICIES):
        evidence.guards.reside("salt", {"stable": f"sha256:{number}"})
    text = evidence.metrics.render().decode()
    assert 'digest="sha256:b"' not in text and 'digest="sha256:14"' in text
    assert evidence.guards.of("candidate", "sha256:b") is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 15)), max_size=60))
def test_marks_are_new_once_as_long_as_the_session_is_remembered(
    added: list[tuple[str, int]],
) -> None:
    memory, seen = SessionMemory(limit=100), dict.fromkeys("abcdef", 0)
    for session, marks in added:
        assert memory.add(session, marks) == marks & ~seen[session]
        seen[session] |= marks


def test_the_least_recently_used_session_is_forgotten_first() -> None:
    memory = SessionMemory(limit=2)
    for session in ("a", "b", "a", "c"):
        memory.add(session, 1)
    assert len(memory) == 2
    assert memory.add("a", 1) == 0 and memory.add("b", 1) == 1


def _names(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}


def test_the_registry_is_the_table() -> None:
    shown = _names(WorkerMetrics("m", 0.25).render().decode())
    ours = {name for name in shown if name.startswith("trimwheel_")}
    assert ours == {metric.name for metric in table.of_component("worker")}


@pytest.mark.parametrize("slo", [0.25, 0.0333])
def test_the_slo_is_an_exact_bucket(slo: float) -> None:
    text = WorkerMetrics("m", slo).render().decode()
    assert f'trimwheel_request_duration_seconds_bucket{{arm="stable",le="{slo}",model="m"}}' in text


def test_series_that_evidence_is_read_from_begin_at_zero(evidence: Evidence) -> None:
    text = evidence.metrics.render().decode()
    wanted: list[Callable[[str], str]] = [
        lambda arm: (
            f'trimwheel_guard_trials_total{{arm="{arm}",digest="{BOTH[arm]}",'
            'guard="parity",model="m"} 0.0'
        ),
        lambda arm: f'trimwheel_audits_total{{agree="false",arm="{arm}",model="m"}} 0.0',
        lambda arm: f'trimwheel_device_seconds_total{{arm="{arm}",model="m"}} 0.0',
    ]
    for line in wanted:
        for arm in BOTH:
            assert line(arm) in text


def test_policies_are_shown_while_they_are_resident() -> None:
    metrics = WorkerMetrics("m", 0.25)
    metrics.show_policies(BOTH)
    metrics.show_policies({"stable": "sha256:b"})
    lines = [
        li for li in metrics.render().decode().splitlines() if li.startswith("trimwheel_policy_i")
    ]
    assert lines == ['trimwheel_policy_info{arm="stable",digest="sha256:b",model="m"} 1.0']


def test_the_bookkeeping_of_a_request_is_measured_and_small() -> None:
    from trimwheel_workers.bench_http import bookkeeping

    cost = bookkeeping(requests=2000, rounds=3)
    assert 0 < cost["arms"] < cost["total"] < 50, "microseconds, on however busy a machine"


def test_server_made_ids_are_long_and_never_repeat() -> None:
    from itertools import islice

    from trimwheel_workers.front.dispatch import server_ids

    made = list(islice(server_ids(), 1000))
    assert len(set(made)) == 1000 and {len(one) for one in made} == {24}
