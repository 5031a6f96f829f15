"""The story's pure parts: settings, the control's twin, the report's evidence."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.decide import decide
from trimwheel_api.policy import parse_policy
from trimwheel_demo import play
from trimwheel_demo.report import Report, metric_evidence
from trimwheel_demo.settings import Options, model_manifest, non_default, validated
from trimwheel_demo.stages.control import same_behaviour, through_every_step
from trimwheel_demo.stages.following import StepLog
from trimwheel_demo.stages.harm import harmful_document

DIGEST = "sha256:" + "0" * 64
thresholds = st.lists(st.integers(0, 1010).map(lambda n: f"{n / 1000:.3f}"), min_size=2, max_size=6)
scores = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=6, max_size=6)


def test_the_applied_model_is_valid_and_its_settings_are_listed() -> None:
    manifest = model_manifest("models:/m/1", DIGEST)
    model = validated(manifest)
    listed = {row["field"]: row["demo"] for row in non_default(manifest)}
    assert model.spec.replicas == 2
    assert listed["spec.audits.rate"] == "0.5"
    assert listed["spec.rollout.passMargin"] == "2"
    assert not any(field.startswith("spec.model") for field in listed)
    assert "spec.objectives.confidence" not in listed


@given(thresholds, scores)
def test_the_control_has_another_digest_and_decides_the_same(
    given_thresholds: list[str], given_scores: list[float]
) -> None:
    document = {"exit": {"enabled": True, "thresholds": given_thresholds}}
    twin = same_behaviour(document)
    ours, theirs = parse_policy(document), parse_policy(twin)
    assert ours.digest != theirs.digest
    exits = len(given_thresholds)
    # Scores on the grid of thresholds are the worst case: the twin moves by less than the grid.
    lifted = [score + 0.0005 for score in given_scores[:exits]]
    assert decide(lifted, ours.thresholds(exits)) == decide(lifted, theirs.thresholds(exits))


def test_the_harmful_policy_answers_at_the_first_exit() -> None:
    policy = parse_policy(harmful_document(5), exits=5)
    assert decide([0.0] * 5, policy.thresholds(5)) == 0


def test_options_come_from_the_environment() -> None:
    options = Options.from_environment({"SEED": "3", "DETACH": "1", "BAD_POLICY": "bad.json"})
    assert (options.seed, options.detach, options.bad_policy) == (3, True, Path("bad.json"))
    assert Options.from_environment({}) == Options()


def test_stages_are_played_in_order_each_under_its_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    report = Report(tmp_path / "report.json", 0, tmp_path)
    monkeypatch.setattr(play.summary, "tell", lambda _: said.append("told"))

    def stage(number: int, title: str, name: str) -> play.Stage:
        return play.Stage(number, title, name, lambda _, found: said.append(name))

    world: Any = SimpleNamespace(
        teller=SimpleNamespace(heading=lambda number, text: said.append(f"{number}. {text}")),
        report=report,
    )
    told = (stage(1, "One", "a"), stage(2, "Two", "b"), stage(2, "", "c"))
    monkeypatch.setattr(play, "STAGES", told)
    play.story(world)
    assert said == ["1. One", "a", "2. Two", "b", "c", "3. Summary", "told"]
    assert [row["name"] for row in report["stages"] if row["ok"]] == ["a", "b", "c"]


def test_the_story_has_its_stages_once_and_in_order() -> None:
    names = [stage.name for stage in play.STAGES]
    numbers = [stage.number for stage in play.STAGES]
    assert len(set(names)) == len(names) and numbers == sorted(numbers)
    assert set(numbers) == set(range(1, max(numbers) + 1))


def test_a_failed_stage_is_in_the_report_with_its_time(tmp_path: Path) -> None:
    report = Report(tmp_path / "deep" / "report.json", 0, tmp_path)
    with pytest.raises(ValueError, match="broke"), report.stage("drift") as found:
        found.append(metric_evidence("up"))
        raise ValueError("broke")
    report.write()
    written = json.loads(report.path.read_text())
    assert written["schema"] == "trimwheel.demo/v1"
    assert written["stages"][0]["ok"] is False
    assert "query=up" in written["stages"][0]["evidence"][0]["check"]


def test_the_step_log_keeps_one_row_for_each_step() -> None:
    log = StepLog()

    def item(step: int, weight: int, verdict: str) -> dict[str, object]:
        return {"status": {"step": step, "weightBasisPoints": weight, "verdict": verdict,
                           "stepStartedAt": "t", "guards": [{"samples": 7}]}}  # fmt: skip

    assert log.look(item(0, 0, "NotEnoughEvidence"), 0.0)
    assert not log.look(item(0, 0, "Pass"), 4.0)
    assert log.look(item(1, 1000, "Pass"), 5.0)
    assert not log.look(item(1, 0, "Pass"), 9.0)
    assert log.report() == [
        {"weight": 0, "verdict": "Pass", "samples": 7, "seconds": 4.0},
        {"weight": 1000, "verdict": "Pass", "samples": 7, "seconds": 4.0},
    ]


def control_item(step: int, samples: int, held: float) -> dict[str, object]:
    begun = (datetime.now(UTC) - timedelta(seconds=held)).isoformat()
    steps = [{"weight": "0%", "hold": "10s", "minRequests": 0},
             {"weight": "50%", "hold": "15s", "minRequests": 300}]  # fmt: skip
    guards = [{"name": "errors", "samples": samples, "verdict": "NotEnoughEvidence"}]
    return {"status": {"step": step, "stepStartedAt": begun, "guards": guards,
                       "effective": {"rollout": {"steps": steps}}}}  # fmt: skip


@pytest.mark.parametrize(
    ("step", "samples", "held", "through"),
    [(0, 900, 60, False), (1, 900, 5, False), (1, 50, 60, False), (1, 120, 60, True)],
)
def test_the_control_ends_when_every_step_was_held_and_seen(
    step: int, samples: int, held: float, through: bool
) -> None:
    assert through_every_step(control_item(step, samples, held)) is through
