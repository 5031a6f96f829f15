"""Who may write what the operator writes: statuses, assignments, and the acknowledgements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.client import ApiException

from trimwheel_api import names
from trimwheel_local.names import RELEASE_NAMESPACE
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


def test_the_pipelines_write_the_status_of_tuning_runs_alone(stage: Any) -> None:
    for kind, body in objects(stage).items():
        name = body["metadata"]["name"]
        answer = stage.pipelines.patch(kind, name, {"status": {"observedGeneration": 1}}, "status")
        assert answer.allowed if kind == "TuningRun" else answer.rbac, (kind, answer.message)


def test_the_pipelines_delete_what_is_beyond_the_history_but_no_model(stage: Any) -> None:
    for kind, body in objects(stage).items():
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


def test_pipelines_and_editors_only_read_assignments(stage: Any) -> None:
    assert stage.operator.create(stage.assignment()).allowed
    for actor in (stage.pipelines, stage.person("eve", "edit")):
        assert actor.get("PolicyAssignment", "m").allowed
        assert actor.create(stage.assignment("n")).rbac
        assert actor.patch("PolicyAssignment", "m", {"spec": {"epoch": 2}}).rbac
        assert actor.delete("PolicyAssignment", "m").rbac


# --- break-glass ------------------------------------------------------------------------------
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


# --- acknowledgements -------------------------------------------------------------------------
WORKER = names.worker_account("m")
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"


@pytest.fixture
def workers(stage: Any) -> Any:
    """Two worker pods as the operator would make them: `(stage, pod a, pod b)`."""
    stage.admin.core.create_namespaced_service_account(
        stage.namespace, {"metadata": {"name": WORKER}}
    )
    verbs = ["get", "create", "update", "patch"]
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs}
    stage.role("worker", [rule])
    subject = {"kind": "ServiceAccount", "name": WORKER, "namespace": stage.namespace}
    stage.bind("Role/worker", subject)
    made = []
    for name in ("m-a", "m-b"):
        # A scheduling gate keeps the pod from running: only its identity matters here.
        spec = {
            "serviceAccountName": WORKER,
            "schedulingGates": [{"name": "example.com/never"}],
            "containers": [{"name": "c", "image": "process.trimwheel.dev/none"}],
        }
        body = {"metadata": {"name": name}, "spec": spec}
        made.append(stage.admin.core.create_namespaced_pod(stage.namespace, body))
    return stage, *made


def acknowledgement(name: str, model: str | None = "m") -> dict[str, Any]:
    labels = {names.LABEL_MODEL: model} if model else {}
    annotations = {names.ANNOTATION_EPOCH: "1"}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"holderIdentity": name},
    }


def test_a_worker_acknowledges_for_itself(workers: Any) -> None:
    stage, a, _ = workers
    pod = stage.token(stage.namespace, WORKER, pod=a)
    path = LEASES.format(stage.namespace)
    made = pod.call("POST", path, acknowledgement("m-a"))
    assert made.allowed, made.message
    newer = {"metadata": {"annotations": {names.ANNOTATION_EPOCH: "2"}}}
    assert pod.call("PATCH", f"{path}/m-a", newer).allowed


def test_a_worker_does_not_acknowledge_for_another(workers: Any) -> None:
    stage, a, b = workers
    path = LEASES.format(stage.namespace)
    first, second = (stage.token(stage.namespace, WORKER, pod=pod) for pod in (a, b))
    forged = second.call("POST", path, acknowledgement("m-a"))
    assert forged.policy == "trimwheel-worker-leases", forged
    assert "lease m-a belongs to the pod of that name" in forged.message
    assert first.call("POST", path, acknowledgement("m-a")).allowed
    for change in (
        {"metadata": {"annotations": {names.ANNOTATION_EPOCH: "9"}}},
        {"metadata": {"labels": {names.LABEL_MODEL: None}}},
    ):
        answer = second.call("PATCH", f"{path}/m-a", change)
        assert answer.policy == "trimwheel-worker-leases", answer


def test_leaving_the_label_away_is_no_way_around(workers: Any) -> None:
    stage, _, b = workers
    second = stage.token(stage.namespace, WORKER, pod=b)
    unlabelled = acknowledgement("m-a", model=None)
    answer = second.call("POST", LEASES.format(stage.namespace), unlabelled)
    assert answer.policy == "trimwheel-worker-leases", answer


@pytest.mark.parametrize("who", ["unbound token", "every verb", "administrator", "operator"])
def test_nobody_else_acknowledges(workers: Any, who: str) -> None:
    stage, *_ = workers
    actors: dict[str, Callable[[], Any]] = {
        "unbound token": lambda: stage.token(stage.namespace, WORKER),
        "every verb": stage.wildcard,
        "administrator": lambda: stage.root,
        "operator": lambda: stage.operator,
    }
    answer = actors[who]().call("POST", LEASES.format(stage.namespace), acknowledgement("m-a"))
    assert answer.policy == "trimwheel-worker-leases", answer


def test_leases_of_others_are_none_of_our_business(workers: Any) -> None:
    stage, *_ = workers
    body = acknowledgement("somebody-elses-lock", model=None)
    assert stage.root.call("POST", LEASES.format(stage.namespace), body).allowed


def test_the_garbage_collector_detaches_an_acknowledgement_from_its_pod(workers: Any) -> None:
    """Deleting with `--cascade=orphan` makes the collector write to the lease."""
    stage, a, _ = workers
    owned = acknowledgement("m-a")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "m-a", "uid": a.metadata.uid}
    owned["metadata"]["ownerReferences"] = [owner]
    path = LEASES.format(stage.namespace)
    assert stage.token(stage.namespace, WORKER, pod=a).call("POST", path, owned).allowed
    # The collector learns of leases through its own watch, in their order: orphaning too early
    # would find none. It knows this one when it has taken a later one, whose owner never was.
    later = acknowledgement("later", model=None)
    later["metadata"]["ownerReferences"] = [{**owner, "name": "never-was", "uid": "never-was"}]
    assert stage.root.call("POST", path, later).allowed
    eventually(lambda: stage.root.call("GET", f"{path}/later").code == 404, "collector at work")
    pod = f"/api/v1/namespaces/{stage.namespace}/pods/m-a"
    assert stage.root.call("DELETE", pod, {"propagationPolicy": "Orphan"}).allowed

    def detached() -> bool:
        lease = stage.root.call("GET", f"{path}/m-a")
        return lease.allowed and "ownerReferences" not in lease.body["metadata"]

    eventually(detached, "lease without owner")


# --- what the operator grants to workers ------------------------------------------------------
def test_the_operator_grants_what_it_holds_and_nothing_more(stage: Any) -> None:
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{stage.namespace}/roles"

    def role(name: str, group: str, resource: str, *verbs: str) -> Any:
        rule = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
        return stage.operator.call("POST", roles, {"metadata": {"name": name}, "rules": [rule]})

    assert role("worker", names.GROUP, "policyassignments", "get", "watch").allowed
    assert role("ack", "coordination.k8s.io", "leases", "get", "create", "update", "patch").allowed
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
    container = {"name": "c", "image": "process.trimwheel.dev/none", "command": ["true"]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"metadata": {"name": f"tuning-{stage.namespace}"}, "spec": {"template": template}}
    path = "/apis/batch/v1/namespaces/{}/jobs"
    made = stage.operator.call("POST", path.format(RELEASE_NAMESPACE), job, dryRun="All")
    assert made.allowed, made.message
    assert stage.operator.call("POST", path.format(stage.namespace), job).rbac


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
