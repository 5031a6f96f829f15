"""The chart on a real API server: all shapes are accepted, upgrade and removal lose nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimwheel_api import names
from trimwheel_api.kinds import KINDS
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local.names import RELEASE_NAME
from trimwheel_local.testing import eventually

pytestmark = pytest.mark.cluster

Helm = Callable[..., str]
Install = Callable[..., None]
SHAPES = ("defaults", "embedded", "full")
FOREIGN = ("PodMonitor", "PrometheusRule")
"""Kinds of the Prometheus operator, whose CRDs are not on this API server: test_chart_monitors."""


def rendered(helm: Helm, chart: Path, shape: str, *more: str) -> list[dict[str, Any]]:
    values = ("--values", str(chart / "ci" / f"{shape}-values.yaml"))
    place = ("--namespace", RELEASE_NAMESPACE)
    text = helm("template", RELEASE_NAME, str(chart), *place, *values, *more)
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_api_server_accepts_every_object_of_the_shape(
    stage: Any, helm: Helm, chart: Path, shape: str, tmp_path: Path
) -> None:
    """A server-side dry run: defaulting, validation and admission, but nothing is stored."""
    objects = [one for one in rendered(helm, chart, shape) if one["kind"] not in FOREIGN]
    for namespace in {one["metadata"].get("namespace") for one in objects} - {None}:
        # Those that NetworkPolicies are made in are the users'.
        if namespace not in stage.cluster.kubectl("get", "namespaces", "--output", "name"):
            stage.cluster.kubectl("create", "namespace", namespace)
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    said = stage.cluster.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server"),
        *("--filename", str(file)),
    )
    assert said.count("serverside-applied (server dry run)") == len(objects)


def test_an_upgrade_takes_back_what_somebody_changed_by_hand(stage: Any, helm: Helm) -> None:
    place = ("--namespace", RELEASE_NAMESPACE)
    values = yaml.safe_load(helm("get", "values", RELEASE_NAME, *place, "--output", "yaml"))
    label = f"{names.LABEL_PART_OF}=another"
    where = ("deployment", names.OPERATOR_ACCOUNT, *place)
    stage.cluster.kubectl("label", "--overwrite", *where, label)
    stage.cluster.install_chart(values)
    labels = json.loads(stage.cluster.kubectl("get", *where, "--output", "json"))["metadata"]
    assert labels["labels"][names.LABEL_PART_OF] == names.PART_OF


@pytest.mark.parametrize("shape", SHAPES)
def test_helm_lint_has_nothing_to_say(helm: Helm, chart: Path, shape: str) -> None:
    values = str(chart / "ci" / f"{shape}-values.yaml")
    assert "0 chart(s) failed" in helm("lint", str(chart), "--strict", "--values", values)


def test_pods_of_the_chart_meet_the_restricted_pod_security_standard(
    stage: Any, helm: Helm, chart: Path
) -> None:
    """The API server's own check, in a namespace that enforces it."""
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    stage.admin.core.patch_namespace(stage.namespace, enforce)
    deployments = [one for one in rendered(helm, chart, "defaults") if one["kind"] == "Deployment"]
    assert len(deployments) == 2
    for deployment in deployments:
        template = deployment["spec"]["template"]
        spec = {**template["spec"], "serviceAccountName": "default"}
        pod = {"metadata": {**template["metadata"], "name": "probe"}, "spec": spec}
        path = f"/api/v1/namespaces/{stage.namespace}/pods"
        answer = stage.root.call("POST", path, pod, dryRun="All")
        assert answer.allowed, answer.message


def test_the_admission_policies_type_check(stage: Any) -> None:
    """The API server warns about expressions that do not fit the CRDs."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    installed = stage.root.call("GET", path).body["items"]
    ours = [one for one in installed if one["metadata"]["name"] in names.ADMISSION_POLICIES]
    assert len(ours) == len(names.ADMISSION_POLICIES)
    for one in ours:
        checked = one["status"]["typeChecking"]
        assert not checked.get("expressionWarnings"), (one["metadata"]["name"], checked)


def test_an_upgrade_keeps_objects_and_their_statuses(stage: Any, install: Install) -> None:
    asked = stage.waiting()
    install(operator={"leaderSeconds": 7})
    now = stage.root.get("PolicyRollout", "r").body
    assert now["metadata"]["uid"] == asked["metadata"]["uid"]
    assert now["status"] == asked["status"]
    environment = deployment_environment(stage, names.OPERATOR_ACCOUNT)
    assert environment["TRIMWHEEL_LEADER_SECONDS"] == "7"
    install()


def test_a_second_release_is_refused(stage: Any, helm: Helm, chart: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        helm("install", "second", str(chart), "--namespace", stage.namespace)
    assert "cannot be imported into the current release" in refused.value.stderr


def test_uninstalling_keeps_kinds_and_objects_and_drops_admission(
    stage: Any, helm: Helm, install: Install
) -> None:
    """Then the operator's self-test is what stands between a forged approval and a promotion."""
    kept = stage.waiting()
    helm("uninstall", RELEASE_NAME, "--namespace", RELEASE_NAMESPACE, "--wait")
    try:
        for kind in KINDS:
            assert f"{kind.plural}.{names.GROUP}" in stage.cluster.kubectl("get", "crds")
        found = stage.root.get("PolicyRollout", "r").body
        assert found["metadata"]["uid"] == kept["metadata"]["uid"]
        forged = stage.approval(kept, "somebody-else")
        eventually(lambda: stage.root.create(forged).allowed, "admission is gone")
    finally:
        install()
    eventually(lambda: refusal(stage, kept) == "trimwheel-approvers", "admission is back")


def test_a_forged_rejection_tells_whether_the_one_policy_that_matters_is_gone(
    stage: Any, install: Install
) -> None:
    """Its binding stays behind, and the other policy still refuses what is wrong in itself.

    So a forgery that both would refuse proves nothing; a rejection that is right but for who
    decides is refused by trimwheel-approvers or by nobody.
    """
    asked = stage.waiting()
    eventually(lambda: refusal(stage, asked) == "trimwheel-approvers", "both are in force")
    stage.cluster.kubectl("delete", "validatingadmissionpolicy", "trimwheel-approvers")
    try:
        eventually(lambda: refusal(stage, asked) == "", "nobody asks who decides")
        wrong = stage.approval(asked, "somebody-else", rolloutUID="1234")
        assert stage.root.create(wrong, dryRun="All").policy == "trimwheel-approvals"
    finally:
        install()
    eventually(lambda: refusal(stage, asked) == "trimwheel-approvers", "both are back")


def refusal(stage: Any, rollout: dict[str, Any]) -> str:
    """Which policy refuses a rejection in another's name, tried without storing it."""
    forged = stage.approval(rollout, "somebody-else", decision="Reject")
    return str(stage.root.create(forged, dryRun="All").policy)


def deployment_environment(stage: Any, name: str) -> dict[str, str]:
    found = stage.admin.apps.read_namespaced_deployment(name, RELEASE_NAMESPACE)
    variables = found.spec.template.spec.containers[0].env
    return {one.name: one.value for one in variables if one.value is not None}
