"""The story's pure parts: settings, the control's twin, the report's evidence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.decide import decide
from trimwheel_api.errors import InvalidInput
from trimwheel_api.policy import parse_policy
from trimwheel_demo import play
from trimwheel_demo.evidence import metric_evidence
from trimwheel_demo.places import default_places
from trimwheel_demo.report import Report
from trimwheel_demo.settings import (
    Options,
    model_manifest,
    non_default,
    non_default_values,
    settings_section,
    validated,
)
from trimwheel_demo.stages.control import same_behaviour, through_every_step
from trimwheel_demo.stages.harm import harmful_document
from trimwheel_demo.stages.summary import not_shown

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
    options = Options.from_environment({"SEED": "3", "DETACH": "1"})
    assert (options.seed, options.detach) == (3, True)
    assert Options.from_environment({}) == Options()


def test_stages_are_played_in_order_each_under_its_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    report = Report(tmp_path / "report.json", 0, tmp_path)

    def stage(number: int, title: str, name: str) -> play.Stage:
        return play.Stage(number, title, name, lambda _, found: said.append(name))

    world: Any = SimpleNamespace(
        teller=SimpleNamespace(heading=lambda number, text: said.append(f"{number}. {text}")),
        report=report,
    )
    told = (stage(1, "One", "a"), stage(2, "Two", "b"), stage(2, "", "c"))
    monkeypatch.setattr(play, "STAGES", told)
    play.story(world)
    assert said == ["1. One", "a", "2. Two", "b", "c"]
    assert [row["name"] for row in report["stages"] if row["ok"]] == ["a", "b", "c"]


def test_the_story_has_its_stages_once_and_in_order() -> None:
    names = [stage.name for stage in play.STAGES]
    numbers = [stage.number for stage in play.STAGES]
    assert len(set(names)) == len(names) and numbers == sorted(numbers)
    assert set(numbers) == set(range(1, max(numbers) + 1))


BAD = {"exit": {"enabled": True, "thresholds": ["0"]}}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BAD),
        "exit: {enabled: true, thresholds: ['0']}",
        json.dumps({"kind": "AdaptivePolicy", "spec": {"model": "m", "policy": BAD}}),
        "kind: AdaptivePolicy\nspec:\n  model: m\n  policy:\n    exit:\n      enabled: true\n"
        "      thresholds: ['0']",
    ],
)
def test_a_bad_policy_is_a_document_or_a_whole_object_in_json_or_yaml(
    text: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad"
    file.write_text(text)
    assert Options.from_environment({"BAD_POLICY": str(file)}).bad_policy == BAD


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"SEED": "abc"}, "SEED: must be a whole number from 0 to .*, but got 'abc'. Leave it out"),
        ({"SEED": "-1"}, "SEED: must be a whole number"),
        ({"BAD_POLICY": "/nope.json"}, "BAD_POLICY .*readable text file"),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_the_start(
    given: dict[str, str], named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        Options.from_environment(given)


def test_a_bad_policy_that_breaks_a_rule_is_refused_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("exit: {thresholds: [0.5]}")
    with pytest.raises(InvalidInput, match=r"BAD_POLICY \(policy\.exit\.thresholds"):
        Options.from_environment({"BAD_POLICY": str(file)})


@pytest.mark.parametrize("index", ["abc", "256", "1.5"])
def test_a_cluster_index_that_cannot_be_is_refused(
    index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMWHEEL_INDEX", index)
    with pytest.raises(InvalidInput, match="TRIMWHEEL_INDEX: must be a whole number from 0 to 255"):
        default_places()


def test_a_wrong_option_ends_the_program_with_a_sentence_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trimwheel_demo", "play"],
        env=os.environ | {"SEED": "abc"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "SEED: must be a whole number" in done.stderr and "Traceback" not in done.stderr


def test_the_chart_values_that_differ_are_listed_and_addresses_are_not() -> None:
    root = Path(__file__).resolve().parents[2]
    shape = yaml.safe_load((root / "charts/trimwheel/ci/embedded-values.yaml").read_text())
    values = shape | {"ledger": {"url": "postgresql://me:secret@db"}}
    rows = {row["field"]: row for row in non_default_values(values)}
    assert rows["chart.prometheus.scrapeInterval"] == {
        "field": "chart.prometheus.scrapeInterval", "demo": "2s", "default": "15s",
    }  # fmt: skip
    fields = ("pipelines.loopInterval", "operator.resync", "operator.leaderSeconds", "ray.address")
    assert {f"chart.{name}" for name in fields} <= rows.keys()
    assert "secret" not in str(rows) and not [name for name in rows if "url" in name.lower()]


def test_the_settings_are_those_of_the_applied_model() -> None:
    manifest = model_manifest("models:/m/1", DIGEST)
    manifest["spec"]["rollout"]["alpha"] = "0.004"
    section = settings_section(manifest, {})
    assert section["alpha"] == 0.004
    assert (section["audit_rate"], section["epsilon"], section["delta"]) == (0.5, 0.02, 0.1)


def test_what_is_not_shown_depends_on_whose_cluster_it_is() -> None:
    ours, theirs = not_shown(Options()), not_shown(Options(kubeconfig=Path("k")))
    assert any("CPU" in line for line in ours)
    assert theirs and not any("CPU" in line or "local processes" in line for line in theirs)


def test_a_failed_stage_is_in_the_report_with_its_time(tmp_path: Path) -> None:
    report = Report(tmp_path / "deep" / "report.json", 0, tmp_path)
    with pytest.raises(ValueError, match="broke"), report.stage("drift") as found:
        found.append(metric_evidence("up == 1"))
        raise ValueError("broke")
    report.write()
    written = json.loads(report.path.read_text())
    assert written["schema"] == "trimwheel.demo/v1"
    assert written["stages"][0]["ok"] is False
    assert "query=up == 1" in written["stages"][0]["evidence"][0]["check"]


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
