"""An API server, or a proxy before it, that breaks off its answers: everything goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes import client

from trimwheel_api.errors import Unavailable
from trimwheel_api.kinds import AdaptivePolicy
from trimwheel_operator.app import App
from trimwheel_operator.cluster import KubeApi
from trimwheel_operator.informers import Informers, by_model
from trimwheel_operator.leader import Leader
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.plan.observed import Unreadable
from trimwheel_operator.raw import Parser
from trimwheel_operator.store import Store

LEASE = {"metadata": {"name": "x", "resourceVersion": "1"}, "spec": {"holderIdentity": "me"}}
WHOLE = json.dumps(LEASE).encode()


class Handler(BaseHTTPRequestHandler):
    """Promises a whole answer each time, and sends the next of a script."""

    script: list[bytes]
    seen: threading.Semaphore

    def do_GET(self) -> None:
        body = self.script.pop(0) if self.script else WHOLE
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(WHOLE)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True
        self.seen.release()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def breaking() -> Iterator[Callable[..., tuple[KubeApi, threading.Semaphore]]]:
    """An API whose first answers are given, with a count of the answers sent."""
    servers: list[ThreadingHTTPServer] = []

    def make(*script: bytes) -> tuple[KubeApi, threading.Semaphore]:
        seen = threading.Semaphore(0)
        handler = type("Scripted", (Handler,), {"script": list(script), "seen": seen})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
        settings.retries = False
        return KubeApi(client.ApiClient(settings)), seen

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


NO_JSON = b"<html>" + b" " * (len(WHOLE) - 6)


@pytest.mark.parametrize("body", [WHOLE[:10], NO_JSON], ids=["cut off", "no JSON"])
def test_a_broken_answer_is_unavailable(breaking: Any, body: bytes) -> None:
    api, _ = breaking(body)
    with pytest.raises(Unavailable):
        api.find("/apis/x")
    assert api.find("/apis/x") == LEASE


@pytest.mark.parametrize("body", [WHOLE[:10], NO_JSON], ids=["cut off", "no JSON"])
def test_a_broken_watch_is_unavailable(breaking: Any, body: bytes) -> None:
    api, _ = breaking(body[:-1] + b"\n")
    with pytest.raises(Unavailable):
        list(api.watch("/apis/x", "", "1"))


DEEP = b'{"a":' * 1_200 + b"1" + b"}" * 1_200
"""2.4 KB of one tenant, and the managedFields that the API server makes of them."""


def deep_policy() -> bytes:
    metadata = b'{"name":"deep","namespace":"evil","uid":"d","managedFields":' + DEEP
    return b'{"metadata":' + metadata + b'},"spec":{"model":"router","policy":' + DEEP + b"}}"


@pytest.fixture
def whole_answers(monkeypatch: pytest.MonkeyPatch, breaking: Any) -> Callable[[bytes], KubeApi]:
    """An API that answers with this, however long it is."""

    def make(body: bytes) -> KubeApi:
        monkeypatch.setitem(globals(), "WHOLE", body)
        made: KubeApi = breaking()[0]
        return made

    return make


def test_an_object_that_is_too_deep_ends_neither_the_list_nor_the_watch_of_the_others(
    whole_answers: Any,
) -> None:
    other = b'{"metadata":{"name":"p","namespace":"team","uid":"u"},"spec":{"model":"router"}}'
    items = b'{"metadata":{"resourceVersion":"7"},"items":[' + deep_policy() + b"," + other + b"]}"
    found, version = whole_answers(items).list("/apis/x")
    assert version == "7"
    assert found[1] == json.loads(other)
    line = b'{"type":"ADDED","object":%s}\n'
    changes = list(whole_answers(line % deep_policy() + line % other).watch("/apis/x", "", "1"))
    assert [one["metadata"]["name"] for _, one in changes] == ["deep", "p"]
    assert changes[1][1] == json.loads(other)
    store = Store()
    store.add_kind("AdaptivePolicy", by_model)
    for item in (found[0], changes[0][1]):
        store.put("AdaptivePolicy", item)
        [entry] = store.of_group("AdaptivePolicy", ("evil", "router"))
        parser = Parser()
        assert parser.parse(AdaptivePolicy, entry) is None
        assert parser.failed == [Unreadable("AdaptivePolicy", "deep", "d")]


def test_a_broken_answer_does_not_end_the_leadership(breaking: Any) -> None:
    api, seen = breaking(WHOLE, WHOLE, WHOLE[:10], NO_JSON)
    leader = Leader(api, "ns", "me", 1.0)
    leader.start()
    for _ in range(8):
        assert seen.acquire(timeout=20)
    assert leader.alive()
    leader.stop()


class Part:
    ok = True

    def alive(self) -> bool:
        return self.ok

    def held(self) -> bool:
        return True

    def missing(self) -> list[str]:
        return []


def test_health_tells_of_every_part_that_ended() -> None:
    reconciler, informers, leader, watch = Part(), Part(), Part(), Part()
    parts: Any = (reconciler, informers, leader, OperatorMetrics(), watch)
    app = App(*parts)
    assert app.health() == "leading"
    for part, name in (
        (reconciler, "worker"), (informers, "watch"), (leader, "leader"), (watch, "admission"),
    ):  # fmt: skip
        part.ok = False
        with pytest.raises(RuntimeError, match=name):
            app.health()
        part.ok = True


def test_health_names_the_kinds_that_were_never_listed() -> None:
    class Waiting(Part):
        def missing(self) -> list[str]:
            return ["Pod"]

    parts: Any = (Part(), Waiting(), Part(), OperatorMetrics(), Part())
    app = App(*parts)
    assert app.health() == "waiting for lists of Pod"


def test_watches_are_alive_once_they_run() -> None:
    class Idle:
        def list(self, *_: Any, **__: Any) -> Any:
            raise KeyError("metadata")

    nothing: Any = lambda *_: None  # noqa: E731
    idle: Any = Idle()
    informers = Informers(idle, Store(), "ns", nothing, nothing)
    assert not informers.alive()
    informers.start()
    assert informers.alive()
    informers.stop()
