"""What the gatherer keeps between looks, and what it asks for anew."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.operator.world import START

from trimwheel_api import names
from trimwheel_api.kinds import dump
from trimwheel_operator.cluster import path_of
from trimwheel_operator.gather import Gatherer, Memory
from trimwheel_operator.informers import watched
from trimwheel_operator.plan.observed import UNCHECKED, Evidence
from trimwheel_operator.raw import acknowledgement
from trimwheel_operator.settings import Settings
from trimwheel_operator.store import Store


class Reader:
    """Evidence of 5000 requests, of which the gatherer may ask when it likes."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def read(self, rollout: Any, workers: int, now: Any) -> Evidence:
        self.asked.append(rollout.status.step_started_at)
        return Evidence(rollout.metadata.uid, (), 5000, rollout.status.step_started_at)


def test_evidence_is_kept_for_half_a_scrape_but_not_for_the_next_step(started: Any) -> None:
    """Else the requests of one step would count for the next one as well."""
    reader: Any = Reader()
    parts: Any = {
        "api": None,
        "store": None,
        "admission": None,
        "evidence": reader,
        "settings": Settings(),
    }
    gatherer, memory = Gatherer(**parts), Memory()
    after = started.status.model_copy(update={"step": 1, "step_started_at": "2026-11-22T12:09:00Z"})
    next_step = started.model_copy(update={"status": after})
    first, second = started.status.step_started_at, "2026-11-22T12:09:00Z"
    for rollout, seconds, asked in (
        (started, 0.0, [first]),
        (started, 0.1, [first]),
        (next_step, 0.2, [first, second]),
        (next_step, 0.3, [first, second]),
        (next_step, 9.0, [first, second, second]),
    ):
        gatherer._evidence([rollout], 2, memory, START + timedelta(seconds=seconds))
        assert reader.asked == asked


def test_a_pass_that_may_go_back_does_not_wait_for_prometheus(started: Any) -> None:
    reader: Any = Reader()
    parts: Any = {"api": None, "store": None, "admission": None, "evidence": reader}
    gatherer, memory = Gatherer(**parts, settings=Settings()), Memory()
    assert gatherer._evidence([started], 2, memory, START, going_back=True) is None
    assert reader.asked == []
    assert gatherer._evidence([started], 2, memory, START) is not None


class Server:
    """An API server that has these objects, of which no watch has told yet."""

    def __init__(self, *objects: Any) -> None:
        self.items = {}
        for one in objects:
            metadata = one.metadata
            path = path_of(type(one).__name__, metadata.namespace, metadata.name)
            self.items[path] = dump(one)
        self.asked: list[str] = []

    def find(self, path: str) -> Any:
        self.asked.append(path)
        return self.items.get(path)


def gatherer_of(server: Server, *known: Any) -> Gatherer:
    store = Store()
    for target in watched("trimwheel-system"):
        store.add_kind(target.kind, target.group)
    for one in known:
        store.put(type(one).__name__, dump(one))

    class NoTest:
        def notes_since(self) -> Any:
            return START

        def held_since(self) -> Any:
            return None

        def check(self, *_: Any, **__: Any) -> Any:
            return UNCHECKED

    parts: Any = {"api": server, "store": store, "admission": NoTest(), "evidence": None}
    return Gatherer(**parts, settings=Settings())


def test_a_policy_that_was_made_before_its_rollout_is_not_missing(world: Any, good: Any) -> None:
    """Each kind has a watch of its own: the rollout's may be the faster one."""
    world.policy("good", good)
    world.rollout("ramp", "good")
    state = world.observe()
    server = Server(*state.policies)
    gatherer = gatherer_of(server, state.model, *state.rollouts)
    found = gatherer.gather("team", "router", Memory(), world.now)
    assert [one.name for one in found.policies] == ["good"]


def test_a_rollout_that_was_refused_once_asks_for_its_policy_no_more(world: Any, good: Any) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    state = world.observe()
    [ramp] = state.rollouts
    refused = ramp.model_copy(
        update={"status": ramp.status.model_copy(update={"phase": "Stalled"})}
    )
    server = Server()
    gatherer_of(server, state.model, refused).gather("team", "router", Memory(), world.now)
    assert not any("adaptivepolicies" in path for path in server.asked)


def test_that_a_model_is_not_there_is_asked_of_the_api_server(world: Any) -> None:
    """Its Jobs are stopped by it: a watch that lags must not."""
    world.tuning("t")
    state = world.observe()
    server = Server(state.model)
    found = gatherer_of(server, *state.runs).gather("team", "router", Memory(), world.now)
    assert found.model is not None and found.runs


class Broken(Reader):
    """Evidence of rules that cannot be judged: what a value beyond its range does."""

    def read(self, rollout: Any, workers: int, now: Any) -> Evidence:
        raise ZeroDivisionError("float division by zero")


def test_evidence_that_cannot_be_judged_is_none_and_the_look_goes_on(started: Any) -> None:
    """It ended every pass, and with it the answer to harm."""
    parts: Any = {"api": None, "store": None, "admission": None, "evidence": Broken()}
    gatherer, memory = Gatherer(**parts, settings=Settings()), Memory()
    assert gatherer._evidence([started], 2, memory, START) is None
    assert memory.failure is not None
    assert (memory.failure.rule, memory.failure.about) == ("evidence", "ramp")


def test_an_acknowledgement_that_says_nothing_ends_no_look() -> None:
    """Python reads no integer of more than 4,300 digits; a worker's Lease is its pod's to write."""
    for epoch in ("9" * 5000, "-1", "1.5", "", "nan"):
        lease = {
            "metadata": {"name": "router-0", "annotations": {names.ANNOTATION_EPOCH: epoch}},
            "spec": {"renewTime": "2026-11-22T12:00:00.000000Z"},
        }
        assert acknowledgement(lease) is None
