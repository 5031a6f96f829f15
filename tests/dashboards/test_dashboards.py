"""Dashboards and rules: metrics that exist, valid Grafana JSON, promtool, a runbook entry each."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from trimwheel_api.metrics import METRICS
from trimwheel_cli.main import cli
from trimwheel_dashboards import generate
from trimwheel_dashboards.alerts import ALERTS
from trimwheel_dashboards.generate import boards, expressions, files, rule_groups
from trimwheel_dashboards.rules import recording_rules
from trimwheel_local.binaries import find

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = yaml.safe_load((HERE / "rules_test.yaml").read_text())["tests"]
BOARDS = boards()
SUFFIXES = ("_bucket", "_sum", "_count")
KNOWN = {metric.name: metric for metric in METRICS}
ALL = [(name, expression) for name, board in BOARDS.items() for expression in expressions(board)]
RULES = [rule for group in rule_groups()["groups"] for rule in group["rules"]]


def metric_of(name: str) -> Any:
    """The metric behind a series name, with a histogram's suffix taken off."""
    if name in KNOWN:
        return KNOWN[name]
    stem = next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)
    assert stem in KNOWN, f"{name} is no metric of ours"
    assert KNOWN[stem].type == "histogram", f"{stem} is no histogram"
    return KNOWN[stem]


def series(expression: str) -> list[tuple[str, str]]:
    """(series name, what stands in its braces) of an expression."""
    return re.findall(r"(?<![\w:])(trimwheel_\w+)(?:\{([^}]*)\})?", expression)


def assert_known(expression: str) -> None:
    """Every series is a metric of ours, asked for labels that it has."""
    for name, braces in series(expression):
        metric = metric_of(name)
        allowed = {*metric.labels, "namespace", "pod", "le"}
        asked = set(re.findall(r"(\w+)\s*[=!]", braces))
        assert asked <= allowed, (name, asked - allowed)


@pytest.mark.parametrize(("board", "expression"), ALL)
def test_every_query_asks_for_metrics_and_labels_that_exist(board, expression):
    assert series(expression), f"{board}: no metric of ours in {expression}"
    assert_known(expression)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_rule_asks_for_metrics_and_labels_that_exist(rule):
    assert_known(rule["expr"])


def test_every_metric_is_on_a_dashboard_or_in_an_alert():
    shown = {metric_of(name).name for _, each in ALL for name, _ in series(each)}
    shown |= {metric_of(name).name for rule in RULES for name, _ in series(rule["expr"])}
    assert set(KNOWN) - shown == set()


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_complete_json_for_grafana(name):
    board = BOARDS[name]
    assert board["uid"] == f"trimwheel-{name}"
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "namespace",
                                                                    "model"]  # fmt: skip
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        title = panel["title"]
        assert panel["description"], title
        assert panel["datasource"]["uid"] == "${datasource}", title
        assert panel["targets"], title
        if panel["type"] in ("timeseries", "stat", "bargauge"):
            assert panel["fieldConfig"]["defaults"]["unit"], title
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), title


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap_and_fit_the_page(name):
    taken: dict[tuple[int, int], str] = {}
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]


def test_the_committed_files_are_current():
    stale = [str(path) for path, text in files().items() if path.read_text() != text]
    assert not stale, "run make generate"


def test_the_generator_tells_a_stale_file_and_writes_it(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "CHART_FILES", tmp_path)
    assert CliRunner().invoke(generate.main, ["--check"]).exit_code == 1
    assert not list(tmp_path.iterdir())
    assert CliRunner().invoke(generate.main, []).exit_code == 0
    assert CliRunner().invoke(generate.main, ["--check"]).exit_code == 0
    (tmp_path / "rules.yaml").write_text("groups: []")
    told = json.loads(CliRunner().invoke(generate.main, ["--check", "-o", "json"]).stdout)
    assert told == {"not_current": ["rules.yaml"]}


def test_queries_are_printed_one_a_line_with_variables_resolved():
    call = ["dashboards", "queries", "-m", "m1", "-n", "ns1", "--interval", "2m"]
    lines = CliRunner().invoke(cli, call).stdout.splitlines()
    assert len(lines) == len({expression for _, expression in ALL})
    assert not [line for line in lines if "$" in line]
    assert all('="ns1"' in line for line in lines if "{" in line)
    told = json.loads(CliRunner().invoke(cli, [*call, "-o", "json"]).stdout)
    assert [query["expr"] for query in told["queries"]] == lines


def test_every_alert_has_its_entry_in_the_runbook():
    text = (ROOT / "docs" / "runbook.md").read_text()
    headings = set(re.findall(r"^## (Trimwheel\w+)$", text, re.MULTILINE))
    assert headings == {alert.name for alert in ALERTS}
    for alert in ALERTS:
        entry = text.split(f"## {alert.name}\n")[1].split("\n## ")[0]
        assert all(word in entry for word in ("**Means.**", "**Look.**", "**Do.**")), alert.name
        assert alert.rule()["annotations"]["runbook"].endswith(f"#{alert.name.lower()}")


def test_every_alert_is_tried_silent_and_then_firing():
    tried: dict[str, set[bool]] = {}
    for case in CASES:
        for look in case.get("alert_rule_test", []):
            tried.setdefault(look["alertname"], set()).add(bool(look["exp_alerts"]))
    assert tried == {alert.name: {True, False} for alert in ALERTS}


def test_every_recording_rule_is_computed_or_alerted_on():
    computed = {look["expr"] for case in CASES for look in case.get("promql_expr_test", [])}
    alerted = " ".join(alert.expr for alert in ALERTS)
    named = [rule["record"] for rule in recording_rules()]
    assert [name for name in named if name not in computed and name not in alerted] == []


def _promtool() -> str | None:
    path = find().paths.get("promtool")
    return str(path) if path else shutil.which("promtool")


@pytest.mark.slow
def test_promtool_finds_every_alert_silent_before_and_firing_after():
    promtool = _promtool()
    if promtool is None:
        pytest.skip("no promtool: make setup builds it")
    done = subprocess.run(
        [promtool, "test", "rules", str(HERE / "rules_test.yaml")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_every_query_of_the_dashboards(tmp_path):
    promtool = _promtool()
    if promtool is None:
        pytest.skip("no promtool: make setup builds it")
    done = CliRunner().invoke(cli, ["dashboards", "queries", "--interval", "1m"])
    rules = [{"record": "checked:query", "expr": line, "labels": {"line": str(number)}}
             for number, line in enumerate(done.stdout.splitlines())]  # fmt: skip
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    checked = subprocess.run(
        [promtool, "check", "rules", "--lint=none", str(file)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
