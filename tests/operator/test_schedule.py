"""Whose turn it is: urgent first, namespaces in turn, and workers left for what is urgent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.fake_api import Clock

from trimwheel_operator.schedule import FairQueue, Key, Lane


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(queue: FairQueue, count: int = 100) -> list[Key]:
    """What idle workers get, without giving anything back."""
    found = []
    for _ in range(count):
        one = queue.take(0)
        if one is None:
            break
        found.append(one[0])
    return found


def served(queue: FairQueue, count: int = 10_000) -> list[Key]:
    """What one worker does, one after another."""
    found = []
    for _ in range(count):
        one = queue.take(0)
        if one is None:
            break
        found.append(one[0])
        queue.done(one[0], None)
    return found


def test_namespaces_take_turns_however_many_models_one_has(clock: Clock) -> None:
    queue = FairQueue(1, clock)
    for number in range(5000):
        queue.mark(("crowd", f"m{number}"))
    queue.mark(("team", "router"))
    queue.mark(("shop", "ads"))
    assert set(served(queue, 3)) == {("crowd", "m0"), ("team", "router"), ("shop", "ads")}


def test_what_is_urgent_comes_before_everything_else_and_in_turns_too(clock: Clock) -> None:
    queue = FairQueue(1, clock)
    for number in range(5000):
        queue.mark(("crowd", f"m{number}"), Lane.URGENT if number < 100 else Lane.NORMAL)
    queue.mark(("team", "router"), Lane.URGENT)
    assert ("team", "router") in served(queue, 2)


def test_a_mark_that_is_urgent_overtakes_the_same_keys_normal_one(clock: Clock) -> None:
    queue = FairQueue(1, clock)
    queue.mark(("a", "m"))
    queue.mark(("b", "m"))
    queue.mark(("b", "m"), Lane.URGENT)
    assert served(queue) == [("b", "m"), ("a", "m")]


def test_a_namespace_and_the_lower_lanes_leave_workers_free(clock: Clock) -> None:
    queue = FairQueue(16, clock)
    for number in range(100):
        queue.mark(("crowd", f"m{number}"))
        queue.mark((f"n{number}", "m"))
        queue.mark((f"o{number}", "m"), Lane.ORPHAN)
    found = taken(queue)
    assert sum(key[0] == "crowd" for key in found) <= 4
    assert len(found) == 8, "half of the workers are for candidates and what is urgent"
    for number in range(100):
        queue.mark(("other", f"m{number}"), Lane.URGENT)
    assert len(taken(queue)) == 8, "and half of those for others than one namespace"


def test_orphans_get_one_worker(clock: Clock) -> None:
    queue = FairQueue(16, clock)
    for number in range(100):
        queue.mark((f"o{number}", "m"), Lane.ORPHAN)
    assert len(taken(queue)) == 1


def test_a_key_is_with_one_worker_and_marks_meanwhile_make_one_more_pass(clock: Clock) -> None:
    queue = FairQueue(4, clock)
    key = ("team", "router")
    queue.mark(key)
    assert taken(queue) == [key]
    for _ in range(5):
        queue.mark(key)
    assert taken(queue) == []
    queue.done(key, 30.0)
    assert served(queue) == [key]
    assert served(queue) == []


def test_the_next_look_comes_in_time(clock: Clock) -> None:
    queue = FairQueue(4, clock)
    key = ("team", "router")
    queue.mark(key)
    queue.take(0)
    queue.done(key, 30.0, Lane.ACTIVE)
    clock.now += 29.0
    assert queue.take(0) is None
    clock.now += 1.0
    assert queue.take(0) == (key, Lane.ACTIVE)


@pytest.mark.parametrize(("lane", "waits"), [(Lane.NORMAL, True), (Lane.URGENT, False)])
def test_a_model_whose_passes_are_long_is_looked_at_half_of_the_time_but_for_what_is_urgent(
    clock: Clock, lane: Lane, waits: bool
) -> None:
    queue = FairQueue(4, clock)
    key = ("team", "router")
    queue.mark(key)
    queue.take(0)
    queue.done(key, 30.0, spent=1.5)
    queue.mark(key, lane)
    assert (queue.take(0) is None) is waits
    clock.now += 1.5
    assert not waits or queue.take(0) == (key, lane)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from(list(Lane))),
        max_size=40,
    )
)
def test_every_marked_key_is_served_once_and_none_is_lost(
    marks: list[tuple[str, str, Lane]],
) -> None:
    queue = FairQueue(3, Clock())
    for namespace, name, lane in marks:
        queue.mark((namespace, name), lane)
    found = served(queue)
    assert sorted(found) == sorted({(namespace, name) for namespace, name, _ in marks})
