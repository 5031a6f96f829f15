"""Fixtures of the operator's tests: a small world in several states, and two policies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.operator.world import START, World

from trimwheel_api.policy import Policy
from trimwheel_api.times import to_micro

GOOD = {"exit": {"enabled": True, "thresholds": ["0.9", "0.95"]}}
OTHER = {"exit": {"enabled": True, "thresholds": ["0.8", "0.9"]}}


@pytest.fixture
def world() -> World:
    """A model that serves full depth, and nothing else."""
    made = World()
    made.model()
    return made.settle()


@pytest.fixture
def promoted(world: World) -> World:
    """A model whose policy `good` was certified, rolled out and approved."""
    return promote(world)


@pytest.fixture
def promote_policy() -> Callable[..., World]:
    return promote


@pytest.fixture
def new_world() -> Callable[[], World]:
    """For property tests, which need one for each example."""

    def make() -> World:
        made = World()
        made.model()
        return made.settle()

    return make


@pytest.fixture
def digest_of() -> Callable[[dict[str, Any]], str]:
    return lambda document: Policy.model_validate(document).digest


@pytest.fixture
def good() -> dict[str, Any]:
    return copy.deepcopy(GOOD)


@pytest.fixture
def other() -> dict[str, Any]:
    return copy.deepcopy(OTHER)


@pytest.fixture
def started(world: Any, good: dict[str, Any]) -> Any:
    """An active rollout that began at START."""
    world.now = START
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.settle()
    rollout = world.observe().rollouts[0]
    effective = rollout.status.effective.model_copy(update={"started_at": to_micro(START)})
    status = rollout.status.model_copy(
        update={"effective": effective, "step_started_at": to_micro(START + timedelta(seconds=30))}
    )
    return rollout.model_copy(update={"status": status})


def promote(
    world: World, name: str = "good", document: dict[str, Any] | None = None, **spec: Any
) -> World:
    """Take a policy all the way."""
    if ("AdaptivePolicy", name) not in world.objects:
        world.policy(name, document or GOOD)
    world.rollout(f"to-{name}", name, **spec)
    world.guards("Pass")
    for _ in range(4):
        world.settle().after(16)
    world.settle()
    world.after(2).approve(f"to-{name}")
    return world.settle()
