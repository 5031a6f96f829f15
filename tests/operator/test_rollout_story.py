"""A rollout from request to end, pass by pass, on a fake clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.names import Action, Reason
from trimwheel_api.policy import DENSE
from trimwheel_operator.plan import plan
from trimwheel_operator.plan.actions import PatchStatus

World = Any
Document = dict[str, Any]


def start(world: World, document: Document, **spec: Any) -> World:
    world.policy("good", document)
    world.rollout("ramp", "good", **spec)
    world.guards("NotEnoughEvidence")
    return world.settle()


def climb(world: World, steps: int = 3) -> World:
    world.guards("Pass")
    for _ in range(steps):
        world.after(16).settle()
    return world


def test_a_new_model_starts_dense_with_an_assignment_of_its_own(world: World) -> None:
    assert world.assignment["stable"] == {"digest": DENSE.digest, "document": "{}"}
    assert world.assignment["epoch"] == 1
    assert world.of_model.stable.digest == DENSE.digest
    assert world.of_model.is_true(names.READY)
    assert not world.of_model.is_true(names.RECONCILING)
    assert not world.of_model.is_true(names.DEGRADED)
    assert world.of_model.is_true(names.CERTIFIED)
    assert world.of_model.endpoint == "http://127.96.0.9"
    kinds = [kind for kind, _ in world.ensured]
    assert sorted(kinds) == ["Deployment", "Role", "RoleBinding", "Service", "ServiceAccount"]


def test_the_gauges_keep_what_the_last_rollout_ended_with_until_the_next_is_judged(
    world: World, good: Document
) -> None:
    def shown() -> dict[str, str]:
        return {guard.name: guard.verdict for guard in world.look().report.guards}

    start(world, good)
    assert set(shown().values()) == {"NotEnoughEvidence"}
    world.guards("Pass", disagreement="Fail")
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "RolledBack"
    assert shown()["disagreement"] == "Fail" and shown()["errors"] == "Pass"
    world.after(3601)
    assert shown() == {}, "later they would speak of a policy that nobody judges"


def test_rules_are_frozen_before_anybody_hears_of_the_candidate(
    world: World, good: Document, digest_of: Callable[[Document], str]
) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.after(1).look()
    assert world.of_rollout("ramp").effective is not None
    assert world.assignment["candidate"] is None
    world.after(1).look()
    assert world.assignment["candidate"]["digest"] == digest_of(good)


def test_the_first_step_is_a_shadow_that_serves_nobody(world: World, good: Document) -> None:
    start(world, good)
    assert world.assignment["weightBasisPoints"] == 0
    assert world.assignment["candidate"]["digest"] == world.of_model.candidate.digest
    assert world.of_model.candidate.rollout == "ramp"
    assert world.actions_of("ramp") == [(Action.START, Reason.SHADOW)]
    assert len(world.assignment["salt"]) == 32


def test_frozen_rules_do_not_follow_the_model_in_flight(world: World, good: Document) -> None:
    start(world, good)
    world.model(rollout={"alpha": "0.5", "approval": "Automatic"})
    world.settle()
    assert world.of_rollout("ramp").effective.rollout.alpha == "0.001"
    assert world.of_rollout("ramp").effective.rollout.approval == "Required"


def test_steps_advance_on_hold_time_and_requests_then_a_person_is_asked(
    world: World, good: Document
) -> None:
    start(world, good)
    climb(world, 1)
    assert (world.of_rollout("ramp").step, world.assignment["weightBasisPoints"]) == (1, 1000)
    climb(world, 1)
    assert (world.of_rollout("ramp").step, world.assignment["weightBasisPoints"]) == (2, 5000)
    climb(world, 1)
    status = world.of_rollout("ramp")
    assert status.phase == "AwaitingApproval"
    assert status.is_true(names.AWAITING_APPROVAL)
    assert world.assignment["weightBasisPoints"] == 5000
    world.after(1).approve("ramp", by="ann")
    world.settle()
    status = world.of_rollout("ramp")
    assert status.phase == "Promoted" and status.is_true(names.READY)
    assert status.decisions[-1].actor == "ann"
    assert world.assignment["stable"]["digest"] == world.of_model.intended.digest
    assert world.assignment["candidate"] is None
    assert world.of_model.history[-1].digest == DENSE.digest
    assert [action for action, _ in world.actions_of("ramp")] == [
        Action.START, Action.ADVANCE, Action.ADVANCE, Action.AWAIT, Action.PROMOTE,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "seconds", "requests", "verdict"),
    [
        ("the hold time is not over", 10, 10_000, "Pass"),
        ("the candidate saw too few requests", 60, 99, "Pass"),
        ("prometheus does not answer", 60, 10_000, None),
    ],
)
def test_a_step_waits_while(
    world: World, good: Document, scenario: str, seconds: float, requests: int, verdict: str | None
) -> None:
    start(world, good)
    climb(world, 1)
    world.requests = requests
    world.guards(verdict) if verdict else world.prometheus_away()
    world.after(seconds).settle()
    assert world.of_rollout("ramp").step == 1, scenario


def test_a_middle_step_needs_no_pass_but_the_last_does(world: World, good: Document) -> None:
    start(world, good)
    for _ in range(4):
        world.after(16).settle()
    status = world.of_rollout("ramp")
    assert status.step == 2
    assert not status.is_true(names.AWAITING_APPROVAL)


def test_a_step_without_evidence_pauses_and_goes_on_when_it_comes(
    world: World, good: Document
) -> None:
    start(world, good)
    climb(world, 1)
    world.prometheus_away()
    world.after(601).settle()
    status = world.of_rollout("ramp")
    assert status.condition(names.PAUSED).reason == Reason.STEP_TIMED_OUT
    assert world.actions_of("ramp")[-1] == (Action.PAUSE, Reason.STEP_TIMED_OUT)
    assert world.assignment["candidate"] is not None
    world.guards("Pass")
    world.after(1).settle()
    assert world.of_rollout("ramp").step == 2
    assert not world.of_rollout("ramp").is_true(names.PAUSED)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_failed_guard_rolls_back_at_once_at_any_step(
    world: World, good: Document, steps: int
) -> None:
    start(world, good)
    climb(world, steps)
    world.guards("Pass", disagreement="Fail")
    world.after(1).look()
    assert world.assignment["candidate"] is None
    assert world.assignment["weightBasisPoints"] == 0
    status = world.of_rollout("ramp")
    assert status.phase == "RollingBack" and not status.is_true(names.ROLLED_BACK)
    assert not status.is_true(names.AWAITING_APPROVAL)
    assert world.of_model.rejected_digests == [
        world.objects["PolicyRollout", "ramp"]["spec"]["policyDigest"]
    ]
    world.acknowledge()
    world.after(1).settle()
    status = world.of_rollout("ramp")
    assert status.phase == "RolledBack" and status.is_true(names.ROLLED_BACK)
    assert status.is_true(names.STALLED) and not status.is_true(names.READY)
    assert status.actuation.milliseconds == 20 and status.actuation.workers == 2
    assert world.actions_of("ramp")[-1] == (Action.ROLL_BACK, Reason.GUARD_FAILED)
    assert "disagreement 0.1 against a bound of 0.02" in status.decisions[-1].message
    first, last = (
        {guard.name: guard.verdict for guard in decision.guards}
        for decision in (status.decisions[0], status.decisions[-1])
    )
    assert last["disagreement"] == "Fail", "its evidence stays with the decision"
    assert "Fail" not in first.values(), "that of another decision is another one"


def test_rolled_back_waits_for_a_silent_worker_until_its_lease_ran_out(
    world: World, good: Document
) -> None:
    start(world, good)
    climb(world, 2)
    world.silent.add("router-1")
    world.guards("Fail")
    world.after(1).look()
    world.acknowledge()
    world.after(20).settle()
    status = world.of_rollout("ramp")
    assert status.actuation.pending == ["router-1"] and not status.is_true(names.ROLLED_BACK)
    world.after(11).settle()
    status = world.of_rollout("ramp")
    assert status.is_true(names.ROLLED_BACK)
    assert status.actuation.milliseconds == 30_000
    assert "leases of router-1 ran out" in status.condition(names.ROLLED_BACK).message


def test_a_worker_that_died_is_not_waited_for(world: World, good: Document) -> None:
    start(world, good)
    world.silent.add("router-1")
    world.guards("Fail")
    world.after(1).look()
    world.acknowledge()
    world.pods.remove("router-1")
    world.after(1).settle()
    assert world.of_rollout("ramp").is_true(names.ROLLED_BACK)


def test_prometheus_away_neither_promotes_nor_rolls_back_and_renewals_go_on(
    world: World, good: Document
) -> None:
    start(world, good)
    climb(world, 3)
    world.prometheus_away()
    world.after(2).approve("ramp")
    renewals = []
    for _ in range(5):
        world.after(10.5).settle()
        renewals.append(world.assignment["renewals"])
    assert world.of_rollout("ramp").phase == "AwaitingApproval"
    assert renewals == sorted(set(renewals)), "each third of a lease is renewed"
    assert world.of_rollout("ramp").verdict == "NotEnoughEvidence"
    world.guards("Pass")
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "Promoted"


def test_nothing_is_renewed_while_nobody_is_served_the_candidate(
    world: World, good: Document
) -> None:
    start(world, good)
    world.after(12).settle()
    assert world.assignment["weightBasisPoints"] == 0
    assert world.assignment["renewals"] == 0


def test_a_rollout_of_more_decisions_than_are_kept_goes_on_where_it_was(
    world: World, good: Document
) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(16).settle()
    world.guards("NotEnoughEvidence")
    for _ in range(33):
        for paused in (True, False):
            world.change("ramp", paused=paused)
            world.after(0.1).settle()
    status = world.of_rollout("ramp")
    assert status.decisions[0].seq > 1, "the start is not among those that are kept"
    assert (status.step, world.assignment["weightBasisPoints"]) == (1, 1000)
    assert "Start" not in [one.action for one in status.decisions]


def test_evidence_of_another_step_moves_nothing_on(world: World, good: Document) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(16)
    late = world.observe()
    world.settle().after(16)
    evidence = late.evidence
    assert evidence is not None
    state = dataclasses.replace(world.observe(), evidence=evidence)
    assert plan(state, world.now).decided == ()
    assert [one.action for one in plan(world.observe(), world.now).decided] == ["Advance"]


@pytest.mark.parametrize("change", [{"paused": True}, {"abort": True}])
def test_a_finished_rollout_that_is_changed_says_that_it_was_seen(
    promoted: World, change: Document
) -> None:
    """Else `kubectl wait`, Flux and Argo CD would wait for it for ever."""
    before = promoted.of_rollout("to-good")
    promoted.change("to-good", **change)
    promoted.after(1).settle()
    after = promoted.of_rollout("to-good")
    assert after.observed_generation == before.observed_generation + 1
    assert {one.observed_generation for one in after.conditions} == {after.observed_generation}
    assert after.decisions == before.decisions and after.is_true(names.READY)


def test_pausing_keeps_the_weight_and_the_armed_rollback(world: World, good: Document) -> None:
    start(world, good)
    climb(world, 1)
    world.change("ramp", paused=True)
    climb(world, 3)
    status = world.of_rollout("ramp")
    assert status.step == 1 and status.condition(names.PAUSED).reason == Reason.PAUSED_BY_USER
    world.change("ramp", paused=False)
    climb(world, 1)
    assert world.of_rollout("ramp").step == 2
    assert (Action.RESUME, Reason.RESUMED) in world.actions_of("ramp")
    world.change("ramp", paused=True)
    world.guards("Fail")
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "RolledBack"


def test_an_abort_by_its_user_does_not_reject_the_digest(world: World, good: Document) -> None:
    start(world, good)
    world.change("ramp", abort=True)
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "RolledBack"
    assert world.actions_of("ramp")[-1] == (Action.ABORT, Reason.ABORTED)
    assert world.of_model.rejected_digests == []


def test_a_person_rejects_at_any_time_and_the_digest_is_remembered(
    world: World, good: Document
) -> None:
    start(world, good)
    world.after(1).approve("ramp", by="ann", decision="Reject")
    world.settle()
    assert world.actions_of("ramp")[-1] == (Action.ROLL_BACK, Reason.REJECTED)
    assert len(world.of_model.rejected_digests) == 1


def test_another_model_digest_ends_the_canary(world: World, good: Document) -> None:
    start(world, good)
    climb(world, 1)
    world.model(model={"digest": "sha256:" + "b" * 64})
    world.after(1).settle()
    assert world.actions_of("ramp")[-1] == (Action.ROLL_BACK, Reason.MODEL_DIGEST_CHANGED)
    assert world.of_model.rejected_digests == []


def test_a_certificate_that_expires_in_flight_ends_the_canary(world: World, good: Document) -> None:
    world.policy("good", good, expiresAt="2026-11-22T12:00:20Z")
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(25).settle()
    assert world.actions_of("ramp")[-1] == (Action.ROLL_BACK, Reason.CERTIFICATE_EXPIRED)


@pytest.mark.parametrize(
    ("said", "reason", "remembered"),
    [
        ({"refused": "policy.exit.thresholds: must hold 3"}, Reason.POLICY_INVALID, False),
        ({"tripped": "Tripwire"}, Reason.GUARD_FAILED, True),
        ({"tripped": names.TRIPPED_BY_LEASE}, None, False),
    ],
)
def test_a_worker_that_refuses_or_leaves_the_candidate_ends_it_but_a_lost_lease_does_not(
    world: World, good: Document, said: dict[str, str], reason: str | None, remembered: bool
) -> None:
    start(world, good)
    world.said["router-0"] = said
    world.after(1).settle()
    last = world.actions_of("ramp")[-1]
    assert last == ((Action.ROLL_BACK, reason) if reason else (Action.START, Reason.SHADOW))
    assert bool(world.of_model.rejected_digests) is remembered


def test_automatic_approval_promotes_without_a_person(world: World, good: Document) -> None:
    world.model(rollout={"approval": "Automatic"})
    start(world, good)
    climb(world, 3)
    assert world.actions_of("ramp")[-1] == (Action.PROMOTE, Reason.PROMOTED)


def test_one_canary_is_active_and_the_others_wait_oldest_first(
    world: World, good: Document, other: Document
) -> None:
    start(world, good)
    world.policy("other", other)
    world.rollout("later", "other")
    world.after(5).settle()
    status = world.of_rollout("later")
    assert status.phase == "Queued" and status.is_true(names.QUEUED)
    assert status.condition(names.QUEUED).message == "after rollout ramp"
    world.change("ramp", abort=True)
    world.after(1).settle()
    assert world.of_rollout("later").phase == "Progressing"
    assert not world.of_rollout("later").is_true(names.QUEUED)


def test_a_rollback_preempts_and_needs_neither_steps_nor_approval(
    promoted: World, other: Document, digest_of: Callable[[Document], str], good: Document
) -> None:
    world = promoted
    world.policy("other", other)
    world.rollout("ramp", "other")
    world.guards("Pass")
    world.settle()
    world.rollout(
        "back", policyDigest=DENSE.digest, type="Rollback", requestedBy="ann", reason="incident"
    )
    world.after(1).settle()
    assert world.actions_of("ramp")[-1] == (Action.ABORT, Reason.PREEMPTED)
    status = world.of_rollout("back")
    assert status.is_true(names.READY) and status.is_true(names.ROLLED_BACK)
    assert status.actuation.milliseconds == 20
    assert world.assignment["stable"]["digest"] == DENSE.digest
    assert world.of_model.intended.digest == DENSE.digest
    assert digest_of(good) in world.of_model.rejected_digests


def test_a_rollback_is_ready_no_sooner_than_what_it_ended_is_rolled_back(
    world: World, good: Document
) -> None:
    start(world, good)
    climb(world, 1)
    world.rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="ann")
    world.after(1).look()
    world.silent.add("router-1")
    world.acknowledge()
    world.after(1).look()
    assert world.of_rollout("ramp").phase == world.of_rollout("back").phase == "RollingBack"
    world.silent.clear()
    world.acknowledge()
    last = world.after(1).look(crash_after=1)
    assert [one.name for one in last.actions if isinstance(one, PatchStatus)] == ["ramp", "back"]
    assert world.of_rollout("ramp").phase == "RolledBack"
    assert not world.of_rollout("back").is_true(names.READY)
    world.settle()
    assert world.of_rollout("back").is_true(names.READY)


def test_a_rollback_to_a_former_policy_restores_its_document(
    promoted: World, other: Document, promote_policy: Any, digest_of: Callable[[Document], str],
    good: Document,
) -> None:  # fmt: skip
    world = promote_policy(promoted, "other", other)
    assert world.of_model.stable.policy == "other"
    world.rollout("back", policyDigest=digest_of(good), type="Rollback", requestedBy="ann")
    world.after(1).settle()
    assert world.assignment["stable"]["digest"] == digest_of(good)
    assert world.of_rollout("back").is_true(names.READY)
    assert not world.of_model.intended.waived


def ramp_other(world: World, other: Document) -> World:
    """A canary under way over what is served."""
    world.policy("other", other)
    world.rollout("ramp", "other")
    world.guards("NotEnoughEvidence")
    return world.settle()


def go_back(world: World, digest: str, policy: str = "") -> None:
    world.rollout(
        "back", policy, policyDigest=digest, type="Rollback", requestedBy="ann", reason="incident"
    )


def test_a_rollback_to_what_is_served_ends_the_canary_and_changes_nothing_else(
    promoted: World, other: Document
) -> None:
    world = ramp_other(promoted, other)
    meant, history = world.of_model.intended, world.of_model.history
    go_back(world, meant.digest, meant.policy)
    world.after(1).settle()
    ended = world.of_rollout("ramp").decisions[-1]
    assert (ended.action, ended.reason, ended.actor) == (Action.ABORT, Reason.PREEMPTED, "ann")
    assert ended.message == "rollout back goes back for ann: incident"
    assert world.of_rollout("back").is_true(names.READY)
    assert world.assignment["candidate"] is None
    assert world.assignment["stable"]["digest"] == meant.digest
    assert (world.of_model.intended, world.of_model.history) == (meant, history)
    assert not world.of_model.rejected_digests


def test_a_waived_policy_needs_no_second_waiver_to_end_the_canary_over_it(
    world: World, promote_policy: Any, good: Document, other: Document
) -> None:
    world.policy("good", good, certified=False)
    promote_policy(world, "good", allowUncertified=True, requestedBy="rita")
    meant = ramp_other(world, other).of_model.intended
    assert meant.waived
    go_back(world, meant.digest, meant.policy)
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "RolledBack"
    assert world.of_rollout("back").is_true(names.READY)
    assert world.of_model.intended == meant


@pytest.mark.parametrize("writes", [1, 2])
def test_a_restart_after_the_first_write_of_a_rollback_keeps_who_and_why(
    promoted: World, other: Document, writes: int
) -> None:
    world = ramp_other(promoted, other)
    go_back(world, world.of_model.intended.digest, "good")
    world.after(1).look(crash_after=writes)
    world.after(1).settle()
    ended = world.of_rollout("ramp").decisions[-1]
    assert (ended.actor, ended.message) == ("ann", "rollout back goes back for ann: incident")
    assert world.of_rollout("back").is_true(names.READY)


def test_a_rollback_to_dense_while_degraded_ends_the_canary_and_makes_dense_intended(
    promoted: World, other: Document
) -> None:
    world = ramp_other(promoted, other)
    world.tuning("watch")
    world.report_drift("watch", "Harmful")
    world.settle()
    assert world.of_model.is_true(names.DEGRADED)
    go_back(world, DENSE.digest)
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "RolledBack"
    assert world.of_model.intended.digest == DENSE.digest
    assert not world.of_model.is_true(names.DEGRADED)


def test_decisions_are_numbered_and_each_has_its_event(promoted: World) -> None:
    decisions = promoted.of_rollout("to-good").decisions
    assert [one.seq for one in decisions] == list(range(1, len(decisions) + 1))
    told = [event.key for event in promoted.events if event.name == "to-good"]
    assert {f"decision-{one.seq}" for one in decisions} <= set(told)


def test_the_deployment_never_changes_with_a_policy(world: World, promote_policy: Any) -> None:
    before = dict(world.ensured)
    promote_policy(world)
    assert world.ensured == before
