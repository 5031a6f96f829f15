"""Break-glass: who may stop a candidate by hand while the operator is away, and by which edit."""

from __future__ import annotations

from typing import Any

import pytest

from trimwheel_api import names

pytestmark = pytest.mark.cluster

DIGEST = "sha256:" + "a" * 64
OTHER_DIGEST = "sha256:" + "b" * 64
CANDIDATE = {"digest": OTHER_DIGEST, "document": '{"moe":{"topK":1}}'}

EXACT: dict[str, Any] = {"weightBasisPoints": 0, "hold": True, "epoch": 8}
BEYOND: dict[str, dict[str, Any]] = {
    "keeps the weight": {"spec": {**EXACT, "weightBasisPoints": 100}},
    "raises the weight": {"spec": {**EXACT, "weightBasisPoints": 10000}},
    "does not hold": {"spec": {**EXACT, "hold": False}},
    "skips an epoch": {"spec": {**EXACT, "epoch": 9}},
    "promotes the candidate": {"spec": {**EXACT, "stable": CANDIDATE}},
    "changes the stable document": {"spec": {**EXACT, "stable": {"document": '{"a":1}'}}},
    "drops the candidate": {"spec": {**EXACT, "candidate": None}},
    "changes the candidate": {"spec": {**EXACT, "candidate": {"digest": DIGEST}}},
    "changes the salt": {"spec": {**EXACT, "salt": "other"}},
    "stops audits": {"spec": {**EXACT, "auditRate": "0"}},
    "lengthens the lease": {"spec": {**EXACT, "leaseSeconds": 3600}},
    "renews": {"spec": {**EXACT, "renewals": 4}},
    "rewrites when it was decided": {"spec": {**EXACT, "decidedAt": "2030-01-01T00:00:00Z"}},
    "names another rollout": {"spec": {**EXACT, "rollout": "other"}},
    "adds an annotation": {"spec": EXACT, "metadata": {"annotations": {"a": "b"}}},
    "adds a label": {"spec": EXACT, "metadata": {"labels": {"a": "b"}}},
    "adds a finalizer": {"spec": EXACT, "metadata": {"finalizers": ["example.com/a"]}},
    "gives it an owner": {
        "spec": EXACT,
        "metadata": {
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "1"}]
        },
    },
}


@pytest.fixture
def canary(stage: Any) -> Any:
    """A stage on which a candidate serves one tenth, at epoch 7."""
    serving = {
        "epoch": 7,
        "renewals": 3,
        "candidate": CANDIDATE,
        "weightBasisPoints": 1000,
        "salt": "s",
        "decidedAt": "2026-01-01T00:00:00Z",
        "rollout": "r",
    }
    answer = stage.operator.create(stage.assignment(**serving))
    assert answer.allowed, answer.message
    return stage


@pytest.mark.parametrize("change", BEYOND)
def test_break_glass_is_refused_when_it(canary: Any, change: str) -> None:
    rita = canary.person("rita", "trimwheel-rollback")
    answer = rita.patch("PolicyAssignment", "m", BEYOND[change])
    assert answer.policy == "trimwheel-operator-only", answer
    kept = canary.root.get("PolicyAssignment", "m").body
    assert (kept["spec"]["epoch"], kept["spec"]["weightBasisPoints"]) == (7, 1000)


def test_break_glass_needs_a_new_epoch(canary: Any) -> None:
    rita = canary.person("rita", "trimwheel-rollback")
    same = rita.patch("PolicyAssignment", "m", {"spec": {**EXACT, "epoch": 7}})
    assert same.code == 422 and "epoch must grow" in same.message


def test_break_glass_by_a_holder_of_rollback_stops_the_canary(canary: Any) -> None:
    rita = canary.person("rita", "trimwheel-rollback")
    answer = rita.patch("PolicyAssignment", "m", {"spec": EXACT})
    assert answer.allowed, answer.message
    spec = answer.body["spec"]
    assert (spec["weightBasisPoints"], spec["hold"], spec["epoch"]) == (0, True, 8)
    assert spec["stable"]["digest"] == DIGEST
    assert rita.delete("PolicyAssignment", "m").rbac


@pytest.mark.parametrize("who", ["without any verb of ours", "with rollback on another model"])
def test_break_glass_is_refused_to_somebody_who_may_patch(canary: Any, who: str) -> None:
    rules = [
        {"apiGroups": [names.GROUP], "resources": ["policyassignments"], "verbs": ["get", "patch"]}
    ]
    if who.startswith("with "):
        on_other = {"resourceNames": ["other"], "verbs": ["rollback"]}
        rules.append({"apiGroups": [names.GROUP], "resources": ["adaptivemodels"], **on_other})
    canary.role("patcher", rules)
    answer = canary.person("pat", "Role/patcher").patch("PolicyAssignment", "m", {"spec": EXACT})
    assert answer.policy == "trimwheel-operator-only", answer


def test_the_operator_lifts_a_hold(canary: Any) -> None:
    assert (
        canary.person("rita", "trimwheel-rollback")
        .patch("PolicyAssignment", "m", {"spec": EXACT})
        .allowed
    )
    lifted = canary.operator.patch("PolicyAssignment", "m", {"spec": {"hold": False, "epoch": 9}})
    assert lifted.allowed, lifted.message
