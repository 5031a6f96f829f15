"""What `doctor` makes of what it reads, down to the label that is missing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from trimwheel_api.crd import manifests
from trimwheel_api.names import ADMISSION_POLICIES
from trimwheel_cli import checks

NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
POD = {"metadata": {"namespace": "shop", "name": "m-1", "labels": {}, "annotations": {}}}


def crds(**changed: Any) -> dict[str, Any]:
    made = {crd["metadata"]["name"]: dict(crd) for crd in manifests()}
    for crd in made.values():
        crd["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
    return made | changed


def binding(policy: str, *actions: str) -> dict[str, Any]:
    return {"spec": {"policyName": policy, "validationActions": list(actions)}}


def target(health: str = "up", **labels: str) -> dict[str, Any]:
    meta = {"__meta_kubernetes_namespace": "shop", "__meta_kubernetes_pod_name": "m-1"}
    return {"discoveredLabels": meta, "labels": labels, "health": health, "lastError": "refused"}


SEEN = target(namespace="shop", pod="m-1")


def test_all_kinds_present_is_ok():
    assert checks.check_kinds(crds()).outcome == "ok"


def test_a_missing_kind_is_named():
    known = crds()
    del known["policyrollouts.trimwheel.dev"]
    found = checks.check_kinds(known)
    assert found.outcome == "failed"
    assert "policyrollouts.trimwheel.dev is missing" in found.found


def test_a_kind_that_is_not_established_is_named():
    known = crds()
    known["tuningruns.trimwheel.dev"]["status"] = {}
    assert "tuningruns.trimwheel.dev is not established" in checks.check_kinds(known).found


def test_admission_needs_every_policy_and_a_binding_that_denies():
    bindings = [binding(name, "Deny", "Audit") for name in ADMISSION_POLICIES]
    assert checks.check_admission(ADMISSION_POLICIES, bindings).outcome == "ok"
    unbound = checks.check_admission(ADMISSION_POLICIES, bindings[1:])
    assert f"{ADMISSION_POLICIES[0]} has no binding that denies" in unbound.found
    only_warns = [binding(ADMISSION_POLICIES[0], "Warn"), *bindings[1:]]
    assert checks.check_admission(ADMISSION_POLICIES, only_warns).outcome == "failed"
    missing = checks.check_admission(ADMISSION_POLICIES[1:], bindings)
    assert f"{ADMISSION_POLICIES[0]} is missing" in missing.found


@pytest.mark.parametrize(
    ("lease", "outcome"),
    [
        ({"spec": {"renewTime": "2026-01-02T11:59:50.000000Z"}}, "ok"),
        ({"spec": {"renewTime": "2026-01-02T11:00:00.000000Z"}}, "failed"),
        ({"spec": {}}, "failed"),
        (None, "failed"),
    ],
)
def test_the_operators_lock_must_be_fresh(lease, outcome):
    assert checks.check_lease(lease, NOW).outcome == outcome


def test_a_deployment_without_a_ready_pod_fails():
    made = {"metadata": {"name": "trimwheel-operator", "namespace": "s"}, "status": {}}
    assert checks.check_deployment("operator", made).outcome == "failed"
    assert (
        checks.check_deployment("operator", made | {"status": {"readyReplicas": 1}}).outcome == "ok"
    )
    assert checks.check_deployment("operator", None).outcome == "failed"


@pytest.mark.parametrize(
    ("active", "dropped", "annotations", "said"),
    [
        ([SEEN], [], {}, ""),
        ([target("down", namespace="shop", pod="m-1")], [], {}, "fails: refused"),
        ([target(namespace="shop")], [], {}, "lack label pod"),
        ([target()], [], {}, "lack label namespace and pod"),
        ([], [target()], {}, "lacks annotation prometheus.io/scrape"),
        ([], [target()], {"prometheus.io/scrape": "true"}, "dropped by relabelling"),
        ([], [], {}, "is not discovered"),
        ([target("down"), SEEN], [], {}, ""),
    ],
)
def test_scraping_problems_are_told_apart(active, dropped, annotations, said):
    pod = {"metadata": POD["metadata"] | {"annotations": annotations}}
    found = checks.check_targets([pod], {"activeTargets": active, "droppedTargets": dropped}, [])
    assert found.outcome == ("failed" if said else "ok")
    assert said in found.found


def test_no_pods_to_scrape_is_not_taken_for_healthy():
    assert checks.check_targets([], {}, []).outcome == "skipped"


def test_a_monitor_that_no_prometheus_selects_names_the_label():
    monitor = {"metadata": {"name": "trimwheel-worker", "labels": {"app": "x"}}}
    server = {"spec": {"podMonitorSelector": {"matchLabels": {"release": "kube-prometheus"}}}}
    (said,) = checks.unselected_monitors([monitor], [server])
    assert "PodMonitor trimwheel-worker lacks label release=kube-prometheus" in said
    everything: dict[str, Any] = {"spec": {"podMonitorSelector": {}}}
    assert checks.unselected_monitors([monitor], [server, everything]) == []
    labelled = {"metadata": {"name": "m", "labels": {"release": "kube-prometheus"}}}
    assert checks.unselected_monitors([labelled], [server]) == []


def certified(model: str, issued: str, keys: str | None) -> dict[str, Any]:
    clusters = {} if keys is None else {"clusters": {"sessions": 9, "sessionKeys": keys}}
    return {
        "metadata": {"namespace": "shop", "name": f"{model}-{issued}"},
        "spec": {"model": model, "certificate": {"issuedAt": issued} | clusters},
    }


@pytest.mark.parametrize(
    ("policies", "outcome", "says"),
    [
        ([], "skipped", "no certificate"),
        ([{"metadata": {"namespace": "shop", "name": "p"}, "spec": {"model": "m"}}], "skipped", ""),
        ([certified("m", "2026-01-01", None)], "skipped", "no certificate"),
        ([certified("m", "2026-01-01", "mixed")], "ok", "several requests a key in 1 models"),
        ([certified("m", "2026-01-01", "unique")], "ok", "shop/m: a new session key for every"),
        ([certified("m", "2026-01-01", "one")], "failed", "shop/m: the same session key for"),
        (
            [certified("m", "2026-01-01", "one"), certified("m", "2026-01-02", "mixed")],
            "ok",
            "several requests",
        ),
        (
            [certified("m", "2026-01-01", "one"), certified("n", "2026-01-02", "mixed")],
            "failed",
            "shop/m",
        ),
    ],
)
def test_session_keys_are_what_the_newest_certificate_of_each_model_saw(
    policies: list[dict[str, Any]], outcome: str, says: str
) -> None:
    check = checks.check_session_keys(policies)
    assert check.outcome == outcome
    assert says in check.found
