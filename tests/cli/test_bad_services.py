"""Over all verbs that ask a service: whatever it answers ends in a sentence, and never as healthy.

Real HTTP servers answer in the manners of login pages, proxies, other services and broken ones.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.cli.test_bad_files import READS_KUBECONFIG
from tests.cli.test_every_verb import ends
from tests.cli.verbs import VERBS, required

from trimwheel_cli import doctor

Answer = tuple[int, bytes]
ANSWERS: dict[str, Answer] = {
    "nothing": (200, b""),
    "{}": (200, b"{}"),
    "[]": (200, b"[]"),
    "null": (200, b"null"),
    "a number": (200, b"7"),
    "text": (200, b"hello"),
    "HTML": (200, b"<!doctype html><title>Log in</title>"),
    "bytes": (200, bytes(range(256)) * 40),
    "nested deep": (200, b"[" * 100_000),
    "a huge number": (200, b"9" * 10_000),
    "success without data": (200, b'{"status": "success"}'),
    "success with null": (200, b'{"status": "success", "data": null, "items": null}'),
    "items of nothing": (200, b'{"data": {}, "items": [1, null, {}]}'),
    "objects without a name": (200, b'{"items": [{"metadata": null, "spec": []}]}'),
    "an object of another kind": (200, b'{"metadata": {"name": "x"}, "spec": [], "status": 7}'),
    "an error": (500, b"oops"),
    "an error as JSON": (422, b'{"message": 7, "details": {"causes": [null]}}'),
    "an error with details": (409, b'{"details": [1]}'),
    "a refusal": (403, b"<html>no</html>"),
    "not there": (404, b"[]"),
    "redirects for ever": (302, b""),
    "no HTTP": (0, b"\x00\x01\x02 220 smtp.example.com\r\n"),
    "half an answer": (-1, b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"),
    "a bad status line": (-1, b"HTTP/1.1 abc\r\n\r\n"),
}


class _Handler(BaseHTTPRequestHandler):
    answer: Answer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        code, body = self.answer
        if code > 0:
            return super().handle_one_request()
        self.request.recv(65_536)
        self.request.sendall(body)
        self.close_connection = True

    def do_GET(self) -> None:
        code, body = self.answer
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if code == 302:
            self.send_header("Location", self.path)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PATCH = do_PUT = do_GET


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"answer": answer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(params=ANSWERS)
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with serving(ANSWERS[request.param]) as url:
        yield url


def kubeconfig(folder: Path, server: str) -> str:
    path = folder / "kubeconfig"
    path.write_text(
        f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{server}"}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
    )
    return str(path)


def test_what_is_no_api_server_is_told_by_every_verb_that_asks_one(
    server: str, tmp_path: Path
) -> None:
    for verb in READS_KUBECONFIG:
        words = ["--kubeconfig", kubeconfig(tmp_path, server), *required(VERBS[verb])]
        code, said = ends(verb, *words)
        assert code in (1, 2, 3), (verb, said)
        assert said.startswith("error: ") and len(said) < 1500, (verb, said)


@pytest.mark.parametrize("look", [doctor._prometheus, doctor._mlflow])
def test_what_is_no_prometheus_and_no_mlflow_never_passes_as_healthy(
    look: object, server: str
) -> None:
    found = doctor._service("service", server, look, "--option")  # type: ignore[arg-type]
    assert found.outcome == "failed", found
    assert server in found.remedy and len(found.found) < 600


@pytest.mark.parametrize(
    "address",
    ["nonsense", "ftp://x", "http://", "http://[", "http://h:x", "http://a b", "http://é"],
)
def test_an_address_that_is_none_fails_its_own_check_alone(address: str) -> None:
    for look in (doctor._prometheus, doctor._mlflow):
        assert doctor._service("service", address, look, "--option").outcome == "failed"


def test_the_real_answers_pass() -> None:
    vector = b'{"status":"success","data":{"resultType":"vector","result":[{"value":[1,"1"]}]}}'
    for look, body in ((doctor._prometheus, vector), (doctor._mlflow, b"OK")):
        with serving((200, body)) as url:
            assert doctor._service("service", url, look, "--option").outcome == "ok"


def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HTTP_BYTES", 1_000)
    with serving((200, b"x" * 100_000)) as url:
        found = doctor._service("service", url, doctor._mlflow, "--option")
    assert found.outcome == "failed" and "without end" in found.found


def test_a_check_whose_answer_has_another_form_fails_and_the_others_go_on() -> None:
    for error in (KeyError("spec"), TypeError("x"), AttributeError("y"), IndexError("z")):
        found = doctor._guarded("kinds", lambda error=error: (_ for _ in ()).throw(error))  # type: ignore[misc]
        assert found.outcome == "failed" and "another form" in found.found
