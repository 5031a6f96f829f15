"""However the story ends, the report says how, and what was started is told or removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimwheel_demo import play, report
from trimwheel_demo.stages.following import KeptFullDepth, StoryFailed, Withstood


class Played:
    """`play.main` with a story of the test's and a world that is not there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "report.json"
        self.down, self.told = 0, False
        monkeypatch.setenv("REPORT", str(self.path))
        monkeypatch.setenv("DETACH", "1")
        monkeypatch.setenv("TRIMWHEEL_STATE", str(folder))
        for name in ("SEED", "BAD_POLICY", "TRIMWHEEL_USE_KUBECONFIG"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(play, "importlib", SimpleNamespace(import_module=lambda _: None))
        monkeypatch.setattr(report, "_disk", lambda _: {})
        monkeypatch.setattr(play, "bring_up", self._bring_up)
        monkeypatch.setattr(play.environment, "look", lambda *_: None)
        monkeypatch.setattr(play, "take_down", self._take_down)
        monkeypatch.setattr(play.summary, "tell", self._tell)
        self.patch = monkeypatch
        self.breaks: BaseException | None = None

    def _bring_up(self, *_: Any) -> Any:
        if self.breaks is not None:
            raise self.breaks
        return SimpleNamespace(memory=SimpleNamespace(stop=lambda: 7))

    def _take_down(self, _: Any) -> None:
        self.down += 1

    def _tell(self, _: Any) -> None:
        self.told = True

    def story(self, ends: Callable[[], None]) -> tuple[int, dict[str, Any]]:
        self.patch.setattr(play, "story", lambda _: ends())
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = play.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        return code, json.loads(self.path.read_text())


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(tmp_path, monkeypatch)


def raising(error: BaseException) -> Callable[[], None]:
    def story() -> None:
        raise error

    return story


def test_a_story_that_ended_well_says_promoted(played: Played) -> None:
    code, report = played.story(lambda: None)
    assert (code, report["ok"], report["exit_reason"]) == (0, True, "promoted")
    assert played.told and not played.down
    assert report["peak_memory_bytes"] == 7 and "PSS" in report["peak_memory_of"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeptFullDepth("NothingCertified: x"), "kept full depth: NothingCertified: x"),
        (Withstood("it agrees"), "kept the certified policy: it agrees"),
        (StoryFailed("it broke"), "it broke"),
        (StopIteration(), "StopIteration: "),
        (TimeoutError("read timed out"), "TimeoutError: read timed out"),
        (
            subprocess.CalledProcessError(3, ["kubectl"], stderr="no route\n"),
            "CalledProcessError: Command '['kubectl']' returned non-zero exit status 3. no route",
        ),
    ],
)
def test_every_other_ending_is_named_summed_up_and_left_running(
    error: Exception, reason: str, played: Played
) -> None:
    code, report = played.story(raising(error))
    assert (code, report["ok"], report["exit_reason"]) == (1, False, reason)
    assert played.told, "the lines that read every claim again come in any case"
    assert not played.down


def test_a_start_that_failed_removes_what_it_had_started(played: Played) -> None:
    played.breaks = subprocess.CalledProcessError(1, ["helm"], stderr=b"refused")
    code, report = played.story(lambda: None)
    assert code == 1 and played.down == 1
    assert report["exit_reason"].endswith("refused")
    assert report["stages"][0]["ok"] is False


def test_ctrl_c_removes_everything(played: Played) -> None:
    code, report = played.story(raising(KeyboardInterrupt()))
    assert (code, report["exit_reason"], played.down) == (1, "interrupted", 1)


def test_sigterm_in_the_middle_of_the_story_does_as_ctrl_c_does(played: Played) -> None:
    def terminated() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not arrive")

    code, report = played.story(terminated)
    assert (code, report["exit_reason"], played.down) == (1, "interrupted", 1)
