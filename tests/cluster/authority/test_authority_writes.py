"""Who may write what the operator writes: statuses and assignments; and what it may grant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.client import ApiException

from trimwheel_api import names
from trimwheel_local.testing import eventually

pytestmark = pytest.mark.cluster

DIGEST = "sha256:" + "a" * 64
OTHER_DIGEST = "sha256:" + "b" * 64
CANDIDATE = {"digest": OTHER_DIGEST, "document": '{"moe":{"topK":1}}'}


def objects(stage: Any) -> dict[str, Any]:
    """One object of each kind with a status, by kind."""
    admin = stage.root
    rollout = stage.rollout("r", "admin")
    bodies = (stage.model(), stage.policy(), stage.tuning(), rollout)
    return {body["kind"]: admin.create(body).body for body in bodies}


STATUS_KINDS = ("AdaptiveModel", "AdaptivePolicy", "TuningRun", "PolicyRollout")
PEOPLE: dict[str, Callable[[Any], Any]] = {
    "holder of every verb in the namespace": lambda stage: stage.wildcard(),
    "cluster administrator": lambda stage: stage.root,
    "account of the namespace with every verb": lambda stage: robot_with_everything(stage),
    "namesake of the operator": lambda stage: namesake(stage),
}


def robot_with_everything(stage: Any) -> Any:
    stage.role("everything", [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])
    return stage.account("robot", "Role/everything")


def namesake(stage: Any) -> Any:
    """An account called like the operator's, in a namespace of somebody else's."""
    stage.role("everything", [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])
    return stage.account(names.OPERATOR_ACCOUNT, "Role/everything")


# --- statuses ---------------------------------------------------------------------------------
@pytest.mark.parametrize("who", PEOPLE)
def test_no_status_is_written_by_the(stage: Any, who: str) -> None:
    found, actor = objects(stage), PEOPLE[who](stage)
    for kind, body in found.items():
        name = body["metadata"]["name"]
        patch = {"status": {"observedGeneration": 7}}
        for answer in (
            actor.patch(kind, name, patch, "status"),
            actor.put({**body, **patch}, "status"),
        ):
            assert answer.policy == "trimwheel-operator-only", answer
            assert "/status is the operator's" in answer.message


@pytest.mark.parametrize("role", ["edit", "admin"])
def test_roles_for_people_do_not_reach_a_status(stage: Any, role: str) -> None:
    person, found = stage.person("eve", role), objects(stage)
    for kind, body in found.items():
        name = body["metadata"]["name"]
        assert person.patch(kind, name, {"status": {"observedGeneration": 7}}, "status").rbac


def test_a_status_cannot_come_in_with_the_object(stage: Any) -> None:
    forged = {**stage.model(), "status": {"stable": {"digest": DIGEST}}}
    made = stage.wildcard().create(forged)
    assert made.allowed
    assert "stable" not in made.body["status"]


@pytest.mark.parametrize("kind", STATUS_KINDS)
def test_the_operator_writes_every_status_and_no_spec(stage: Any, kind: str) -> None:
    name = objects(stage)[kind]["metadata"]["name"]
    wrote = stage.operator.patch(kind, name, {"status": {"observedGeneration": 1}}, "status")
    assert wrote.allowed, wrote.message
    assert wrote.body["status"]["observedGeneration"] == 1
    assert stage.operator.patch(kind, name, {"metadata": {"labels": {"a": "b"}}}).rbac
    assert stage.operator.delete(kind, name).rbac
    assert stage.operator.put(wrote.body).rbac


@pytest.mark.parametrize("account", ["pipelines", "tuning_job"])
def test_loop_and_jobs_write_the_status_of_tuning_runs_alone(stage: Any, account: str) -> None:
    actor = getattr(stage, account)
    for kind, body in objects(stage).items():
        name = body["metadata"]["name"]
        answer = actor.patch(kind, name, {"status": {"observedGeneration": 1}}, "status")
        assert answer.allowed if kind == "TuningRun" else answer.rbac, (kind, answer.message)


def test_the_loop_deletes_what_is_beyond_the_history_but_no_model(stage: Any) -> None:
    for kind, body in objects(stage).items():
        assert stage.tuning_job.delete(kind, body["metadata"]["name"]).rbac, kind
        answer = stage.pipelines.delete(kind, body["metadata"]["name"])
        assert answer.rbac if kind == "AdaptiveModel" else answer.allowed, (kind, answer.message)


def test_an_editor_scales_a_model(stage: Any) -> None:
    objects(stage)
    editor = stage.person("eve", "edit")
    answer = editor.patch("AdaptiveModel", "m", {"spec": {"replicas": 5}}, "scale")
    assert answer.allowed, answer.message
    assert stage.root.get("AdaptiveModel", "m").body["spec"]["replicas"] == 5


# --- assignments ------------------------------------------------------------------------------
@pytest.mark.parametrize("who", PEOPLE)
def test_no_assignment_is_written_by_the(stage: Any, who: str) -> None:
    actor = PEOPLE[who](stage)
    assert actor.create(stage.assignment()).policy == "trimwheel-operator-only"
    assert stage.operator.create(stage.assignment()).allowed
    changed = actor.patch("PolicyAssignment", "m", {"spec": {"epoch": 2, "salt": "mine"}})
    assert changed.policy == "trimwheel-operator-only", changed
    deleted = actor.delete("PolicyAssignment", "m")
    assert deleted.policy == "trimwheel-operator-only", deleted
    assert "DELETE policyassignments is the operator's" in deleted.message


def test_assignments_are_read_by_editors_and_not_at_all_by_pipelines(stage: Any) -> None:
    assert stage.operator.create(stage.assignment()).allowed
    editor = stage.person("eve", "edit")
    for actor in (stage.pipelines, stage.tuning_job, editor):
        read = actor.get("PolicyAssignment", "m")
        assert read.allowed if actor is editor else read.rbac
        assert actor.create(stage.assignment("n")).rbac
        assert actor.patch("PolicyAssignment", "m", {"spec": {"epoch": 2}}).rbac
        assert actor.delete("PolicyAssignment", "m").rbac


# --- what the operator grants to workers ------------------------------------------------------
def test_the_operator_grants_nothing_that_it_does_not_hold(stage: Any) -> None:
    """By RBAC already; what it grants of what it holds is in test_authority_operator."""
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{stage.namespace}/roles"

    def role(name: str, group: str, resource: str, *verbs: str) -> Any:
        rule = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
        return stage.operator.call("POST", roles, {"metadata": {"name": name}, "rules": [rule]})

    for number, beyond in enumerate(
        [
            (names.GROUP, "policyrollouts", "approve"),
            (names.GROUP, "adaptivemodels", "waive"),
            (names.GROUP, "adaptivemodels", "certify"),
            ("", "secrets", "get"),
        ]
    ):
        refused = role(f"beyond-{number}", *beyond)
        assert refused.code == 403 and "attempting to grant" in refused.message, refused


def test_jobs_are_made_in_the_releases_namespace_alone(stage: Any) -> None:
    path = f"/apis/batch/v1/namespaces/{stage.namespace}/jobs"
    job = {"metadata": {"name": "tuning-x"}, "spec": {"template": {"spec": {}}}}
    assert stage.operator.call("POST", path, job).rbac


# --- what the cluster itself may do -----------------------------------------------------------
COLLECTORS = ("generic-garbage-collector", "namespace-controller")
NEIGHBOURS = ("clusterrole-aggregation-controller", "replicaset-controller", "default", "anything")


def kube_system(stage: Any, account: str) -> Any:
    """The account of kube-system, with every verb in the stage's namespace."""
    user = names.service_account_user("kube-system", account)
    subject = {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}
    stage.role(f"all-{account}", [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])
    stage.bind(f"Role/all-{account}", subject)
    stage.await_rights(user, subject)
    return stage.impersonating(user, ("system:serviceaccounts:kube-system",))


@pytest.mark.parametrize("account", NEIGHBOURS)
def test_no_other_account_of_kube_system_is_exempt(stage: Any, account: str) -> None:
    actor = kube_system(stage, account)
    assert stage.operator.create(stage.assignment()).allowed
    waiting = stage.waiting()
    anna = stage.person("anna", "trimwheel-approver")
    approval = stage.approve(anna, stage.approval(waiting, "anna")).body["metadata"]["name"]
    change = {"spec": {"epoch": 2, "salt": "x"}}
    for answer in (
        actor.patch("PolicyAssignment", "m", change),
        actor.delete("PolicyAssignment", "m"),
        actor.create(stage.assignment("n")),
        actor.patch("PolicyApproval", approval, {"metadata": {"labels": {"a": "b"}}}),
        actor.patch("PolicyRollout", "r", {"status": {"phase": "Promoted"}}, "status"),
    ):
        assert answer.policy == "trimwheel-operator-only", answer
    assert actor.delete("PolicyApproval", approval).policy == "trimwheel-approvals"


@pytest.mark.parametrize("account", COLLECTORS)
def test_collectors_change_owners_and_finalizers_and_delete_and_nothing_else(
    stage: Any, account: str
) -> None:
    actor = kube_system(stage, account)
    assert stage.operator.create(stage.assignment()).allowed
    for beyond in (
        {"spec": {"epoch": 2, "salt": "x"}},
        {"metadata": {"labels": {"a": "b"}}},
        {"metadata": {"annotations": {"a": "b"}}},
    ):
        assert actor.patch("PolicyAssignment", "m", beyond).policy == "trimwheel-operator-only"
    assert actor.create(stage.assignment("n")).policy == "trimwheel-operator-only"
    status = {"status": {"phase": "Promoted"}}
    stage.waiting()
    forged = actor.patch("PolicyRollout", "r", status, "status")
    assert forged.policy == "trimwheel-operator-only", forged
    for within in (
        {"metadata": {"finalizers": ["foregroundDeletion"]}},
        {"metadata": {"finalizers": None}},
        {"metadata": {"ownerReferences": []}},
    ):
        answer = actor.patch("PolicyAssignment", "m", within)
        assert answer.allowed, answer.message
    assert actor.delete("PolicyAssignment", "m").allowed


# --- what must still work ---------------------------------------------------------------------
def test_the_garbage_collector_takes_what_a_model_owned(stage: Any) -> None:
    model = stage.root.create(stage.model()).body
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": "AdaptiveModel",
        "name": "m",
        "uid": model["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    owned = stage.assignment()
    owned["metadata"]["ownerReferences"] = [owner]
    made = stage.operator.create(owned)
    assert made.allowed, made.message
    assert stage.person("eve", "edit").delete("AdaptiveModel", "m").allowed
    eventually(lambda: stage.root.get("PolicyAssignment", "m").code == 404, "assignment collected")


def test_a_namespace_with_approvals_and_assignments_can_be_deleted(stage: Any) -> None:
    objects(stage)
    assert stage.operator.create(stage.assignment()).allowed
    asked = stage.waiting("asked")
    anna = stage.person("anna", "trimwheel-approver")
    assert stage.approve(anna, stage.approval(asked, "anna")).allowed
    stage.admin.core.delete_namespace(stage.namespace)

    def gone() -> bool:
        try:
            stage.admin.core.read_namespace(stage.namespace)
        except ApiException as error:
            return bool(error.status == 404)
        return False

    eventually(gone, "namespace deleted", timeout=60)
    # The fixture deletes the namespace again at the end.
    stage.admin.core.create_namespace({"metadata": {"name": stage.namespace}})
