"""What the operator itself never does, whatever was admitted.

It exposes no more than half, skips no shadow, waits no longer than the deadline, and trusts no
certificate that promises less than the model does now.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.names import Action, Reason
from trimwheel_api.policy import DENSE
from trimwheel_api.times import parse

World = Any
Document = dict[str, Any]

AT_ONCE = {"steps": [{"weight": "100%", "hold": "0s", "maxDuration": "10m"}]}


def ask(world: World, document: Document, **spec: Any) -> World:
    world.policy("good", document)
    world.rollout("ramp", "good", **spec)
    world.guards("NotEnoughEvidence")
    return world.settle()


def climb(world: World, steps: int = 4) -> World:
    world.guards("Pass")
    for _ in range(steps):
        world.settle().after(16)
    return world.settle()


def largest_weight(world: World) -> int:
    return max(spec["weightBasisPoints"] for spec in [*world.writes, world.assignment])


@pytest.mark.parametrize("approval", ["Required", "Automatic"])
@pytest.mark.parametrize("weight", ["51%", "100%"])
def test_no_rollout_exposes_more_than_half_before_it_is_promoted(
    world: World, good: Document, weight: str, approval: str
) -> None:
    steps = [
        {"weight": "0%", "hold": "0s", "maxDuration": "10m"},
        {"weight": weight, "hold": "0s", "maxDuration": "10m"},
    ]
    world.model(rollout={"steps": steps, "approval": approval})
    climb(ask(world, good))
    assert largest_weight(world) == 5000
    assert [step.weight for step in world.of_rollout("ramp").effective.rollout.steps] == [
        "0%", "50%",
    ]  # fmt: skip


def test_a_rollout_starts_in_the_shadow_though_the_model_has_none(
    world: World, good: Document
) -> None:
    """An editor alone put a policy before all users: steps of 100%, hold 0s."""
    world.model(rollout=AT_ONCE)
    ask(world, good)
    assert world.assignment["weightBasisPoints"] == 0
    assert world.actions_of("ramp") == [(Action.START, Reason.SHADOW)]
    world.guards("Pass")
    world.after(9 * 60).settle()
    assert world.assignment["weightBasisPoints"] == 0, "a shadow of ours is held for 10m"
    world.after(61).settle()
    assert largest_weight(world) == 5000
    assert world.of_rollout("ramp").phase == "AwaitingApproval"


def test_a_holder_of_waive_may_start_without_a_shadow(world: World, good: Document) -> None:
    steps = [{"weight": "5%", "hold": "15s", "maxDuration": "10m"}]
    ask(world, good, steps=steps, allowUncertified=True)
    assert world.assignment["weightBasisPoints"] == 500


def test_twenty_steps_get_their_shadow_too(world: World, good: Document) -> None:
    steps = [{"weight": f"{n + 1}%", "hold": "1m", "maxDuration": "10m"} for n in range(20)]
    world.model(rollout={"steps": steps})
    ask(world, good)
    assert len(world.of_rollout("ramp").effective.rollout.steps) == 21
    assert world.assignment["weightBasisPoints"] == 0


# --- the approval's deadline ------------------------------------------------------------------
def test_without_an_approval_the_weight_returns_to_zero_in_time(
    world: World, good: Document
) -> None:
    climb(ask(world, good))
    assert world.of_rollout("ramp").phase == "AwaitingApproval"
    assert world.assignment["weightBasisPoints"] == 5000
    world.after(72 * 3600 - 60).settle()
    assert world.assignment["weightBasisPoints"] == 5000
    world.after(120).settle()
    assert world.assignment["weightBasisPoints"] == 0 and world.assignment["candidate"] is None
    status = world.of_rollout("ramp")
    stalled = status.condition(names.STALLED)
    assert (stalled.status, stalled.reason) == ("True", Reason.APPROVAL_EXPIRED)
    assert "rollout.approvalDeadline (72h)" in stalled.message
    assert not status.is_true(names.AWAITING_APPROVAL)
    assert status.decisions[-1].action == Action.ROLL_BACK
    assert world.of_model.rejected_digests == [], "nobody rejected it: it may be asked for again"


def test_the_next_look_is_no_later_than_the_deadline(world: World, good: Document) -> None:
    climb(ask(world, good))
    asked = parse(world.of_rollout("ramp").condition(names.AWAITING_APPROVAL).last_transition_time)
    world.now = asked + timedelta(hours=72) - timedelta(seconds=5)
    assert 0 < world.look().next_look <= 5


def test_a_pause_does_not_stop_the_deadline(world: World, good: Document) -> None:
    climb(ask(world, good))
    world.change("ramp", paused=True)
    world.settle().after(73 * 3600).settle()
    assert world.of_rollout("ramp").condition(names.STALLED).reason == Reason.APPROVAL_EXPIRED


def test_the_deadline_is_not_longer_for_a_rollout_under_way(world: World, good: Document) -> None:
    climb(ask(world, good))
    world.model(rollout={"approvalDeadline": "300d"})
    world.settle().after(73 * 3600).settle()
    assert world.assignment["weightBasisPoints"] == 0


def test_a_shorter_deadline_counts_at_once(world: World, good: Document) -> None:
    climb(ask(world, good))
    world.model(rollout={"approvalDeadline": "1m"})
    world.settle().after(61).settle()
    assert world.assignment["weightBasisPoints"] == 0


def test_an_approval_in_time_counts_though_the_operator_was_away(
    world: World, good: Document
) -> None:
    climb(ask(world, good))
    world.after(3600).approve("ramp")
    world.after(80 * 3600).settle()
    assert world.of_rollout("ramp").phase == "Promoted"


def test_an_approval_without_a_pass_does_not_keep_it_exposed(world: World, good: Document) -> None:
    climb(ask(world, good))
    world.guards("Pass", latency="NotEnoughEvidence")
    world.after(3600).approve("ramp")
    world.settle().after(80 * 3600).settle()
    assert world.of_rollout("ramp").condition(names.STALLED).reason == Reason.APPROVAL_EXPIRED


def one_step(hold: str) -> Document:
    shadow = {"weight": "0%", "hold": "15s", "maxDuration": "10m"}
    return {"steps": [shadow, {"weight": "50%", "hold": hold, "maxDuration": "366d"}]}


LINGERING: dict[str, tuple[str, bool, str]] = {
    "paused": ("15s", True, "Pass"),
    "a hold of a year": ("365d", False, "Pass"),
    "no evidence": ("15s", False, "NotEnoughEvidence"),
}


@pytest.mark.parametrize("how", LINGERING)
@pytest.mark.parametrize("approval", ["Required", "Automatic"])
def test_whatever_keeps_a_step_exposed_does_not_go_on_for_ever_without_an_approval(
    world: World, good: Document, how: str, approval: str
) -> None:
    hold, paused, verdict = LINGERING[how]
    world.model(rollout={"approval": approval, **one_step(hold)})
    climb(ask(world, good), steps=1)
    world.guards(verdict)
    world.change("ramp", paused=paused)
    world.settle()
    assert world.assignment["weightBasisPoints"] == 5000
    world.after(70 * 3600).settle()
    assert world.assignment["weightBasisPoints"] == 5000
    world.after(75 * 3600).settle()
    if approval == "Automatic":
        assert world.assignment["weightBasisPoints"] == 5000, "no person was ever asked for"
        return
    assert world.assignment["weightBasisPoints"] == 0 and world.assignment["candidate"] is None
    stalled = world.of_rollout("ramp").condition(names.STALLED)
    assert stalled.reason == Reason.APPROVAL_EXPIRED
    assert world.of_model.rejected_digests == []


def test_a_shadow_may_last_since_it_serves_nobody(world: World, good: Document) -> None:
    ask(world, good).change("ramp", paused=True)
    world.settle().after(600 * 3600).settle()
    assert world.of_rollout("ramp").phase == "Progressing"


def test_a_model_that_asks_for_approval_again_is_heard_in_flight(
    world: World, good: Document
) -> None:
    world.model(rollout={"approval": "Automatic"})
    ask(world, good)
    world.model(rollout={"approval": "Required"})
    climb(world)
    assert world.of_rollout("ramp").phase == "AwaitingApproval"


# --- certificates and the model as it is now ----------------------------------------------------
STRICTER: dict[str, dict[str, Any]] = {
    "less disagreement": {"objectives": {"maxDisagreement": "0.019"}},
    "more confidence": {"objectives": {"confidence": "0.91"}},
    "other weights": {"model": {"uri": "models:/router/2", "digest": "sha256:" + "b" * 64}},
}


@pytest.mark.parametrize("change", STRICTER)
def test_a_certificate_must_be_as_strict_as_the_model_is_now_to_start(
    world: World, good: Document, change: str
) -> None:
    world.model(**STRICTER[change])
    ask(world, good)
    assert world.assignment["candidate"] is None
    assert world.of_rollout("ramp").is_true(names.STALLED)


@pytest.mark.parametrize("change", STRICTER)
def test_a_certificate_must_be_as_strict_as_the_model_is_now_in_flight(
    world: World, good: Document, change: str
) -> None:
    climb(ask(world, good), steps=2)
    assert world.assignment["candidate"] is not None
    world.model(**STRICTER[change])
    world.settle()
    assert world.assignment["candidate"] is None


@pytest.mark.parametrize("change", STRICTER)
def test_a_certificate_must_be_as_strict_as_the_model_is_now_to_serve(
    promoted: World, change: str
) -> None:
    promoted.model(**STRICTER[change])
    promoted.settle()
    assert promoted.assignment["stable"]["digest"] == DENSE.digest
    assert promoted.of_model.is_true(names.DEGRADED)


@pytest.mark.parametrize("change", STRICTER)
def test_a_rollback_to_what_promises_less_now_takes_a_waiver(
    promoted: World, promote_policy: Any, other: Document, change: str
) -> None:
    promote_policy(promoted, "next", other)
    promoted.model(**STRICTER[change])
    promoted.settle()
    promoted.rollout("back", "good", type="Rollback", requestedBy="ann")
    promoted.settle()
    assert promoted.of_rollout("back").is_true(names.STALLED)
    assert promoted.assignment["stable"]["digest"] == DENSE.digest


def test_a_waiver_ends_with_the_weights_that_it_was_given_for(world: World, good: Document) -> None:
    """A policy without any certificate was served on, whatever the model became."""
    world.policy("good", good, certified=False)
    world.rollout("ramp", "good", allowUncertified=True)
    climb(world)
    world.after(2).approve("ramp")
    world.settle()
    assert world.of_model.stable.policy == "good"
    world.model(**STRICTER["other weights"])
    world.settle()
    assert world.assignment["stable"]["digest"] == DENSE.digest
    assert world.of_model.is_true(names.DEGRADED)
