"""Phase and conditions of a pod from the states of its containers, and those of the node."""

from __future__ import annotations

from typing import Any

import pytest

from trimwheel_local.node import agent
from trimwheel_local.node.status import ContainerState, Verdict, is_ready, pod_status, waiting

NOW = "2026-01-01T00:00:10Z"
EARLIER = "2026-01-01T00:00:00Z"
POD: dict[str, Any] = {"metadata": {"generation": 2}, "spec": {}, "status": {}}


def running(*, ready: bool = True) -> ContainerState:
    return ContainerState("c", "i", {"running": {}}, ready=ready, started=True)


def ended(code: int, *, over: bool = True) -> ContainerState:
    return ContainerState("c", "i", {"terminated": {"exitCode": code}}, over=over)


def backing_off() -> ContainerState:
    last = {"terminated": {"exitCode": 1}}
    return ContainerState("c", "i", waiting("CrashLoopBackOff"), last)


def fresh() -> ContainerState:
    return ContainerState("c", "i")


CASES: dict[str, tuple[list[ContainerState], list[ContainerState], str]] = {
    "nothing has started": ([], [fresh()], "Pending"),
    "one of two has started": ([], [running(), fresh()], "Pending"),
    "all run": ([], [running(), running(ready=False)], "Running"),
    "one crashed and waits": ([], [running(), backing_off()], "Running"),
    "one has ended, another runs": ([], [ended(0), running()], "Running"),
    "all succeeded": ([], [ended(0), ended(0)], "Succeeded"),
    "one failed": ([], [ended(0), ended(1)], "Failed"),
    "ended but to be restarted": ([], [ended(1, over=False)], "Running"),
    "init runs": ([running()], [fresh()], "Pending"),
    "init is done": ([ended(0)], [running()], "Running"),
    "init failed and is retried": ([ended(1, over=False)], [fresh()], "Pending"),
    "init failed for good": ([ended(1)], [fresh()], "Failed"),
}


@pytest.mark.parametrize(("init", "main", "phase"), CASES.values(), ids=CASES.keys())
def test_the_phase_follows_from_the_containers(
    init: list[ContainerState], main: list[ContainerState], phase: str
) -> None:
    assert pod_status(POD, init, main, NOW)["phase"] == phase


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["type"]: one for one in status["conditions"]}


def test_readiness_follows_the_containers_and_names_those_that_are_not() -> None:
    found = conditions(pod_status(POD, [], [running(), running(ready=False)], NOW))
    assert found["Ready"]["status"] == "False"
    assert found["Ready"]["reason"] == "ContainersNotReady"
    assert "['c']" in found["ContainersReady"]["message"]
    assert conditions(pod_status(POD, [], [running()], NOW))["Ready"]["status"] == "True"


def test_a_readiness_gate_of_somebody_else_holds_ready_back() -> None:
    gated = {**POD, "spec": {"readinessGates": [{"conditionType": "x/y"}]}}
    found = conditions(pod_status(gated, [], [running()], NOW))
    assert (found["ContainersReady"]["status"], found["Ready"]["status"]) == ("True", "False")
    open_ = {**gated, "status": {"conditions": [{"type": "x/y", "status": "True"}]}}
    assert conditions(pod_status(open_, [], [running()], NOW))["Ready"]["status"] == "True"


def test_transition_times_change_only_with_the_status() -> None:
    known = [{"type": "Ready", "status": "True", "lastTransitionTime": EARLIER}]
    pod = {**POD, "status": {"conditions": known}}
    assert conditions(pod_status(pod, [], [running()], NOW))["Ready"]["lastTransitionTime"] == (
        EARLIER
    )
    found = conditions(pod_status(pod, [], [running(ready=False)], NOW))
    assert found["Ready"]["lastTransitionTime"] == NOW


def test_a_verdict_of_the_node_overrides_the_containers() -> None:
    verdict = Verdict("Failed", "DeadlineExceeded", "too long")
    found = pod_status(POD, [], [running()], NOW, verdict)
    assert (found["phase"], found["reason"]) == ("Failed", "DeadlineExceeded")
    assert conditions(found)["Ready"]["reason"] == "PodFailed"
    assert not found["containerStatuses"][0]["ready"]


def test_a_pod_that_is_being_deleted_gets_no_traffic() -> None:
    ready = {"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert is_ready(ready)
    assert not is_ready({**ready, "metadata": {"deletionTimestamp": NOW}})
    assert not is_ready({"metadata": {}})


def test_a_heartbeat_of_the_node_is_no_transition() -> None:
    first = agent.conditions(EARLIER, {})
    assert {one["lastTransitionTime"] for one in first} == {EARLIER}
    again = agent.conditions(NOW, {"conditions": first})
    assert {one["lastTransitionTime"] for one in again} == {EARLIER}
    assert {one["lastHeartbeatTime"] for one in again} == {NOW}


def test_a_node_that_was_given_up_became_ready_when_it_came_back() -> None:
    """The controllers say Unknown of a silent node."""
    given_up = [{**one, "status": "Unknown"} for one in agent.conditions(EARLIER, {})]
    back = agent.conditions(NOW, {"conditions": given_up})
    assert {one["lastTransitionTime"] for one in back} == {NOW}
