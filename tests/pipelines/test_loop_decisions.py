"""When the loop starts a TuningRun, what it writes down, and what it removes: from views alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from trimwheel_api.kinds import (
    AdaptiveModel,
    AdaptivePolicy,
    PolicyApproval,
    PolicyRollout,
    TuningRun,
)
from trimwheel_api.policy import DENSE
from trimwheel_pipelines.alarm_budget import spent_alarms
from trimwheel_pipelines.covariates import CovariateAlarm
from trimwheel_pipelines.decisions import drift_updates, wanted_run
from trimwheel_pipelines.drift import Drift, DriftVerdict
from trimwheel_pipelines.housekeeping import ledger_events, prunable, without_rollout
from trimwheel_pipelines.view import View, promoted

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "1" * 64
SINCE = "2026-11-22T11:00:00Z"
ALARM = CovariateAlarm("input length", NOW.timestamp() - 20, 40.0, 20.0, 12.0, 6.0)
QUIET = DriftVerdict(Drift.NOT_ENOUGH_EVIDENCE, "", 0.01, 0.02, 0.0, 500, 0.0, 0.0, 0.1)
HARM = replace(
    QUIET, verdict=Drift.HARMFUL, signal="disagreement", value=0.05, confidence=0.999,
    since=NOW.timestamp() - 60,
)  # fmt: skip
MOVED = replace(QUIET, signal="input length", alarms=(ALARM,), wants_audits=True)
HARMLESS = replace(QUIET, verdict=Drift.HARMLESS, signal="input length", alarms=(ALARM,))


def _meta(name: str, minutes: float = 0.0) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "shop",
        "uid": f"uid-{name}",
        "creationTimestamp": _time(minutes),
    }


def _time(minutes: float) -> str:
    return (NOW - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


def model(tuning: dict[str, Any] | None = None, **status: Any) -> AdaptiveModel:
    spec = {
        "model": {"uri": "file:///m", "digest": "sha256:" + "a" * 64},
        "drift": {"block": "10m", "reference": "2d"},
        "tuning": {"searchRecords": 100} | (tuning or {}),
        "rollout": {"historyLimit": 2},
    }
    return AdaptiveModel.model_validate(
        {"metadata": _meta("intent"), "spec": spec, "status": status}
    )


def serving(**more: Any) -> AdaptiveModel:
    stable = {"digest": DIGEST, "policy": "p1", "since": SINCE}
    certificate = {"state": "Valid", "digest": DIGEST, "expiresAt": "2026-12-20T00:00:00Z"}
    return model(**({"stable": stable, "intended": stable, "certificate": certificate} | more))


def degraded() -> AdaptiveModel:
    return serving(
        stable={"digest": DENSE.digest, "since": _time(30)},
        certificate={"state": "Revoked", "digest": DIGEST, "revokedAt": _time(30)},
        drift={"verdict": "Harmful", "signal": "disagreement", "tuningRun": "harm", "time": SINCE},
    )


def run(
    name: str, reason: str = "Bootstrap", outcome: str = "", ago: float = 30, **status: Any
) -> TuningRun:
    ended = {"outcome": outcome, "finishedAt": _time(ago - 5)} if outcome else {}
    return TuningRun.model_validate(
        {
            "metadata": _meta(name, ago),
            "spec": {"model": "intent", "reason": reason},
            "status": ended | status,
        }
    )


def rollout(name: str, finished: bool = True, policy: str = "p1", **status: Any) -> PolicyRollout:
    return PolicyRollout.model_validate(
        {
            "metadata": _meta(name),
            "spec": {
                "model": "intent", "policy": policy, "policyDigest": DIGEST, "requestedBy": "ann",
            },
            "status": ({"finishedAt": _time(1)} if finished else {}) | status,
        }
    )  # fmt: skip


def policy(name: str, made: bool = True) -> AdaptivePolicy:
    certificate = {
        "epsilon": "0.02", "delta": "0.1", "n": 10, "errors": 0, "pValue": "0.01",
        "windowStart": SINCE, "windowEnd": SINCE, "policyDigest": DIGEST,
        "modelDigest": "sha256:" + "a" * 64, "issuedAt": SINCE, "expiresAt": SINCE,
        "tuningRun": "t",
    }  # fmt: skip
    spec = {"model": "intent"} | ({"certificate": certificate} if made else {})
    return AdaptivePolicy.model_validate({"metadata": _meta(name), "spec": spec})


def view(of: AdaptiveModel, **fields: Any) -> View:
    plain: dict[str, Any] = {"policies": (), "runs": (), "rollouts": (), "now": NOW, "audits": 1000}
    return View(of, **(plain | fields))


ALARMED = run("c", "CovariateDrift", "Certified", ago=30, rollout="r")
TAKEN_BACK = rollout("r", decisions=[
    {"seq": 1, "time": _time(4), "action": "RollBack", "reason": "GuardFailed"},
])  # fmt: skip
REFUSED = rollout("r", decisions=[
    {"seq": 1, "time": _time(4), "action": "Reject", "reason": "Rejected", "actor": "ann"},
])  # fmt: skip
FAILED_ONCE = (run("a", "Bootstrap", "NothingCertified", ago=15),)
FAILED_TWICE = (
    run("a", "Bootstrap", "Failed", ago=60),
    run("b", "Bootstrap", "NothingCertified", ago=20),
)
HARM_ENDED = (run("harm", "Harmful", "NothingCertified", ago=30),)


@pytest.mark.parametrize(
    ("story", "seen", "reason"),
    [
        ("a new model with enough audits", view(model()), "Bootstrap"),
        ("a new model with few audits", view(model(), audits=99), None),
        ("bootstrap switched off", view(model({"bootstrap": False})), None),
        ("a bootstrap that runs", view(model(), runs=(run("a"),)), None),
        ("a certified policy waits for its approval", view(model(), policies=(policy("p"),)), None),
        ("a hand-made policy is no certificate", view(model(), policies=(policy("p", False),)),
         "Bootstrap"),
        ("a rollout is on its way", view(model(), rollouts=(rollout("r", False),)), None),
        ("failed once, block length gone by", view(model(), runs=FAILED_ONCE), "Bootstrap"),
        ("failed twice, one block is not enough", view(model(), runs=FAILED_TWICE), None),
        ("failed twice, two blocks are", view(model(), runs=FAILED_TWICE,
         now=NOW + timedelta(minutes=6)), "Bootstrap"),
        ("nothing moved", view(serving(), verdict=QUIET), None),
        ("records cannot be read", view(serving(), verdict=None), None),
        ("harm", view(serving(), verdict=HARM), "Harmful"),
        ("harm during a rollout", view(serving(), verdict=HARM, rollouts=(rollout("r", False),)),
         "Harmful"),
        ("harm while a covariate run certifies on traffic from before the change",
         view(serving(), verdict=HARM, runs=(run("c", "CovariateDrift"),)), "Harmful"),
        ("harm while a covariate run certifies on traffic from after the change",
         view(serving(), verdict=HARM, runs=(run("c", "CovariateDrift", ago=0.5),)), None),
        ("harm, and a person's run is no answer",
         view(serving(), verdict=HARM, runs=(run("m", "Manual", ago=0.5),)), "Harmful"),
        ("harm while the covariate alarm's candidate is rolled out",
         view(serving(), verdict=HARM, runs=(ALARMED,), rollouts=(rollout("r", False),)), None),
        ("harm after the covariate alarm's candidate was rolled back",
         view(serving(), verdict=HARM, runs=(ALARMED,), rollouts=(TAKEN_BACK,)), "Harmful"),
        ("harm answered by a candidate that is rolled out, full depth not served",
         view(serving(), verdict=HARM, rollouts=(rollout("r", False),),
              runs=(run("h", "Harmful", "Certified", rollout="r"),)), None),
        ("harm is answered already", view(serving(), verdict=HARM, runs=(run("h", "Harmful"),)),
         None),
        ("harm of a former policy is no answer",
         view(serving(), verdict=HARM, runs=(run("h", "Harmful", "Certified", ago=90),)),
         "Harmful"),
        ("inputs moved", view(serving(), verdict=MOVED), "CovariateDrift"),
        ("the alarm is answered", view(serving(), verdict=MOVED,
         runs=(run("c", "CovariateDrift", "NoImprovement", ago=0.3),)), None),
        ("inputs moved harmlessly", view(serving(), verdict=HARMLESS), None),
        ("full depth after harm, search failed 25 minutes ago", view(degraded(), runs=HARM_ENDED),
         "Harmful"),
        ("full depth after harm, search still on",
         view(degraded(), runs=(run("harm", "Harmful"),)), None),
        ("full depth after harm, search just failed",
         view(degraded(), runs=(run("harm", "Harmful", "NothingCertified", ago=9),)), None),
        ("full depth after harm, the next one waits for approval",
         view(degraded(), runs=(run("harm", "Harmful", "Certified"),)), None),
        ("full depth after harm, a guard took the next one back 25 minutes after its search",
         view(degraded(), runs=(run("harm", "Harmful", "Certified", rollout="r"),),
              rollouts=(TAKEN_BACK,)), "Harmful"),
        ("full depth after harm, a guard took the next one back just now",
         view(degraded(), runs=(run("harm", "Harmful", "Certified", ago=9, rollout="r"),),
              rollouts=(TAKEN_BACK,)), None),
        ("full depth after harm, a person said no",
         view(degraded(), runs=(run("harm", "Harmful", "Certified", rollout="r"),),
              rollouts=(REFUSED,)), None),
        ("the certificate ends soon", view(serving(), verdict=QUIET,
         now=datetime(2026, 12, 17, tzinfo=UTC)), "Scheduled"),
        ("the schedule", view(serving()), None),
    ],
)  # fmt: skip
def test_a_run_starts_when_it_should(story: str, seen: View, reason: str | None) -> None:
    wanted = wanted_run(seen)
    assert (wanted.reason if wanted else None) == reason, story
    if wanted is not None and reason in ("Harmful", "CovariateDrift"):
        assert wanted.drift is not None


def test_a_schedule_counts_from_the_last_runs_end() -> None:
    every = serving().model_copy(deep=True)
    every.spec.tuning.schedule = "1h"
    recent = run("s", "Scheduled", "NoImprovement", ago=30)
    assert wanted_run(view(every, runs=(recent,), verdict=QUIET)) is None
    later = view(every, runs=(recent,), verdict=QUIET, now=NOW + timedelta(hours=1))
    wanted = wanted_run(later)
    assert wanted is not None and wanted.reason == "Scheduled"


def test_a_long_row_of_failures_is_tried_once_a_day_at_most() -> None:
    many = tuple(run(f"r{i}", "Bootstrap", "Failed", ago=5000 - i) for i in range(40))
    assert wanted_run(view(model(), runs=many, now=NOW - timedelta(hours=72))) is None
    assert wanted_run(view(model(), runs=many)) is not None


def test_the_drift_verdict_reaches_the_run_that_answers_it() -> None:
    lost = run("h", "Harmful")
    [(target, state)] = drift_updates(view(serving(), verdict=HARM, runs=(lost,)))
    assert target is lost and state.verdict == "Harmful" and state.value == "0.05"
    told = run("h", "Harmful", drift={"verdict": "Harmful"})
    assert drift_updates(view(serving(), verdict=HARM, runs=(told,))) == []
    open_alarm = run("c", "CovariateDrift", ago=0.5, drift={"verdict": "NotEnoughEvidence"})
    [(target, state)] = drift_updates(view(serving(), verdict=HARM, runs=(open_alarm,)))
    assert target is open_alarm and state.verdict == "Harmful", "it answers the harm as well"
    mixed = run("c", "CovariateDrift", drift={"verdict": "NotEnoughEvidence"})
    assert drift_updates(view(serving(), verdict=HARM, runs=(mixed,))) == []
    open_alarm = run("c", "CovariateDrift", drift={"verdict": "NotEnoughEvidence"})
    [(target, state)] = drift_updates(view(serving(), verdict=HARMLESS, runs=(open_alarm,)))
    assert target is open_alarm and state.verdict == "Harmless"
    assert drift_updates(view(serving(), verdict=MOVED, runs=(open_alarm,))) == []
    assert drift_updates(view(serving(), verdict=None, runs=(lost,))) == []


SPENT = replace(MOVED, alarm_audits=4_000, wants_audits=False)


@pytest.mark.parametrize(
    ("verdict", "status", "written"),
    [
        (SPENT, {"drift": {"verdict": "NotEnoughEvidence", "alarmAudits": 10}}, True),
        (SPENT, {"drift": {"verdict": "NotEnoughEvidence", "alarmAudits": 4_100}}, False),
        (SPENT, {"drift": {"verdict": "Harmless", "alarmAudits": 10}}, False),
        (SPENT, {}, False),
        (SPENT, {"drift": {"verdict": "NotEnoughEvidence"}, "outcome": "Certified"}, False),
        (replace(SPENT, alarm_audits=3_999), {"drift": {"verdict": "NotEnoughEvidence"}}, False),
        (HARM, {"drift": {"verdict": "NotEnoughEvidence"}}, False),
        (None, {"drift": {"verdict": "NotEnoughEvidence"}}, False),
    ],
)
def test_spent_audits_are_written_once_on_the_run_of_the_open_alarm(
    verdict: DriftVerdict | None, status: dict[str, Any], written: bool
) -> None:
    alarmed, other = run("c", "CovariateDrift", **status), run("s", "Scheduled", **status)
    found = spent_alarms(view(serving(), verdict=verdict, runs=(alarmed, other)))
    assert [(one, state.alarm_audits) for one, state in found] == (
        [(alarmed, 4_000)] if written else []
    )


def test_an_open_alarm_says_which_signal_moved_and_from_where() -> None:
    wanted = wanted_run(view(serving(), verdict=MOVED))
    assert wanted is not None and wanted.drift is not None
    assert wanted.drift.signal == "input length" and wanted.drift.value == "40"
    assert wanted.drift.bound == "30", "half of 12 standard errors above 20"


def test_every_decision_is_copied_with_its_actor_and_evidence() -> None:
    then = [{"name": "errors", "verdict": "Pass", "samples": 9}]
    decisions = [
        {"seq": 0, "time": _time(3), "action": "Start", "reason": "Started"},
        {
            "seq": 1, "time": _time(1), "action": "Promote", "reason": "Approved", "actor": "ann",
            "guards": then,
        },
    ]  # fmt: skip
    now = [{"name": "errors", "verdict": "NotEnoughEvidence"}]
    seen = view(
        serving(),
        runs=(run("t", "Harmful", "Certified", ago=9, policyDigest=DIGEST),),
        rollouts=(rollout("r", decisions=decisions, guards=now),),
    )
    events = ledger_events(seen, "the-operator", "the-pipelines")
    assert [(one.kind, one.actor) for one in events] == [
        ("TuningStarted", "the-pipelines"),
        ("TuningEnded", "the-pipelines"),
        ("Start", "the-operator"),
        ("Promote", "ann"),
    ]
    assert len({(one.uid, one.source_seq) for one in events}) == 4
    assert events[1].payload["policyDigest"] == DIGEST
    assert not events[2].payload.get("guards"), "nothing was known yet"
    assert [(one["verdict"], one["samples"]) for one in events[3].payload["guards"]] == [
        ("Pass", 9)
    ]


def test_the_ledger_names_who_asked_for_a_run_by_hand_and_for_whom_its_rollout_was() -> None:
    by_hand = run("t", "Manual")
    by_hand.spec.requested_by = "rita"
    started = rollout("r", decisions=[{"seq": 0, "time": _time(3), "action": "Start",
                                       "reason": "Started"}])  # fmt: skip
    started.spec.on_behalf_of = "rita"
    seen = view(serving(), runs=(by_hand, run("old", "Manual")), rollouts=(started,))
    events = {(one.kind, one.uid): one for one in ledger_events(seen, "operator", "pipelines")}
    assert events["TuningStarted", "uid-t"].actor == "rita"
    assert events["TuningStarted", "uid-old"].actor == "", "0.1.0 did not ask"
    rows = events["Start", "uid-r"].payload
    assert (rows["requestedBy"], rows["onBehalfOf"]) == ("ann", "rita")


def approval(name: str, uid: str, minutes: float) -> PolicyApproval:
    spec = {
        "rollout": "r", "rolloutUID": uid, "policyDigest": DIGEST, "decision": "Approve",
        "approver": "ann",
    }  # fmt: skip
    return PolicyApproval.model_validate({"metadata": _meta(name, minutes), "spec": spec})


def test_approvals_without_a_rollout_are_removed_and_not_at_once() -> None:
    made = [
        approval("of a rollout", "uid-r", 90),
        approval("of one that is gone", "uid-before", 90),
        approval("of one that is new", "uid-new", 1),
    ]
    gone = without_rollout(made, [rollout("r")], NOW - timedelta(hours=1))
    assert [one.name for one in gone] == ["of one that is gone"]


def test_only_what_nothing_refers_to_is_removed() -> None:
    rollouts = tuple(rollout(f"r{i}", policy=f"p{i}") for i in range(5))
    runs = tuple(run(f"t{i}", "Bootstrap", "Certified", ago=90 - i) for i in range(5))
    policies = (policy("hand", made=False), *(policy(f"p{i}") for i in range(9)))
    history = [{"digest": DIGEST, "policy": "p5"}]
    drift = {"verdict": "Harmful", "tuningRun": "t0"}
    seen = view(
        serving(history=history, drift=drift),
        rollouts=(*rollouts, rollout("busy", False, "p2")),
        runs=(*runs, run("going")),
        policies=policies,
    )
    gone = [one.name for one in prunable(seen)]
    # p1 is stable, p2 busy, p3 and p4 in kept rollouts, p5 in history; p0 and p6 are the oldest.
    assert gone == ["r0", "r1", "r2", "t1", "t2", "p0", "p6"]


def test_alias_stable_follows_what_was_promoted_not_what_is_served() -> None:
    one = policy("p1")
    assert promoted(view(degraded(), policies=(one,))) is one
    assert promoted(view(model(), policies=(one,))) is None
