"""The shared way to the API server, against a small server that answers what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trimwheel_api.errors import Conflict, Refused, SetupFailed, SpecInvalid, Unavailable
from trimwheel_api.kinds import TuningRun
from trimwheel_kube.answers import NotFound
from trimwheel_kube.connection import connect
from trimwheel_kube.objects import Objects, read


class Server(ThreadingHTTPServer):
    """Remembers requests; answers `status` and `body` to each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body = 200, b"{}"
        self.seen: list[tuple[str, str, str, Any]] = []

    def answers(self, status: int, body: Any) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        kind = self.headers.get("Content-Type", "")
        self.server.seen.append((self.command, self.path, kind, body))
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


def kubeconfig(path: Path, server: str, namespace: str = "shop") -> str:
    users = [{"name": "u", "user": {"token": "t"}}]
    clusters = [{"name": "c", "cluster": {"server": server}}]
    contexts = [
        {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}},
        {"name": "there", "context": {"cluster": "c", "user": "u"}},
    ]
    path.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": clusters, "users": users, "contexts": contexts,
    }))  # fmt: skip
    return str(path)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def objects(server: Server, tmp_path: Path) -> Objects:
    found = connect(kubeconfig(tmp_path / "k", f"http://127.0.0.1:{server.server_port}"))
    assert found.namespace == "shop" and found.server.endswith(str(server.server_port))
    return Objects(found.api, "the-manager")


def status(message: str = "", **details: Any) -> dict[str, Any]:
    return {"kind": "Status", "message": message, "details": details}


POLICY = "ValidatingAdmissionPolicy 'trimwheel-approvers' denied request: no"
ANSWERS = {
    "no such object": (404, status("x", kind="tuningruns", name="r"), NotFound, "NAME: must name"),
    "no such kind": (404, status("page not found"), SetupFailed, "helm install"),
    "not logged in": (401, status("Unauthorized"), Refused, "^Unauthorized$"),
    "not allowed": (403, status("no right"), Refused, "^no right$"),
    "an admission policy": (422, status(POLICY, name="r"), Refused, POLICY[:20]),
    "there already": (409, status("exists"), Conflict, "^exists$"),
    "a broken field": (
        422, status("all", name="r", causes=[{"field": "spec.seed", "message": "too big"}]),
        SpecInvalid, "^spec.seed: too big, but got 'r'$",
    ),
    "a broken object": (422, status("bad"), SpecInvalid, "^object: bad"),
    "too many requests": (429, status("later"), Unavailable, "429: later"),
    "broken": (500, b"<html>", Unavailable, "500: Internal Server Error"),
    "no object": (503, b"[]", Unavailable, "503: Service Unavailable"),
    "nonsense asked": (400, status("what?"), SpecInvalid, "request: .* 400: what?"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "body", "error", "words"), ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_become_our_errors_in_the_servers_words(
    server: Server, objects: Objects, code: int, body: Any, error: type[Exception], words: str
) -> None:
    server.answers(code, body)
    with pytest.raises(error, match=words) as raised:
        objects.get("TuningRun", "shop", "r")
    assert type(raised.value) is error


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    address = "http://127.0.0.1:9"
    objects = Objects(connect(kubeconfig(tmp_path / "k", address), retries=0).api, "m")
    with pytest.raises(Unavailable, match=f"the API server at {address} does not answer"):
        objects.list("TuningRun")


@pytest.mark.parametrize("levels", [900, 1_200, 5_000])
def test_a_list_with_an_object_of_any_depth_has_the_others(
    server: Server, objects: Objects, levels: int
) -> None:
    deep = '{"a":' * levels + "1" + "}" * levels
    bad = f'{{"metadata": {{"name": "deep"}}, "spec": {{"policy": {deep}}}}}'
    server.answers(200, f'{{"items": [{bad}, {{"metadata": {{"name": "r"}}}}]}}'.encode())
    assert [one["metadata"]["name"] for one in objects.list("AdaptivePolicy")] == ["deep", "r"]


def test_requests_are_made_as_the_kinds_say(server: Server, objects: Objects) -> None:
    server.answers(200, {"items": [
        {"metadata": {"name": "new", "creationTimestamp": "2026-01-02T00:00:00Z"}},
        {"metadata": {"name": "old", "creationTimestamp": "2026-01-01T00:00:00Z"}},
    ]})  # fmt: skip
    assert [one["metadata"]["name"] for one in objects.list("TuningRun")] == ["old", "new"]
    objects.list("AdaptivePolicy", "shop")
    server.answers(201, {"metadata": {"name": "a"}})
    made = objects.create("PolicyApproval", {"name": "a", "namespace": "shop"}, {"reason": "r"})
    assert made["metadata"]["name"] == "a"
    server.answers(200, {"metadata": {"name": "p"}})
    objects.merge("PolicyRollout", "shop", "p", {"spec": {"abort": True}})
    objects.merge_status("TuningRun", "shop", "r", {"status": {}})
    objects.delete("TuningRun", "shop", "r", "uid-1")
    root = "/apis/trimwheel.dev/v1alpha1"
    merge = "application/merge-patch+json"
    created = {
        "apiVersion": "trimwheel.dev/v1alpha1", "kind": "PolicyApproval",
        "metadata": {"name": "a", "namespace": "shop"}, "spec": {"reason": "r"},
    }  # fmt: skip
    manager = "fieldManager=the-manager"
    wanted = [
        ("GET", f"{root}/tuningruns", None, None),
        ("GET", f"{root}/namespaces/shop/adaptivepolicies", None, None),
        ("POST", f"{root}/namespaces/shop/policyapprovals?{manager}", None, created),
        ("PATCH", f"{root}/namespaces/shop/policyrollouts/p?{manager}", merge,
         {"spec": {"abort": True}}),
        ("PATCH", f"{root}/namespaces/shop/tuningruns/r/status?{manager}", merge, {"status": {}}),
        ("DELETE", f"{root}/namespaces/shop/tuningruns/r", None,
         {"preconditions": {"uid": "uid-1"}}),
    ]  # fmt: skip
    for (verb, path, kind, body), (asked, where, sent, what) in zip(
        server.seen, wanted, strict=True
    ):
        assert (verb, path, body) == (asked, where, what)
        assert sent is None or kind == sent


def test_an_object_of_another_version_names_its_field() -> None:
    found = {"metadata": {"name": "r", "namespace": "shop"}, "spec": {"model": "m", "seed": "x"}}
    with pytest.raises(SpecInvalid, match=r"^TuningRun r spec\.seed: .*differ in version$"):
        read(TuningRun, found)
    assert read(TuningRun, found | {"spec": {"model": "m"}}).spec.seed == 0


def test_credentials_are_those_of_the_context_or_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kubeconfig(tmp_path / "k", "http://127.0.0.1:9", namespace="mine")
    assert connect(file).namespace == "mine"
    assert connect(file, "there").namespace == "default"
    with pytest.raises(SetupFailed, match="kubeconfig: .*nowhere"):
        connect(file, "nowhere")
    with pytest.raises(SetupFailed, match="kubeconfig: "):
        connect(str(tmp_path / "missing"))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "missing")
    )
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SetupFailed, match="no kubeconfig .* no service account .*KUBECONFIG"):
        connect()
