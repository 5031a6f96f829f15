"""The demo's verbs keep the rules of every verb: -o json, exit codes, errors as a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trimwheel_api.errors import SetupFailed, TrimwheelError, Unavailable
from trimwheel_cli.main import cli
from trimwheel_console import NEGATIVE, OK, UNREACHABLE, USAGE
from trimwheel_demo import play


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder and a cluster index that nobody uses."""
    monkeypatch.setenv("TRIMWHEEL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("TRIMWHEEL_INDEX", "202")
    monkeypatch.setenv("REPORT", str(tmp_path / "report.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SetupFailed("Go is missing"), USAGE),
        (Unavailable("etcd is away"), UNREACHABLE),
        (TrimwheelError("no"), NEGATIVE),
    ],
)
def test_a_story_that_cannot_begin_exits_as_every_verb_does(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, error: TrimwheelError, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(play, "bring_up", fail)
    done = CliRunner().invoke(cli, ["demo", "play", "-o", "json"])
    assert done.exit_code == code, done.output
    told = json.loads(done.stdout)
    assert (told["ok"], told["exit_reason"]) == (False, str(error))
    assert told == json.loads((elsewhere / "report.json").read_text())
    assert str(error) in done.stderr


def test_down_says_whether_there_was_anything() -> None:
    done = CliRunner().invoke(cli, ["demo", "down", "-o", "json"])
    assert done.exit_code == OK
    assert json.loads(done.stdout) == {"removed": False}
    assert CliRunner().invoke(cli, ["demo", "down"]).stdout == "nothing to remove\n"


def test_what_the_makefile_calls_tells_an_error_in_a_sentence(elsewhere: Path) -> None:
    """A session on a cluster of somebody else's whose kubeconfig has gone."""
    folder = elsewhere / "state" / "demo-202"
    folder.mkdir(parents=True)
    (folder / "session.json").write_text(json.dumps({"KUBECONFIG": str(elsewhere / "gone")}))
    command = [sys.executable, "-m", "trimwheel_demo", "down"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == USAGE
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "gone does not exist" in done.stderr


def test_check_reads_each_claim_again_and_says_which_is_untrue(elsewhere: Path) -> None:
    folder = elsewhere / "state" / "demo-202"
    folder.mkdir(parents=True)
    report = elsewhere / "report.json"
    true, untrue = "echo $WHAT | grep -x so", "echo no | grep -x yes"
    claims = [{"kind": "Shell", "ref": "", "uid": "", "check": line} for line in (true, untrue)]
    stages = [{"name": "first", "evidence": claims}, {"name": "again", "evidence": claims[:1]}]
    report.write_text(json.dumps({"stages": stages}))
    session = {"PATH": "", "WHAT": "so", "TRIMWHEEL_REPORT": str(report)}
    (folder / "session.json").write_text(json.dumps(session))
    done = CliRunner().invoke(cli, ["demo", "check", "-o", "json"])
    assert done.exit_code == NEGATIVE, done.output
    told = json.loads(done.stdout)
    assert (told["claims"], told["untrue"]) == (2, 1)
    assert [(one["check"], one["holds"]) for one in told["readings"]] == [
        (true, True), (untrue, False),
    ]  # fmt: skip
    assert told["readings"][0]["said"] == "so"
    report.unlink()
    done = CliRunner().invoke(cli, ["demo", "check"])
    assert done.exit_code == USAGE and "make demo" in done.output
