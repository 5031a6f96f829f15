"""The self-test of admission: are forged approvals still refused, by each policy, by name?

Missing admission fails open: a deleted ValidatingAdmissionPolicy lets everything pass, and a
missing right of our own would look alike. So before any approval counts, and every minute, the
operator (which may create PolicyApprovals for this alone) tries to forge two as a dry run. Each is
wrong in one way only, because of several policies that refuse the API server names just one:

* who decides: right in all but that the operator is no person; `trimwheel-approvers` must refuse;
* what is decided: of a uid that no rollout has, which `trimwheel-approvals` must refuse. The other
  policy lets this dry run of the operator pass, as its match conditions say.

Approvals older than the bindings were checked by nobody, so the age of the bindings comes along.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from trimwheel_api import names
from trimwheel_api.errors import Refused
from trimwheel_api.kinds import PolicyRollout
from trimwheel_api.times import parse
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.plan.observed import AdmissionCheck

APPROVERS = "trimwheel-approvers"
"""Who may decide."""
APPROVALS = "trimwheel-approvals"
"""What is decided; without either an approval could be forged."""
POLICIES = (APPROVERS, APPROVALS)
FRESH_SECONDS = 60.0
FORGED = "trimwheel-self-test"
"""Name of forged approvals, and the uid that no rollout has (the chart knows it too)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A forged approval, and the one policy that must refuse it."""

    policy: str
    body: dict[str, Any]


class AdmissionTest:
    """Runs the test, and remembers its answer for a minute in each namespace."""

    def __init__(self, api: KubeApi, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._known: dict[str, tuple[float, AdmissionCheck]] = {}

    def check(self, rollout: PolicyRollout, *, fresh: bool = False) -> AdmissionCheck:
        """The newest answer in the rollout's namespace; `fresh` asks again, as is due before an
        approval counts."""
        now, namespace = self._clock(), rollout.metadata.namespace
        known = self._known.get(namespace)
        if known is None or fresh or now - known[0] >= FRESH_SECONDS:
            known = (now, self._run(rollout))
            self._known[namespace] = known
        return known[1]

    def _run(self, rollout: PolicyRollout) -> AdmissionCheck:
        since = []
        for name in POLICIES:
            binding = self._api.find(path_of("ValidatingAdmissionPolicyBinding", name=name))
            if binding is None or "Deny" not in binding["spec"].get("validationActions", []):
                return AdmissionCheck(
                    False, f"ValidatingAdmissionPolicyBinding {name} is missing or does not deny"
                )
            since.append(parse(binding["metadata"]["creationTimestamp"]))
        place = path_of("PolicyApproval", rollout.metadata.namespace)
        for probe in probes(rollout):
            if mistake := judged(probe, self._refusal(place, probe)):
                return AdmissionCheck(False, mistake)
        times = [moment for moment in since if moment is not None]
        return AdmissionCheck(True, "", max(times, default=None))

    def _refusal(self, place: str, probe: Probe) -> str | None:
        """The API server's words; None when it would have taken the approval."""
        try:
            self._api.create(place, probe.body, dry_run=True)
        except Refused as refusal:
            return str(refusal)
        return None


def probes(rollout: PolicyRollout) -> tuple[Probe, ...]:
    """What to forge of a rollout that exists.

    The first rejects, since a rejection is right at any time and by whoever asked for the rollout:
    nothing but the operator's being no person stands against it.
    """
    name, uid = rollout.name, rollout.metadata.uid
    digest = rollout.spec.policy_digest
    return (
        Probe(APPROVERS, _forged(name, uid, digest, "Reject")),
        Probe(APPROVALS, _forged(name, FORGED, digest, "Approve")),
    )


def judged(probe: Probe, refusal: str | None) -> str:
    """Why the probe shows that its policy is not at work; empty when it was refused by it."""
    decision = probe.body["spec"]["decision"]
    if refusal is None:
        return f"{probe.policy} let a forged approval ({decision}) through"
    if f"ValidatingAdmissionPolicy '{probe.policy}'" not in refusal:
        return f"a forged approval ({decision}) was refused, but not by {probe.policy}: {refusal}"
    return ""


def _forged(
    rollout: str, uid: str, digest: str, decision: Literal["Approve", "Reject"]
) -> dict[str, Any]:
    """An approval that nobody gave."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PolicyApproval",
        "metadata": {"name": FORGED},
        "spec": {
            "rollout": rollout,
            "rolloutUID": uid,
            "policyDigest": digest,
            "decision": decision,
            "approver": FORGED,
            "reason": "self-test of admission, a dry run",
        },
    }
