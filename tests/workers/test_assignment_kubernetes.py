"""The Kubernetes source and the Lease against an HTTP server that speaks the API server's part.

The client library, its sockets and its credentials are real; only the server is small, so that it
can misbehave on command. The same code runs against a real API server in the cluster tests.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from trimwheel_api import names
from trimwheel_api.errors import Refused, Unavailable
from trimwheel_api.policy import DENSE
from trimwheel_workers.assignment.acknowledger import LeaseAcknowledger, Pod, manifest
from trimwheel_workers.assignment.kubernetes_source import KubernetesSource
from trimwheel_workers.assignment.loop import Acknowledgement
from trimwheel_workers.assignment.source import Event, Gone, Seen, Unreachable


def stored(epoch: int, uid: str = "u1", **spec: Any) -> dict[str, Any]:
    policy = {"digest": DENSE.digest, "document": "{}"}
    return {
        "metadata": {"name": "m", "uid": uid, "resourceVersion": str(epoch * 10)},
        "spec": {"epoch": epoch, "stable": policy, **spec},
    }


class Api(ThreadingHTTPServer):
    """One object; each watch plays the next list of events, then ends or stays silent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.object: dict[str, Any] | None = stored(1)
        self.status = 200
        self.watches: list[list[dict[str, Any]]] = []
        self.silent = threading.Event()
        self.seen: list[tuple[str, str, dict[str, list[str]], str]] = []
        self.leases: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        token = self.headers.get("Authorization", "")
        self.server.seen.append((self.command, url.path, query, token))
        if self.server.status != 200:
            self._answer(self.server.status, {"kind": "Status", "reason": "Told"})
        elif "watch" in query:
            self._watch()
        elif self.server.object is None:
            self._answer(404, {"kind": "Status"})
        else:
            self._answer(200, self.server.object)

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = urlsplit(self.path)
        self.server.seen.append((self.command, url.path, parse_qs(url.query),
                                 self.headers["Content-Type"]))  # fmt: skip
        if self.server.status == 200:
            self.server.leases.append(body)
        self._answer(self.server.status, body if self.server.status == 200 else {"kind": "Status"})

    def _watch(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.server.watches.pop(0) if self.server.watches else []:
            line = json.dumps(event).encode() + b"\n"
            half = len(line) // 2  # an event may come in pieces
            for part in (line[:half], line[half:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
        if not self.server.watches:
            self.server.silent.wait(20)
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, code: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_credentials(tmp_path / "kubeconfig", server.server_port, "first")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    # The library reads KUBECONFIG's default when it is imported.
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    yield server
    server.silent.set()
    server.shutdown()
    server.server_close()


def write_credentials(path: Path, port: int, token: str) -> None:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            }
        )
    )  # fmt: skip


class Reading:
    """A source read by a thread."""

    def __init__(self) -> None:
        self.source = KubernetesSource("n", "m")
        self.stop = threading.Event()
        self.events: list[Event] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for event in self.source.events(self.stop):
            self.events.append(event)

    def epochs(self) -> list[int]:
        return [event.spec.epoch for event in self.events if isinstance(event, Seen)]

    def end(self) -> None:
        self.stop.set()
        self.source.close()
        self.thread.join(3)
        assert not self.thread.is_alive(), "close wakes a silent watch"


def eventually(what: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


@pytest.fixture
def reading(api: Api) -> Iterator[Callable[[], Reading]]:
    made: list[Reading] = []

    def start() -> Reading:
        made.append(Reading())
        return made[-1]

    yield start
    for one in made:
        one.end()


def test_it_gets_then_watches_its_object_alone(api: Api, reading: Callable[[], Reading]) -> None:
    api.watches = [[
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "15"}}},
        {"type": "MODIFIED", "object": stored(2)},
        {"type": "DELETED", "object": stored(2)},
        {"type": "ADDED", "object": stored(1, uid="u2")},
    ]]  # fmt: skip
    read = reading()
    eventually(lambda: len(read.events) == 4)
    assert read.epochs() == [1, 2, 1] and read.events[2] == Gone()
    get, watch = api.seen[0], api.seen[1]
    assert get[1].endswith("/namespaces/n/policyassignments/m")
    assert watch[2]["fieldSelector"] == ["metadata.name=m"]
    assert watch[2]["resourceVersion"] == ["10"] and watch[2]["timeoutSeconds"] == ["60"]


def test_after_a_watch_ends_it_gets_again_with_fresh_credentials(
    api: Api, reading: Callable[[], Reading], tmp_path: Path
) -> None:
    api.watches = [[{"type": "MODIFIED", "object": stored(2)}], []]
    api.object = stored(1)
    write_credentials(tmp_path / "kubeconfig", api.server_port, "second")
    read = reading()
    eventually(lambda: len(read.epochs()) >= 3)
    assert read.epochs()[:3] == [1, 2, 1]
    assert {token for *_, token in api.seen} == {"Bearer second"}


def test_gone_versions_and_refused_tokens_are_told_and_survived(
    api: Api, reading: Callable[[], Reading], tmp_path: Path
) -> None:
    api.watches = [[{"type": "ERROR", "object": {"code": 410, "message": "too old"}}], []]
    read = reading()
    eventually(lambda: len(read.epochs()) >= 2)
    assert any(isinstance(e, Unreachable) and "410" in e.message for e in read.events)


def test_a_missing_object_is_watched_for(api: Api, reading: Callable[[], Reading]) -> None:
    api.object = None
    api.watches = [[{"type": "ADDED", "object": stored(4)}]]
    read = reading()
    eventually(lambda: read.epochs() == [4])
    assert read.events[0] == Gone()
    assert "resourceVersion" not in api.seen[1][2]


def test_an_object_of_a_newer_operator_is_told_and_does_not_stop_the_watch(
    api: Api, reading: Callable[[], Reading]
) -> None:
    api.watches = [[
        {"type": "MODIFIED", "object": stored(2, unheardOf=True)},
        {"type": "MODIFIED", "object": stored(3)},
    ]]  # fmt: skip
    read = reading()
    eventually(lambda: len(read.events) == 3)
    assert read.epochs() == [1, 3]
    assert isinstance(read.events[1], Unreachable) and "unheardOf" in read.events[1].message


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refusals_of_the_server_are_told(
    api: Api, reading: Callable[[], Reading], status: int
) -> None:
    api.status = status
    read = reading()
    eventually(lambda: read.events)
    assert isinstance(read.events[0], Unreachable) and str(status) in read.events[0].message
    api.status = 200
    eventually(lambda: read.epochs() == [1])


POD = Pod("pod-1", "uid-1", "n")
SAID = Acknowledgement(7, "sha256:a", "", refused="policy.exit: " + "x" * 900, tripped="Tripwire")


def test_the_lease_says_everything_and_belongs_to_its_pod() -> None:
    lease = manifest("m", POD, SAID, datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC))
    metadata = lease["metadata"]
    assert metadata["ownerReferences"][0]["uid"] == "uid-1"
    assert metadata["labels"][names.LABEL_MODEL] == "m"
    annotations = metadata["annotations"]
    assert annotations[names.ANNOTATION_EPOCH] == "7"
    assert annotations[names.ANNOTATION_CANDIDATE] == ""
    assert len(annotations[names.ANNOTATION_REFUSED]) == 512
    assert lease["spec"]["renewTime"] == "2026-01-02T03:04:05.000600Z"


def test_the_lease_is_applied_on_the_server(api: Api) -> None:
    LeaseAcknowledger("m", POD)(SAID)
    (command, path, query, content_type), *_ = api.seen
    assert command == "PATCH" and path.endswith("/namespaces/n/leases/pod-1")
    assert query["fieldManager"] == ["trimwheel-worker"] and query["force"] == ["true"]
    assert content_type == "application/apply-patch+yaml"
    assert api.leases[0]["spec"]["holderIdentity"] == "pod-1"


@pytest.mark.parametrize(("status", "error"), [(403, Refused), (500, Unavailable)])
def test_a_refused_lease_is_an_error_that_the_loop_retries(
    api: Api, status: int, error: type[Exception]
) -> None:
    api.status = status
    acknowledge = LeaseAcknowledger("m", POD)
    with pytest.raises(error, match="Lease pod-1"):
        acknowledge(SAID)
    api.status = 200
    acknowledge(SAID)
    assert len(api.leases) == 1
