"""What the stages report, from the objects as the operator and the pipelines leave them."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from trimwheel_api import names
from trimwheel_demo.measure import Counters
from trimwheel_demo.report import Report
from trimwheel_demo.settings import Options
from trimwheel_demo.stages import drift, harm, summary, tuning
from trimwheel_demo.stages.control import control_section
from trimwheel_demo.stages.drift import withstood_or_missed
from trimwheel_demo.stages.following import (
    KeptFullDepth,
    StepLog,
    StoryFailed,
    Withstood,
    steps_report,
)
from trimwheel_demo.teller import Teller

Item = dict[str, Any]
META = {"namespace": "snippets", "uid": "u"}


class Cluster:
    """Objects by (kind, name); a list is one state after the other."""

    def __init__(self, **objects: Any) -> None:
        self.objects = objects

    def get(self, kind: str, name: str) -> Item | None:
        found = self.objects.get(kind)
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found


@pytest.fixture
def world(tmp_path: Path) -> SimpleNamespace:
    teller = Teller(Console(file=(tmp_path / "told").open("w"), soft_wrap=True))
    report = Report(tmp_path / "report.json", 0, tmp_path)
    return SimpleNamespace(
        teller=teller, report=report, notes={}, options=Options(), mlflow="m", prometheus="p",
        load=SimpleNamespace(read_control=lambda: None), told=lambda: told(tmp_path, teller),
    )  # fmt: skip


def told(folder: Path, teller: Teller) -> str:
    teller.console.file.flush()
    return (folder / "told").read_text()


# --- tuning ---------------------------------------------------------------------------------


def a_run(outcome: str, **seen: Any) -> Item:
    truth = {"type": "Stalled", "status": "True", "reason": outcome, "message": "no point passed"}
    status = {
        "outcome": outcome, "executor": "ray", "trialsDone": 10, "modelRunTrials": 7,
        "searchRecords": 1000, "certifyRecords": 1500, "mlflowRunID": "r1", "conditions": [truth],
    }  # fmt: skip
    return {"kind": "TuningRun", "metadata": META | {"name": "after-drift"},
            "spec": {"reason": "Harmful"}, "status": status | seen}  # fmt: skip


def test_a_run_that_certified_nothing_is_in_the_report_with_its_evidence(
    world: SimpleNamespace,
) -> None:
    world.report["tuning"] = {"name": "bootstrap", "outcome": "Certified"}
    found: list[dict[str, str]] = []
    run = a_run("NothingCertified")
    with pytest.raises(KeptFullDepth, match="NothingCertified: no point passed"):
        tuning.tune(world, lambda _: run, found)  # type: ignore[arg-type]
    section = world.report["tuning"]
    assert (section["name"], section["outcome"]) == ("after-drift", "NothingCertified")
    assert (section["executor"], section["trials"], section["model_run_trials"]) == ("ray", 10, 7)
    assert section["search_records"] == 1000 and section["mlflow_run_id"] == "r1"
    checks = "\n".join(item["check"] for item in found)
    assert "grep -xF -- NothingCertified" in checks and "run_id=r1" in checks


def test_a_run_that_failed_is_another_ending(world: SimpleNamespace) -> None:
    with pytest.raises(StoryFailed, match="after-drift ended as Failed"):
        tuning.tune(world, lambda _: a_run("Failed"), [])  # type: ignore[arg-type]
    assert world.report["tuning"]["outcome"] == "Failed"


def test_where_trials_ran_is_what_the_run_says() -> None:
    assert tuning.tuning_section(a_run("Certified", executor="serial"))["executor"] == "serial"
    assert tuning.tuning_section(a_run("Failed", executor="", modelRunTrials=0))["executor"] == ""


# --- steps ----------------------------------------------------------------------------------


def decided(*rows: tuple[str, str, int, int]) -> list[Item]:
    return [
        {"seq": number + 1, "time": f"2026-11-22T10:00:{second:02d}.000000Z", "action": action,
         "reason": reason, "message": f"{action} it", "weightBasisPoints": weight}
        for number, (action, reason, weight, second) in enumerate(rows)
    ]  # fmt: skip


CANARY = decided(
    ("Start", "Shadow", 0, 0), ("Advance", "StepAdvanced", 1000, 12),
    ("Pause", "StepTimedOut", 1000, 20), ("Resume", "Resumed", 1000, 22),
    ("Advance", "StepAdvanced", 5000, 30), ("Await", "ApprovalRequired", 5000, 45),
    ("Promote", "Approved", 0, 50),
)  # fmt: skip


def a_rollout(decisions: list[Item], **seen: Any) -> Item:
    return {"kind": "PolicyRollout", "metadata": META | {"name": "r"},
            "spec": {"policyDigest": "sha256:1"},
            "status": {"decisions": decisions, "guards": []} | seen}  # fmt: skip


def test_the_steps_are_those_that_were_decided_even_if_nobody_watched() -> None:
    rows = steps_report(a_rollout(CANARY), StepLog())
    assert [(row["weight"], row["seconds"]) for row in rows] == [(0, 12), (1000, 18), (5000, 15)]
    assert [row["verdict"] for row in rows] == ["NotEnoughEvidence", "NotEnoughEvidence", "Pass"]
    assert [row["left_by"] for row in rows] == ["Advance", "Advance", "Await"]
    assert all(row["samples"] is None for row in rows)


def test_what_was_watched_of_a_step_is_told_with_it() -> None:
    log = StepLog()

    def seen(step: int, verdict: str, samples: int, phase: str = "Progressing") -> bool:
        guards = [{"samples": samples}, {"samples": 1}]
        return log.look(a_rollout([], step=step, verdict=verdict, guards=guards, phase=phase,
                                  stepStartedAt="t"))  # fmt: skip

    assert seen(0, "NotEnoughEvidence", 7)
    assert not seen(0, "Pass", 90)
    assert seen(2, "Pass", 300, "AwaitingApproval")
    assert not seen(2, "Fail", 999, "RolledBack"), "what comes after the end is no step"
    rows = steps_report(a_rollout(CANARY), log)
    assert [(row["verdict"], row["samples"]) for row in rows] == [
        ("Pass", 90), ("NotEnoughEvidence", None), ("Pass", 300),
    ]  # fmt: skip


def test_a_step_that_a_guard_ended_has_failed_and_one_under_way_has_no_end() -> None:
    failed = decided(("Start", "Started", 2500, 0), ("RollBack", "GuardFailed", 0, 9))
    (row,) = steps_report(a_rollout(failed), StepLog())
    assert (row["verdict"], row["seconds"], row["left_by"]) == ("Fail", 9.0, "RollBack")
    (row,) = steps_report(a_rollout(failed[:1]), StepLog())
    assert (row["seconds"], row["left_by"]) == (None, "")


# --- control and harm -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "rolled_back", "ended"),
    [
        (("Abort", "Aborted", 0, 9), False, "Abort: Aborted"),
        (("RollBack", "GuardFailed", 0, 9), True, "RollBack: GuardFailed"),
    ],
)
def test_whether_the_control_was_rolled_back_is_what_was_decided(
    last: tuple[str, str, int, int], rolled_back: bool, ended: str
) -> None:
    item = a_rollout(decided(("Start", "Shadow", 0, 0), last))
    section = control_section(item, StepLog())
    assert (section["rolled_back"], section["ended"]) == (rolled_back, ended)


def test_a_rollback_by_a_guard_is_told_with_its_numbers() -> None:
    failed = {"name": "disagreement", "verdict": "Fail", "value": "0.4", "bound": "0.02"}
    guards = [{"name": "errors", "verdict": "Pass"}, failed]
    item = a_rollout(
        decided(("Start", "Started", 2500, 0), ("RollBack", "GuardFailed", 0, 9)),
        guards=guards, actuation={"milliseconds": 80, "workers": 2},
    )  # fmt: skip
    section = harm.rollback_section(item)
    assert (section["guard"], section["value"], section["detect_seconds"]) == (
        "disagreement",
        "0.4",
        9,
    )
    assert (section["actuation_ms"], section["workers"]) == (80, 2)


def test_a_rollback_for_another_reason_is_told_and_breaks_nothing() -> None:
    item = a_rollout(decided(("Start", "Started", 2500, 0), ("RollBack", "PolicyInvalid", 0, 1)))
    section = harm.rollback_section(item)
    assert (section["guard"], section["reason"]) == ("", "PolicyInvalid")
    assert section["message"] == "RollBack it" and section["actuation_ms"] is None
    assert harm.rollback_section(a_rollout([]))["detect_seconds"] is None


# --- drift ----------------------------------------------------------------------------------


def test_audits_and_seconds_to_the_verdict_are_read_when_it_arrives(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = {"verdict": names.Reason.HARMFUL, "signal": "disagreement", "value": "0.05",
               "bound": "0.02", "confidence": "0.999", "tuningRun": "run"}  # fmt: skip
    serving = {"intended": {"policy": "old"}, "drift": verdict, "stable": {"digest": "sha256:1"},
               "certificate": {"state": "Valid"}}  # fmt: skip
    dense = serving | {
        "stable": {"digest": drift.DENSE.digest, "since": "now"},
        "certificate": {"state": "Revoked"},
        "conditions": [{"type": names.DEGRADED, "status": "True"}],
    }
    model = [{"status": serving}] * 8 + [{"status": dense}]
    old = {"kind": "AdaptivePolicy", "metadata": META | {"name": "old"}, "status": {}}
    world.admin = Cluster(
        AdaptiveModel=model, AdaptivePolicy=old,
        TuningRun=a_run("", drift=verdict) | {"metadata": META | {"name": "run"}},
    )  # fmt: skip
    started = time.time()
    moments: list[Counters] = []

    def read(_: Any, at: float | None = None) -> Counters:
        """A hundred audits a second."""
        now = time.time()
        moments.append(Counters(now, 0, 0, int(100 * (now - started)), 0))
        return moments[-1]

    told_periods: list[float] = []

    def period(_: Any, start: Counters, end: Counters) -> Item:
        told_periods.append(end.time - start.time)
        return {}

    monkeypatch.setattr(drift, "settled", read)
    monkeypatch.setattr(drift, "counters", read)
    monkeypatch.setattr(drift, "period", period)
    monkeypatch.setattr(drift, "period_evidence", lambda *_: [])
    monkeypatch.setattr(drift, "replace", lambda *_, **__: None)
    monkeypatch.setattr(drift.load, "start", lambda *_: 0)
    monkeypatch.setattr(drift, "BEFORE_SECONDS", 0.0)
    found: list[dict[str, str]] = []
    drift.drift(world, found)  # type: ignore[arg-type]
    section = world.report["drift"]
    assert section["seconds_to_full_depth"] > 2.0, "the workers took their time"
    assert section["seconds_to_verdict"] < 1.0 and section["audits_to_verdict"] < 100
    assert section["certificate_broken"]
    checks = "\n".join(item["check"] for item in found)
    assert "get tuning run" in checks and "get adpolicy old" in checks
    assert "get amodel" not in checks, "the model's status soon speaks of another policy"


# --- summary --------------------------------------------------------------------------------


def test_the_checks_are_told_after_an_early_end_as_well(world: SimpleNamespace) -> None:
    with world.report.stage("bootstrap") as found:
        found += tuning.tuning_evidence(a_run("NothingCertified"))
    summary.tell(world)  # type: ignore[arg-type]
    text = world.told()
    assert "grep -xF -- NothingCertified" in text and "the line that reads it again" in text
    assert "Before and after" not in text


def test_after_is_measured_once_every_worker_serves_the_promoted_policy(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [None, 1.0, 1.0, 1.0, 2.0]
    asked: list[str] = []

    def query(_: Any, expression: str, at: float) -> float | None:
        asked.append(expression)
        return counts.pop(0) if len(counts) > 1 else counts[0]

    def settled(_: Any) -> Counters:
        assert counts == [2.0], "a worker still served the former policy"
        return Counters(time.time(), 0, 0, 0, 0)

    monkeypatch.setattr(summary, "query", query)
    monkeypatch.setattr(summary, "settled", settled)
    monkeypatch.setattr(summary, "period", lambda *_: {})
    monkeypatch.setattr(summary, "period_evidence", lambda *_: [])
    monkeypatch.setattr(summary, "AFTER_SECONDS", 0.0)
    world.report["rollout"] = {"digest": "sha256:1"}
    world.report["tuning"] = {"mlflow_run_id": "r1"}
    found: list[dict[str, str]] = []
    summary.measure_after(world, found)  # type: ignore[arg-type]
    assert 'digest="sha256:1"' in asked[0] and asked[0].startswith("count(")
    assert '"run_id":"r1"' in found[-1]["check"]


@pytest.mark.parametrize(
    ("share", "audits", "kind"),
    [(0.017, 9000, Withstood), (0.021, 9000, Withstood), (0.03, 9000, StoryFailed),
     (0.017, 400, StoryFailed), (None, 0, StoryFailed)],
)  # fmt: skip
def test_no_verdict_of_harm_is_an_outcome_only_where_many_audits_show_none(
    share: float | None, audits: int, kind: type[Exception]
) -> None:
    found = withstood_or_missed({"disagreement": share, "n": audits}, "not within 300 s")
    assert type(found) is kind
    assert ("on the changed traffic in 9000 audits" in str(found)) is (kind is Withstood)
