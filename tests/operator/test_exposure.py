"""What shows a policy to more people rests on a fresh read; what takes it away never waits."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.operator.world import World

from trimwheel_api.errors import Conflict, Unavailable
from trimwheel_api.kinds import dump
from trimwheel_operator.cluster import path_of
from trimwheel_operator.gather import Gatherer
from trimwheel_operator.plan import plan
from trimwheel_operator.plan.exposure import exposes
from trimwheel_operator.settings import Settings
from trimwheel_operator.store import Store

Document = dict[str, Any]


def exposing(world: World) -> bool:
    state = world.observe()
    return exposes(plan(state, world.now), state)


def test_a_start_a_step_and_a_promotion_expose(world: World, good: Document) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.after(0.001).look()  # frozen
    assert exposing(world.after(0.001)), "the candidate becomes resident"
    world.guards("Pass")
    world.settle().after(16)
    assert exposing(world), "the first step with weight"
    for _ in range(3):
        world.settle().after(16)
    world.settle().after(2).approve("ramp")
    assert exposing(world.after(1)), "everyone is served it"


def test_renewals_rollbacks_and_harm_do_not(promoted: World, other: Document) -> None:
    promoted.policy("other", other)
    promoted.rollout("ramp", "other")
    promoted.guards("Pass")
    promoted.settle().after(16)
    promoted.settle()
    assert promoted.assignment["weightBasisPoints"] > 0
    lease = promoted.assignment["leaseSeconds"]
    promoted.last_renewal = promoted.now - timedelta(seconds=lease)
    assert plan(promoted.observe(), promoted.now).actions and not exposing(promoted), "a renewal"
    promoted.guards("Pass", errors="Fail")
    assert not exposing(promoted.after(1)), "a guard failed"
    promoted.settle()
    promoted.tuning("t")
    promoted.report_drift("t", "Harmful")
    assert not exposing(promoted.after(1)), "full depth after harm"


@pytest.fixture
def state(started: Any, world: World) -> Any:
    return replace(world.observe(), rollouts=(started,))


def gatherer(state: Any, stale: list[str], **changes: str) -> Gatherer:
    """One whose API server has everything as observed, but for what `changes` say."""

    class Api:
        def find(self, path: str) -> Any:
            return found.get(path)

    found = {}
    for one in (state.model, *state.rollouts, *state.policies):
        item, kind = dump(one), type(one).__name__
        item["metadata"] |= {"resourceVersion": changes.get(kind, one.metadata.resource_version)}
        if changes.get(kind) != "":
            found[path_of(kind, one.metadata.namespace, one.name)] = item
    parts: Any = {"api": Api(), "store": Store(), "admission": None, "evidence": None}
    return Gatherer(**parts, settings=Settings(), stale=lambda: stale)


def test_what_is_as_observed_is_confirmed(state: Any) -> None:
    gatherer(state, []).confirm(state)


@pytest.mark.parametrize("version", ["999", ""], ids=["changed", "gone"])
@pytest.mark.parametrize("kind", ["AdaptiveModel", "PolicyRollout", "AdaptivePolicy"])
def test_what_is_not_is_gathered_again(state: Any, kind: str, version: str) -> None:
    with pytest.raises(Conflict, match=kind):
        gatherer(state, [], **{kind: version}).confirm(state)


def test_without_news_for_long_nothing_is_exposed(state: Any) -> None:
    with pytest.raises(Unavailable, match="no news of PolicyApproval"):
        gatherer(state, ["PolicyApproval"]).confirm(state)
