"""One forgery for each admission policy of the chart: what it, and it alone, must refuse.

Called by `admission`, as a dry run under the operator's own account. A probe is named after its
policy (`trimwheel-self-test-NAME`); the other policies let a dry run of the operator under such a
name pass, as their match conditions say, because of several that refuse the API server names one.
Of users' kinds the account may write these names and no others, and those as a dry run alone.

A policy of the chart without a probe fails a test of the repository.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimwheel_api import names
from trimwheel_api.policy import DENSE

Json = dict[str, Any]
FORGED = "trimwheel-self-test"
"""Model, rollout, uid and user of forged objects: none of them exists."""
_TIME = "2026-01-01T00:00:00Z"
_CONTAINER = {"name": "none", "image": "none", "command": ["true"]}
_POLICY = {"model": FORGED, "policy": "p", "policyDigest": DENSE.digest}


@dataclass(frozen=True, slots=True)
class Probe:
    """A forged object, and the one policy that must refuse it."""

    policy: str
    kind: str
    spec: Json
    api_version: str = names.API_VERSION
    labels: tuple[tuple[str, str], ...] = ()
    in_release: bool = False
    """It is tried in the release's namespace, wherever the test is made."""
    apply: bool = True
    """By server-side apply, whose right to create can be limited to a name; else by create."""
    moot: str = ""
    """Words of a refusal that leave nothing to prove: nobody can create such an object here."""

    @property
    def name(self) -> str:
        """What the object is called; the chart's match conditions know it."""
        return probe_name(self.policy)

    def body(self, namespace: str) -> Json:
        """The object."""
        metadata = {"name": self.name, "namespace": namespace, "labels": dict(self.labels)}
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": metadata,
            "spec": self.spec,
        }


def probe_name(policy: str) -> str:
    """`trimwheel-alarms` -> `trimwheel-self-test-alarms`."""
    return names.SELF_TEST_PREFIX + policy.removeprefix("trimwheel-")


def _approval(decision: str) -> Json:
    return {
        "rollout": FORGED,
        "rolloutUID": FORGED,
        "policyDigest": DENSE.digest,
        "decision": decision,
        "approver": FORGED,
        "reason": "self-test of admission, a dry run",
    }


def _certificate() -> Json:
    counts = {"epsilon": "0.02", "delta": "0.1", "n": 2000, "errors": 0, "pValue": "0.01"}
    times = dict.fromkeys(("windowStart", "windowEnd", "issuedAt", "expiresAt"), _TIME)
    return {**counts, **times, "policyDigest": DENSE.digest, "modelDigest": DENSE.digest}


PROBES: dict[str, Callable[[], Probe]] = {
    # A decision by an account that is no person. Without any rollout in the namespace the other
    # policy refuses every approval, before it looks at its match conditions.
    "trimwheel-approvers": lambda: Probe(
        "trimwheel-approvers",
        "PolicyApproval",
        _approval("Reject"),
        moot="'trimwheel-approvals' denied request: failed to configure binding: no params found",
    ),
    # A decision on a uid that no rollout has.
    "trimwheel-approvals": lambda: Probe(
        "trimwheel-approvals", "PolicyApproval", _approval("Approve")
    ),
    # A request in somebody else's name.
    "trimwheel-rollouts": lambda: Probe(
        "trimwheel-rollouts", "PolicyRollout", {**_POLICY, "requestedBy": FORGED}
    ),
    # A certificate by an account without verb certify.
    "trimwheel-certificates": lambda: Probe(
        "trimwheel-certificates", "AdaptivePolicy", {"model": FORGED, "certificate": _certificate()}
    ),
    # A model that needs no approval, by an account without verb waive.
    "trimwheel-models": lambda: Probe(
        "trimwheel-models",
        "AdaptiveModel",
        {
            "model": {"uri": "models:/none/1", "digest": DENSE.digest},
            "replicas": 0,
            "rollout": {"approval": "Automatic"},
        },
    ),
    # An alarm by an account that sees no evidence.
    "trimwheel-alarms": lambda: Probe(
        "trimwheel-alarms", "TuningRun", {"model": FORGED, "reason": "Harmful"}
    ),
    # An assignment under a name that the operator is not let write.
    "trimwheel-operator-only": lambda: Probe(
        "trimwheel-operator-only",
        "PolicyAssignment",
        {"epoch": 1, "stable": {"digest": DENSE.digest}},
    ),
    # An acknowledgement by what is not the pod of that name.
    "trimwheel-worker-leases": lambda: Probe(
        "trimwheel-worker-leases",
        "Lease",
        {"holderIdentity": FORGED},
        api_version="coordination.k8s.io/v1",
        labels=((names.LABEL_MODEL, FORGED),),
    ),
    # A model in the release's namespace.
    "trimwheel-placement": lambda: Probe(
        "trimwheel-placement",
        "AdaptiveModel",
        {"model": {"uri": "models:/none/1", "digest": DENSE.digest}, "replicas": 0},
        in_release=True,
    ),
    # A Lease that is not the operator's own.
    "trimwheel-operator-objects": lambda: Probe(
        "trimwheel-operator-objects",
        "Lease",
        {"holderIdentity": FORGED},
        api_version="coordination.k8s.io/v1",
    ),
    # A Job that is no TuningRun's.
    "trimwheel-operator-jobs": lambda: Probe(
        "trimwheel-operator-jobs",
        "Job",
        {"template": {"spec": {"restartPolicy": "Never", "containers": [_CONTAINER]}}},
        api_version="batch/v1",
        in_release=True,
        apply=False,
    ),
}
"""By name of the policy; each comment says what is wrong, and nothing else is."""


def judged(probe: Probe, refusal: str | None) -> str:
    """Why the probe shows that its policy is not at work; empty when it was refused by it."""
    if refusal is None:
        return f"{probe.policy} let a forged {probe.kind} ({probe.name}) through"
    if probe.moot and probe.moot in refusal:
        return ""
    if f"ValidatingAdmissionPolicy '{probe.policy}'" not in refusal:
        return f"a forged {probe.kind} was refused, but not by {probe.policy}: {refusal}"
    return ""
