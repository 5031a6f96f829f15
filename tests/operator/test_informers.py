"""Lists and watches that keep the store, and what happens when a watch goes silent or ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trimwheel_api.errors import Conflict, Unavailable
from trimwheel_operator.informers import Informer, Informers, Watched, by_model
from trimwheel_operator.store import Store

KIND = "PolicyRollout"


def item(name: str, version: int) -> dict[str, Any]:
    metadata = {
        "namespace": "team", "name": name, "uid": f"u-{name}", "resourceVersion": str(version),
    }  # fmt: skip
    return {"metadata": metadata, "spec": {"model": "router"}}


class Server:
    """Lists what it has; its watches say what a test puts into their script, then end or hang."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.version = "10"
        self.failure: Exception | None = None
        self.script: list[Any] = []
        self.streams: list[str] = []
        self.lists = 0
        self.silent = threading.Event()

    def list(self, path: str, labels: str = "") -> Any:
        self.lists += 1
        if self.failure:
            raise self.failure
        mine = self.items if path.endswith("/policyrollouts") else []
        return list(mine), self.version

    def watch(self, path: str, labels: str, version: str) -> Iterator[Any]:
        self.streams.append(version)
        while self.script:
            said = self.script.pop(0)
            if isinstance(said, Exception):
                raise said
            yield said
        self.silent.wait(0.05)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def informer(server: Server, told: list[str]) -> Informer:
    api: Any = server
    return Informer(
        api, Store(), Watched(KIND, by_model), lambda _, one: told.append(one["metadata"]["name"])
    )


def test_a_list_then_what_the_watch_tells_and_nothing_twice(
    server: Server, informer: Informer, told: list[str]
) -> None:
    server.items = [item("a", 9)]
    server.script = [
        ("ADDED", item("b", 11)), ("MODIFIED", item("a", 12)), ("BOOKMARK", {}),
        ("MODIFIED", item("a", 12)), ("DELETED", item("b", 13)), ("ADDED", item("b", 11)),
    ]  # fmt: skip
    informer.list()
    informer.follow()
    assert told == ["a", "b", "a", "b"]
    assert informer._store.find(KIND, "team", "b") is None


def test_each_stream_starts_from_the_newest_list_never_from_the_stream_before(
    server: Server, informer: Informer
) -> None:
    """A watch from a version that a restored server has yet to reach is silent for ever."""
    informer.list()
    server.script = [("ADDED", item("a", 900))]
    informer.follow()
    server.items, server.version = [item("a", 4)], "5"  # restored from a backup
    informer.list()
    assert informer.went_back
    entry = informer._store.find(KIND, "team", "a")
    assert entry is not None and entry.version == 4
    informer.follow()
    assert server.streams == ["10", "5"] and not informer.went_back


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def all_of(server: Server) -> Iterator[Callable[..., Informers]]:
    started: list[Informers] = []

    def start(synced: Callable[[], None] = lambda: None, **options: Any) -> Informers:
        api: Any = server
        made = Informers(
            api, Store(), "trimwheel-system", changed=lambda *_: None, synced=synced, **options
        )
        started.append(made)
        made.start()
        return made

    yield start
    for one in started:
        one.stop()
    server.silent.set()


def test_a_silent_watch_is_found_by_the_list_that_comes_every_minute(
    server: Server, all_of: Any
) -> None:
    informers = all_of(relist_seconds=0.2)
    until(lambda: informers.missing() == [])
    server.items = [item("unheard", 11)]  # no watch says so
    store = informers.informers[0]._store
    until(lambda: store.find(KIND, "team", "unheard") is not None)
    server.items = []
    until(lambda: store.find(KIND, "team", "unheard") is None)


def test_everything_is_said_to_be_listed_once_and_only_then(server: Server, all_of: Any) -> None:
    said: list[int] = []
    server.failure = Unavailable("away")
    informers = all_of(lambda: said.append(1), relist_seconds=0.2)
    time.sleep(0.3)
    assert said == [] and len(informers.missing()) == len(informers.informers)
    server.failure = None
    until(lambda: said == [1])
    time.sleep(0.3)
    assert said == [1] and informers.missing() == []


@pytest.mark.parametrize("error", [Conflict("410 too old"), Unavailable("away"), KeyError("odd")])
def test_a_watch_that_fails_is_begun_again_with_a_list(
    server: Server, all_of: Any, error: Exception
) -> None:
    server.script = [error]
    informers = all_of()
    lists = len(informers.informers) + 1
    until(lambda: server.lists >= lists)
    assert informers.alive()


def test_kinds_of_which_nothing_was_heard_for_long_are_stale(
    server: Server, all_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    informers = all_of()
    until(lambda: informers.missing() == [])
    assert informers.stale() == []
    monkeypatch.setattr("trimwheel_operator.informers.STALE_SECONDS", -1.0)
    assert "PolicyRollout" in informers.stale() and "Pod" not in informers.stale()
