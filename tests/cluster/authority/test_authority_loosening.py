"""Who may weaken a promise or expose more: every field, by an editor and by a waiver."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.test_api_loosening import ORDER

from trimwheel_api.loosening import FIELDS, Free, Guarded

pytestmark = pytest.mark.cluster

POLICY = "trimwheel-models"
DIGEST = "sha256:" + "b" * 64

CHANGES: dict[str, tuple[Any, Any]] = {
    "objectives.maxDisagreement": ("0.01", "0.03"),
    "objectives.confidence": ("0.95", "0.89"),
    "objectives.errorBudget": ("0.001", "0.0021"),
    "objectives.latency.slo": ("249ms", "1s"),
    "objectives.latency.budget": ("0.009", "0.1"),
    "objectives.capacityTarget": (None, "0.01"),
    "audits.rate": ("0.03", "0"),
    "audits.alarmRate": ("0.5", "0.1"),
    "audits.alarmAudits": (5000, 3999),
    "drift.falseAlarmAudits": ("100000", "5000001"),
    "drift.onHarm": (None, "alert"),
    "drift.block": ("10m", "1d"),
    "tuning.certificateTTL": ("7d", "31d"),
    "rollout.approval": (None, "Automatic"),
    "rollout.approvalDeadline": ("1h30m", "72h1ms"),
    "rollout.steps": (
        [{"weight": "0%", "hold": "1d"}, {"weight": "5%", "minRequests": 2500}],
        [{"weight": "0%"}, {"weight": "50%"}],
    ),
    "rollout.alpha": ("0.01", "0.000000001"),
    "rollout.beta": ("0.01", "0.999"),
    "rollout.passMargin": ("1.2", "10"),
    "rollout.parityBudget": ("0.001", "0.5"),
    "rollout.leaseSeconds": (10, 31),
}
"""Path -> a stricter and a looser value than the default; None where there is none."""

FREE: dict[str, Any] = {
    "access.tokensSecret": "trimwheel-tokens",
    "access.tlsSecret": "trimwheel-tls",
    "model.uri": "s3://elsewhere/router",
    "model.digest": DIGEST,
    "replicas": 3,
    "resources.requests": {"cpu": "2"},
    "resources.limits": {"memory": "4Gi"},
    "engine.dtype": "bfloat16",
    "engine.threads": 4,
    "engine.maxBatch": 8,
    "engine.maxWait": "5ms",
    "engine.queueLimit": 64,
    "engine.deadline": "10s",
    "audits.inputs": "sampled",
    "audits.retention": "1d",
    "drift.reference": "1d",
    "tuning.trials": 5,
    "tuning.searchRecords": 100,
    "tuning.certifyRecords": 100,
    "tuning.finalists": 1,
    "tuning.knobs": ["exit.thresholds"],
    "tuning.timeout": "1h",
    "tuning.schedule": "7d",
    "tuning.bootstrap": False,
    "rollout.historyLimit": 5,
}
ONE_VALUE = {"task"}


def at(path: str, value: Any) -> dict[str, Any]:
    """A spec with one value at a path."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def merged(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    spec = {**body["spec"]}
    top, _, rest = path.partition(".")
    spec[top] = {**spec.get(top, {}), **at(rest, value)} if rest else value
    return {**body, "spec": spec}


def test_every_field_of_the_table_is_tried() -> None:
    assert set(CHANGES) == {path for path, one in FIELDS.items() if not isinstance(one, Free)}
    free = {path for path, one in FIELDS.items() if isinstance(one, Free)}
    assert set(FREE) == free - ONE_VALUE


@pytest.fixture
def people(stage: Any) -> tuple[Any, Any]:
    """An editor, and one who may waive as well."""
    return stage.person("edith", "edit"), stage.person("wanda", "edit", "trimwheel-waiver")


@pytest.mark.parametrize("path", CHANGES)
def test_loosening_a_field_takes_verb_waive(stage: Any, people: tuple[Any, Any], path: str) -> None:
    editor, waiver = people
    _, looser = CHANGES[path]
    assert editor.create(stage.model()).allowed
    change = {"spec": at(path, looser)}
    answer = editor.patch("AdaptiveModel", "m", change)
    _refused(answer, path, looser)
    assert waiver.patch("AdaptiveModel", "m", change).allowed
    untouched = editor.patch("AdaptiveModel", "m", {"spec": {"replicas": 2}})
    assert untouched.allowed, "what was waived once stays, and is nobody else's matter"


def _refused(answer: Any, path: str, looser: Any) -> None:
    assert answer.policy == POLICY, answer
    shown = looser[-1]["weight"] if isinstance(looser, list) else str(looser)
    lacks = "edith lacks verb waive on adaptivemodels/m"
    for words in (f"spec.{path}: must ", "but got ", shown, lacks):
        assert words in answer.message, answer.message


@pytest.mark.parametrize("path", CHANGES)
def test_creation_is_compared_with_the_defaults(
    stage: Any, people: tuple[Any, Any], path: str
) -> None:
    editor, waiver = people
    stricter, looser = CHANGES[path]
    body = merged(stage.model(), path, looser)
    _refused(editor.create(body, dryRun="All"), path, looser)
    assert waiver.create(body, dryRun="All").allowed
    if stricter is not None:
        assert editor.create(merged(stage.model(), path, stricter), dryRun="All").allowed


@pytest.mark.parametrize("path", [path for path, (stricter, _) in CHANGES.items() if stricter])
def test_tightening_is_the_editors_and_taking_it_back_is_not(
    stage: Any, people: tuple[Any, Any], path: str
) -> None:
    editor, waiver = people
    stricter, looser = CHANGES[path]
    assert waiver.create(merged(stage.model(), path, looser)).allowed
    assert editor.patch("AdaptiveModel", "m", {"spec": at(path, stricter)}).allowed
    assert editor.patch("AdaptiveModel", "m", {"spec": at(path, looser)}).policy == POLICY


@pytest.mark.parametrize("path", FREE)
def test_what_weakens_no_promise_takes_no_verb(
    stage: Any, people: tuple[Any, Any], path: str
) -> None:
    editor, _ = people
    assert editor.create(stage.model()).allowed
    answer = editor.patch("AdaptiveModel", "m", {"spec": at(path, FREE[path])})
    assert answer.allowed, answer


@pytest.mark.parametrize("path", ["rollout.approval", "drift.onHarm"])
def test_back_to_the_strictest_word_takes_no_verb(
    stage: Any, people: tuple[Any, Any], path: str
) -> None:
    editor, waiver = people
    assert waiver.create(merged(stage.model(), path, CHANGES[path][1])).allowed
    strictest = {"rollout.approval": "Required", "drift.onHarm": "fullDepth"}[path]
    assert editor.patch("AdaptiveModel", "m", {"spec": at(path, strictest)}).allowed


def test_removing_a_section_is_a_change_to_its_defaults(
    stage: Any, people: tuple[Any, Any]
) -> None:
    """A field that is left out is defaulted before admission, not skipped by it."""
    editor, _ = people
    assert editor.create(merged(stage.model(), "rollout.alpha", "0.01")).allowed
    answer = editor.patch("AdaptiveModel", "m", {"spec": {"rollout": None}})
    assert answer.policy == POLICY and "spec.rollout.alpha" in answer.message


@pytest.mark.parametrize("name", ORDER)
def test_the_order_of_steps_is_the_contracts(
    stage: Any, people: tuple[Any, Any], name: str
) -> None:
    """CEL and Python decide alike on the same table."""
    editor, waiver = people
    before, after = ORDER["the same"][0], ORDER[name][0]
    assert waiver.create(stage.model(steps=_steps(before))).allowed
    answer = editor.patch("AdaptiveModel", "m", {"spec": {"rollout": {"steps": _steps(after)}}})
    if name == "a larger weight":
        assert answer.code == 422, "the schema speaks first"
        return
    assert answer.allowed is (ORDER[name][1] == ""), answer
    if not answer.allowed:
        assert answer.policy == POLICY and "spec.rollout.steps: must " in answer.message


def _steps(rows: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    return [{"weight": w, "hold": hold, "minRequests": count} for w, hold, count in rows]


def test_twenty_steps_against_twenty_are_within_the_cost_budget(
    stage: Any, people: tuple[Any, Any]
) -> None:
    editor, waiver = people
    long_hold = "1h1m1s100ms"
    rows = [(f"{n}%", long_hold, n) for n in range(20)]
    assert waiver.create(stage.model(steps=_steps(rows))).allowed
    stricter = [(weight, "2h2m2s200ms", count + bool(count)) for weight, _, count in rows]
    change = {"spec": {"rollout": {"steps": _steps(stricter)}}}
    answer = editor.patch("AdaptiveModel", "m", change)
    assert answer.allowed, answer


def test_the_table_of_guarded_fields_has_a_direction_each() -> None:
    for path, entry in FIELDS.items():
        if isinstance(entry, Guarded):
            assert entry.looser in ("larger", "smaller", "changed"), path
