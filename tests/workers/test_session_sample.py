"""The sample of sessions: the same in every worker, the smallest hashes, nothing without a key."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from trimwheel_api import metrics, names
from trimwheel_telemetry.session_effect import session_effect
from trimwheel_workers.front.guards import Guards
from trimwheel_workers.front.metrics import WorkerMetrics

POLICIES = {names.ARM_STABLE: "sha256:0", names.ARM_CANDIDATE: "sha256:1"}


def worker(salt: str = "salt") -> tuple[WorkerMetrics, Guards]:
    registry = WorkerMetrics("m", 0.25)
    guards = Guards(registry)
    guards.reside(salt, POLICIES)
    return registry, guards


def sample(registry: WorkerMetrics, guard: str, arm: str = names.ARM_CANDIDATE) -> np.ndarray:
    families = text_string_to_metric_families(registry.render().decode())
    family = next(each for each in families if each.name == metrics.GUARD_SESSION_SAMPLE.name)
    return np.array([
        each.value for each in family.samples
        if each.labels["guard"] == guard and each.labels["arm"] == arm
    ])  # fmt: skip


def serve(guards: Guards, sessions: range) -> None:
    policy = guards.of(names.ARM_CANDIDATE, "sha256:1")
    assert policy is not None
    for session in sessions:
        policy.served(f"session-{session}", failed=False, slow=False)


@pytest.mark.parametrize("guard", [names.GUARD_ERRORS, names.GUARD_DISAGREEMENT])
def test_it_begins_empty_in_every_slot(guard: str) -> None:
    registry, _ = worker()
    assert sample(registry, guard).tolist() == [0.0] * metrics.GUARD_SAMPLE_SLOTS


def test_workers_that_count_the_same_sessions_publish_the_same() -> None:
    (first, one), (second, other), (third, apart) = worker(), worker(), worker()
    serve(one, range(1_000))
    serve(other, range(1_000))
    serve(apart, range(1_000, 2_000))
    ours, same, others = (sample(each, names.GUARD_ERRORS) for each in (first, second, third))
    assert ours.tolist() == same.tolist() == sorted(ours)
    assert session_effect([ours, same]) == 2.0
    assert session_effect([ours, others]) == 1.0


def test_a_new_rollout_samples_anew_under_its_own_salt() -> None:
    registry, guards = worker()
    serve(guards, range(100))
    before = sample(registry, names.GUARD_ERRORS)
    guards.reside("another", POLICIES)
    assert set(sample(registry, names.GUARD_ERRORS)) == {0.0}
    serve(guards, range(100))
    assert not set(before) & set(sample(registry, names.GUARD_ERRORS))


def test_requests_without_a_session_are_no_sample_and_audits_have_their_own() -> None:
    registry, guards = worker()
    policy = guards.of(names.ARM_CANDIDATE, "sha256:1")
    assert policy is not None
    policy.served("", failed=False, slow=False)
    policy.audited("audited", disagrees=False)
    assert set(sample(registry, names.GUARD_ERRORS)) == {0.0}
    assert (sample(registry, names.GUARD_DISAGREEMENT) > 0).sum() == 1


def test_a_policy_that_goes_takes_its_sample_along() -> None:
    registry, guards = worker()
    for number in range(20):
        guards.reside("salt", {names.ARM_CANDIDATE: f"sha256:{number}"})
    families = text_string_to_metric_families(registry.render().decode())
    family = next(each for each in families if each.name == metrics.GUARD_SESSION_SAMPLE.name)
    assert "sha256:1" not in {each.labels["digest"] for each in family.samples}
