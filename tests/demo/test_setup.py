"""The set-up: runs on a bare Python, checks everything at once, resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.local.origin import Fault, Origin, origin

import trimwheel_demo.setup.__main__ as setup
from trimwheel_demo.setup import cached, checks, lanes, steps, supply
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


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """A reachable origin of releases, nothing cached, no Go."""
    with origin() as place:
        monkeypatch.setenv("TRIMWHEEL_RELEASES", place.url)
        monkeypatch.setenv("TRIMWHEEL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", str(tmp_path))
        for name in ("KUBEBUILDER_ASSETS", "TRIMWHEEL_PROMETHEUS_BIN", "TRIMWHEEL_BINARIES"):
            monkeypatch.delenv(name, raising=False)
        yield place


def plan_text(kind: supply.Supply, capsys: pytest.CaptureFixture[str]) -> str:
    setup.print_plan("setup", ["binaries"], kind)
    text = capsys.readouterr().out
    lines = [line for line in text.partition("  writes to")[0].splitlines() if "/" not in line]
    assert all(len(line) <= 100 for line in lines), text
    return " ".join(text.split())


def test_the_plan_says_that_releases_will_be_downloaded_and_go_is_not_asked_for(
    releases: Origin, capsys: pytest.CaptureFixture[str]
) -> None:
    found = supply.look()
    assert not [text for text in checks.problems(["binaries"], supply=found) if "go" in text]
    text = plan_text(found, capsys)
    assert "will get etcd, kube-apiserver, kube-controller-manager," in text
    assert re.search(r"official releases, about \d+ MB, from 127.0.0.1:\d+, checked against", text)
    assert "will build" not in text


def test_the_plan_says_that_go_will_build_and_why(
    releases: Origin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMWHEEL_RELEASES", "http://127.0.0.1:9")
    found = supply.look()
    text = plan_text(found, capsys)
    assert "will build etcd, kube-apiserver, kube-controller-manager," in text
    assert "since the official releases cannot be had (127.0.0.1:9: Connection refused)" in text
    assert "will get" not in text
    (problem,) = [text for text in checks.problems(["binaries"], supply=found) if "go is" in text]
    assert "let the official releases be reached (127.0.0.1:9: Connection refused)" in problem
    monkeypatch.setenv("TRIMWHEEL_BINARIES", "build")
    text = plan_text(supply.look(), capsys)
    assert "will build" in text and "since" not in text


def test_the_plan_names_both_ways_when_one_origin_is_away(
    releases: Origin, capsys: pytest.CaptureFixture[str]
) -> None:
    releases.files = {p: c for p, c in releases.files.items() if not p.startswith("get.helm.sh")}
    text = plan_text(supply.look(), capsys)
    assert re.search(r"will build helm with Go: about \d+ min", text)
    assert "HTTP 404 Not Found /get.helm.sh/helm-v" in text


@pytest.mark.parametrize(
    ("variable", "value"), [("TRIMWHEEL_BINARIES", "no"), ("TRIMWHEEL_RELEASES", "no")]
)
def test_a_way_that_cannot_work_is_told_with_all_other_problems(
    variable: str, value: str, releases: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("SEED", "abc")
    found = checks.problems(["binaries"], "demo", supply.look())
    assert any(text.startswith(f"{variable}: must be") for text in found)
    assert any(text.startswith("SEED") for text in found)


def test_the_set_up_downloads_and_the_second_time_asks_for_nothing(
    releases: Origin, tmp_path: Path
) -> None:
    first = run_setup(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "  will get    etcd" in first.stdout and "binaries  [####" in first.stdout
    asked = len(releases.asked)
    second = run_setup(tmp_path)
    assert second.returncode == 0 and "will get" not in second.stdout
    assert len(releases.asked) == asked


def run_setup(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(setup_command(tmp_path), capture_output=True, text=True, timeout=60)


def setup_command(tmp_path: Path, steps: str = "binaries") -> list[str]:
    """The set-up's own program, its notes below a folder of the test's."""
    script = (
        "import sys; from pathlib import Path; from trimwheel_demo.setup import cached; "
        "cached.BUILD = Path(sys.argv.pop(1)); cached.LOGS = cached.BUILD / 'logs'; "
        "from trimwheel_demo.setup import __main__; sys.exit(__main__.main())"
    )
    return [sys.executable, "-c", script, str(tmp_path / "build"), "--steps", steps]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_set_up_says_at_what_and_that_it_goes_on(
    number: signal.Signals, releases: Origin, tmp_path: Path
) -> None:
    (path,) = [path for path in releases.files if path.endswith("/kubectl")]
    releases.faults[path] = Fault(pause=0.05)
    process = subprocess.Popen(
        setup_command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not releases.sent.get(path):
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"Interrupted while at\n  binaries +\d+%  downloading kubectl v1", said), said
    assert "what was downloaded and compiled is kept" in said
    assert "Run the same command again: it goes on from there." in said
    assert "Aborted" not in said and "Traceback" not in said
    assert not [one for one in psutil.process_iter(["cmdline"])
                if str(tmp_path) in " ".join(one.info["cmdline"] or [])]  # fmt: skip
    releases.faults.clear()
    assert run_setup(tmp_path).returncode == 0
    resumed = [asked for one, asked in releases.asked if one == path][-1]
    assert re.fullmatch(r"bytes=[1-9]\d*-", resumed)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, r"was interrupted by SIGINT \(training goes on from its last checkpoint\)"),
        (signal.SIGTERM, r"was interrupted by SIGTERM \(training goes on from"),
        (signal.SIGKILL, r"was killed \(by the kernel, if memory ran out\)"),
    ],
)
def test_a_step_whose_command_alone_is_ended_says_so(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "LOGS", tmp_path)
    monkeypatch.setattr(lanes, "is_cached", lambda name: False)
    script = f"import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), {number})"

    def run(step: steps.Step) -> None:
        steps._call(step, [sys.executable, "-c", script], "training")

    with pytest.raises(steps.StepFailed, match=said):
        lanes.run_steps([steps.Step("model", run)])


def test_training_that_is_interrupted_says_that_it_goes_on(tmp_path: Path) -> None:
    script = (
        "import sys; from trimwheel_demo import training; "
        "training.ensure = lambda *a, **b: (_ for _ in ()).throw(KeyboardInterrupt()); "
        "training.command(['--seed', '0'], prog_name='train')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip() == (
        "interrupted: train; run it again: training goes on from its last checkpoint"
    )


def test_a_finished_step_is_shown_once_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(1, 10**6, 21))
    monkeypatch.setattr(lanes.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(lanes, "is_cached", lambda name: False)
    monkeypatch.setattr(steps, "LOGS", tmp_path)
    quick = steps.Step("python", lambda step: None)
    slow = steps.Step("binaries", lambda step: time.sleep(1.0))
    lanes.run_steps([quick, slow])
    shown = capsys.readouterr().out.splitlines()
    assert sum("python" in line and line.endswith("done") for line in shown) == 1
    assert sum("binaries" in line for line in shown) > 2
