"""What the operator never forgets: decisions before they take effect, rejections, revocations."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
from tests.operator.api_server import JOURNAL, MODEL
from tests.operator.world import START, World

from trimwheel_api import names
from trimwheel_api.kinds import dump
from trimwheel_api.kinds.policy_journal import (
    MAX_CERTIFICATES,
    MAX_DECISIONS,
    MAX_DIGESTS,
    MAX_REQUESTS,
    RESERVED,
    JournalDecision,
    PolicyJournalSpec,
    RejectedDigest,
    RevokedDigest,
    SeenCertificate,
    SeenRequest,
)
from trimwheel_api.kinds.policy_rollout import GuardStatus
from trimwheel_api.names import Action, Reason
from trimwheel_api.policy import DENSE, canonical_json
from trimwheel_operator.plan import journal
from trimwheel_operator.plan.actions import PatchStatus, WriteAssignment, WriteJournal
from trimwheel_operator.reconcile import is_gone

Document = dict[str, Any]


def entries(world: World, rollout: str = "") -> list[tuple[str, str]]:
    return [
        (one.action, one.reason)
        for one in world.journal.decisions
        if not rollout or one.rollout == rollout
    ]


def ramped(world: World, good: Document) -> World:
    """A canary at 10 %."""
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(16)
    return world.settle()


def recreated(world: World) -> World:
    """The model deleted and declared anew, everything else orphaned."""
    spec = world.objects["AdaptiveModel", MODEL]["spec"]
    world.delete("AdaptiveModel", MODEL)
    world.after(5).settle()
    world.put("AdaptiveModel", MODEL, spec)
    return world.after(5).settle()


# --- decisions ---------------------------------------------------------------------------------
def test_every_decision_of_a_status_is_in_the_journal_with_what_the_ledger_needs(
    promoted: World,
) -> None:
    shown = promoted.of_rollout("to-good").decisions
    kept = promoted.journal.decisions
    assert [dump(one) for one in shown] == [
        {key: value for key, value in dump(one).items() if key in dump(shown[0])} for one in kept
    ]
    assert [one.sequence for one in kept] == list(range(1, len(shown) + 1))
    assert {(one.rollout, one.type, one.policy) for one in kept} == {("to-good", "Canary", "good")}
    assert {one.rollout_uid for one in kept} == {"uid-PolicyRollout-to-good"}


def test_the_journal_is_written_before_whatever_follows_from_the_decision(
    world: World, good: Document
) -> None:
    ramped(world, good).after(16)
    kinds = [type(one) for one in world.look().actions]
    assert kinds[:2] == [WriteJournal, WriteAssignment] and PatchStatus in kinds[2:]


@pytest.mark.parametrize("crash", range(1, 6))
def test_a_decision_that_a_crash_cut_off_is_taken_once(
    world: World, good: Document, crash: int
) -> None:
    ramped(world, good).after(16).look(crash_after=crash)
    world.after(1).settle()
    assert entries(world, "ramp")[-1] == (Action.ADVANCE, Reason.STEP_ADVANCED)
    assert [one.seq for one in world.journal.decisions] == [1, 2, 3]
    assert [one.seq for one in world.of_rollout("ramp").decisions] == [1, 2, 3]


def test_a_journaled_decision_that_the_next_look_does_not_take_is_withdrawn(
    world: World, good: Document
) -> None:
    ramped(world, good).after(16).look(crash_after=1)
    assert entries(world)[-1][0] == Action.ADVANCE and world.of_rollout("ramp").step == 1
    world.prometheus_away()
    world.after(1).settle()
    assert entries(world)[-1] == (Action.WITHDRAW, Reason.NOT_CARRIED_OUT)
    assert world.of_rollout("ramp").step == 1
    world.guards("Pass")
    world.after(16).settle()
    assert entries(world)[-1] == (Action.ADVANCE, Reason.STEP_ADVANCED)
    numbers = [one.seq for one in world.journal.decisions]
    assert numbers == sorted(set(numbers)), "each number is one row of the ledger"


def test_a_stop_that_was_journaled_stands_whatever_the_guards_say_after_the_crash(
    world: World, good: Document
) -> None:
    ramped(world, good).guards("Pass", errors="Fail")
    world.after(1).look(crash_after=1)
    assert world.assignment["weightBasisPoints"] == 1000
    world.prometheus_away()
    world.after(1).settle()
    ended = world.of_rollout("ramp").decisions[-1]
    assert (ended.action, ended.reason) == (Action.ROLL_BACK, Reason.GUARD_FAILED)
    assert "errors" in ended.message and world.assignment["candidate"] is None


def test_a_rollback_read_back_after_a_crash_says_what_really_caused_it(
    world: World, good: Document
) -> None:
    ramped(world, good).approve("ramp", by="bea", decision="Reject")
    world.after(1).look(crash_after=2)
    for kind, name in list(world.objects):
        if kind == "PolicyApproval":
            world.delete(kind, name)
    world.after(1).settle()
    ended = world.of_rollout("ramp").decisions[-1]
    assert (ended.reason, ended.actor) == (Reason.REJECTED, "bea")


def test_a_rollout_deleted_in_mid_canary_leaves_its_end_in_the_journal(
    world: World, good: Document
) -> None:
    ramped(world, good).delete("PolicyRollout", "ramp")
    world.settle()
    kept = world.journal.decisions
    assert entries(world) == [
        (Action.START, Reason.SHADOW),
        (Action.ADVANCE, Reason.STEP_ADVANCED),
        (Action.ABORT, Reason.ROLLOUT_GONE),
    ]
    assert {one.rollout_uid for one in kept} == {"uid-PolicyRollout-ramp"}
    assert [one.seq for one in kept] == [1, 2, 3] and world.journal.under_way is None


def test_a_model_deleted_in_mid_canary_leaves_its_end_in_the_journal(
    world: World, good: Document
) -> None:
    ramped(world, good)
    for place in list(world.objects):
        if place[0] != "PolicyJournal":
            del world.objects[place]
    assert not is_gone(world.observe())
    world.after(1).look()
    assert entries(world)[-1] == (Action.ABORT, Reason.MODEL_GONE)
    world.copy_to_ledger()
    assert not is_gone(world.observe())
    world.after(1).look()
    assert ("PolicyJournal", JOURNAL) not in world.objects, "nothing is left to remember"
    assert is_gone(world.observe())


def test_a_start_that_was_journaled_alone_and_whose_rollout_is_gone_is_withdrawn(
    world: World, good: Document
) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.after(1).look()
    world.after(1).look(crash_after=1)
    assert entries(world) == [(Action.START, Reason.SHADOW)]
    world.delete("PolicyRollout", "ramp")
    world.after(1).settle()
    assert entries(world)[-1] == (Action.WITHDRAW, Reason.NOT_CARRIED_OUT)
    assert world.journal.under_way is None


def test_full_depth_and_the_way_back_are_decisions_on_the_model(promoted: World) -> None:
    promoted.after(31 * 86400).settle()
    last = promoted.journal.decisions[-1]
    assert (last.action, last.reason) == (Action.FALL_BACK, Reason.CERTIFICATE_EXPIRED)
    assert last.rollout_uid == "" and last.policy == "good" and last.seq == last.sequence
    assert entries(promoted).count((Action.FALL_BACK, Reason.CERTIFICATE_EXPIRED)) == 1


@pytest.mark.parametrize("crash", [1, 2])
def test_falling_back_is_journaled_once_though_a_crash_came_between(
    promoted: World, crash: int
) -> None:
    promoted.after(31 * 86400).look(crash_after=crash)
    promoted.after(1).settle()
    assert promoted.assignment["stable"]["digest"] == DENSE.digest
    assert entries(promoted).count((Action.FALL_BACK, Reason.CERTIFICATE_EXPIRED)) == 1
    assert Action.WITHDRAW not in [action for action, _ in entries(promoted)]


def test_what_the_ledger_has_leaves_the_journal_and_sequences_go_on(promoted: World) -> None:
    copied = promoted.copy_to_ledger()
    assert len(copied) == 5 and promoted.copy_to_ledger() == []
    promoted.after(5).rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="ann")
    promoted.after(1).settle()
    assert [one.sequence for one in promoted.journal.decisions] == [6]


def test_a_conflict_on_the_journal_ends_the_pass_before_anything_took_effect(
    world: World, good: Document
) -> None:
    ramped(world, good).after(16)
    observed, before = world.observe(), copy.deepcopy(world.assignment)
    world.copy_to_ledger()
    world.observe = lambda: observed  # type: ignore[method-assign]
    world.look()
    assert world.assignment == before


# --- bounds ------------------------------------------------------------------------------------
def fill(world: World, count: int) -> None:
    spec = world.journal
    for number in range(count):
        entry = JournalDecision(
            sequence=1, seq=number + 1, time="2026-01-01T00:00:00Z", action="Pause",
            reason="PausedByUser", rollout="old", rollout_uid="uid-old",
        )  # fmt: skip
        spec = journal.append(spec, entry)
    item = world.objects["PolicyJournal", JOURNAL]
    item["spec"] = dump(spec)
    world.touch(item)


def test_nothing_new_starts_while_decisions_wait_for_the_ledger_and_goes_on_afterwards(
    promoted: World, other: Document
) -> None:
    fill(promoted, MAX_DECISIONS - RESERVED)
    promoted.policy("other", other)
    promoted.rollout("ramp", "other")
    promoted.after(1).settle()
    queued = promoted.of_rollout("ramp").condition(names.QUEUED)
    assert (queued.status, queued.reason) == ("True", Reason.JOURNAL_FULL)
    assert "are the pipelines running" in queued.message
    promoted.copy_to_ledger()
    promoted.after(1).settle()
    assert promoted.of_rollout("ramp").phase == "Progressing"


def test_a_full_journal_holds_a_canary_where_it_is_and_lets_it_end(
    world: World, good: Document
) -> None:
    fill(ramped(world, good), MAX_DECISIONS)
    world.after(60).settle()
    assert world.of_rollout("ramp").step == 1
    assert world.of_rollout("ramp").condition(names.RECONCILING).reason == Reason.JOURNAL_FULL
    world.guards("Pass", errors="Fail")
    world.after(1).settle()
    assert world.assignment["candidate"] is None
    kept = world.journal
    assert (kept.decisions[-1].action, len(kept.decisions)) == (Action.ROLL_BACK, MAX_DECISIONS)
    assert kept.truncated.count == kept.decisions[0].sequence - 1 == kept.truncated.last_sequence


def test_a_full_journal_does_not_hold_up_harm_or_a_rollback(promoted: World) -> None:
    fill(promoted, 2 * MAX_DECISIONS)
    promoted.tuning("alarm", reason="Harmful")
    promoted.report_drift("alarm", "Harmful")
    promoted.after(1).settle()
    assert promoted.assignment["stable"]["digest"] == DENSE.digest
    assert promoted.journal.truncated.count > MAX_DECISIONS


def test_digests_that_no_object_names_make_room_and_are_counted(promoted: World) -> None:
    spec = promoted.journal
    for number in range(MAX_DIGESTS):
        entry = RejectedDigest(digest=f"sha256:{number:064x}", time="2026-01-01T00:00:00Z")
        spec = journal.reject(spec, entry)
    named = {f"sha256:{number:064x}" for number in range(3)}
    after = journal.make_room(spec, named)
    assert len(after.rejected) == MAX_DIGESTS - RESERVED and after.forgotten == RESERVED
    assert named <= {one.digest for one in after.rejected}
    everything = {one.digest for one in spec.rejected}
    assert journal.make_room(spec, everything) == spec
    assert "delete AdaptivePolicies" in journal.fullness(spec, spec.sequence)


def test_the_fullest_journal_fits_into_an_object() -> None:
    digest, time, name = "sha256:" + "f" * 64, "2026-01-01T00:00:00.000000Z", "n" * 253
    guard = GuardStatus(
        name="disagreement", verdict="NotEnoughEvidence", value="0.123456789",
        bound="0.123456789", samples=10**9, message="m" * 1000,
    )  # fmt: skip
    spec = PolicyJournalSpec(
        namespace="n" * 63, model="m" * 63,
        rejected=[
            RejectedDigest(digest=digest, time=time, reason="r" * 40, by="u" * 64, rollout=name)
        ] * MAX_DIGESTS,
        revoked=[RevokedDigest(digest=digest, time=time, reason="r" * 40, by=name)] * MAX_DIGESTS,
        certificates=[
            SeenCertificate(policy=name, uid="u" * 36, digest=digest, time=time, witness="SelfTest")
        ] * MAX_CERTIFICATES,
        requests=[
            SeenRequest(rollout=name, uid="u" * 36, policy_digest=digest, time=time,
                        witness="SelfTest")
        ] * MAX_REQUESTS,
    )  # fmt: skip
    for number in range(MAX_DECISIONS + 5):
        entry = JournalDecision(
            sequence=1, seq=number + 1, time=time, action="RollBack", reason="GuardFailed",
            message="m" * 5000, actor="u" * 64, guards=[guard] * 5, rollout=name,
            rollout_uid="u" * 36, type="Canary", policy=name, policy_digest=digest,
            requested_by="u" * 64,
        )  # fmt: skip
        spec = journal.append(spec, entry)
    assert len(canonical_json(dump(spec))) < 1_200_000, "etcd takes 1.5 MiB"


# --- rejections and revocations ----------------------------------------------------------------
def rejected(world: World, good: Document) -> str:
    """A policy that a person rejected in mid-canary."""
    digest = world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().approve("ramp", by="bea", decision="Reject")
    world.after(1).settle()
    assert world.of_model.rejected_digests == [digest]
    return digest


def test_a_rejection_names_who_why_and_when(world: World, good: Document) -> None:
    digest = rejected(world, good)
    [kept] = world.journal.rejected
    assert (kept.digest, kept.reason, kept.by) == (digest, Reason.REJECTED, "bea")
    assert kept.rollout == "ramp" and kept.time


def test_a_rejected_digest_stays_rejected_when_the_model_is_made_anew(
    world: World, good: Document
) -> None:
    digest = rejected(world, good)
    recreated(world)
    assert world.of_model.rejected_digests == [digest], "the status is a mirror"
    for name, kind in (("again", "Canary"), ("back", "Rollback")):
        world.rollout(name, "good", type=kind, requestedBy="ann")
    world.after(1).settle()
    assert world.of_rollout("again").condition(names.STALLED).reason == Reason.REJECTED_DIGEST
    assert world.of_rollout("back").condition(names.STALLED).reason == Reason.TARGET_REJECTED


def test_a_revoked_certificate_stays_revoked_when_the_model_is_made_anew(
    promoted: World,
) -> None:
    digest = promoted.of_model.intended.digest
    promoted.after(5).tuning("alarm", reason="Harmful")
    promoted.report_drift("alarm", "Harmful")
    promoted.settle()
    [kept] = promoted.journal.revoked
    assert (kept.digest, kept.reason, kept.by) == (digest, Reason.HARMFUL, "alarm")
    promoted.delete("TuningRun", "alarm")
    recreated(promoted)
    assert promoted.assignment["stable"]["digest"] == DENSE.digest
    policy = promoted.status("AdaptivePolicy", "good")
    assert policy.condition(names.CERTIFIED).reason == Reason.CERTIFICATE_REVOKED
    promoted.rollout("again", "good", requestedBy="ann")
    promoted.rollout("back", "good", type="Rollback", requestedBy="ann")
    promoted.after(1).settle()
    assert promoted.of_rollout("again").condition(names.STALLED).reason == Reason.UNCERTIFIED
    assert promoted.of_rollout("back").condition(names.STALLED).reason == Reason.TARGET_REJECTED


@pytest.mark.parametrize("waiver", [False, True])
def test_no_rollback_returns_to_what_somebody_went_back_from(
    promoted: World, promote_policy: Any, other: Document, waiver: bool
) -> None:
    digest = promoted.of_model.intended.digest
    promoted.after(5).rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="ann")
    promoted.after(1).settle()
    promoted.after(5).rollout(
        "forth", policyDigest=digest, type="Rollback", requestedBy="rob", allowUncertified=waiver
    )
    promoted.after(1).settle()
    stalled = promoted.of_rollout("forth").condition(names.STALLED)
    assert stalled.reason == Reason.TARGET_REJECTED
    assert "was rolled back or rejected" in stalled.message
    assert promoted.assignment["stable"]["digest"] == DENSE.digest


@pytest.mark.parametrize("rule", ["Required", "Automatic"])
def test_a_waived_canary_with_an_approval_brings_a_rejected_policy_back(
    world: World, good: Document, rule: str
) -> None:
    digest = rejected(world, good)
    world.model(rollout={"approval": rule})
    world.guards("Pass")
    world.after(5).rollout("waived", "good", requestedBy="rita", allowUncertified=True)
    for _ in range(4):
        world.settle().after(16)
    world.settle()
    assert world.of_rollout("waived").phase == "AwaitingApproval", "whatever the model's rule"
    assert world.of_model.rejected_digests == [digest]
    world.after(2).approve("waived")
    world.settle()
    assert world.assignment["stable"]["digest"] == digest
    assert world.of_model.rejected_digests == [] == world.journal.rejected


def test_a_rollback_to_what_is_served_ends_a_canary_though_its_certificate_is_revoked(
    promoted: World, other: Document
) -> None:
    promoted.full_depth_load = 0.9
    digest = promoted.of_model.intended.digest
    promoted.policy("other", other)
    promoted.rollout("ramp", "other")
    promoted.guards("NotEnoughEvidence")
    promoted.settle()
    promoted.after(5).tuning("alarm", reason="Harmful")
    promoted.report_drift("alarm", "Harmful")
    promoted.settle()
    assert promoted.assignment["stable"]["digest"] == digest, "no room for full depth"
    promoted.rollout("back", policyDigest=digest, type="Rollback", requestedBy="ann")
    promoted.after(1).settle()
    assert promoted.of_rollout("back").is_true(names.READY)
    assert promoted.of_rollout("ramp").phase == "RolledBack"


# --- upgrade -----------------------------------------------------------------------------------
def test_what_an_older_status_remembers_moves_into_the_journal(promoted: World) -> None:
    model = promoted.objects["AdaptiveModel", MODEL]
    other = "sha256:" + "7" * 64
    model["status"]["rejectedDigests"] = [other]
    model["status"]["history"] = [
        {"digest": "sha256:" + "8" * 64, "revokedAt": "2026-01-01T00:00:00.000000Z"}
    ]
    promoted.touch(model)
    promoted.delete("PolicyJournal", JOURNAL)
    promoted.after(1).settle()
    assert [one.digest for one in promoted.journal.rejected] == [other]
    assert [one.digest for one in promoted.journal.revoked] == ["sha256:" + "8" * 64]
    assert promoted.of_model.rejected_digests == [other]
    assert promoted.journal.decisions == [], "the ledger copies those from the statuses"


def test_a_canary_that_started_before_there_were_journals_ends_in_the_ledger_too(
    world: World, good: Document
) -> None:
    ramped(world, good).delete("PolicyJournal", JOURNAL)
    world.after(1).settle()
    assert world.journal.decisions == [] and world.journal.under_way.rollout == "ramp"
    world.delete("PolicyRollout", "ramp")
    world.settle()
    [last] = world.journal.decisions
    assert (last.rollout_uid, last.seq) == ("uid-PolicyRollout-ramp", 3)
    assert (last.action, last.reason) == (Action.ABORT, Reason.ROLLOUT_GONE)


# --- notes on admission ------------------------------------------------------------------------
def guarded(world: World, *, notes: timedelta, held: timedelta) -> World:
    """Notes are taken since START + notes; admission is as it is since START + held."""
    world.notes_since = START + notes
    world.admission = type(world.admission)(True, "", START + held)
    return world


def canary(world: World, good: Document, **spec: Any) -> World:
    world.policy("good", good, certified=not spec.get("allowUncertified", False))
    world.rollout("ramp", "good", **spec)
    world.guards("Pass")
    return world.after(1).settle()


WAIVED = {"allowUncertified": True, "requestedBy": "rita"}


@pytest.mark.parametrize("spec", [{}, WAIVED], ids=["certificate", "waiver"])
def test_what_was_written_while_admission_held_is_noted_and_counts(
    world: World, good: Document, spec: dict[str, Any]
) -> None:
    day = timedelta(days=1)
    canary(guarded(world, notes=-2 * day, held=-day), good, **spec)
    assert world.of_rollout("ramp").phase == "Progressing"
    kept = world.journal
    assert [(one.rollout, one.waiver, one.witness) for one in kept.requests] == [
        ("ramp", bool(spec), "SelfTest")
    ]
    assert [one.policy for one in kept.certificates] == ([] if spec else ["good"])


@pytest.mark.parametrize("spec", [{}, WAIVED], ids=["certificate", "waiver"])
def test_what_was_written_in_a_gap_never_counts(
    world: World, good: Document, spec: dict[str, Any]
) -> None:
    guarded(world, notes=timedelta(days=-2), held=timedelta(days=-1))
    world.after(1).settle()
    guarded(world, notes=timedelta(days=-2), held=timedelta(hours=1))
    canary(world, good, **spec)
    stalled = world.of_rollout("ramp").condition(names.STALLED)
    assert (stalled.status, stalled.reason) == ("True", Reason.ADMISSION_GAP)
    assert "delete the rollout and ask again" in stalled.message
    world.after(7200).settle()
    assert world.of_rollout("ramp").phase == "Stalled", "admission is back, for long"
    assert not world.journal.requests and not world.journal.certificates


def test_a_forged_certificate_is_distrusted_though_the_rollout_is_honest(
    world: World, good: Document
) -> None:
    guarded(world, notes=timedelta(days=-2), held=timedelta(days=-1))
    world.after(1).settle()
    guarded(world, notes=timedelta(days=-2), held=timedelta(minutes=5))
    world.policy("good", good)
    world.after(600).rollout("ramp", "good")
    world.guards("Pass")
    world.settle()
    stalled = world.of_rollout("ramp").condition(names.STALLED)
    assert stalled.reason == Reason.ADMISSION_GAP
    assert "certificate of good" in stalled.message and "start a TuningRun" in stalled.message
    certified = world.status("AdaptivePolicy", "good").condition(names.CERTIFIED)
    assert (certified.status, certified.reason) == ("False", Reason.ADMISSION_GAP)


def test_while_admission_is_missing_nothing_is_noted_and_later_it_may_be(
    world: World, good: Document
) -> None:
    guarded(world, notes=timedelta(days=-2), held=timedelta(days=-1))
    armed = world.admission
    world.admission = type(armed)(False, "gone", None)
    canary(world, good)
    assert world.of_rollout("ramp").condition(names.STALLED).reason == Reason.ADMISSION_GAP
    world.admission = armed  # as it was all the time: the test could not be made
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "Progressing"


def test_a_policy_that_serves_keeps_serving_through_a_later_gap(promoted: World) -> None:
    guarded(promoted, notes=timedelta(days=1), held=timedelta(days=1))
    promoted.after(1).settle()
    assert [one.witness for one in promoted.journal.certificates] == ["Upgrade"]
    promoted.admission = type(promoted.admission)(False, "gone", None)
    promoted.after(60).settle()
    promoted.admission = type(promoted.admission)(True, "", promoted.now)
    promoted.after(60).settle()
    assert promoted.assignment["stable"]["digest"] == promoted.of_model.intended.digest
    assert promoted.of_model.is_true(names.CERTIFIED)


def test_an_upgrade_accepts_what_is_there_once_with_an_event(promoted: World) -> None:
    before = promoted.assignment["stable"]["digest"]
    guarded(promoted, notes=timedelta(minutes=10), held=timedelta(minutes=10))
    promoted.after(600).settle()
    assert promoted.assignment["stable"]["digest"] == before and before != DENSE.digest
    told = [one for one in promoted.events if one.reason == Reason.ACCEPTED_BY_UPGRADE]
    assert [one.kind for one in told] == ["AdaptiveModel"]
    assert "AdaptivePolicy good" in told[0].message
    promoted.after(60).settle()
    assert len([x for x in promoted.events if x.reason == Reason.ACCEPTED_BY_UPGRADE]) == 1


def test_a_waiver_that_was_served_before_the_upgrade_goes_on(
    world: World, promote_policy: Any, good: Document
) -> None:
    world.policy("good", good, certified=False)
    promote_policy(world, "good", allowUncertified=True, requestedBy="rita")
    assert world.of_model.intended.waived
    world.delete("PolicyRollout", "to-good")
    world.delete("PolicyJournal", JOURNAL)
    guarded(world, notes=timedelta(days=1), held=timedelta(days=1))
    world.after(86400).settle()
    assert world.assignment["stable"]["digest"] == world.of_model.intended.digest


def test_an_intended_policy_that_nobody_waived_is_not_served_because_its_status_says_so(
    world: World, good: Document
) -> None:
    """A status written in a gap of admission."""
    day = timedelta(days=1)
    guarded(world, notes=-2 * day, held=-day)
    world.settle()
    world.policy("good", good, certified=False)
    digest = world.of_model.stable.digest
    forged = {
        "digest": world.policy("evil", good, certified=False), "policy": "evil", "waived": True,
    }  # fmt: skip
    item = world.objects["AdaptiveModel", MODEL]
    item["status"]["intended"] = forged
    world.touch(item)
    world.put("PolicyJournal", JOURNAL, {"namespace": "team", "model": MODEL})
    world.after(1).settle()
    assert world.assignment["stable"]["digest"] == digest == DENSE.digest


def loosen(world: World, **spec: Any) -> World:
    world.model(objectives={"maxDisagreement": "0.05"}, **spec)
    return world


@pytest.mark.parametrize("held", ["all the while", "since a gap"])
def test_a_model_that_was_loosened_in_a_gap_rolls_nothing_out(
    world: World, good: Document, held: str
) -> None:
    day = timedelta(days=1)
    guarded(world, notes=-2 * day, held=-day)
    world.after(60).settle()
    assert world.journal.promise.values["objectives.maxDisagreement"] == "0.02"
    if held == "since a gap":
        guarded(world, notes=-2 * day, held=timedelta(seconds=600))
    loosen(world.after(300)).after(600).settle()
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle()
    status = world.of_rollout("ramp")
    if held == "all the while":
        assert status.phase == "Progressing"
        assert world.journal.promise.values["objectives.maxDisagreement"] == "0.05"
        return
    stalled = status.condition(names.STALLED)
    assert stalled.reason == Reason.ADMISSION_GAP
    assert "router (spec.objectives.maxDisagreement)" in stalled.message
    assert "a holder of verb waive sets these fields back" in stalled.message
    world.model(objectives={"maxDisagreement": "0.02"})
    world.settle()
    assert world.of_rollout("ramp").phase == "Progressing", "set back, nothing is in question"


def test_notes_on_the_promise_outlive_an_upgrade_of_admission(world: World) -> None:
    """The policies change by an upgrade; what is loosened later, by right, counts."""
    day = timedelta(days=1)
    guarded(world, notes=-2 * day, held=-day)
    world.after(60).settle()
    guarded(world, notes=-2 * day, held=timedelta(seconds=600))
    world.after(700).settle()
    loosen(world.after(60)).settle()
    assert world.journal.promise.values["objectives.maxDisagreement"] == "0.05"


def test_harm_that_only_alerts_since_a_gap_leads_to_full_depth_all_the_same(
    promoted: World,
) -> None:
    day = timedelta(days=1)
    guarded(promoted, notes=day, held=day)
    promoted.after(60).settle()
    guarded(promoted, notes=day, held=2 * day)
    promoted.model(drift={"onHarm": "alert"})
    promoted.after(60).tuning("alarm", reason="Harmful")
    promoted.report_drift("alarm", "Harmful")
    promoted.settle()
    assert promoted.assignment["stable"]["digest"] == DENSE.digest


def test_a_looser_model_of_before_the_notes_is_accepted_once(
    new_world: Any, good: Document
) -> None:
    world = new_world()
    loosen(world).after(60)
    guarded(world, notes=timedelta(seconds=300), held=timedelta(seconds=300))
    world.after(300).settle()
    assert world.journal.promise.witness == "Upgrade"
    canary(world.after(60), good)
    assert world.of_rollout("ramp").phase == "Progressing"
