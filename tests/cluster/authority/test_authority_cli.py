"""The CLI's deciding verbs against the installed admission policies: who gets through, and how
a refusal reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trimwheel_api.kinds.adaptive_model import RolloutSpec
from trimwheel_api.kinds.common import dump
from trimwheel_api.kinds.policy_rollout import EffectiveRollout, EffectiveRules
from trimwheel_api.policy import DENSE
from trimwheel_cli.main import cli
from trimwheel_console import NEGATIVE, OK, UNREACHABLE, USAGE

pytestmark = pytest.mark.cluster

SETTLE_SECONDS = 10.0
Run = Callable[..., Result]
REASON = ("--reason", "tried by a test")


@pytest.fixture
def run(stage: Any) -> Run:
    """`run("anna", "approve", "r")`: the command line with that person's kubeconfig."""

    def call(person: str, *arguments: str) -> Result:
        kubeconfig = str(stage.cluster.kubeconfig_for(person))
        where = ("--kubeconfig", kubeconfig, "-n", stage.namespace)
        return CliRunner().invoke(cli, [*arguments, *where])

    return call


def decided(run: Run, *arguments: str) -> Result:
    """A decision that should pass: admission reads rollouts from a cache that lags a moment."""
    result = run(*arguments)
    deadline = time.monotonic() + SETTLE_SECONDS
    while result.exit_code != OK and time.monotonic() < deadline:
        time.sleep(0.1)
        result = run(*arguments)
    return result


def test_an_approver_approves_and_the_object_is_bound_to_uid_and_digest(stage, run):
    stage.person("anna", "trimwheel-approver")
    rollout = stage.waiting()
    result = decided(run, "anna", "approve", "r", *REASON, "-o", "json")
    assert result.exit_code == OK, result.output
    told = json.loads(result.stdout)
    spec = stage.root.get("PolicyApproval", told["approval"]).body["spec"]
    assert spec == {
        "rollout": "r",
        "rolloutUID": rollout["metadata"]["uid"],
        "policyDigest": rollout["spec"]["policyDigest"],
        "decision": "Approve",
        "approver": "anna",
        "reason": REASON[1],
    }


def test_whoever_lacks_the_verb_is_told_so_by_the_api_server(stage, run):
    stage.person("vera", "trimwheel-view")
    stage.role("clerk", [{"apiGroups": ["trimwheel.dev"], "resources": ["policyapprovals"],
                          "verbs": ["create"]}])  # fmt: skip
    stage.person("vera", "Role/clerk")
    stage.waiting()
    result = run("vera", "approve", "r", *REASON, "-o", "json")
    assert result.exit_code == NEGATIVE, result.output
    assert result.stdout == ""
    told = json.loads(result.stderr)["error"]
    assert told["type"] == "Refused"
    assert "vera lacks verb approve on policyrollouts/r" in told["message"]


def test_nobody_approves_what_nobody_is_asked_about(stage, run):
    stage.person("anna", "trimwheel-approver")
    stage.requested()
    result = run("anna", "approve", "r", *REASON)
    assert result.exit_code == NEGATIVE
    assert "not AwaitingApproval" in result.stderr


def test_a_rejection_needs_no_question(stage, run):
    stage.person("anna", "trimwheel-approver")
    stage.requested()
    result = decided(run, "anna", "reject", "r", *REASON)
    assert result.exit_code == OK, result.output
    assert "Reject r" in result.stdout


def test_an_approval_can_be_tied_to_the_digest_that_was_reviewed(stage, run):
    stage.person("anna", "trimwheel-approver")
    stage.waiting()
    result = run("anna", "approve", "r", *REASON, "--digest", "sha256:" + "f" * 64)
    assert result.exit_code == USAGE
    assert "--digest: r carries" in result.stderr


def test_a_name_that_is_not_there_lists_those_that_are(stage, run):
    stage.person("anna", "trimwheel-approver")
    stage.requested()
    result = run("anna", "approve", "q", *REASON)
    assert result.exit_code == USAGE
    assert "Newest there: r" in result.stderr


def test_a_rollback_to_dense_takes_its_own_verb(stage, run):
    stage.root.create(stage.model())
    stage.person("eddy", "trimwheel-edit", "trimwheel-view")
    refused = run("eddy", "rollback", "m", "--to", "dense", *REASON)
    assert refused.exit_code == NEGATIVE
    assert "lacks verb rollback on adaptivemodels/m" in refused.stderr
    stage.person("rolf", "trimwheel-rollback")
    done = run("rolf", "rollback", "m", "--to", "dense", *REASON, "--no-wait", "-o", "json")
    assert done.exit_code == OK, done.output
    told = json.loads(done.stdout)
    spec = stage.root.get("PolicyRollout", told["rollout"]).body["spec"]
    assert (spec["type"], spec["policyDigest"], spec["requestedBy"]) == (
        "Rollback", DENSE.digest, "rolf",
    )  # fmt: skip


def test_a_rollback_of_a_candidate_under_way_takes_no_more_than_the_rollback_role(stage, run):
    stage.root.create(stage.model())
    stage.requested()
    rules = EffectiveRules(
        rollout=EffectiveRollout.model_validate(dump(RolloutSpec())),
        max_disagreement="0.02", error_budget="0.002", latency_slo="250ms",
        latency_budget="0.01", capacity_target="0.8", stable_digest=DENSE.digest, salt="s",
        certified=True, started_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    going = {"status": {"phase": "Progressing", "effective": dump(rules)}}
    assert stage.operator.patch("PolicyRollout", "r", going, "status").allowed
    stage.person("rolf", "trimwheel-rollback")
    result = run("rolf", "rollback", "m", *REASON, "--no-wait", "-o", "json")
    assert result.exit_code == OK, result.output
    told = json.loads(result.stdout)
    assert told["ends"] == "r"
    spec = stage.root.get("PolicyRollout", told["rollout"]).body["spec"]
    assert (spec["type"], spec["reason"]) == ("Rollback", REASON[1])
    assert not stage.root.get("PolicyRollout", "r").body["spec"].get("abort")


def test_a_rollback_that_nobody_carries_out_is_not_reported_as_done(stage, run):
    stage.root.create(stage.model())
    stage.person("rolf", "trimwheel-rollback")
    result = run("rolf", "rollback", "m", "--to", "dense", *REASON, "--timeout", "1")
    assert result.exit_code == UNREACHABLE, result.output
    assert result.stdout == ""
    assert "is the operator running" in result.stderr


def test_looking_takes_no_more_than_the_view_role(stage, run):
    stage.root.create(stage.model())
    stage.waiting()
    stage.person("vera", "trimwheel-view")
    listed = run("vera", "status")
    assert listed.exit_code == NEGATIVE, listed.output  # not Ready: nobody reconciles here
    assert "\nm " in listed.stdout
    shown = run("vera", "status", "m", "-o", "json")
    value = json.loads(shown.stdout)
    assert value["model"]["metadata"]["name"] == "m"
    assert [one["metadata"]["name"] for one in value["rollouts"]] == ["r"]
    assert "never reconciled" in run("vera", "status", "m").stdout
    assert run("vera", "history", "m").exit_code == OK
    told = run("vera", "explain", "r")
    assert told.exit_code == OK, told.output
    assert "trimwheel approve r" in told.stdout


def test_watching_prints_at_every_change_until_it_is_stopped(stage):
    stage.root.create(stage.model())
    command = [sys.executable, "-m", "trimwheel_cli.main", "status", "m", "--watch", "-o", "json"]
    where = ["--kubeconfig", str(stage.cluster.kubeconfig), "-n", stage.namespace]
    with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as watching:  # fmt: skip
        assert watching.stdout is not None
        first = watching.stdout.readline()
        stage.requested()
        seen = ""
        while '"name": "r"' not in seen:
            seen = watching.stdout.readline()
            assert seen, "the watch ended"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=20) == OK
    assert first == "{\n"


def test_looking_without_rights_is_a_refusal_and_not_an_empty_list(stage, run):
    result = run("nobody", "status")
    assert result.exit_code == NEGATIVE
    assert 'User "nobody" cannot list resource "adaptivemodels"' in result.stderr


def test_a_model_that_is_not_there_is_a_usage_error(stage, run):
    stage.person("vera", "trimwheel-view")
    result = run("vera", "status", "no-such-model")
    assert result.exit_code == USAGE
    assert "no-such-model" in result.stderr


def test_the_doctor_tells_what_stands_and_what_does_not(stage, monkeypatch):
    for variable in ("PROMETHEUS_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    kubeconfig = str(stage.cluster.kubeconfig)
    result = CliRunner().invoke(cli, ["doctor", "--kubeconfig", kubeconfig, "-o", "json"])
    assert result.exit_code == NEGATIVE, result.output  # the release runs with 0 replicas
    found = {one["name"]: one for one in json.loads(result.stdout)["checks"]}
    assert found["API server"]["outcome"] == "ok"
    assert found["kinds"]["outcome"] == "ok", found["kinds"]
    assert found["admission"]["outcome"] == "ok", found["admission"]
    assert found["operator"]["outcome"] == "failed"
    assert found["Prometheus"]["outcome"] == "skipped"
    whole = CliRunner().invoke(cli, ["doctor", "--kubeconfig", kubeconfig])
    assert "trimwheel-operator has no ready pod" in whole.stdout
