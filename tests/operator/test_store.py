"""What the store believes when lists, watches and our own writes disagree."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.fake_api import Clock

from trimwheel_operator.informers import by_model
from trimwheel_operator.store import Store

KIND = "PolicyRollout"


def item(name: str, version: int, uid: str = "", **spec: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "team", "name": name, "uid": uid or f"u-{name}",
        "resourceVersion": str(version),
    }  # fmt: skip
    return {"metadata": metadata, "spec": {"model": "router", **spec}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    made = Store(clock)
    made.add_kind(KIND, by_model)
    return made


def version(store: Store, name: str = "a") -> int | None:
    entry = store.find(KIND, "team", name)
    return entry.version if entry else None


def test_of_two_versions_of_an_object_the_newer_stays(store: Store) -> None:
    assert store.put(KIND, item("a", 5))
    for old in (4, 5):
        assert not store.put(KIND, item("a", old))
    assert store.put(KIND, item("a", 6)) and version(store) == 6


def test_an_object_that_is_gone_does_not_come_back_by_a_watch_that_repeats_itself(
    store: Store,
) -> None:
    store.put(KIND, item("a", 5))
    assert store.remove(KIND, item("a", 6))
    assert not store.put(KIND, item("a", 5)) and version(store) is None
    assert store.put(KIND, item("a", 7, uid="another")), "one made anew has another uid"
    assert not store.remove(KIND, item("a", 6)), "nor does its end take the new one away"
    assert version(store) == 7


def test_a_list_overrules_what_was_known_before_it_was_asked_for(
    store: Store, clock: Clock
) -> None:
    """An etcd that was restored: older versions, objects that are gone, objects that are back."""
    store.put(KIND, item("a", 50))
    store.put(KIND, item("b", 51))
    store.put(KIND, item("c", 52))
    store.remove(KIND, item("c", 53))
    began = clock.now = clock.now + 1
    clock.now += 1
    changed = store.replace(KIND, [item("a", 5), item("c", 6)], began)
    assert (version(store, "a"), version(store, "b"), version(store, "c")) == (5, None, 6)
    assert [one["metadata"]["name"] for one in changed] == ["a", "c", "b"]


def test_what_came_in_while_a_list_was_under_way_stays(store: Store, clock: Clock) -> None:
    store.put(KIND, item("a", 5))
    store.put(KIND, item("gone", 5))
    began = clock.now = clock.now + 1
    clock.now += 1
    store.put(KIND, item("a", 9))  # our own write
    store.put(KIND, item("new", 10))
    store.remove(KIND, item("gone", 11))
    assert store.replace(KIND, [item("a", 5), item("gone", 5)], began) == []
    assert (version(store), version(store, "new"), version(store, "gone")) == (9, 10, None)


def test_a_list_without_news_changes_nothing(store: Store, clock: Clock) -> None:
    store.put(KIND, item("a", 5))
    clock.now += 1
    entry = store.find(KIND, "team", "a")
    assert store.replace(KIND, [item("a", 5)], clock.now) == []
    assert store.find(KIND, "team", "a") is entry, "what a reader noted of it is kept"


def test_objects_are_found_by_their_model_and_leave_nothing_behind(store: Store) -> None:
    store.put(KIND, item("b", 1))
    store.put(KIND, item("a", 2))
    store.put(KIND, item("x", 3, model="other"))
    names = [one.item["metadata"]["name"] for one in store.of_group(KIND, ("team", "router"))]
    assert names == ["a", "b"]
    store.remove(KIND, item("x", 4, model="other"))
    assert store.groups(KIND) == [("team", "router")]
    assert store.of_group(KIND, ("team", "other")) == []


def test_managed_fields_are_kept_of_those_kinds_only_that_are_dated_by_them(store: Store) -> None:
    store.add_kind("PolicyAssignment", by_model, keep_managers=True)
    for kind, kept in ((KIND, False), ("PolicyAssignment", True)):
        one = item("m", 1)
        one["metadata"]["managedFields"] = [{"manager": "kubectl"}]
        store.put(kind, one)
        entry = store.find(kind, "team", "m")
        assert entry is not None
        assert ("managedFields" in entry.item["metadata"]) is kept
