"""Rollouts end to end: real API server, real Prometheus, real watch-and-arms loops as workers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client

from trimwheel_api import names
from trimwheel_local.testing import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
MODEL = "router"
Start = Callable[..., Any]


def actions_of(status: dict[str, Any]) -> list[str]:
    return [one["action"] for one in status["decisions"]]


def test_a_certified_policy_climbs_waits_for_a_person_and_is_promoted(
    team: Any, operator: Start, prometheus: str, documents: Any
) -> None:
    operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.workers(prometheus, "w-0", "w-1")
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    status = team.reaches("ramp", "AwaitingApproval", 90)
    assert status["verdict"] == "Pass"
    assert {guard["name"] for guard in status["guards"]} == set(names.GUARDS)
    assert team.assignment["weightBasisPoints"] == 5000
    with pytest.raises(client.ApiException) as refused:
        team.create(
            "PolicyApproval",
            "by-rita",
            {
                "rollout": "ramp",
                "rolloutUID": team.get("PolicyRollout", "ramp")["metadata"]["uid"],
                "policyDigest": digest,
                "decision": "Approve",
                "approver": "rita",
            },
            by=team.requester,
        )
    assert refused.value.status == 403
    team.approve("ramp")
    status = team.reaches("ramp", "Promoted")
    assert actions_of(status) == ["Start", "Advance", "Advance", "Await", "Promote"]
    assert status["decisions"][-1]["actor"] == "bea"
    model = team.get("AdaptiveModel", MODEL)["status"]
    assert model["stable"]["digest"] == digest and "candidate" not in model
    place = [{"model": MODEL, "arm": "stable"}]
    eventually(
        lambda: team.get("AdaptivePolicy", "good")["status"].get("active") == place,
        "the policy says where it serves",
    )
    assert team.get("AdaptivePolicy", "good")["status"]["digest"] == digest


def test_a_harmful_policy_is_refused_then_waived_then_rolled_back_and_not_retried(
    team: Any, operator: Start, prometheus: str, documents: Any
) -> None:
    operator(PROMETHEUS_URL=prometheus)
    team.model()
    digest = team.policy("bad", documents["bad"])
    team.workers(prometheus, "w-0", "w-1", BAD_DIGEST=digest, BAD_RATE="0.15")
    team.rollout("refused", "bad", digest)
    stalled = team.becomes("PolicyRollout", "refused", names.STALLED)
    assert stalled["reason"] == "Uncertified"
    steps = [{"weight": "50%", "hold": "2s"}]
    team.rollout("waived", "bad", digest, allowUncertified=True, steps=steps)
    status = team.reaches("waived", "RolledBack", 60)
    assert status["decisions"][-1]["reason"] == "GuardFailed"
    failed = [guard for guard in status["guards"] if guard["verdict"] == "Fail"]
    assert [guard["name"] for guard in failed] == ["disagreement"]
    actuation = status["actuation"]
    assert actuation["workers"] == 2 and not actuation.get("pending")
    assert actuation["milliseconds"] < 6000, "acknowledged before any lease ran out"
    assert team.epoch_of("w-0") >= actuation["epoch"] <= team.epoch_of("w-1")
    assert "candidate" not in team.assignment
    assert team.get("AdaptiveModel", MODEL)["status"]["rejectedDigests"] == [digest]


def test_a_rollout_deleted_in_flight_ends_its_canary_and_its_namesake_starts_anew(
    team: Any, operator: Start, prometheus: str, documents: Any
) -> None:
    operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.workers(prometheus, "w-0")
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    eventually(lambda: team.assignment["weightBasisPoints"], "somebody is served it", 60)
    salt = team.assignment["salt"]
    team.admin.custom.delete_namespaced_custom_object(
        names.GROUP, names.VERSION, team.namespace, "policyrollouts", "ramp"
    )
    eventually(lambda: "candidate" not in team.assignment, "the canary ends")
    assert team.assignment["weightBasisPoints"] == 0
    team.rollout("ramp", "good", digest)
    eventually(lambda: team.status("ramp").get("decisions"), "a decision of its own", 60)
    assert actions_of(team.status("ramp"))[0] == "Start"
    assert team.assignment["salt"] != salt
    assert not team.get("AdaptiveModel", MODEL)["status"].get("rejectedDigests")


def test_a_killed_operator_goes_on_where_it_was(
    team: Any, operator: Start, prometheus: str, documents: Any
) -> None:
    first = operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.workers(prometheus, "w-0")
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    eventually(lambda: team.status("ramp").get("step", 0) >= 1, "the first live step", 60)
    salt = team.assignment["salt"]
    first.kill()
    second = operator(PROMETHEUS_URL=prometheus)
    eventually(lambda: team.status("ramp").get("step", 0) >= 2, "the next step", 60)
    second.kill()
    operator(PROMETHEUS_URL=prometheus)
    status = team.reaches("ramp", "AwaitingApproval", 90)
    assert actions_of(status) == ["Start", "Advance", "Advance", "Await"]
    assert [one["seq"] for one in status["decisions"]] == [1, 2, 3, 4]
    assert team.assignment["salt"] == salt, "nobody changes arms because of a restart"


def test_a_dead_operator_ends_a_canary_by_itself_and_a_new_one_takes_it_up(
    team: Any, operator: Start, prometheus: str, documents: Any
) -> None:
    first = operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.workers(prometheus, "w-0")
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    eventually(lambda: team.assignment["weightBasisPoints"] > 0, "live weight", 60)
    renewals = team.assignment["renewals"], team.assignment["epoch"]
    eventually(
        lambda: (team.assignment["renewals"], team.assignment["epoch"]) != renewals, "renewed"
    )
    first.kill()

    def tripped() -> bool:
        lease = team.admin.coordination.read_namespaced_lease("w-0", team.namespace)
        return lease.metadata.annotations.get(names.ANNOTATION_TRIPPED) == names.TRIPPED_BY_LEASE

    eventually(tripped, "the worker serves stable once its lease ran out", 20)
    operator(PROMETHEUS_URL=prometheus)
    team.reaches("ramp", "AwaitingApproval", 90)


def test_of_two_operators_one_decides_and_a_stopped_one_writes_nothing_on_waking(
    team: Any, operator: Start, prometheus: str, documents: Any
) -> None:
    first = operator(PROMETHEUS_URL=prometheus)
    team.model()
    digest = team.policy("bad", documents["bad"])
    team.workers(prometheus, "w-0", BAD_DIGEST=digest, BAD_RATE="0")
    eventually(lambda: "decides from now on" in first.text(), "the first leads")
    second = operator(PROMETHEUS_URL=prometheus)
    steps = [{"weight": "50%", "hold": "10m", "maxDuration": "1h"}]
    team.rollout("ramp", "bad", digest, allowUncertified=True, steps=steps)
    eventually(lambda: team.assignment["weightBasisPoints"] == 5000, "live weight", 60)
    assert "decides from now on" not in second.text()

    first.signal(signal.SIGSTOP)
    eventually(lambda: "decides from now on" in second.text(), "the second takes over", 30)
    team.change("PolicyRollout", "ramp", by=team.requester, abort=True)
    status = team.reaches("ramp", "RolledBack", 30)
    after = team.get("PolicyAssignment", MODEL)
    first.signal(signal.SIGCONT)
    time.sleep(8)
    assert team.get("PolicyAssignment", MODEL)["spec"] == after["spec"], "the rollback stands"
    assert actions_of(team.status("ramp")) == actions_of(status) == ["Start", "Abort"]
    assert first.process.poll() is None and second.process.poll() is None


def test_missing_admission_stalls_the_rollout_and_nothing_is_promoted(
    team: Any, operator: Start, prometheus: str, documents: Any, cluster: Any, release: str
) -> None:
    operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.workers(prometheus, "w-0")
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    team.reaches("ramp", "AwaitingApproval", 90)
    resource = "validatingadmissionpolicybinding/trimwheel-approvers"
    saved = cluster.kubectl("get", resource, "-o", "json")
    cluster.kubectl("delete", resource)
    try:
        time.sleep(2)
        team.approve("ramp")  # passes: nobody checks who she is
        stalled = team.becomes("PolicyRollout", "ramp", names.STALLED)
        assert stalled["reason"] == "AdmissionMissing"
        time.sleep(3)
        assert team.phase("ramp") == "AwaitingApproval"
    finally:
        cluster.kubectl("create", "-f", "-", stdin=_without_server_fields(saved))
    team.becomes("PolicyRollout", "ramp", names.STALLED, "False")
    time.sleep(3)
    assert team.phase("ramp") == "AwaitingApproval", "an older approval was checked by nobody"


def _without_server_fields(text: str) -> str:

    item = json.loads(text)
    for name in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
        item["metadata"].pop(name, None)
    return json.dumps(item)


def test_break_glass_with_the_operator_down_is_honoured_until_a_newer_rollback(
    team: Any, operator: Start, prometheus: str, documents: Any, dense: str
) -> None:
    first = operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.workers(prometheus, "w-0")
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    eventually(lambda: team.assignment["weightBasisPoints"] > 0, "live weight", 60)
    first.kill()
    epoch = team.assignment["epoch"]
    team.admin.custom.patch_namespaced_custom_object(
        names.GROUP, names.VERSION, team.namespace, "policyassignments", MODEL,
        {"spec": {"weightBasisPoints": 0, "hold": True, "epoch": epoch + 1}},
    )  # fmt: skip
    operator(PROMETHEUS_URL=prometheus)
    paused = team.becomes("PolicyRollout", "ramp", names.PAUSED)
    assert paused["reason"] == "Held"
    time.sleep(5)
    assert (team.assignment["weightBasisPoints"], team.assignment["hold"]) == (0, True)
    time.sleep(1)
    team.create(
        "PolicyRollout",
        "back",
        {"model": MODEL, "policyDigest": dense, "type": "Rollback", "requestedBy": "rita"},
        by=team.requester,
    )
    team.becomes("PolicyRollout", "back", names.READY)
    # Not waited for: the one is Ready no sooner than the other has ended.
    assert team.assignment["hold"] is False
    assert team.phase("ramp") == "RolledBack"
