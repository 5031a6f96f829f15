"""Acknowledgements: a worker's pod speaks for itself, and nobody for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_local.testing import eventually

pytestmark = pytest.mark.cluster

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
    # Two policies refuse the operator's; which of them is named is the API server's choice.
    bound = ("trimwheel-operator-objects",) if who == "operator" else ()
    assert answer.policy in ("trimwheel-worker-leases", *bound), answer


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
