"""The operator proves that admission is in force, by a forgery that each policy must refuse, and
since when it is as it is, by what nobody else can write."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.operator.fake_api import Clock, FakeApi

from trimwheel_api import names
from trimwheel_api.errors import Refused, Unavailable
from trimwheel_api.kinds import KINDS
from trimwheel_local.testing import eventually
from trimwheel_operator.admission import BINDING, POLICY, AdmissionTest
from trimwheel_operator.admission_watch import AdmissionWatch
from trimwheel_operator.cluster import path_of
from trimwheel_operator.probes import PROBES, probe_name

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JOURNAL = path_of("PolicyJournal", names.RELEASE_NAMESPACE, names.RELEASE_JOURNAL)
OF_PROBE = {probe_name(policy): policy for policy in PROBES}


class Guarded(FakeApi):
    """Every policy and binding is there; each refuses its own probe, unless it is `open`."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self.clock = clock or Clock()
        self.open: set[str] = set()
        self.instead = ""
        self.asked: list[tuple[str, str]] = []
        self.made = 0
        for name in names.ADMISSION_POLICIES:
            self.install(name)

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.clock())

    def install(self, name: str) -> None:
        """A policy and its binding, made now."""
        self.made += 1
        for kind, spec in (
            (POLICY, {"failurePolicy": "Fail"}),
            (BINDING, {"policyName": name, "validationActions": ["Deny", "Audit"]}),
        ):
            metadata = {"name": name, "uid": f"{kind}-{name}-{self.made}", "generation": 1}
            self.objects[path_of(kind, name=name)] = {"metadata": metadata, "spec": spec}

    def edit(self, kind: str, name: str, **spec: Any) -> None:
        item = self.objects[path_of(kind, name=name)]
        item["metadata"]["generation"] += 1
        item["spec"] = {**item["spec"], **spec}

    def remove(self, kind: str, name: str) -> None:
        del self.objects[path_of(kind, name=name)]

    def list(self, path: str, labels: str = "") -> Any:
        assert labels == "app.kubernetes.io/part-of=trimwheel"
        return [one for place, one in self.objects.items() if place.startswith(f"{path}/")], "1"

    def apply(self, path: str, manifest: Any, *, dry_run: bool = False) -> Any:
        return self.forge(manifest, dry_run)

    def forge(self, manifest: Any, dry_run: bool) -> Any:
        assert dry_run, "a forgery is never stored"
        policy = OF_PROBE[manifest["metadata"]["name"]]
        self.asked.append((manifest["metadata"]["namespace"], policy))
        if self.instead:
            raise Refused(self.instead)
        if policy not in self.open and path_of(POLICY, name=policy) in self.objects:
            raise Refused(f"ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied")
        return manifest

    def create(self, path: str, body: Any, *, dry_run: bool = False) -> Any:
        if body["kind"] != "PolicyJournal":
            return self.forge(body, dry_run)
        made = super().create(path, body)
        made["metadata"] |= {
            "uid": "journal", "generation": 1,
            "creationTimestamp": self.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        return made

    def merge(self, path: str, body: Any) -> Any:
        item = self.objects[path]
        assert body["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"]
        self.version += 1
        item["metadata"] |= {
            "resourceVersion": str(self.version),
            "generation": item["metadata"]["generation"] + 1,
            "managedFields": [
                {"manager": names.FIELD_MANAGER, "time": self.now.strftime("%Y-%m-%dT%H:%M:%SZ")}
            ],
        }
        item["spec"] = {**item["spec"], **body["spec"]}
        return item


@pytest.fixture
def api() -> Guarded:
    return Guarded()


def made_of(api: Guarded) -> AdmissionTest:
    return AdmissionTest(api, clock=api.clock, now=lambda: api.now)  # type: ignore[arg-type]


# --- which ------------------------------------------------------------------------------------
def test_every_admission_policy_has_a_probe_and_the_chart_knows_it() -> None:
    folder = Path(__file__).parents[2] / "charts/trimwheel/templates"
    assert list(PROBES) == list(names.ADMISSION_POLICIES)
    rights = (folder / "operator/rbac.yaml").read_text()
    writes = {"PolicyAssignment", "Lease", "Job"}  # the operator's own work
    for policy, make in PROBES.items():
        stem, probe = policy.removeprefix("trimwheel-"), make()
        text = (folder / f"admission/{stem}.yaml").read_text()
        condition = f'{{{{- include "trimwheel.selfTest" (dict "root" $ "name" "{stem}")'
        assert condition in text, f"{policy} does not let the other policies' probes pass"
        assert probe.policy == policy and probe.name == f"trimwheel-self-test-{stem}"
        assert probe.kind in writes or probe.name in rights, f"{policy}: no right to try"
        tried = probe.in_release or probe.kind in writes or stem == "approvals"
        assert tried or '"trimwheel.onlyDryRuns"' in text, f"{policy}: it may be stored"


@pytest.mark.parametrize("policy", PROBES)
def test_a_probe_is_an_object_that_its_kind_accepts(policy: str) -> None:
    probe = PROBES[policy]()
    models = {kind.name: kind.model for kind in KINDS}
    if probe.kind in models:
        models[probe.kind].model_validate(probe.body("team") | {"status": {}})


# --- whether ----------------------------------------------------------------------------------
def test_admission_is_in_force_when_every_policy_refuses_its_own_forgery(api: Guarded) -> None:
    found = made_of(api).check("team")
    assert found.armed is True and found.armed_since is not None
    assert [policy for _, policy in api.asked] == list(PROBES)
    elsewhere = {policy for place, policy in api.asked if place == names.RELEASE_NAMESPACE}
    assert elsewhere == {"trimwheel-placement", "trimwheel-operator-jobs"}


@pytest.mark.parametrize("policy", PROBES)
@pytest.mark.parametrize(
    "change", ["policy deleted", "binding deleted", "only audits", "fails open", "binds another",
               "lets pass"],
)  # fmt: skip
def test_each_policy_is_missed(api: Guarded, policy: str, change: str) -> None:
    changes = {
        "policy deleted": lambda: api.remove(POLICY, policy),
        "binding deleted": lambda: api.remove(BINDING, policy),
        "only audits": lambda: api.edit(BINDING, policy, validationActions=["Audit"]),
        "fails open": lambda: api.edit(POLICY, policy, failurePolicy="Ignore"),
        "binds another": lambda: api.edit(BINDING, policy, policyName="another"),
        "lets pass": lambda: api.open.add(policy),
    }
    changes[change]()
    found = made_of(api).check("team")
    assert found.armed is False and found.armed_since is None and policy in found.message


@pytest.mark.parametrize(
    "instead",
    [
        'User "x" cannot patch resource "policyapprovals"',
        "ValidatingAdmissionPolicy 'no-friday' denied",
    ],
)  # fmt: skip
def test_a_refusal_by_another_proves_nothing(api: Guarded, instead: str) -> None:
    api.instead = instead
    found = made_of(api).check("team")
    assert found.armed is False and "not by trimwheel-approvers" in found.message


def test_the_self_test_runs_each_minute_and_whenever_something_counts(api: Guarded) -> None:
    test = made_of(api)
    for seconds, fresh in ((0, False), (59, False), (1, False), (1, True)):
        api.clock.now += seconds
        test.check("team", fresh=fresh)
    assert len(api.asked) == 3 * len(PROBES)


# --- since when -------------------------------------------------------------------------------
def test_notes_begin_with_the_first_test_that_holds(api: Guarded) -> None:
    api.open.add("trimwheel-rollouts")
    test = made_of(api)
    test.check("team")
    assert test.notes_since() is None and JOURNAL not in api.objects
    api.open.clear()
    api.clock.now += 7
    found = test.check("team", fresh=True)
    assert test.notes_since() == found.armed_since == api.now == test.held_since()


@pytest.mark.parametrize("policy", PROBES)
@pytest.mark.parametrize("change", ["deleted and restored", "edited and restored", "let pass"])
def test_a_gap_starts_the_time_anew_though_no_test_saw_it(
    api: Guarded, policy: str, change: str
) -> None:
    test = made_of(api)
    before = test.check("team").armed_since
    api.clock.now += 600
    if change == "deleted and restored":
        api.remove(POLICY, policy)
        api.install(policy)
    elif change == "edited and restored":
        api.edit(POLICY, policy, failurePolicy="Ignore")
        api.edit(POLICY, policy, failurePolicy="Fail")
    else:
        api.open.add(policy)
        test.check("team", fresh=True)
        api.open.clear()
    after = test.check("team", fresh=True)
    assert after.armed and after.armed_since == api.now != before
    assert test.notes_since() == before, "what was accepted once is not accepted again"


def test_the_time_outlives_the_operator_and_a_gap_while_it_was_down_is_seen(api: Guarded) -> None:
    before = made_of(api).check("team").armed_since
    api.clock.now += 3600
    assert made_of(api).check("team").armed_since == before
    api.remove(BINDING, "trimwheel-certificates")
    api.install("trimwheel-certificates")
    assert made_of(api).check("team").armed_since == api.now


def test_only_the_operator_that_decides_writes_the_record(api: Guarded) -> None:
    def no() -> None:
        raise Refused("not the leader")

    found = AdmissionTest(api, require=no).check("team")  # type: ignore[arg-type]
    assert found.armed is False and "not the leader" in found.message
    assert JOURNAL not in api.objects


def test_a_test_that_cannot_be_made_is_no_failure_of_the_pass(api: Guarded) -> None:
    """Harm and rollbacks wait for no self-test: a right that is missing, a server that is away."""
    api.failure = Unavailable("away")
    test = made_of(api)
    found = test.check("team")
    assert found.armed is False and "could not be made" in found.message
    api.failure = Refused("cannot get policyjournals")
    assert test.notes_since() is None


def test_a_change_is_dated_within_a_minute_though_there_is_no_model(api: Guarded) -> None:
    """The thread looks as long as this operator decides, and a failure does not end it."""
    test, held = made_of(api), [False]
    watch = AdmissionWatch(test, lambda: held[0], names.RELEASE_NAMESPACE)
    watch.start()
    try:
        time.sleep(1.5)
        assert api.asked == [], "another operator decides"
        api.failure = ValueError("odd")
        held[0] = True
        time.sleep(1.5)
        api.failure = None
        eventually(lambda: test.held_since() is not None, "the record is made")
        assert watch.alive()
    finally:
        watch.stop()
