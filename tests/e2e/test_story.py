"""The whole story on real components, as `make demo` plays it.

It accepts either honest outcome of the statistics (promoted, or full depth kept with its reason)
and fails on anything else. Every claim of the report is read again from the live system.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.played import Story

from trimwheel_api import names
from trimwheel_demo.recheck import recheck
from trimwheel_demo.report import SCHEMA

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
ALL_STAGES = (
    "environment", "train", "serve", "load", "bootstrap", "control", "drift", "tuning", "rollout",
    "after", "harm",
)  # fmt: skip


def test_the_story_ends_honestly(story: Story) -> None:
    report = story.report
    assert report["schema"] == SCHEMA
    if story.kept:
        assert story.code == 1
        assert not report["ok"]
        return
    assert report["exit_reason"] == "promoted", f"{report['exit_reason']}\n{story.output[-4000:]}"
    assert story.code == 0
    assert [row["name"] for row in report["stages"]] == list(ALL_STAGES)
    assert all(row["ok"] for row in report["stages"])


def test_every_claim_reads_again_from_the_live_system(story: Story) -> None:
    """A check fails by itself when its claim does not hold; what it found is printed."""
    for row in story.report["stages"]:
        assert row["evidence"] or not row["ok"], f"stage {row['name']} shows no evidence"
    readings = list(recheck(story.report, story.env))
    wrong = [f"{one.stage}: {one.check}\n  {one.said}" for one in readings if not one.holds]
    assert readings and not wrong, "\n".join(wrong)


def test_the_tuning_of_the_report_is_what_mlflow_and_the_object_say(story: Story) -> None:
    """Also, and above all, when nothing was certified."""
    tuning = story.report["tuning"]
    assert tuning["executor"] == "ray"
    assert 0 < tuning["model_run_trials"] <= tuning["trials"]
    assert tuning["search_records"] > 0 and tuning["mlflow_run_id"]
    if story.report["ok"]:
        assert tuning["outcome"] == "Certified" and tuning["certificate"]["n"] > 0


def test_the_steps_are_those_of_the_policy_rollout(story: Story) -> None:
    if story.kept:
        pytest.skip(story.report["exit_reason"])
    steps = story.report["rollout"]["steps"]
    assert [step["weight"] for step in steps] == [0, 1000, 2500, 5000]
    assert all(step["seconds"] >= 10 for step in steps), "each was held"
    assert steps[-1]["left_by"] == "Await" and steps[-1]["verdict"] == "Pass"


def test_who_may_not_decide_was_refused(story: Story) -> None:
    if story.kept:
        pytest.skip(story.report["exit_reason"])
    denied = {row["user"]: row["message"] for row in story.report["approval"]["denied"]}
    assert "lacks verb approve" in str(story.report["approval"]["denied"])
    operators = [message for user, message in denied.items() if names.OPERATOR_ACCOUNT in user]
    assert operators and all("policyapprovals" in message for message in operators)
    assert "lacks verb waive" in str(story.report["approval"]["denied"])
    assert story.report["approval"]["by"] == "alice"


def test_the_drift_broke_the_certificate_and_nobody_was_asked(story: Story) -> None:
    if story.kept and not story.report["drift"]:
        pytest.skip(story.report["exit_reason"])
    drift = story.report["drift"]
    assert drift["certificate_broken"]
    assert 0 < drift["audits_to_verdict"]
    assert drift["seconds_to_verdict"] <= drift["seconds_to_full_depth"]
    assert float(drift["value"]) > float(drift["bound"])


def test_the_control_did_not_fail(story: Story) -> None:
    if story.kept and not story.report["control"]:
        pytest.skip(story.report["exit_reason"])
    assert story.report["control"]["rolled_back"] is False
    assert story.report["control"]["ended"] == "Abort: Aborted"
    assert all(step["verdict"] != "Fail" for step in story.report["control"]["steps"])


def test_the_harmful_policy_was_rolled_back_by_disagreement(story: Story) -> None:
    if story.kept:
        pytest.skip(story.report["exit_reason"])
    rollback = story.report["rollback"]
    assert rollback["guard"] == "disagreement"
    assert float(rollback["value"]) > float(rollback["bound"])
    assert rollback["exposed_requests"] > 0
    assert rollback["workers"] == 2
    assert not rollback["retried"]


def test_every_dashboard_query_returns_data(story: Story) -> None:
    if story.kept:  # what was never rolled out has no verdict, and full depth no drift
        pytest.skip(story.report["exit_reason"])
    done = subprocess.run(
        [str(Path(sys.executable).parent / "trimwheel"), "dashboards", "queries",
         "--namespace", story.env["TRIMWHEEL_NAMESPACE"], "--model", story.env["TRIMWHEEL_MODEL"]],
        env=story.env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    expressions = [line for line in done.stdout.splitlines() if line.strip()]
    assert len(expressions) >= 20
    empty = []
    for expression in expressions:
        answer = subprocess.run(
            ["curl", "-sG", f"{story.env['PROMETHEUS_URL']}/api/v1/query",
             "--data-urlencode", f"query={expression}"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        if not json.loads(answer.stdout).get("data", {}).get("result"):
            empty.append(expression)
    assert not empty, "no data for:\n" + "\n".join(empty)
