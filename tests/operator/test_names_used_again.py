"""Objects come and go under one name: a decision is on one attempt, and ends with it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.world import World

from trimwheel_api.names import Action, Reason
from trimwheel_api.policy import DENSE

Document = dict[str, Any]
EVIL = {"exit": {"enabled": True, "thresholds": ["0", "0"]}}


def test_a_rollback_made_again_under_its_name_passes_the_gates_again(promoted: World) -> None:
    """Else a holder of `rollback` alone could put any document before everyone."""
    promoted.after(5).rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="rob")
    promoted.settle()
    assert promoted.of_rollout("back").phase == "RolledBack"
    promoted.delete("PolicyRollout", "back")
    evil = promoted.policy("evil", EVIL, certified=False)
    promoted.after(60).rollout("back", policyDigest=evil, type="Rollback", requestedBy="rob")
    promoted.settle()
    assert promoted.actions_of("back") == [("Refuse", Reason.NOT_FORMERLY_STABLE)]
    assert promoted.assignment["stable"]["digest"] == DENSE.digest


def test_a_canary_made_again_under_its_name_starts_anew(world: World, good: Document) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good", requestedBy="ann")
    world.guards("Pass")
    world.settle()
    world.change("ramp", abort=True)
    world.settle()
    world.delete("PolicyRollout", "ramp")
    world.after(60).rollout("ramp", "good", requestedBy="ann")
    world.settle()
    assert world.actions_of("ramp") == [("Start", Reason.SHADOW)]
    assert world.of_model.rejected_digests == []


def test_another_policy_under_the_name_of_a_promoted_rollout_is_no_failed_guard(
    promoted: World, other: Document
) -> None:
    promoted.delete("PolicyRollout", "to-good")
    promoted.policy("other", other)
    promoted.after(60).rollout("to-good", "other")
    promoted.settle()
    assert promoted.actions_of("to-good") == [("Start", Reason.SHADOW)]


def test_a_crash_within_a_rollback_is_still_read_back(promoted: World) -> None:
    promoted.after(5).rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="rob")
    promoted.look(crash_after=2)
    assert promoted.assignment["rollout"] == "back"
    promoted.settle()
    assert promoted.actions_of("back") == [("RollBack", Reason.ROLLED_BACK_TO_STABLE)]


def ramped(world: World, good: Document) -> World:
    """A canary at 10 %."""
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(16)
    world.settle()
    assert world.assignment["weightBasisPoints"] == 1000
    return world


def test_a_deleted_rollout_ends_its_canary_and_an_event_says_so(
    world: World, good: Document
) -> None:
    ramped(world, good).delete("PolicyRollout", "ramp")
    world.settle()
    assert world.assignment["candidate"] is None
    assert world.assignment["weightBasisPoints"] == 0
    assert world.of_model.candidate is None
    told = [event for event in world.events if event.reason == Reason.ROLLOUT_GONE]
    assert [(event.kind, event.type) for event in told] == [("AdaptiveModel", "Warning")]
    assert "rollout ramp is gone" in told[0].message


def test_a_rollout_made_again_does_not_inherit_the_canary_of_its_namesake(
    world: World, good: Document
) -> None:
    ramped(world, good).delete("PolicyRollout", "ramp")
    world.rollout("ramp", "good")
    world.settle()
    assert world.assignment["weightBasisPoints"] == 0
    assert world.actions_of("ramp") == [("Start", Reason.SHADOW)]


def test_a_deleted_rollout_that_a_finalizer_keeps_ends_its_canary_too(
    world: World, good: Document
) -> None:
    ramped(world, good)
    item = world.objects["PolicyRollout", "ramp"]
    item["metadata"]["deletionTimestamp"] = "2026-11-22T12:01:00Z"
    world.touch(item)
    world.settle()
    assert world.assignment["candidate"] is None
    assert world.actions_of("ramp")[-1] == ("Abort", Reason.ABORTED)


@pytest.mark.parametrize("how", ["orphaned", "kept by a finalizer"])
def test_what_a_deleted_model_leaves_behind_serves_full_depth(promoted: World, how: str) -> None:
    """Neither `--cascade=orphan` nor a finalizer keeps a policy that nobody promises any more."""
    world = promoted
    served = world.assignment["stable"]["digest"]
    assert served != DENSE.digest
    if how == "orphaned":
        world.delete("AdaptiveModel", "router")
    else:
        item = world.objects["AdaptiveModel", "router"]
        item["metadata"]["deletionTimestamp"] = "2026-11-22T12:01:00Z"
        world.touch(item)
    world.after(1).settle()
    assert world.assignment["stable"]["digest"] == DENSE.digest
    assert world.assignment["candidate"] is None
    [last] = [one for one in world.journal.decisions if one.action == Action.FALL_BACK]
    assert (last.reason, last.policy_digest) == (Reason.MODEL_GONE, served)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_the_departure_of_a_model_is_journaled_once_whatever_crashes(
    promoted: World, writes: int
) -> None:
    promoted.delete("AdaptiveModel", "router")
    promoted.after(1).look(crash_after=writes)
    promoted.after(1).settle()
    assert promoted.assignment["stable"]["digest"] == DENSE.digest
    actions = [one.action for one in promoted.journal.decisions]
    assert actions.count(Action.FALL_BACK) == 1 and Action.WITHDRAW not in actions


def test_a_model_that_was_deleted_and_left_its_canary_behind_does_not_take_it_up_again(
    world: World, good: Document
) -> None:
    """As with `kubectl delete --cascade=orphan`."""
    ramped(world, good)
    model = world.objects["AdaptiveModel", "router"]
    world.delete("AdaptiveModel", "router")
    world.settle()
    world.put("AdaptiveModel", "router", model["spec"])
    world.settle()
    assert world.assignment["candidate"] is None
    assert world.assignment["weightBasisPoints"] == 0
