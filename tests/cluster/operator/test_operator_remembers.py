"""What outlives objects and gaps of admission: real API server, operator, pipelines, ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local.cluster import Cluster
from trimwheel_local.testing import eventually
from trimwheel_pipelines.exposition import Heartbeat, PipelinesMetrics
from trimwheel_pipelines.kube import Objects
from trimwheel_pipelines.ledger import Ledger
from trimwheel_pipelines.loop import Loop

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
MODEL = "router"
Start = Callable[..., Any]


@pytest.fixture
def loop(cluster: Cluster, release: str, tmp_path: Path) -> Loop:
    """The pipelines' watch loop, under their own account, with a ledger of the test's own."""
    account = names.service_account_user(RELEASE_NAMESPACE, names.PIPELINES_ACCOUNT)
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{RELEASE_NAMESPACE}")
    path = tmp_path / "pipelines-kubeconfig"
    path.write_bytes(cluster.kubeconfig_for(account, groups).read_bytes())
    return Loop(
        objects=Objects(config.new_client_from_config(str(path))),
        records_uri=str(tmp_path / "records"), prometheus=None,
        ledger=Ledger(f"sqlite:///{tmp_path}/ledger.db"), aliases=None,
        exposed=PipelinesMetrics(), heartbeat=Heartbeat(60.0), operator_user="the-operator",
    )  # fmt: skip


def delete(team: Any, kind: str, name: str, **options: Any) -> None:
    team.admin.custom.delete_namespaced_custom_object(
        names.GROUP, names.VERSION, team.namespace, PLURALS[kind], name, **options
    )


def gone(team: Any, kind: str, name: str) -> bool:
    try:
        team.get(kind, name)
    except client.ApiException as error:
        return bool(error.status == 404)
    return False


def journal(team: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = team.admin.custom.get_namespaced_custom_object(
            names.GROUP, names.VERSION, RELEASE_NAMESPACE, PLURALS["PolicyJournal"],
            names.journal_name(team.namespace, MODEL),
        )  # fmt: skip
    except client.ApiException:
        return {"spec": {}}
    return found


def kinds_in(ledger: Ledger | None, team: Any) -> list[str]:
    assert ledger is not None
    return [one.kind for one in ledger.entries(f"{team.namespace}/{MODEL}")]


def stalled(team: Any, rollout: str, reason: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found: dict[str, Any] = team.condition("PolicyRollout", rollout, names.STALLED)
        return found if found.get("reason") == reason else None

    return eventually(reached, f"{rollout} is refused with {reason}", 40) or {}


def test_the_decisions_of_a_rollout_deleted_in_mid_canary_reach_the_ledger(
    team: Any, operator: Start, prometheus: str, documents: Any, loop: Loop
) -> None:
    operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.workers(prometheus, "w-0")
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    eventually(lambda: team.assignment["weightBasisPoints"], "somebody is served it", 60)
    delete(team, "PolicyRollout", "ramp")
    eventually(lambda: "candidate" not in team.assignment, "the canary ends")
    delete(team, "AdaptiveModel", MODEL)
    loop.once()
    told = kinds_in(loop.ledger, team)
    assert told[:2] == ["Start", "Advance"] and told[-1] == "Abort", told
    assert loop.ledger is not None and loop.ledger.verify() is None
    loop.once()
    assert kinds_in(loop.ledger, team) == told, "copied once"


def test_a_rejected_policy_stays_rejected_when_its_model_is_made_anew(
    team: Any, operator: Start, prometheus: str, documents: Any
) -> None:
    operator(PROMETHEUS_URL=prometheus)
    team.model()
    digest = team.policy("bad", documents["bad"])
    team.workers(prometheus, "w-0", BAD_DIGEST=digest, BAD_RATE="0.3")
    steps = [{"weight": "50%", "hold": "2s"}]
    team.rollout("waived", "bad", digest, allowUncertified=True, steps=steps)
    team.reaches("waived", "RolledBack", 60)
    delete(team, "AdaptiveModel", MODEL, propagation_policy="Orphan")
    eventually(
        lambda: "ownerReferences" not in team.get("PolicyAssignment", MODEL)["metadata"], "orphaned"
    )
    eventually(lambda: gone(team, "AdaptiveModel", MODEL), "the model is gone")
    team.model()
    eventually(
        lambda: team.get("AdaptiveModel", MODEL).get("status", {}).get("rejectedDigests"),
        "the new model's status mirrors the journal",
        40,
    )
    team.rollout("back", "bad", digest, type="Rollback")
    team.rollout("again", "bad", digest)
    stalled(team, "back", "TargetRejected")
    stalled(team, "again", "RejectedDigest")
    assert [one["digest"] for one in journal(team)["spec"]["rejected"]] == [digest]


def test_a_certificate_forged_in_a_gap_of_admission_is_not_honoured(
    team: Any, operator: Start, prometheus: str, documents: Any, cluster: Cluster
) -> None:
    running = operator(PROMETHEUS_URL=prometheus)
    team.model()
    team.becomes("AdaptiveModel", MODEL, names.RECONCILING, "False")
    seen = team.policy("seen", documents["bad"], certified=True)
    eventually(
        lambda: (
            [one["policy"] for one in journal(team)["spec"].get("certificates", [])] == ["seen"]
        ),
        "an honest certificate is noted",
        40,
    )
    running.kill()  # nobody watches while the policy is away
    resource = "validatingadmissionpolicy/trimwheel-certificates"
    saved = json.loads(cluster.kubectl("get", resource, "-o", "json"))
    cluster.kubectl("delete", resource)
    try:
        eventually(lambda: forged(team, documents), "a forged certificate passes", 20)
    finally:
        metadata = {key: saved["metadata"][key] for key in ("name", "labels", "annotations")}
        body = {"apiVersion": saved["apiVersion"], "kind": saved["kind"], "metadata": metadata}
        cluster.kubectl("create", "-f", "-", stdin=json.dumps({**body, "spec": saved["spec"]}))
    before = record(team)
    operator(PROMETHEUS_URL=prometheus)
    eventually(lambda: record(team) != before, "the operator saw that something was changed", 40)
    time.sleep(6)  # what is written from now on counts again
    digest = team.get("AdaptivePolicy", "forged")["spec"]["certificate"]["policyDigest"]
    team.rollout("ramp", "forged", digest)
    assert "the certificate of forged" in stalled(team, "ramp", "AdmissionGap")["message"]
    certified = team.condition("AdaptivePolicy", "forged", names.CERTIFIED)
    assert (certified["status"], certified["reason"]) == ("False", "AdmissionGap")
    assert "start a TuningRun" in certified["message"]
    honest = team.condition("AdaptivePolicy", "seen", names.CERTIFIED)
    assert honest["status"] == "True", "what was noted before goes on counting"
    assert seen != digest and "candidate" not in team.assignment


def record(team: Any) -> Any:
    """Since when admission is as it is, as the operator wrote it down."""
    found = team.admin.custom.get_namespaced_custom_object(
        names.GROUP, names.VERSION, RELEASE_NAMESPACE, PLURALS["PolicyJournal"],
        names.RELEASE_JOURNAL,
    )  # fmt: skip
    return found["spec"].get("admission")


def forged(team: Any, documents: Any) -> bool:
    """Somebody without verb certify, who would be refused; rita may write policies here."""
    try:
        team.policy("forged", documents["good"], certified=True, by=team.requester)
    except client.ApiException:
        return False
    return True
