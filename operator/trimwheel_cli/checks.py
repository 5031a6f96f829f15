"""The checks of `trimwheel doctor`: each looks at one thing, says what it found, and the remedy.

What is judged is plain JSON of the API servers of Kubernetes and Prometheus, so that the judging
is pure; reading it is `doctor`'s part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from trimwheel_api import names
from trimwheel_api.kinds import KINDS
from trimwheel_api.times import instant

Outcome = Literal["ok", "failed", "skipped"]
LEASE_STALE_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """What was found; `remedy` is what to do about a failure."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


def check_kinds(crds: Mapping[str, Mapping[str, Any]]) -> Check:
    """Every CRD is there, established, and serves our version."""
    wrong = []
    for kind in KINDS:
        name = f"{kind.plural}.{names.GROUP}"
        crd = crds.get(name)
        if crd is None:
            wrong.append(f"{name} is missing")
            continue
        served = [v["name"] for v in crd["spec"]["versions"] if v["served"]]
        if names.VERSION not in served:
            wrong.append(f"{name} serves {', '.join(served)}, not {names.VERSION}")
        if not _is_true(crd.get("status", {}).get("conditions", []), "Established"):
            wrong.append(f"{name} is not established")
    if wrong:
        return Check("kinds", "failed", "; ".join(wrong), "helm upgrade --install the chart")
    return Check("kinds", "ok", f"{len(KINDS)} kinds of {names.GROUP}/{names.VERSION}")


def check_admission(policies: Iterable[str], bindings: Iterable[Mapping[str, Any]]) -> Check:
    """Every admission policy is there and bound so that it denies.

    A missing one fails open: anybody who may create a PolicyApproval could approve.
    """
    present = set(policies)
    denying = {
        binding["spec"]["policyName"]
        for binding in bindings
        if "Deny" in binding["spec"].get("validationActions", [])
    }
    wrong = [f"{name} is missing" for name in names.ADMISSION_POLICIES if name not in present]
    wrong += [
        f"{name} has no binding that denies"
        for name in names.ADMISSION_POLICIES
        if name in present and name not in denying
    ]
    if wrong:
        remedy = "helm upgrade --install the chart; until then no approval counts"
        return Check("admission", "failed", "; ".join(wrong), remedy)
    return Check("admission", "ok", f"{len(names.ADMISSION_POLICIES)} policies, all deny")


def check_session_keys(policies: Iterable[Mapping[str, Any]]) -> Check:
    """How clients use session keys, as the newest certificate of each model says.

    One key for everybody makes all audits one observation; a new one for every request hides which
    requests belong together.
    """
    newest: dict[str, Mapping[str, Any]] = {}
    for policy in policies:
        certificate = policy["spec"].get("certificate") or {}
        model = f"{policy['metadata']['namespace']}/{policy['spec']['model']}"
        issued = str(certificate.get("issuedAt", ""))
        if certificate.get("clusters") and issued >= str(newest.get(model, {}).get("issuedAt", "")):
            newest[model] = certificate
    told = {
        "one": "the same session key for everybody",
        "unique": "a new session key for every request, or none",
    }
    odd = {
        model: str(certificate["clusters"].get("sessionKeys", "mixed"))
        for model, certificate in sorted(newest.items())
        if certificate["clusters"].get("sessionKeys", "mixed") in told
    }
    if not newest:
        return Check("session keys", "skipped", "no certificate says how they are used")
    if not odd:
        return Check("session keys", "ok", f"several requests a key in {len(newest)} models")
    found = "; ".join(f"{model}: {told[use]}" for model, use in odd.items())
    remedy = "send one x-session-id a conversation: arms, guards and certificates go by it"
    failed: Outcome = "failed" if "one" in odd.values() else "ok"
    return Check("session keys", failed, found, remedy)


def check_deployment(component: str, deployment: Mapping[str, Any] | None) -> Check:
    """A Deployment of the release has its replica ready."""
    if deployment is None:
        return Check(component, "failed", "no Deployment", "helm upgrade --install the chart")
    ready = deployment.get("status", {}).get("readyReplicas", 0)
    name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
    if not ready:
        remedy = f"kubectl -n {namespace} describe pods -l {names.LABEL_COMPONENT}={component}"
        return Check(component, "failed", f"{name} has no ready pod", remedy)
    return Check(component, "ok", f"{name} is ready")


def check_lease(lease: Mapping[str, Any] | None, now: datetime) -> Check:
    """The operator renews its lock, so it decides."""
    renewed = (lease or {}).get("spec", {}).get("renewTime")
    if not renewed:
        remedy = "read the operator's log: it decides only while it holds this Lease"
        return Check("operator lock", "failed", f"Lease {names.OPERATOR_LEASE} is not held", remedy)
    old = (now - instant(str(renewed))).total_seconds()
    if old > LEASE_STALE_SECONDS:
        found = f"Lease {names.OPERATOR_LEASE} was renewed {old:.0f} s ago"
        return Check("operator lock", "failed", found, "is the operator's pod alive?")
    return Check("operator lock", "ok", f"renewed {max(old, 0):.0f} s ago")


def check_targets(
    pods: Sequence[Mapping[str, Any]], targets: Mapping[str, Any], monitors: Sequence[str]
) -> Check:
    """Prometheus scrapes every pod of ours, and its series carry `namespace` and `pod`.

    `pods` are Kubernetes objects, `targets` the data of /api/v1/targets, `monitors` what
    `unselected_monitors` found. The message names the label that is missing.
    """
    if not pods:
        return Check("scraping", "skipped", "there are no pods of Trimwheel to scrape")
    active = _by_pod(targets.get("activeTargets", []))
    dropped = _by_pod(targets.get("droppedTargets", []))
    wrong = [
        found
        for pod in pods
        if (found := _scrape_problem(pod, active.get(_key(pod)), _key(pod) in dropped))
    ]
    if not wrong:
        return Check("scraping", "ok", f"{len(pods)} pods are scraped")
    remedy = "; ".join(monitors) or (
        "set monitors.enabled and monitors.labels in the chart's values, or let Prometheus honour "
        "prometheus.io/scrape annotations"
    )
    return Check("scraping", "failed", "; ".join(wrong), remedy)


def unselected_monitors(
    monitors: Iterable[Mapping[str, Any]], servers: Iterable[Mapping[str, Any]]
) -> list[str]:
    """PodMonitors of ours that no Prometheus object selects, with the label each lacks."""
    wanted = [server["spec"].get("podMonitorSelector") for server in servers]
    said = []
    for monitor in monitors:
        labels = monitor["metadata"].get("labels", {})
        lacking = [missing_labels(selector, labels) for selector in wanted if selector is not None]
        if lacking and all(lacking):
            pairs = ", ".join(f"{key}={value}" for key, value in min(lacking, key=len).items())
            said.append(
                f"PodMonitor {monitor['metadata']['name']} lacks label {pairs}: set it in the "
                "chart's monitors.labels"
            )
    return said


def missing_labels(selector: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The `matchLabels` of a selector that some labels do not carry."""
    matched = selector.get("matchLabels") or {}
    return {key: value for key, value in matched.items() if labels.get(key) != value}


def _scrape_problem(pod: Mapping[str, Any], target: Mapping[str, Any] | None, dropped: bool) -> str:
    name = "/".join(_key(pod))
    if target is not None:
        if target.get("health") == "down":
            return f"{name} is scraped but fails: {target.get('lastError')}"
        lacking = [key for key in ("namespace", "pod") if not target.get("labels", {}).get(key)]
        if lacking:
            return f"{name} is scraped, but its series lack label {' and '.join(lacking)}"
        return ""
    annotations = pod["metadata"].get("annotations", {})
    if dropped and annotations.get("prometheus.io/scrape") != "true":
        return f"{name} is discovered but dropped: it lacks annotation prometheus.io/scrape"
    if dropped:
        return f"{name} is discovered but dropped by relabelling"
    return f"{name} is not discovered"


def _by_pod(targets: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for target in targets:
        seen = target.get("discoveredLabels", {})
        meta = "__meta_kubernetes_"
        key = (seen.get(meta + "namespace", ""), seen.get(meta + "pod_name", ""))
        # A pod with several ports is several targets: a healthy one says all.
        if key not in found or found[key].get("health") != "up":
            found[key] = target
    return found


def _key(pod: Mapping[str, Any]) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _is_true(conditions: Iterable[Mapping[str, Any]], kind: str) -> bool:
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)
