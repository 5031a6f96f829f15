"""The self-test of admission: is a forged approval still refused, by us, and by name?

Missing admission fails open: a deleted ValidatingAdmissionPolicy lets everything pass, and a
missing right of our own would look alike. So before any approval counts, and every minute, the
operator (which may create PolicyApprovals for this alone) tries to forge one as a dry run; only a
refusal that names one of our policies counts. Approvals older than the bindings were checked by
nobody, so the age of the bindings comes along.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trimwheel_api import names
from trimwheel_api.errors import Refused
from trimwheel_api.policy import DENSE
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.plan.clock import parse
from trimwheel_operator.plan.observed import AdmissionCheck

POLICIES = ("trimwheel-approvers", "trimwheel-approvals")
"""Who may decide, and what is decided: without either an approval could be forged."""
FRESH_SECONDS = 60.0
FORGED = "trimwheel-self-test"


class AdmissionTest:
    """Runs the test, and remembers its answer for a minute in each namespace."""

    def __init__(self, api: KubeApi, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._known: dict[str, tuple[float, AdmissionCheck]] = {}

    def check(self, namespace: str, *, fresh: bool = False) -> AdmissionCheck:
        """The newest answer; `fresh` asks again, as is due before an approval counts."""
        now = self._clock()
        known = self._known.get(namespace)
        if known is None or fresh or now - known[0] >= FRESH_SECONDS:
            known = (now, self._run(namespace))
            self._known[namespace] = known
        return known[1]

    def _run(self, namespace: str) -> AdmissionCheck:
        since = []
        for name in POLICIES:
            binding = self._api.find(path_of("ValidatingAdmissionPolicyBinding", name=name))
            if binding is None or "Deny" not in binding["spec"].get("validationActions", []):
                return AdmissionCheck(
                    False, f"ValidatingAdmissionPolicyBinding {name} is missing or does not deny"
                )
            since.append(parse(binding["metadata"]["creationTimestamp"]))
        try:
            self._api.create(path_of("PolicyApproval", namespace), forged_approval(), dry_run=True)
        except Refused as refusal:
            if any(f"ValidatingAdmissionPolicy '{name}'" in str(refusal) for name in POLICIES):
                times = [moment for moment in since if moment is not None]
                return AdmissionCheck(True, "", max(times, default=None))
            return AdmissionCheck(False, f"a forged approval was refused, but not by us: {refusal}")
        return AdmissionCheck(False, f"a forged approval was let through in namespace {namespace}")


def forged_approval() -> dict[str, object]:
    """An approval that nobody gave, of a rollout that does not exist."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PolicyApproval",
        "metadata": {"name": FORGED},
        "spec": {
            "rollout": FORGED,
            "rolloutUID": FORGED,
            "policyDigest": DENSE.digest,
            "decision": "Approve",
            "approver": FORGED,
            "reason": "self-test of admission, a dry run",
        },
    }
