"""The set-up: runs on a bare Python, checks everything at once, resumes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trimwheel_demo.setup import cached, checks, lanes, steps
from trimwheel_local.processes import ProcessId


def test_it_needs_no_installed_package() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; import trimwheel_demo.setup.__main__ as setup; "
        "from trimwheel_demo.setup.cached import missing_binaries; "
        "setup.problems(['binaries'], 'demo'); print(missing_binaries())"
    )
    root = checks.ROOT
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, str(root / "pipelines"), str(root / "operator")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")


def test_all_failures_come_at_once_each_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "NEEDED_MEMORY", 10**18)
    monkeypatch.setattr(checks, "NEEDED_DISK", {"binaries": 10**18})
    monkeypatch.setattr(checks, "is_cached", lambda name: False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    found = checks.problems(["binaries"])
    assert len(found) == 3
    (go,) = [text for text in found if "go is not on PATH" in text]
    assert "install Go 1.26" in go
    assert "KUBEBUILDER_ASSETS supplies etcd, kube-apiserver and kubectl alone" in go
    assert any("TRIMWHEEL_CACHE" in text for text in found)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The API server's port of a cluster that does not exist; most likely nobody has it."""
    monkeypatch.setenv("TRIMWHEEL_STATE", str(tmp_path))
    monkeypatch.setenv("TRIMWHEEL_INDEX", "251")
    monkeypatch.delenv("TRIMWHEEL_USE_KUBECONFIG", raising=False)
    return 20_000 + 251 * 10


def test_a_port_that_is_taken_is_named_with_a_remedy(
    elsewhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[str]:
        return [text for text in checks.problems([], "demo") if "port" in text]

    assert not told()
    with socket.create_server(("127.0.0.1", elsewhere)):
        (problem,) = told()
        assert f"port {elsewhere} of 127.0.0.1 is taken" in problem
        assert "make down" in problem and "TRIMWHEEL_INDEX=252" in problem
        assert not [text for text in checks.problems([], "test") if "port" in text]
        monkeypatch.setenv("TRIMWHEEL_USE_KUBECONFIG", "/some/where")
        assert not told(), "a cluster of one's own takes no port here"


def test_the_ports_of_our_own_cluster_are_no_problem(elsewhere: int, tmp_path: Path) -> None:
    ours = ProcessId.of(os.getpid())
    assert ours is not None
    record = tmp_path / "cluster-251" / "supervisor.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"process": ours.dump()}))
    with socket.create_server(("127.0.0.1", elsewhere)):
        assert checks._port_problem() == ""


def test_options_that_cannot_work_are_told_with_all_other_problems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SEED": "abc", "TRIMWHEEL_INDEX": "-1", "BAD_POLICY": "/nope.json"}.items():
        monkeypatch.setenv(name, value)
    found = checks.problems([], "demo")
    for name in ("SEED", "TRIMWHEEL_INDEX", "BAD_POLICY"):
        assert any(text.startswith(name) for text in found), found


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ({}, set()),
        ({"TRIMWHEEL_USE_PROMETHEUS": "http://p:9090"}, {"prometheus", "promtool"}),
        ({"TRIMWHEEL_USE_KUBECONFIG": "/k"}, {"kube-apiserver", "etcd", "prometheus", "promtool"}),
    ],
)
def test_what_a_service_of_ones_own_stands_in_for_is_not_built(
    given: dict[str, str], spared: set[str]
) -> None:
    everything = frozenset({"kube-apiserver", "etcd", "kubectl", "helm", "prometheus", "promtool"})
    assert cached.needed_binaries(everything, given) == everything - spared


@pytest.mark.parametrize(
    ("says", "fine"),
    [
        ("go version go1.19.8 linux/amd64", False),
        ("go version go1.21.0 linux/amd64", True),
        ("go version go1.26.8 linux/amd64", True),
    ],
)
def test_debian_12s_own_go_is_too_old(
    says: str, fine: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\necho '{says}'\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("GOTOOLCHAIN", raising=False)
    assert (checks._go_problem() == "") is fine


def test_a_failed_step_says_which_command_and_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "LOGS", tmp_path)

    def run(step: steps.Step) -> None:
        steps._call(step, [sys.executable, "-c", "print('the reason'); exit(3)"], "trying")

    monkeypatch.setattr(lanes, "is_cached", lambda name: False)
    step = steps.Step("python", run)
    with pytest.raises(steps.StepFailed, match="the reason"):
        lanes.run_steps([step])
    assert step.state == "failed"


def test_a_model_trained_by_another_checkout_is_found_and_one_that_is_gone_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMWHEEL_CACHE", str(tmp_path))
    monkeypatch.setenv("SEED", "7")
    monkeypatch.delenv("FRESH", raising=False)
    assert not cached.is_cached("model")
    trained = tmp_path / "models" / "encoder-0"
    trained.mkdir(parents=True)
    cached.model_note().write_text(f"{trained}\n")
    assert cached.is_cached("model")
    monkeypatch.setenv("FRESH", "1")
    assert not cached.is_cached("model")
    monkeypatch.setenv("FRESH", "")
    trained.rmdir()
    assert not cached.is_cached("model")
