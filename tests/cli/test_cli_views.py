"""What `status`, `history` and `explain` make of the objects, with the clock given."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from trimwheel_api.cohorts import cohort
from trimwheel_api.kinds import (
    AdaptiveModel,
    PolicyAssignment,
    PolicyRollout,
    TuningRun,
    dump,
)
from trimwheel_api.kinds.adaptive_model import RolloutSpec
from trimwheel_api.policy import DENSE
from trimwheel_cli import reasoning, views, words
from trimwheel_cli.snapshot import Snapshot

NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
GOOD, OLD, BAD = (f"sha256:{letter * 64}" for letter in "abc")
GUARDS = [
    {"name": "disagreement", "verdict": "Pass", "value": "0.009", "bound": "0.03", "samples": 945},
    {"name": "errors", "verdict": "NotEnoughEvidence", "message": "no trial yet"},
]


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-02T11:00:00Z"}  # fmt: skip


def meta(name: str, created: str = "2026-01-02T11:00:00Z") -> dict[str, Any]:
    return {"name": name, "namespace": "shop", "uid": f"uid-{name}", "creationTimestamp": created}


def model(**status: Any) -> AdaptiveModel:
    whole = {
        "conditions": [condition("Ready", "True", "WorkersReady", "2 of 2 workers on epoch 4")],
        "stable": {"digest": GOOD, "policy": "base", "since": "2026-01-02T09:00:00Z"},
        "readyReplicas": 2,
        "endpoint": "http://127.96.0.9",
    }
    return AdaptiveModel.model_validate(
        {
            "kind": "AdaptiveModel",
            "metadata": meta("classifier", "2026-01-01T12:00:00Z"),
            "spec": {"model": {"uri": "models:/m/1", "digest": GOOD}, "replicas": 2},
            "status": whole | status,
        }
    )


def rollout(name: str = "drift-1", **status: Any) -> PolicyRollout:
    effective = {
        "rollout": dump(RolloutSpec()), "maxDisagreement": "0.02", "errorBudget": "0.002",
        "latencySlo": "250ms",
        "latencyBudget": "0.01", "capacityTarget": "0.8", "stableDigest": GOOD, "salt": "s",
        "certified": True, "startedAt": "2026-01-02T11:00:00Z",
    }  # fmt: skip
    whole = {"phase": "Progressing", "effective": effective, "weightBasisPoints": 500, "step": 2,
             "stepStartedAt": "2026-01-02T11:55:00Z", "guards": GUARDS}  # fmt: skip
    return PolicyRollout.model_validate(
        {
            "kind": "PolicyRollout",
            "metadata": meta(name),
            "spec": {"model": "classifier", "policy": "p", "policyDigest": BAD,
                     "requestedBy": "ann", "reason": "cheaper"},
            "status": whole | status,
        }
    )  # fmt: skip


def decision(seq: int, action: str, time: str) -> dict[str, Any]:
    return {"seq": seq, "time": time, "action": action, "reason": "StepAdvanced",
            "message": f"step {seq}", "weightBasisPoints": 100 * seq}  # fmt: skip


def test_status_shows_model_rollout_guards_with_numbers_and_decisions():
    moving = rollout(decisions=[decision(1, "Advance", "2026-01-02T11:30:00Z")])
    text = views.status_view(Snapshot(model(), (moving,)), NOW)
    for said in (
        "classifier  (namespace shop)",
        "True  (WorkersReady) 2 of 2 workers on epoch 4",
        "sha256:aaaaaaaaaaaa  policy base, for 3h",
        "rollout drift-1, 5% (step 3 of 5)",
        "2 ready of 2",
        "├─ disagreement",
        "0.9% of at most 3%, 945 samples",
        "no trial yet",
        "Advance",
    ):
        assert said in text, text


def test_a_model_nobody_has_reconciled_is_shown_as_such():
    fresh = model(conditions=[], stable=None, readyReplicas=0, endpoint="")
    text = views.status_view(Snapshot(fresh), NOW)
    assert "Unknown  (never reconciled)" in text
    assert "NotReady" in text


def test_conditions_that_matter_are_told_when_true():
    degraded = [
        condition("Ready", "True", "WorkersReady"),
        condition("Degraded", "True", "ServingFullDepth", "the certificate was revoked"),
        condition("Drifted", "False", "Harmless"),
    ]
    text = views.status_view(Snapshot(model(conditions=degraded)), NOW)
    assert "Degraded:    True  (ServingFullDepth) the certificate was revoked" in text
    assert "Drifted" not in text


def test_only_the_newest_finished_rollouts_are_shown():
    old = [rollout(f"old-{n}", phase="Promoted", finishedAt="2026-01-02T11:10:00Z")
           for n in range(5)]  # fmt: skip
    text = views.status_view(Snapshot(model(), (*old, rollout("now"))), NOW)
    assert "old-1" not in text
    assert all(name in text for name in ("old-2", "old-4", "now"))


def test_a_stalled_rollout_says_why():
    why = condition("Stalled", "True", "Uncertified", "no certificate")
    stalled = rollout(phase="Stalled", guards=[], conditions=[why])
    assert "Uncertified: no certificate" in views.status_view(Snapshot(model(), (stalled,)), NOW)


def test_the_list_of_models_has_a_line_each():
    assert views.models_table([], NOW) == "no AdaptiveModel in this namespace"
    lines = views.models_table([model()], NOW).splitlines()
    assert lines[0].split() == ["NAME", "READY", "STABLE", "CANDIDATE", "CERTIFICATE", "DRIFT",
                                "AGE"]  # fmt: skip
    assert lines[1].split()[:3] == ["classifier", "True", "sha256:aaaaaaaaaaaa"]


def test_history_orders_decisions_of_all_rollouts_by_time():
    one = rollout("one", decisions=[decision(1, "Start", "2026-01-02T10:00:00Z"),
                                    decision(2, "Promote", "2026-01-02T11:00:00Z")])  # fmt: skip
    two = rollout("two", decisions=[decision(1, "Start", "2026-01-02T10:30:00Z")])
    rows = views.history_rows(Snapshot(model(), (two, one)))
    assert [(row.rollout, row.action) for row in rows] == [
        ("one", "Start"), ("two", "Start"), ("one", "Promote"),
    ]  # fmt: skip


def test_explain_says_what_a_canary_waits_for():
    text = "\n".join(reasoning.explain_model(Snapshot(model(), (rollout(),)), NOW))
    assert 'asked for by ann 1h ago because "cheaper"' in text
    assert "0.9% answers differ from full depth in 945 samples, at most 3% is allowed" in text
    assert "errors: no evidence yet" in text
    assert "At 5% for 5m; the step takes no Fail, at least 10m and 250 candidate requests" in text


def test_explain_names_who_asked_for_the_run_behind_a_rollout():
    made = rollout()
    made.spec.on_behalf_of = "rita"
    text = "\n".join(reasoning.explain_model(Snapshot(model(), (made,)), NOW))
    assert "asked for by ann on behalf of rita 1h ago" in text


def test_explain_names_the_command_that_approves():
    asked = condition("AwaitingApproval", "True", "ApprovalRequired")
    waiting = rollout(phase="AwaitingApproval", conditions=[asked])
    text = "\n".join(reasoning.explain_rollout(Snapshot(model()), waiting, NOW))
    assert "trimwheel approve drift-1 -n shop --reason" in text


def test_explain_names_the_workers_that_have_not_acknowledged():
    late = rollout(actuation={"epoch": 7, "workers": 2, "pending": ["pod-b"], "leaseSeconds": 30})
    text = "\n".join(reasoning.explain_rollout(Snapshot(model()), late, NOW))
    assert "still owed: pod-b" in text
    assert "serves stable after 30 s" in text


def test_explain_tells_of_drift_and_tuning():
    drift = {"verdict": "Harmful", "signal": "disagreement", "value": "0.05", "bound": "0.02",
             "confidence": "0.999", "audits": 1200, "since": "2026-01-02T11:20:31Z",
             "time": "2026-01-02T11:55:00Z"}  # fmt: skip
    run = TuningRun.model_validate(
        {"kind": "TuningRun", "metadata": meta("tune-1"),
         "spec": {"model": "classifier", "reason": "Harmful"},
         "status": {"phase": "Certifying", "trialsDone": 24, "certifyRecords": 900,
                    "certifyNeeded": 1500}}
    )  # fmt: skip
    text = "\n".join(reasoning.explain_model(Snapshot(model(drift=drift), (), (), (run,)), NOW))
    seen = "disagreement 5% of at most 2%, 1200 audits since 2026-01-02 11:20Z, judged 5m ago"
    assert f"Drift is Harmful (confidence 0.999): {seen}." in text
    assert f"Drift:       Harmful  {seen}" in views.status_view(Snapshot(model(drift=drift)), NOW)
    assert "24 trials, 900 of 1500 fresh audits" in text


def test_explain_says_why_a_run_certified_nothing():
    run = TuningRun.model_validate(
        {"kind": "TuningRun", "metadata": meta("tune-1"), "spec": {"model": "classifier"},
         "status": {"outcome": "NothingCertified", "conditions": [
             condition("Ready", "False", "NothingCertified", "15% of the audits were lost")]}}
    )  # fmt: skip
    text = "\n".join(reasoning.explain_model(Snapshot(model(), (), (), (run,)), NOW))
    assert "ended NothingCertified: 15% of the audits were lost." in text


@pytest.mark.parametrize(("weight", "arm"), [(0, "stable"), (10_000, "candidate")])
def test_explain_recomputes_the_arm_of_a_session(weight, arm):
    assigned = PolicyAssignment.model_validate(
        {"kind": "PolicyAssignment", "metadata": meta("classifier"),
         "spec": {"epoch": 3, "stable": {"digest": GOOD}, "candidate": {"digest": BAD},
                  "weightBasisPoints": weight, "salt": "s"}}
    )  # fmt: skip
    (said,) = reasoning.explain_session(Snapshot(model(), assignment=assigned), "user-1")
    assert f"cohort {cohort('user-1', 's')} of 10000" in said
    assert said.endswith(f"served by {arm}.")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (59, "59s"), (61, "1m1s"), (3600, "1h"), (3725, "1h2m"), (90_000, "1d1h"),
     (864_000, "10d"), (-5, "0s")],
)  # fmt: skip
def test_spans_read_like_those_of_kubectl(seconds, said):
    assert words.span(seconds) == said


@pytest.mark.parametrize(
    ("text", "said"), [("0.009", "0.9%"), ("1.2", "120%"), ("0", "0%"), ("", "-")]
)
def test_shares_read_as_percentages(text, said):
    assert words.share(text) == said


def test_the_dense_policy_goes_by_its_name():
    assert words.short(DENSE.digest) == "dense"
    assert words.short("") == "-"


ENDED_AT = "2026-01-02T11:40:00Z"


@pytest.mark.parametrize(
    ("kind", "phase", "ended", "reason", "shown"),
    [
        ("Canary", "Promoted", True, "", "✔ Promoted"),
        ("Rollback", "RolledBack", True, "", "✔ RolledBack"),
        ("Rollback", "RollingBack", False, "", "◌ RollingBack"),
        ("Canary", "RolledBack", True, "GuardFailed", "✖ RolledBack"),
        ("Canary", "RollingBack", False, "GuardFailed", "✖ RollingBack"),
        ("Canary", "RolledBack", True, "Aborted", "– RolledBack"),
        ("Canary", "RolledBack", True, "Preempted", "– RolledBack"),
        ("Canary", "RolledBack", True, "Rejected", "– RolledBack"),
        ("Canary", "RollingBack", False, "Aborted", "◌ RollingBack"),
        ("Canary", "Stalled", True, "DigestMismatch", "✖ Stalled"),
        ("Canary", "Stalled", True, "Aborted", "– Stalled"),
        ("Canary", "Stalled", False, "PolicyNotFound", "◌ Stalled, tried again"),
        ("Rollback", "Stalled", False, "PolicyNotFound", "◌ Stalled, tried again"),
        ("Rollback", "Stalled", True, "NotFormerlyStable", "✖ Stalled"),
        ("Canary", "AwaitingApproval", False, "", "⏸ AwaitingApproval"),
        ("Canary", "Progressing", False, "", "◌ Progressing"),
        ("Canary", "Queued", False, "", "◌ Queued"),
    ],
)
def test_what_failed_looks_like_it_and_what_went_as_somebody_wanted_does_not(
    kind, phase, ended, reason, shown
):
    conditions = [condition("Stalled", "True", reason, "why")] if reason else []
    one = rollout(phase=phase, conditions=conditions, finishedAt=ENDED_AT if ended else "")
    one = one.model_copy(update={"spec": one.spec.model_copy(update={"type": kind})})
    text = views.status_view(Snapshot(model(), (one,)), NOW)
    assert shown in text
    assert ("ended 20m ago" in text) is (ended and not reason)


@pytest.mark.parametrize(
    ("outcome", "reason", "shown"),
    [
        ("Certified", "Succeeded", "✔ Certified"),
        ("NoImprovement", "NoImprovement", "✔ NoImprovement"),
        ("Superseded", "Superseded", "– Superseded"),
        ("Stopped", "ModelDeleted", "– Stopped"),
        ("Failed", "JobFailed", "✖ Failed"),
        ("Failed", "Superseded", "– Failed"),  # as 0.1.0 wrote it
    ],
)
def test_a_run_that_gave_way_to_a_newer_one_did_not_fail(outcome, reason, shown):
    good = shown.startswith("✔")
    conditions = [condition("Ready", "True" if good else "False", reason)]
    conditions += [] if good else [condition("Stalled", "True", reason)]
    run = TuningRun.model_validate(
        {"kind": "TuningRun", "metadata": meta("tune-1"), "spec": {"model": "classifier"},
         "status": {"outcome": outcome, "conditions": conditions}}
    )  # fmt: skip
    assert shown in views.status_view(Snapshot(model(), (), (), (run,)), NOW)


def test_a_rollout_that_is_refused_for_now_is_neither_finished_nor_under_way():
    why = condition("Stalled", "True", "PolicyNotFound", "no policy")
    refused = PolicyRollout.model_validate(
        {"kind": "PolicyRollout", "metadata": meta("early"),
         "spec": {"model": "classifier", "policy": "p", "policyDigest": GOOD, "requestedBy": "a"},
         "status": {"phase": "Stalled", "conditions": [why]}}
    )  # fmt: skip
    snapshot = Snapshot(model(), (refused,))
    assert snapshot.active is None
    text = "\n".join(reasoning.explain_rollout(snapshot, refused, NOW))
    assert "It is refused for now; the operator asks again at every look." in text
