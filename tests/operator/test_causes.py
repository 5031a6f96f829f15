"""Why a pod does not start, of whatever kind: in a condition and an Event, once, and at rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.operator.world import World

from trimwheel_api import names
from trimwheel_api.names import Reason
from trimwheel_operator import manifests
from trimwheel_operator.causes import MAX_TEXT, cause_of, cause_of_pod
from trimwheel_operator.jobs import tuning_job
from trimwheel_operator.plan import plan
from trimwheel_operator.plan.actions import PatchStatus, PostEvent
from trimwheel_operator.plan.observed import Cause, DeploymentState
from trimwheel_operator.settings import Settings

Json = dict[str, Any]
UNREADY = {"type": "Ready", "status": "False"}
DIGEST = "digest: must be sha256:aa, but got 'sha256:bb'"


def pod(*containers: Json, init: bool = False, conditions: Any = (), **status: Any) -> Json:
    kind = "initContainerStatuses" if init else "containerStatuses"
    return {
        "metadata": {"name": "router-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {
            "phase": "Pending", "conditions": [UNREADY, *conditions], kind: list(containers),
            **status,
        },
    }  # fmt: skip


def waits(reason: str, message: str = "", last: Json | None = None) -> Json:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "fetch", "ready": False, "state": state, "lastState": last or {}}


def ended(code: int, message: str = "", reason: str = "Error") -> Json:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def crashed(code: int, message: str, **now: Any) -> Json:
    state = now or {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    return {"name": "fetch", "ready": False, "state": state, "lastState": ended(code, message)}


NO_NODE = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient gpu"}
CAUSES: dict[str, tuple[Json, str, str]] = {
    "a wrong digest, in an init container's log": (
        pod(crashed(1, f"INFO fetching\n{DIGEST}\n"), init=True),
        Reason.POD_CANNOT_START,
        f"container fetch ended with exit code 1 (Error): INFO fetching; {DIGEST}",
    ),
    "between two tries": (
        pod({"name": "fetch", "ready": False, "state": ended(1, DIGEST)}, init=True),
        Reason.POD_CANNOT_START, DIGEST,
    ),
    "while it tries again": (
        pod(crashed(1, DIGEST, running={"startedAt": "t"})), Reason.POD_CANNOT_START, DIGEST,
    ),
    "killed for its memory": (
        pod({"name": "worker", "ready": False, "state": ended(137, reason="OOMKilled")}),
        Reason.POD_CANNOT_START, "container worker ended with exit code 137 (OOMKilled)",
    ),
    "no image": (
        pod(waits("ImagePullBackOff", "Back-off pulling image x")),
        Reason.POD_CANNOT_START, "ImagePullBackOff: Back-off pulling image x",
    ),
    "a missing Secret": (
        pod(waits("CreateContainerConfigError", 'secret "s3" not found')),
        Reason.POD_CANNOT_START, 'CreateContainerConfigError: secret "s3" not found',
    ),
    "a back-off without a past": (
        pod(waits("CrashLoopBackOff", "back-off")), Reason.POD_CANNOT_START, "CrashLoopBackOff",
    ),
    "no node": (pod(conditions=[NO_NODE]), Reason.POD_UNSCHEDULABLE, "Insufficient gpu"),
    "evicted": (
        pod(phase="Failed", reason="Evicted", message="low on memory"),
        Reason.POD_CANNOT_START, "Evicted: low on memory",
    ),
}  # fmt: skip
NOTHING: dict[str, Json] = {
    "on its way": pod(waits("ContainerCreating")),
    "waiting for its init container": pod(waits("PodInitializing")),
    "running and not ready yet": pod(
        {"name": "worker", "ready": False, "state": {"running": {}}, "lastState": {}}
    ),
    "new": {"metadata": {"name": "router-1"}, "status": {}},
    "being deleted": {
        **pod(waits("ImagePullBackOff")),
        "metadata": {"name": "router-1", "deletionTimestamp": "t"},
    },
    "ready after a crash": {
        "metadata": {"name": "router-1"},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [crashed(1, "once", running={})],
        },
    },
}


@pytest.mark.parametrize("case", CAUSES)
def test_each_kind_of_cause_is_found_and_names_the_pod(case: str) -> None:
    item, reason, words = CAUSES[case]
    found = cause_of_pod(item)
    assert found is not None and found.reason == reason
    assert found.message.startswith("pod router-1") and words in found.message


@pytest.mark.parametrize("case", NOTHING)
def test_what_is_on_its_way_is_no_cause(case: str) -> None:
    assert cause_of_pod(NOTHING[case]) is None


def test_the_sentence_rests_while_a_container_goes_round_between_crash_and_back_off() -> None:
    rounds = (
        pod({"name": "fetch", "ready": False, "state": ended(1, DIGEST)}),
        pod(crashed(1, DIGEST)),
        pod(crashed(1, DIGEST, running={"startedAt": "t"})),
        pod(crashed(1, DIGEST, waiting={"reason": "CrashLoopBackOff", "message": "back-off 60s"})),
    )
    assert len({cause_of_pod(one) for one in rounds}) == 1


def test_pods_that_the_api_server_refuses_are_named_by_their_deployment() -> None:
    message = 'pods "router-7" is forbidden: exceeded quota: small, requested: pods=1'
    condition = {"type": "ReplicaFailure", "status": "True", "message": message}
    found = cause_of({"status": {"conditions": [condition]}}, [])
    assert found == Cause(Reason.PODS_REFUSED, f"the API server refuses its pods: {message}")
    assert cause_of({"status": {"conditions": [{**condition, "status": "False"}]}}, []) is None


def test_of_several_pods_the_newest_counts() -> None:
    old, new = pod(crashed(1, "old")), pod(crashed(1, "new"))
    new["metadata"] = {"name": "router-2", "creationTimestamp": "2026-01-02T00:00:00Z"}
    found = cause_of({}, [old, new])
    assert found is not None and "router-2" in found.message and "new" in found.message


def test_a_long_log_is_cut_to_its_end() -> None:
    found = cause_of_pod(pod(crashed(1, "x" * 10_000 + " the end")))
    assert found is not None and found.message.endswith("the end")
    assert len(found.message) < MAX_TEXT + 150


CAUSE = Cause(Reason.POD_CANNOT_START, f"pod router-1: container fetch: {DIGEST}")


def looked(world: World, cause: Cause | None, ready: int = 0, updated: int = 1) -> list[Any]:
    """One pass over the world as if its Deployment stood like this."""
    state = world.observe()
    deployment = DeploymentState(2, 2, max(updated, ready), updated, ready)
    children = replace(state.children, cause=cause, deployment=deployment)
    actions = list(plan(replace(state, children=children, pods=()), world.now).actions)
    for action in actions:
        world.carry_out(action)
    return actions


def test_the_cause_is_in_the_models_conditions_and_in_one_event(world: World) -> None:
    world.after(1)
    actions = looked(world, CAUSE)
    ready = world.of_model.condition(names.READY)
    assert (ready.status, ready.reason) == ("False", Reason.POD_CANNOT_START)
    assert ready.message == f"0 of 2 workers are ready: {CAUSE.message}"
    reconciling = world.of_model.condition(names.RECONCILING)
    assert reconciling.reason == Reason.POD_CANNOT_START and DIGEST in reconciling.message
    [event] = [one for one in actions if isinstance(one, PostEvent)]
    assert (event.type, event.reason, event.message) == (
        "Warning", Reason.POD_CANNOT_START, CAUSE.message,
    )  # fmt: skip
    assert not any(isinstance(one, PatchStatus | PostEvent) for one in looked(world, CAUSE))


def test_another_cause_is_told_again_and_the_end_of_it_clears_the_condition(world: World) -> None:
    looked(world.after(1), CAUSE)
    other = Cause(Reason.PODS_REFUSED, "the API server refuses its pods: quota")
    events = [one for one in looked(world.after(1), other) if isinstance(one, PostEvent)]
    assert [one.reason for one in events] == [Reason.PODS_REFUSED]
    world.after(1).settle()
    ready = world.of_model.condition(names.READY)
    assert (ready.status, ready.reason) == ("True", Reason.WORKERS_READY)


def test_a_bad_patch_says_so_while_the_old_pods_serve(world: World) -> None:
    looked(world.after(1), CAUSE, ready=2, updated=0)
    message = world.of_model.condition(names.READY).message
    assert message.startswith("2 of 2 workers are ready, 0 of them run this spec: pod router-1")


def test_no_serving_pod_ends_before_its_successor_is_ready(world: World) -> None:
    deployment = manifests.worker_objects(world.observe().model, {"uid": "u"}, Settings())[-1]
    update = deployment["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": 1, "maxUnavailable": 0}


def test_every_container_of_ours_leaves_its_last_words_in_its_pods_status(world: World) -> None:
    world.tuning("t")
    state = world.observe()
    deployment = manifests.worker_objects(state.model, {"uid": "u"}, Settings())[-1]
    for made in (deployment, tuning_job(state.runs[0], "1h", Settings())):
        spec = made["spec"]["template"]["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
