"""Objects that do not parse, as an older or newer CRD may leave them: there, and left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trimwheel_operator.gather import Gatherer, Memory
from trimwheel_operator.plan import plan
from trimwheel_operator.plan.actions import DeleteJob, PatchStatus, WriteAssignment
from trimwheel_operator.plan.observed import ObservedState, Unreadable
from trimwheel_operator.reconcile import is_gone
from trimwheel_operator.settings import Settings

World = Any
Document = dict[str, Any]


def ramped(world: World, good: Document) -> World:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(16)
    return world.settle()


@pytest.mark.parametrize("kind", ["AdaptiveModel", "PolicyAssignment"])
def test_while_the_model_cannot_be_read_nothing_is_decided(
    world: World, good: Document, kind: str
) -> None:
    """Its rollouts are not orphans, and its assignment is not made anew."""
    state = ramped(world, good).observe()
    gone = {"model": None} if kind == "AdaptiveModel" else {"assignment": None}
    unreadable = (Unreadable(kind, "router", "u"),)
    assert plan(replace(state, **gone, unreadable=unreadable), world.now).actions == ()
    assert plan(replace(state, **gone), world.now).actions != ()


def test_a_rollout_that_cannot_be_read_keeps_its_candidate(world: World, good: Document) -> None:
    state = ramped(world, good).observe()
    lost = replace(state, rollouts=(), evidence=None, last_renewal=world.now)
    unreadable = (Unreadable("PolicyRollout", "ramp", "u"),)

    def taken(one: ObservedState) -> bool:
        return any(isinstance(action, WriteAssignment) for action in plan(one, world.now).actions)

    assert taken(lost) and not taken(replace(lost, unreadable=unreadable))


def test_a_run_that_cannot_be_read_keeps_its_job(world: World) -> None:
    world.tuning("t")
    world.settle()
    [run] = world.observe().runs
    lost = replace(world.observe(), runs=())
    known = replace(lost, unreadable=(Unreadable("TuningRun", "t", run.metadata.uid),))
    for state, deleted in ((lost, 1), (known, 0)):
        actions = plan(state, world.now).actions
        assert sum(isinstance(one, DeleteJob) for one in actions) == deleted
        assert not any(isinstance(one, PatchStatus) for one in actions if deleted == 0)


def test_a_model_of_which_something_is_left_that_cannot_be_read_is_not_forgotten() -> None:
    left = (Unreadable("AdaptiveModel", "router", "u"),)
    assert not is_gone(ObservedState("team", "router", Settings(), unreadable=left))
    assert is_gone(ObservedState("team", "router", Settings()))


def test_the_gatherer_says_what_it_could_not_read(started: Any, world: World) -> None:
    """A TuningRun of a later version, with a field that this one does not know."""
    run = {
        "metadata": {"name": "t", "namespace": "team", "uid": "u-t"},
        "spec": {"model": "router", "colour": "red"},
    }

    class Api:
        def find(self, path: str) -> Any:
            return None

        def list(self, path: str, labels: str = "") -> Any:
            return ([run] if path.endswith("/tuningruns") else []), "1"

    parts: Any = {"api": Api(), "admission": None, "evidence": None, "settings": Settings()}
    state = Gatherer(**parts).gather("team", "router", Memory(), world.now)
    assert state.unreadable == (Unreadable("TuningRun", "t", "u-t"),)
    assert state.runs == ()
