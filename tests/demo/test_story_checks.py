"""Every check of the report fails when its claim does not hold, and prints what it found."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from trimwheel_demo.evidence import (
    Evidence,
    about,
    condition_path,
    metric_evidence,
    mlflow_evidence,
    object_evidence,
    refusal_evidence,
)

ITEM = {"kind": "TuningRun", "metadata": {"namespace": "shop", "name": "run", "uid": "u"}}


def run(item: Evidence, **env: str) -> tuple[bool, str]:
    done = subprocess.run(
        ["sh", "-c", item["check"]], env=os.environ | env, capture_output=True, text=True
    )
    return done.returncode == 0, done.stdout.strip()


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that prints a file, keeps its arguments and its input, and fails with `fails`."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nhere=$(dirname "$0")\nprintf "%s\\n" "$@" > "$here/arguments"\n'
        'case "$*" in *"-f -"*) cat > "$here/input";; esac\ncat "$here/says"\n'
        '[ ! -e "$here/fails" ]\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program.parent


@pytest.mark.parametrize(
    ("says", "holds"),
    [("Certified", True), ("NothingCertified", False), ("Certified2", False), ("", False)],
)
def test_an_objects_field_must_hold_exactly_the_value(
    says: str, holds: bool, kubectl: Path
) -> None:
    (kubectl / "says").write_text(says)
    path = condition_path("Ready", "reason")
    assert run(object_evidence(ITEM, "tuning", path, "Certified")) == (holds, says * holds)
    arguments = (kubectl / "arguments").read_text().splitlines()
    assert arguments[:5] == ["-n", "shop", "get", "tuning", "run"]
    assert arguments[-1] == """jsonpath={.status.conditions[?(@.type=="Ready")].reason}"""


def test_a_refusal_must_come_again_in_the_same_words(kubectl: Path) -> None:
    words = "bob lacks verb approve on policyrollouts/it's"
    item = refusal_evidence("bob", "PolicyApproval", "shop", {"reason": "it's"}, words)
    (kubectl / "says").write_text(f"Error: denied request: {words}\n")
    (kubectl / "fails").touch()
    assert run(item) == (True, words)
    assert json.loads((kubectl / "input").read_text())["spec"] == {"reason": "it's"}
    assert "--dry-run=server" in (kubectl / "arguments").read_text()
    (kubectl / "says").write_text("policyapproval.trimwheel.dev/tried-again created\n")
    assert run(item) == (False, "")


@pytest.fixture
def answers() -> Iterator[dict[str, Any]]:
    """A server on loopback: set `body` and `status`; `path` is what was asked last."""
    held: dict[str, Any] = {"status": 200, "body": {}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held["path"] = self.path
            self.send_response(held["status"])
            self.end_headers()
            body = held["body"]
            text = body if isinstance(body, str) else json.dumps(body, indent=2)
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        held["url"] = f"http://127.0.0.1:{server.server_port}"
        yield held
        server.shutdown()


def test_an_empty_answer_of_prometheus_is_a_failed_check(answers: dict[str, Any]) -> None:
    item = metric_evidence("sum(up) > 0")
    answers["body"] = '{"status":"success","data":{"resultType":"vector","result":[]}}'
    assert run(item, PROMETHEUS_URL=answers["url"]) == (False, "")
    assert parse_qs(urlsplit(answers["path"]).query) == {"query": ["sum(up) > 0"]}
    answers["status"] = 503
    assert not run(item, PROMETHEUS_URL=answers["url"])[0]
    assert not run(item, PROMETHEUS_URL="http://127.0.0.1:1")[0]


def test_a_comparison_that_holds_prints_its_value(answers: dict[str, Any]) -> None:
    answers["body"] = '{"data":{"result":[{"metric":{},"value":[1764000000.1,"3"]}]}}'
    item = metric_evidence(about("sum(up)", 3, 0.5))
    assert run(item, PROMETHEUS_URL=answers["url"]) == (True, '"value":[1764000000.1,"3"]')
    assert parse_qs(urlsplit(answers["path"]).query) == {"query": ["(sum(up)) >= 2.5 <= 3.5"]}


def test_mlflow_must_know_the_run_and_its_executor(answers: dict[str, Any]) -> None:
    holds = '"key":"executor","value":"ray"'
    item = mlflow_evidence("MLflowRun", "r1", "runs/get", holds, run_id="r1")
    params = [{"key": "executor", "value": "ray"}]
    answers["body"] = {"run": {"data": {"params": params}}}
    assert run(item, MLFLOW_TRACKING_URI=answers["url"]) == (True, holds)
    assert answers["path"] == "/api/2.0/mlflow/runs/get?run_id=r1"
    params[0]["value"] = "serial"
    assert run(item, MLFLOW_TRACKING_URI=answers["url"]) == (False, "")
    answers["status"] = 404
    assert not run(item, MLFLOW_TRACKING_URI=answers["url"])[0]
