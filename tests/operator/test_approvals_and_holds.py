"""Who may approve, when an approval counts, and what a person's break-glass does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.names import Action, Reason
from trimwheel_api.policy import DENSE
from trimwheel_operator.plan.observed import AdmissionCheck

World = Any
Document = dict[str, Any]


@pytest.fixture
def waiting(world: World, good: Document) -> World:
    """A rollout that waits for a person."""
    world.policy("good", good)
    world.rollout("ramp", "good", requestedBy="rita", onBehalfOf="dave")
    world.guards("Pass")
    for _ in range(3):
        world.settle().after(16)
    world.settle()
    assert world.of_rollout("ramp").phase == "AwaitingApproval"
    return world.after(2)


@pytest.mark.parametrize(
    ("scenario", "by", "change"),
    [
        ("the requester approves herself", "rita", {}),
        ("who asked for its TuningRun approves", "dave", {}),
        ("a service account approves", "system:serviceaccount:team:bot", {}),
        ("the digest is another", "ann", {"policyDigest": "sha256:" + "9" * 64}),
        ("the rollout is a former one of that name", "ann", {"rolloutUID": "uid-of-another"}),
    ],
)
def test_an_approval_does_not_count_when(
    waiting: World, scenario: str, by: str, change: dict[str, str]
) -> None:
    waiting.approve("ramp", by=by)
    [approval] = [item for (kind, _), item in waiting.objects.items() if kind == "PolicyApproval"]
    approval["spec"] |= change
    waiting.settle()
    assert waiting.of_rollout("ramp").phase == "AwaitingApproval", scenario


def test_an_approval_given_before_it_was_asked_for_does_not_count(
    world: World, good: Document
) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().approve("ramp")
    for _ in range(4):
        world.after(16).settle()
    assert world.of_rollout("ramp").phase == "AwaitingApproval"


@pytest.mark.parametrize("verdict", ["NotEnoughEvidence", "Fail"])
def test_approved_is_not_promoted_unless_every_guard_passes_now(
    waiting: World, verdict: str
) -> None:
    waiting.guards("Pass", latency=verdict)
    waiting.approve("ramp")
    waiting.settle()
    expected = "RolledBack" if verdict == "Fail" else "AwaitingApproval"
    assert waiting.of_rollout("ramp").phase == expected


def test_a_guard_that_wavers_while_waiting_does_not_ask_again(waiting: World) -> None:
    before = waiting.of_rollout("ramp").condition(names.AWAITING_APPROVAL).last_transition_time
    waiting.guards("NotEnoughEvidence")
    waiting.after(5).settle()
    waiting.guards("Pass")
    waiting.after(5).settle()
    after = waiting.of_rollout("ramp").condition(names.AWAITING_APPROVAL).last_transition_time
    assert before == after
    assert [action for action, _ in waiting.actions_of("ramp")].count(Action.AWAIT) == 1


def test_while_admission_is_missing_nothing_is_promoted_and_it_is_said(waiting: World) -> None:
    waiting.admission = AdmissionCheck(False, "a forged approval was let through")
    waiting.approve("ramp")
    waiting.settle()
    status = waiting.of_rollout("ramp")
    assert status.phase == "AwaitingApproval"
    assert status.condition(names.STALLED).reason == Reason.ADMISSION_MISSING
    waiting.admission = AdmissionCheck(True, "", waiting.now + timedelta(seconds=1))
    waiting.after(30).settle()
    status = waiting.of_rollout("ramp")
    assert status.phase == "AwaitingApproval", "it is older than the bindings"
    assert not status.is_true(names.STALLED)
    waiting.approve("ramp", by="bob")
    waiting.settle()
    assert waiting.of_rollout("ramp").phase == "Promoted"


def test_approvals_of_the_first_seconds_of_a_binding_do_not_count(waiting: World) -> None:
    waiting.admission = AdmissionCheck(True, "", waiting.now - timedelta(seconds=2))
    waiting.approve("ramp")
    waiting.settle()
    assert waiting.of_rollout("ramp").phase == "AwaitingApproval"


def test_a_rejection_beats_an_approval(waiting: World) -> None:
    waiting.approve("ramp", by="ann")
    waiting.approve("ramp", by="bob", decision="Reject")
    waiting.settle()
    assert waiting.actions_of("ramp")[-1] == (Action.ROLL_BACK, Reason.REJECTED)


def test_a_hold_is_honoured_until_a_newer_approval_lifts_it(waiting: World) -> None:
    waiting.approve("ramp", by="early")
    waiting.after(5)
    waiting.break_glass()
    waiting.after(5).settle()
    status = waiting.of_rollout("ramp")
    assert status.condition(names.PAUSED).reason == Reason.HELD
    assert status.weight_basis_points == 0
    assert (waiting.assignment["weightBasisPoints"], waiting.assignment["hold"]) == (0, True)
    waiting.after(60).settle()
    assert waiting.assignment["hold"], "an approval older than the hold lifts nothing"
    waiting.approve("ramp", by="ann")
    waiting.after(1).settle()
    assert (waiting.assignment["weightBasisPoints"], waiting.assignment["hold"]) == (5000, False)
    assert (Action.RESUME, Reason.APPROVED) in waiting.actions_of("ramp")
    waiting.after(16).settle()
    assert waiting.of_rollout("ramp").phase == "AwaitingApproval", "promotion takes another"
    waiting.after(2).approve("ramp", by="bob")
    waiting.settle()
    assert waiting.of_rollout("ramp").phase == "Promoted"


def test_the_approval_that_lifted_a_hold_does_not_promote_within_the_same_second(
    world: World, good: Document
) -> None:
    steps = [{"weight": "0%", "hold": "0s"}, {"weight": "50%", "hold": "0s"}]
    world.model(rollout={"steps": steps})
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(2)
    world.break_glass()
    world.after(3).settle()
    world.after(3).approve("ramp")
    for _ in range(6):
        world.after(0.01).settle()
    assert not world.assignment["hold"]
    assert world.of_rollout("ramp").phase == "AwaitingApproval"


def test_a_hold_does_not_disarm_the_rollback(waiting: World) -> None:
    waiting.break_glass()
    waiting.after(1).settle()
    waiting.guards("Fail")
    waiting.after(1).settle()
    assert waiting.of_rollout("ramp").phase == "RolledBack"
    assert waiting.assignment["hold"], "only a person lifts it"


def test_nothing_starts_under_a_hold_and_a_newer_rollback_lifts_it(
    waiting: World, other: Document
) -> None:
    waiting.break_glass()
    waiting.change("ramp", abort=True)
    waiting.policy("other", other)
    waiting.rollout("later", "other")
    waiting.after(5).settle()
    assert waiting.of_rollout("later").condition(names.QUEUED).reason == Reason.HELD
    waiting.rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="ann")
    waiting.after(1).settle()
    assert not waiting.assignment["hold"]
    assert waiting.of_rollout("later").phase == "Progressing"


def test_a_rollback_older_than_the_hold_does_not_lift_it(waiting: World) -> None:
    waiting.rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="ann")
    waiting.after(10)
    waiting.break_glass()
    waiting.after(1).settle()
    assert waiting.of_rollout("back").phase == "RolledBack"
    assert waiting.assignment["hold"]
