"""Passes of models: marks, failures, and models of which nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from trimwheel_api.errors import Conflict, Unavailable
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.plan.actions import Place, Plan
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.reconcile import Reconciler
from trimwheel_operator.schedule import FairQueue
from trimwheel_operator.settings import Settings


class Script:
    """A gatherer that answers each look with the next of a list."""

    def __init__(self, world: Any, answers: list[Any]) -> None:
        self.world, self.answers, self.looks = world, answers, 0

    def gather(self, *_: Any) -> ObservedState:
        self.looks += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        state: ObservedState = answer or self.world.observe()
        return state


class Nothing:
    """A writer that writes nothing; `refuses` says which worker objects are refused."""

    def __init__(self, refuses: dict[Place, str] | None = None) -> None:
        self.refuses = refuses or {}

    def carry_out(self, plan: Plan) -> dict[Place, str]:
        del plan
        return self.refuses


class Held:
    holds = True

    def held(self) -> bool:
        return self.holds


KEY = ("team", "router")


@pytest.fixture
def running() -> Iterator[Callable[..., Reconciler]]:
    started: list[Reconciler] = []

    def start(gatherer: Script, writer: Nothing | None = None, leader: Any = None) -> Reconciler:
        parts: Any = (gatherer, writer or Nothing(), leader or Held(), OperatorMetrics())
        reconciler = Reconciler(*parts, FairQueue(2))
        reconciler.start()
        started.append(reconciler)
        return reconciler

    yield start
    for one in started:
        one.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_marks_make_one_pass(world: Any, running: Any) -> None:
    gatherer = Script(world, [])
    reconciler = running(gatherer)
    for _ in range(50):
        reconciler.mark(KEY)
    until(lambda: gatherer.looks > 0)
    time.sleep(0.2)
    assert gatherer.looks <= 2 and reconciler.keys() == [KEY]


@pytest.mark.parametrize("error", [Conflict("changed"), Unavailable("away"), KeyError("a defect")])
def test_a_failed_pass_is_tried_again(world: Any, running: Any, error: Exception) -> None:
    gatherer = Script(world, [error])
    reconciler = running(gatherer)
    reconciler.mark(KEY)
    until(lambda: gatherer.looks >= 2)
    assert reconciler.alive()


def test_a_refused_object_is_looked_at_again_at_once_and_then_in_time(
    world: Any, running: Any
) -> None:
    world.model(engine={"threads": 4})  # so that the plan asks for the Deployment
    gatherer = Script(world, [])
    reconciler = running(gatherer, Nothing({("Deployment", "router"): "denied"}))
    reconciler.mark(KEY)
    until(lambda: gatherer.looks >= 2)
    time.sleep(0.3)
    assert gatherer.looks == 2


def test_a_model_of_which_nothing_is_left_is_forgotten(world: Any, running: Any) -> None:
    gone = ObservedState(namespace="team", name="router", settings=Settings())
    gatherer = Script(world, [gone])
    reconciler = running(gatherer)
    reconciler.mark(KEY)
    until(lambda: gatherer.looks > 0 and reconciler.keys() == [])
    assert reconciler.alive()


def test_who_does_not_lead_looks_at_nothing_and_shows_nothing(world: Any, running: Any) -> None:
    """Gauges of an operator that stands by would keep the alerts of another time firing."""
    gatherer, leader = Script(world, []), Held()
    reconciler = running(gatherer, leader=leader)
    reconciler.mark(KEY)
    until(lambda: reconciler.keys() == [KEY])
    leader.holds = False
    until(lambda: reconciler.keys() == [])
    looks = gatherer.looks
    reconciler.mark(KEY)
    time.sleep(0.7)
    assert gatherer.looks == looks
    leader.holds = True
    until(lambda: gatherer.looks > looks)


def test_gauges_end_with_the_model_though_objects_that_name_it_are_left(
    promoted: Any, running: Any
) -> None:
    """A model deleted without its dependents: its alerts must not go on."""
    gatherer = Script(promoted, [])
    reconciler = running(gatherer)
    registry = reconciler._metrics.registry

    def shown() -> bool:
        return 'model="router"' in generate_latest(registry).decode()

    reconciler.mark(KEY)
    until(shown)
    promoted.delete("AdaptiveModel", "router")
    until(lambda: gatherer.looks >= 1)
    reconciler.mark(KEY)
    until(lambda: not shown())
    assert promoted.observe().policies, "something is left"


def test_a_rule_that_raises_is_logged_and_counted(
    world: Any, running: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def set_lease(*_: Any) -> None:
        raise OverflowError("date value out of range")

    monkeypatch.setattr("trimwheel_operator.plan.models.set_lease", set_lease)
    reconciler = running(Script(world, []))
    reconciler.mark(KEY)
    counted = 'trimwheel_rule_failures_total{rule="set_lease"} 1.0'
    until(lambda: counted in generate_latest(reconciler._metrics.registry).decode())
    assert "team/router: rule set_lease raised OverflowError" in caplog.text
