"""The operator proves that admission is in force, by forgeries that each policy must refuse."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.fake_api import Clock, FakeApi

from trimwheel_api.errors import Refused
from trimwheel_operator.admission import APPROVALS, APPROVERS, POLICIES, AdmissionTest, probes
from trimwheel_operator.cluster import path_of


class Guarded(FakeApi):
    """Both bindings are there; each policy refuses as the chart's do, unless it is `gone`.

    Of several that refuse, `first` is named: the API server's order is none.
    """

    def __init__(self, gone: str = "", first: str = APPROVERS, instead: str = "") -> None:
        super().__init__()
        self.gone, self.instead = gone, instead
        self.order = sorted(POLICIES, key=lambda name: name != first)
        self.asked = 0
        for name in POLICIES:
            self.objects[path_of("ValidatingAdmissionPolicyBinding", name=name)] = {
                "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"validationActions": ["Deny", "Audit"]},
            }

    def create(self, path: str, body: Any, *, dry_run: bool = False) -> Any:
        assert dry_run and path == path_of("PolicyApproval", "team")
        self.asked += 1
        if self.instead:
            raise Refused(self.instead)
        spec = body["spec"]
        refuses = {
            APPROVERS: spec["rolloutUID"] != "trimwheel-self-test",
            APPROVALS: spec["rolloutUID"] != "uid-PolicyRollout-ramp",
        }
        for name in self.order:
            if refuses[name] and name != self.gone:
                raise Refused(f"ValidatingAdmissionPolicy '{name}' with binding '{name}' denied")
        return body


@pytest.mark.parametrize("first", POLICIES)
@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({}, ""),
        ({"gone": APPROVERS}, "trimwheel-approvers let a forged approval"),
        ({"gone": APPROVALS}, "trimwheel-approvals let a forged approval"),
        ({"instead": 'User "x" cannot create "policyapprovals"'}, "not by trimwheel-approvers"),
        ({"instead": "ValidatingAdmissionPolicy 'no-friday' denied"}, "not by trimwheel-appr"),
        ({"instead": "ValidatingAdmissionPolicy 'trimwheel-approvers' denied"}, "-approvals: "),
        ({"instead": "ValidatingAdmissionPolicy 'trimwheel-approvals' denied"}, "-approvers: "),
    ],
)
def test_admission_counts_only_when_each_policy_refuses_in_its_own_name(
    started: Any, change: dict[str, str], missing: str, first: str
) -> None:
    found = AdmissionTest(Guarded(first=first, **change)).check(started)  # type: ignore[arg-type]
    assert found.armed is not bool(missing)
    assert (found.armed_since is None) is bool(missing)
    assert missing in found.message


def test_the_forged_rejection_is_wrong_in_nothing_but_its_author(started: Any) -> None:
    who, what = (probe.body["spec"] for probe in probes(started))
    right = (started.name, started.metadata.uid, started.spec.policy_digest)
    assert (who["rollout"], who["rolloutUID"], who["policyDigest"]) == right
    assert who["decision"] == "Reject"
    assert what["rollout"] == started.name and what["rolloutUID"] != started.metadata.uid


@pytest.mark.parametrize("change", ["delete", "audit only"])
def test_a_binding_that_is_gone_or_only_audits_is_missing_admission(
    started: Any, change: str
) -> None:
    api = Guarded()
    place = path_of("ValidatingAdmissionPolicyBinding", name=APPROVALS)
    if change == "delete":
        del api.objects[place]
    else:
        api.objects[place]["spec"]["validationActions"] = ["Audit"]
    found = AdmissionTest(api).check(started)  # type: ignore[arg-type]
    assert found.armed is False and APPROVALS in found.message


def test_the_self_test_runs_each_minute_and_whenever_an_approval_is_counted(started: Any) -> None:
    api, clock = Guarded(), Clock()
    test = AdmissionTest(api, clock)  # type: ignore[arg-type]
    for seconds, fresh in ((0, False), (59, False), (1, False), (1, True)):
        clock.now += seconds
        test.check(started, fresh=fresh)
    assert api.asked == 3 * len(probes(started))
