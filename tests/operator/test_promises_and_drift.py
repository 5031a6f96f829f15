"""The stable policy follows from its certificate, without approval and without memory."""

from __future__ import annotations

from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE
from trimwheel_api.times import to_micro
from trimwheel_operator.plan.stable import harm_asks_for_full_depth

World = Any
Document = dict[str, Any]


def is_dense(world: World) -> bool:
    return bool(world.assignment["stable"]["digest"] == DENSE.digest)


def degraded(world: World) -> bool:
    return bool(world.of_model.is_true(names.DEGRADED))


def harmful(world: World, run: str = "alarm") -> None:
    world.tuning(run, reason="Harmful")
    world.report_drift(run, "Harmful")


def test_a_promoted_policy_serves_while_its_certificate_is_valid(promoted: World) -> None:
    promoted.after(29 * 86400).settle()
    assert not is_dense(promoted) and not degraded(promoted)
    assert promoted.of_model.certificate.state == "Valid"


def test_an_expired_certificate_sends_everyone_to_full_depth(promoted: World) -> None:
    epoch = promoted.assignment["epoch"]
    promoted.after(31 * 86400).settle()
    assert is_dense(promoted) and degraded(promoted)
    assert promoted.assignment["epoch"] == epoch + 1, "one write"
    assert promoted.of_model.certificate.state == "Expired"
    condition = promoted.of_model.condition(names.DEGRADED)
    assert condition.reason == Reason.SERVING_FULL_DEPTH
    assert promoted.of_model.intended.policy == "good" and promoted.of_model.stable.policy == ""


def test_harm_revokes_and_sends_everyone_to_full_depth_at_once(promoted: World) -> None:
    harmful(promoted.after(5))
    promoted.after(1).look()
    assert is_dense(promoted)
    promoted.settle()
    model = promoted.of_model
    assert model.certificate.state == "Revoked" and degraded(promoted)
    assert model.drift.verdict == "Harmful" and model.drift.tuning_run == "alarm"
    assert model.condition(names.DRIFTED).reason == Reason.HARMFUL
    told = [event.reason for event in promoted.events if event.kind == "AdaptiveModel"]
    assert {Reason.HARMFUL, Reason.SERVING_FULL_DEPTH} <= set(told)


def test_a_revocation_outlives_the_run_that_reported_it(promoted: World) -> None:
    harmful(promoted.after(5))
    promoted.settle()
    del promoted.objects["TuningRun", "alarm"]
    promoted.after(3600).settle()
    assert is_dense(promoted) and promoted.of_model.certificate.state == "Revoked"


def test_harm_that_is_older_than_the_promotion_says_nothing(
    world: World, promote_policy: Any
) -> None:
    harmful(world)
    world.after(5).settle()
    promote_policy(world)
    world.settle()
    assert not is_dense(world) and not degraded(world)
    assert not world.of_model.is_true(names.DRIFTED)


def test_with_on_harm_alert_the_policy_keeps_serving(promoted: World) -> None:
    promoted.model(drift={"onHarm": "alert"})
    harmful(promoted.after(5))
    promoted.settle()
    assert not is_dense(promoted) and not degraded(promoted)
    assert promoted.of_model.is_true(names.DRIFTED)
    assert promoted.of_model.certificate.state == "Revoked"


@pytest.mark.parametrize(
    ("load", "serves_on"), [(None, False), (0.79, False), (0.8, True), (1.7, True)]
)
def test_harm_sends_everyone_to_full_depth_only_if_the_workers_can_carry_it(
    promoted: World, load: float | None, serves_on: bool
) -> None:
    promoted.full_depth_load = load
    harmful(promoted.after(5))
    promoted.settle()
    model = promoted.of_model
    assert is_dense(promoted) is not serves_on
    assert degraded(promoted) is not serves_on
    assert model.is_true(names.DRIFTED) and model.certificate.state == "Revoked"
    told = [event for event in promoted.events if event.reason == Reason.NO_ROOM_FOR_FULL_DEPTH]
    assert [event.type for event in told] == ["Warning"] * serves_on
    if serves_on:
        condition = model.condition(names.DEGRADED)
        assert condition.reason == Reason.NO_ROOM_FOR_FULL_DEPTH
        assert f"{load:.2f}" in condition.message and "0.8" in condition.message


def test_while_there_is_no_room_a_changing_load_changes_no_status(promoted: World) -> None:
    promoted.full_depth_load = 0.9
    harmful(promoted.after(5))
    promoted.settle()
    before = promoted.of_model
    promoted.full_depth_load = 1.1
    assert promoted.after(30).look().actions == ()
    assert promoted.of_model == before


def test_full_depth_comes_with_the_room_for_it_and_stays(promoted: World) -> None:
    promoted.full_depth_load = 0.9
    harmful(promoted.after(5))
    promoted.settle()
    promoted.full_depth_load = 0.6
    promoted.after(30).settle()
    assert is_dense(promoted) and degraded(promoted)
    assert promoted.of_model.condition(names.DEGRADED).reason == Reason.SERVING_FULL_DEPTH
    promoted.full_depth_load = 0.9
    promoted.after(30).settle()
    assert is_dense(promoted) and degraded(promoted)


@pytest.mark.parametrize("cause", ["expiry", "another model"])
def test_only_harm_weighs_the_load(promoted: World, cause: str) -> None:
    promoted.full_depth_load = 2.0
    if cause == "expiry":
        promoted.after(31 * 86400)
    else:
        harmful(promoted.after(5))
        promoted.model(model={"digest": "sha256:" + "b" * 64})
    promoted.after(1).settle()
    assert is_dense(promoted) and degraded(promoted)


def test_the_load_is_asked_for_while_a_harmful_policy_serves_and_else_never(
    promoted: World,
) -> None:
    assert not harm_asks_for_full_depth(promoted.observe())
    harmful(promoted.after(5))
    assert harm_asks_for_full_depth(promoted.observe()), "before anything was decided"
    promoted.full_depth_load = 0.9
    promoted.settle()
    del promoted.objects["TuningRun", "alarm"]
    assert harm_asks_for_full_depth(promoted.observe()), "while there is no room"
    promoted.model(drift={"onHarm": "alert"})
    assert not harm_asks_for_full_depth(promoted.observe())
    promoted.model(drift={"onHarm": "fullDepth"})
    promoted.full_depth_load = None
    promoted.settle()
    assert not harm_asks_for_full_depth(promoted.observe()), "at full depth there is no question"


def test_another_model_digest_sends_everyone_to_full_depth(promoted: World) -> None:
    promoted.model(model={"digest": "sha256:" + "b" * 64})
    promoted.after(1).settle()
    assert is_dense(promoted)
    assert promoted.of_model.condition(names.CERTIFIED).reason == Reason.MODEL_DIGEST_CHANGED


def test_a_new_promotion_ends_the_degraded_state(
    promoted: World, promote_policy: Any, other: Document
) -> None:
    harmful(promoted.after(5))
    promoted.settle()
    promote_policy(promoted.after(5), "other", other)
    assert not degraded(promoted) and promoted.of_model.stable.policy == "other"
    former = promoted.of_model.history[-1]
    assert former.policy == "good" and former.revoked_at


@pytest.mark.parametrize("waiver", [False, True])
def test_a_rollback_to_a_revoked_policy_is_refused_with_a_waiver_too(
    promoted: World, promote_policy: Any, other: Document, waiver: bool
) -> None:
    digest = promoted.of_model.intended.digest
    harmful(promoted.after(5))
    promoted.settle()
    promote_policy(promoted.after(5), "other", other)
    promoted.rollout(
        "back", policyDigest=digest, type="Rollback", requestedBy="ann", allowUncertified=waiver
    )
    promoted.after(1).settle()
    status = promoted.of_rollout("back")
    assert status.condition(names.STALLED).reason == Reason.TARGET_REJECTED
    assert "was revoked at" in status.condition(names.STALLED).message
    assert status.finished_at and promoted.assignment["stable"]["digest"] != digest


def test_a_revoked_policy_that_a_waived_canary_brought_back_is_not_called_certified(
    promoted: World, promote_policy: Any, other: Document
) -> None:
    digest = promoted.of_model.intended.digest
    harmful(promoted.after(5))
    promoted.settle()
    promote_policy(promoted.after(5), "other", other)
    promoted.rollout("waived", "good", requestedBy="rita", allowUncertified=True)
    for _ in range(4):
        promoted.settle().after(16)
    promoted.settle()
    assert promoted.of_rollout("waived").phase == "AwaitingApproval"
    promoted.after(2).approve("waived")
    promoted.settle()
    model, policy = promoted.of_model, promoted.status("AdaptivePolicy", "good")
    assert promoted.assignment["stable"]["digest"] == digest and not degraded(promoted)
    assert model.certificate.state == "Revoked"
    for status in (model, policy):
        assert status.condition(names.CERTIFIED).reason == Reason.CERTIFICATE_REVOKED
        assert not status.is_true(names.CERTIFIED)
    assert not harm_asks_for_full_depth(promoted.observe())
    harmful(promoted.after(5), "again")
    promoted.settle()
    assert is_dense(promoted) and degraded(promoted), "the waiver did not cover this"


def test_a_certificate_issued_after_the_harm_brings_the_promise_back(
    promoted: World, promote_policy: Any, good: Document
) -> None:
    harmful(promoted.after(5))
    promoted.settle()
    promoted.after(60).policy("anew", good)
    promote_policy(promoted, "anew")
    assert promoted.of_model.certificate.state == "Valid"
    assert promoted.of_model.is_true(names.CERTIFIED) and not is_dense(promoted)


def test_a_waived_policy_serves_without_certificate_until_harm(
    world: World, good: Document
) -> None:
    world.policy("good", good, certified=False)
    world.rollout("ramp", "good", allowUncertified=True, requestedBy="rita")
    world.guards("Pass")
    for _ in range(3):
        world.settle().after(16)
    world.settle().after(2).approve("ramp")
    world.settle()
    assert not is_dense(world) and world.of_model.intended.waived
    assert not world.of_model.is_true(names.CERTIFIED) and not degraded(world)
    harmful(world.after(5))
    world.settle()
    assert is_dense(world) and degraded(world)


def test_a_deleted_policy_takes_its_certificate_with_it(promoted: World) -> None:
    del promoted.objects["AdaptivePolicy", "good"]
    promoted.after(1).settle()
    assert is_dense(promoted) and degraded(promoted)
    assert "is gone" in promoted.of_model.condition(names.CERTIFIED).message


def test_harm_during_a_canary_changes_stable_and_leaves_the_candidate(
    promoted: World, other: Document
) -> None:
    promoted.policy("other", other)
    promoted.rollout("ramp", "other")
    promoted.guards("NotEnoughEvidence")
    promoted.settle()
    harmful(promoted.after(5))
    promoted.settle()
    assert is_dense(promoted) and promoted.assignment["candidate"] is not None
    promoted.guards("Fail")
    promoted.after(1).settle()
    assert promoted.of_rollout("ramp").phase == "RolledBack" and is_dense(promoted)


def test_a_canary_whose_certificate_harm_revoked_ends_for_that_reason(
    promoted: World, promote_policy: Any, other: Document
) -> None:
    promote_policy(promoted.after(5), "other", other)
    promoted.after(5).rollout("again", "good", requestedBy="ann")
    promoted.guards("NotEnoughEvidence")
    promoted.settle()
    former = promoted.objects["AdaptiveModel", "router"]["status"]["history"]
    former[-1]["revokedAt"] = to_micro(promoted.now)
    promoted.touch(promoted.objects["AdaptiveModel", "router"])
    promoted.after(1).settle()
    ended = promoted.of_rollout("again").decisions[-1]
    assert ended.reason == Reason.CERTIFICATE_REVOKED
    assert ended.message.startswith("policy good: revoked by harm at")


def test_a_rollback_that_names_a_digest_alone_restores_the_policys_name(
    promoted: World, promote_policy: Any, other: Document
) -> None:
    digest = promoted.of_model.intended.digest
    promote_policy(promoted.after(5), "other", other)
    promoted.rollout("back", policyDigest=digest, type="Rollback", requestedBy="ann")
    promoted.after(1).settle()
    assert promoted.of_model.intended.policy == "good" == promoted.of_model.stable.policy


def test_a_covariate_alarm_raises_the_audit_rate_until_it_is_judged(promoted: World) -> None:
    assert promoted.assignment["auditRate"] == "0.02"
    promoted.tuning("alarm", reason="CovariateDrift")
    promoted.after(1).settle()
    assert promoted.assignment["auditRate"] == "0.2"
    assert promoted.of_model.condition(names.DRIFTED).reason == Reason.COVARIATE_DRIFT
    promoted.report_drift("alarm", "Harmless")
    promoted.after(1).settle()
    assert promoted.assignment["auditRate"] == "0.02"
    assert promoted.of_model.condition(names.DRIFTED).reason == Reason.HARMLESS
    assert not is_dense(promoted), "covariate drift alone changes no policy"


def test_a_covariate_alarm_may_spend_so_many_audits(promoted: World) -> None:
    promoted.model(audits={"alarmRate": "0.3", "alarmAudits": 500})
    promoted.tuning("alarm", reason="CovariateDrift")
    promoted.after(1).settle()
    assert promoted.assignment["auditRate"] == "0.3"
    promoted.report_drift("alarm", "NotEnoughEvidence", alarmAudits=499)
    promoted.after(1).settle()
    assert promoted.assignment["auditRate"] == "0.3"
    promoted.report_drift("alarm", "NotEnoughEvidence", alarmAudits=500)
    promoted.after(1).settle()
    assert promoted.assignment["auditRate"] == "0.02"
    drifted = promoted.of_model.condition(names.DRIFTED)
    assert drifted.reason == Reason.COVARIATE_DRIFT, "it still waits for its verdict"
    promoted.tuning("next", reason="CovariateDrift")
    promoted.after(1).settle()
    assert promoted.assignment["auditRate"] == "0.3", "another alarm has audits of its own"


@pytest.mark.parametrize("field", ["audits", "rollout"])
def test_a_changed_rate_or_lease_reaches_the_workers(world: World, field: str) -> None:
    change = {"audits": {"rate": "0.05"}, "rollout": {"leaseSeconds": 9}}[field]
    world.model(**{field: change})
    world.after(1).settle()
    key, value = {"audits": ("auditRate", "0.05"), "rollout": ("leaseSeconds", 9)}[field]
    assert world.assignment[key] == value and world.assignment["epoch"] == 2


@pytest.mark.parametrize("claimed", [2**52, 2**53 - 1, 2**53, 9_999_999_999_999_999])
def test_a_claimed_epoch_that_nobody_reaches_leaves_room_for_decisions(
    world: World, good: dict[str, Any], claimed: int
) -> None:
    del world.objects["PolicyAssignment", "router"]
    world.acknowledged["router-0"] = (7, world.now)
    world.acknowledged["router-1"] = (claimed, world.now)
    world.settle()
    assert world.assignment["epoch"] == 8


def test_a_lost_assignment_is_made_again_behind_the_newest_known_epoch(promoted: World) -> None:
    epoch = promoted.assignment["epoch"]
    del promoted.objects["PolicyAssignment", "router"]
    promoted.after(1).settle()
    assert promoted.assignment["epoch"] > epoch
    assert promoted.assignment["stable"]["digest"] == promoted.of_model.intended.digest


# --- a verdict ends with the policy that it speaks of --------------------------------------------


def harmed(promoted: World) -> World:
    promoted.tuning("t", reason="Harmful")
    promoted.report_drift("t", "Harmful", since="2026-11-22T12:00:00Z")
    promoted.after(1).settle()
    assert promoted.of_model.drift.verdict == "Harmful"
    return promoted


def test_harm_is_told_with_its_window_while_the_policy_is_meant_to_be_served(
    promoted: World,
) -> None:
    drifted = harmed(promoted).of_model.condition(names.DRIFTED)
    assert "in 900 audits since 2026-11-22T12:00:00Z" in drifted.message
    promoted.after(3600).settle()
    assert promoted.of_model.drift.verdict == "Harmful", "its policy waits at full depth"


def test_after_a_rollback_to_dense_no_drift_of_the_former_policy_is_told(promoted: World) -> None:
    harmed(promoted)
    promoted.after(5).rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="r")
    promoted.settle()
    assert promoted.of_model.drift.verdict == "NotEnoughEvidence"
    assert promoted.of_model.drift.signal == ""
    assert promoted.of_model.condition(names.DRIFTED).status == "False"
    assert promoted.after(3600).look().actions == ()


def test_a_verdict_that_comes_late_of_a_former_policy_is_not_taken_over(
    promoted: World, other: Document, promote_policy: Any, digest_of: Any, good: Document
) -> None:
    former = promoted.assignment["stable"]["digest"]
    promote_policy(promoted.after(5), "other", other)
    assert promoted.assignment["stable"]["digest"] != former
    promoted.after(5).tuning("t", reason="Harmful")
    promoted.report_drift("t", "Harmful", policyDigest=former)
    promoted.after(1).settle()
    assert promoted.of_model.drift is None or promoted.of_model.drift.verdict != "Harmful"
    assert not promoted.of_model.is_true(names.DEGRADED)
