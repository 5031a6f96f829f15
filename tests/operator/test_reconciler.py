"""One task a model: marks, failures, and models of which nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api.errors import Conflict, Unavailable
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.plan.actions import Place, Plan
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.reconcile import Reconciler
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
    def held(self) -> bool:
        return True


KEY = ("team", "router")


def running(gatherer: Script, writer: Nothing | None = None) -> Reconciler:
    parts: Any = (gatherer, writer or Nothing(), Held(), OperatorMetrics())
    reconciler = Reconciler(*parts)
    reconciler.start()
    return reconciler


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_many_marks_make_one_pass(world: Any) -> None:
    gatherer = Script(world, [])
    reconciler = running(gatherer)
    for _ in range(50):
        reconciler.mark(KEY)
    await until(lambda: gatherer.looks > 0)
    await asyncio.sleep(0.2)
    assert gatherer.looks <= 2 and reconciler.keys() == [KEY]
    await reconciler.stop()


@pytest.mark.parametrize("error", [Conflict("changed"), Unavailable("away"), KeyError("a defect")])
async def test_a_failed_pass_is_tried_again(world: Any, error: Exception) -> None:
    gatherer = Script(world, [error])
    reconciler = running(gatherer)
    reconciler.mark(KEY)
    await until(lambda: gatherer.looks >= 2)
    assert reconciler.alive()
    await reconciler.stop()


async def test_a_refused_object_is_looked_at_again_at_once_and_then_in_time(world: Any) -> None:
    world.model(engine={"threads": 4})  # so that the plan asks for the Deployment
    gatherer = Script(world, [])
    reconciler = running(gatherer, Nothing({("Deployment", "router"): "denied"}))
    reconciler.mark(KEY)
    await until(lambda: gatherer.looks >= 2)
    await asyncio.sleep(0.3)
    assert gatherer.looks == 2
    await reconciler.stop()


async def test_a_model_of_which_nothing_is_left_is_forgotten(world: Any) -> None:
    gone = ObservedState(namespace="team", name="router", settings=Settings())
    gatherer = Script(world, [gone])
    reconciler = running(gatherer)
    reconciler.mark(KEY)
    await until(lambda: gatherer.looks > 0 and reconciler.keys() == [])
    assert reconciler.alive()
    await reconciler.stop()
