"""The operator's self-test on a real API server: each policy is missed, by name, and since when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config

from trimwheel_api import names
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_api.times import parse
from trimwheel_local.testing import eventually
from trimwheel_operator.admission import AdmissionTest
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.probes import PROBES

pytestmark = pytest.mark.cluster
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
OPERATOR = names.service_account_user(RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)


@pytest.fixture
def api(stage: Any, tmp_path: Path) -> KubeApi:
    """The API server as the operator's account."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{RELEASE_NAMESPACE}")
    # KUBECONFIG is a list with colons between, and the account's name is full of them.
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_bytes(stage.cluster.kubeconfig_for(OPERATOR, groups).read_bytes())
    return KubeApi(config.new_client_from_config(str(kubeconfig)))


def attempt(api: KubeApi, stage: Any, policy: str, *, dry_run: bool) -> str:
    """The API server's words about a probe; empty when it takes it."""
    probe = PROBES[policy]()
    place = RELEASE_NAMESPACE if probe.in_release else stage.namespace
    try:
        if probe.apply:
            api.apply(path_of(probe.kind, place, probe.name), probe.body(place), dry_run=dry_run)
        else:
            api.create(path_of(probe.kind, place), probe.body(place), dry_run=dry_run)
    except Exception as refusal:
        return str(refusal)
    return ""


def test_admission_as_the_chart_installs_it_is_in_force(api: KubeApi, stage: Any) -> None:
    test = AdmissionTest(api)
    # A policy that an upgrade has just brought bites after a second or so.
    eventually(lambda: test.check(stage.namespace, fresh=True).armed, "every policy bites")
    found = test.check(stage.namespace)
    assert found.armed_since is not None and test.notes_since() is not None
    stage.requested()
    assert test.check(stage.namespace, fresh=True).armed, "whichever rollouts there are"


@pytest.mark.parametrize("policy", PROBES)
def test_a_forgery_is_refused_by_its_policy_alone_and_never_stored(
    api: KubeApi, stage: Any, policy: str
) -> None:
    stage.requested()  # without any rollout the API server finds no params for approvals
    assert f"ValidatingAdmissionPolicy '{policy}'" in attempt(api, stage, policy, dry_run=True)
    probe = PROBES[policy]()
    if policy != "trimwheel-operator-only":  # whose dry run alone is not the operator's own
        assert "ValidatingAdmissionPolicy" in attempt(api, stage, policy, dry_run=False)
    place = RELEASE_NAMESPACE if probe.in_release else stage.namespace
    assert stage.root.call("GET", path_of(probe.kind, place, probe.name)).code == 404


@pytest.mark.parametrize("policy", PROBES)
def test_a_policy_that_is_gone_is_missed_and_its_return_starts_the_time_anew(
    api: KubeApi, stage: Any, policy: str
) -> None:
    stage.requested()
    test = AdmissionTest(api)
    eventually(lambda: test.check(stage.namespace, fresh=True).armed, "every policy bites")
    before = test.check(stage.namespace)
    saved = stage.root.call("GET", f"{POLICIES}/{policy}").body
    assert stage.root.call("DELETE", f"{POLICIES}/{policy}").allowed
    try:
        eventually(lambda: not attempt(api, stage, policy, dry_run=True), f"{policy} is gone")
        missing = test.check(stage.namespace, fresh=True)
        assert missing.armed is False and policy in missing.message
    finally:
        metadata = {key: saved["metadata"][key] for key in ("name", "labels", "annotations")}
        body = {**saved, "metadata": metadata}
        body.pop("status", None)
        assert stage.root.call("POST", POLICIES, body).allowed
    eventually(lambda: attempt(api, stage, policy, dry_run=True), f"{policy} is back")
    after = test.check(stage.namespace, fresh=True)
    assert after.armed and before.armed_since and after.armed_since
    assert after.armed_since > before.armed_since


def test_the_operators_account_reaches_the_reserved_names_and_no_others(
    api: KubeApi, stage: Any
) -> None:
    for policy, make in PROBES.items():
        probe = make()
        if probe.kind in ("Lease", "PolicyAssignment", "Job"):
            continue  # its own work
        body = probe.body(stage.namespace)
        body["metadata"]["name"] = "another"
        path = path_of(probe.kind, stage.namespace, "another")
        for action in (
            lambda path=path, body=body: api.apply(path, body),
            lambda probe=probe, body=body: api.create(path_of(probe.kind, stage.namespace), body),
        ):
            assert "cannot" in _refusal(action), policy


OPERATOR = names.service_account_user(RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)
HONEST: dict[str, dict[str, Any]] = {
    "AdaptiveModel": {"model": {"uri": "models:/m/1", "digest": "sha256:" + "a" * 64}},
    "AdaptivePolicy": {"model": "m"},
    "TuningRun": {"model": "m", "reason": "Manual", "requestedBy": OPERATOR},
}


@pytest.mark.parametrize("kind", HONEST)
def test_nothing_is_stored_under_a_reserved_name_though_nothing_is_wrong_with_it(
    api: KubeApi, stage: Any, kind: str
) -> None:
    probe = next(one for one in (make() for make in PROBES.values()) if one.kind == kind)
    body = probe.body(stage.namespace) | {"spec": HONEST[kind]}
    path = path_of(kind, stage.namespace, probe.name)
    assert "but as a dry run" in _refusal(lambda: api.apply(path, body))
    assert _refusal(lambda: api.apply(path, body, dry_run=True)) == ""


def test_only_the_operators_dry_runs_pass_the_other_policies(stage: Any) -> None:
    """Somebody else's object of a reserved name is judged by every policy."""
    eve = stage.person("eve", "edit")
    for kind, spec in (
        ("AdaptivePolicy", {"model": "m", "certificate": stage.certificate()}),
        ("TuningRun", {"model": "m", "reason": "Harmful"}),
    ):
        body = stage.policy("trimwheel-self-test-rollouts") | {"kind": kind, "spec": spec}
        for query in ({}, {"dryRun": "All"}):
            assert eve.create(body, **query).policy in (
                "trimwheel-certificates", "trimwheel-alarms",
            )  # fmt: skip


def test_the_record_is_the_operators_and_says_what_it_saw(api: KubeApi, stage: Any) -> None:
    assert AdmissionTest(api).check(stage.namespace, fresh=True).armed
    journal = api.find(path_of("PolicyJournal", RELEASE_NAMESPACE, names.RELEASE_JOURNAL))
    assert journal is not None
    record = journal["spec"]["admission"]
    assert [one["name"] for one in record["policies"]] == list(names.ADMISSION_POLICIES)
    assert parse(record["heldSince"]) is not None
    path = path_of("PolicyJournal", RELEASE_NAMESPACE, names.RELEASE_JOURNAL)
    for verb, body in (("PATCH", {"spec": {"admission": None}}), ("DELETE", None)):
        answer = stage.root.call(verb, path, body)
        assert answer.policy == "trimwheel-operator-only", json.dumps(answer.body)


def _refusal(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as refusal:
        return str(refusal)
    return ""
