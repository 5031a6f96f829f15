"""Objects come and go under one name: a decision is on one attempt, and ends with it."""

from __future__ import annotations

from typing import Any

from tests.operator.world import World

from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE

Document = dict[str, Any]
EVIL = {"exit": {"enabled": True, "thresholds": ["0", "0"]}}


def test_a_rollback_made_again_under_its_name_passes_the_gates_again(promoted: World) -> None:
    """Else a holder of `rollback` alone could put any document before everyone."""
    promoted.after(5).rollout(
        "back", policyDigest=DENSE.digest, type="Rollback", requestedBy="rob"
    )
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
    promoted.after(5).rollout(
        "back", policyDigest=DENSE.digest, type="Rollback", requestedBy="rob"
    )
    promoted.look(crash_after=1)
    assert promoted.assignment["rollout"] == "back"
    promoted.settle()
    assert promoted.actions_of("back") == [("RollBack", Reason.ROLLED_BACK_TO_STABLE)]
