"""Every number, text, list and map of every kind has a limit; what lies beyond is found."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.crd import manifests
from trimwheel_api.kinds import AdaptiveModel, TuningRun
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.limits import beyond
from trimwheel_api.values import DURATION_PATTERN, PERCENT_PATTERN, basis_points, seconds, span

SOURCE = {"uri": "models:/router/1", "digest": "sha256:" + "a" * 64}
OWN_MEMORY = {"PolicyJournal"}
"""What the operator alone writes, from objects that are within their limits."""
NUMBERS = (DURATION_PATTERN, PERCENT_PATTERN)


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    for crd in manifests():
        if crd["spec"]["names"]["kind"] in OWN_MEMORY:
            continue
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        yield from walk(schema["properties"]["spec"], f"{crd['spec']['names']['kind']}.spec")


def walk(part: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, part
    for name, inner in part.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            yield from walk(part[key], f"{path}[]")


def limited(part: dict[str, Any]) -> bool:
    """Whether no value of any size passes this schema."""
    match part.get("type"):
        case "integer":
            return "minimum" in part and "maximum" in part
        case "string":
            return bool({"maxLength", "enum"} & part.keys()) or part.get("format") == "date-time"
        case "array":
            return "maxItems" in part
        case "object" if isinstance(part.get("additionalProperties"), dict):
            return "maxProperties" in part
    return "number" != part.get("type")


def test_every_value_of_every_kind_has_a_limit() -> None:
    assert [path for path, part in fields() if not limited(part)] == []


def test_every_span_has_a_longest_and_every_weight_a_largest() -> None:
    """Their patterns alone let 999999999d pass."""
    loose = [
        path
        for path, part in fields()
        if part.get("pattern") in NUMBERS
        and not any("must be at most" in rule["message"]
                    for rule in part.get("x-kubernetes-validations", []))
    ]  # fmt: skip
    assert loose == []


@pytest.mark.parametrize("text", ["NaN", "nan", "Infinity", "inf", "-1", "1e9", "0x1", " 1", ""])
def test_no_pattern_of_a_number_takes_what_is_none(text: str) -> None:
    import re

    for path, part in fields():
        if (pattern := part.get("pattern", "")) and "[0-9]" in pattern and "[a-z" not in pattern:
            if part.get("x-kubernetes-int-or-string"):
                continue  # a quantity may be 1e9
            assert not re.match(pattern, text), path


@given(st.from_regex(DURATION_PATTERN, fullmatch=True).filter(lambda text: len(text) <= 48))
def test_no_span_that_can_be_written_overflows_a_calendar(text: str) -> None:
    assert datetime(2026, 1, 1, tzinfo=UTC) + span(text) > datetime(2025, 1, 1, tzinfo=UTC)
    assert int(seconds(text)) < 2**32


@given(st.from_regex(PERCENT_PATTERN, fullmatch=True))
def test_no_weight_that_can_be_written_is_outside_the_cohorts(text: str) -> None:
    assert 0 <= basis_points(text) <= 10_000


BEYOND: dict[str, tuple[dict[str, Any], str]] = {
    "a hold of 27,000 years": (
        {"rollout": {"steps": [{"weight": "5%", "hold": "9999999d"}]}},
        "spec.rollout.steps[0].hold: must be at most 366d, but got '9999999d'",
    ),
    "a step at full weight": (
        {"rollout": {"steps": [{"weight": "0%"}, {"weight": "100%"}]}},
        "spec.rollout.steps[1].weight: must be at most 50%, but got '100%'",
    ),
    "a promise of no disagreement": (
        {"objectives": {"maxDisagreement": "0"}},
        "spec.objectives.maxDisagreement: must lie above 0 and below 1, but got '0'",
    ),
    "a promise of a fifth": (
        {"objectives": {"maxDisagreement": "0.2"}},
        "spec.objectives.maxDisagreement: must be below 0.2, but got '0.2'",
    ),
    "a queue for everyone": (
        {"engine": {"queueLimit": 10**9}},
        "spec.engine.queueLimit: must be at most 100000, but got 1000000000",
    ),
    "a schedule beyond the year": (
        {"tuning": {"schedule": "9000d"}},
        "spec.tuning.schedule: must be at most 366d, but got '9000d'",
    ),
    "resources without end": (
        {"resources": {"limits": {f"x{n}": "1" for n in range(33)}}},
        "spec.resources.limits: must be at most 32",
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_was_stored_beyond_a_limit_is_read_and_named(name: str) -> None:
    change, words = BEYOND[name]
    spec = AdaptiveModelSpec.model_validate({"model": SOURCE, **change})
    [found] = [one.sentence() for one in beyond(spec)]
    assert found.startswith(words)


def test_the_defaults_of_every_kind_are_within_the_limits() -> None:
    assert list(beyond(AdaptiveModelSpec.model_validate({"model": SOURCE}))) == []


def test_an_impossible_run_is_read_and_named() -> None:
    run = TuningRun.model_validate(
        {"kind": "TuningRun", "metadata": {"name": "t"},
         "spec": {"model": "m", "risk": {"epsilon": "0", "delta": "1"}}}
    )  # fmt: skip
    assert [one.field for one in beyond(run.spec)] == ["spec.risk.epsilon", "spec.risk.delta"]


def test_limits_are_no_reason_not_to_read_an_object() -> None:
    body = {"kind": "AdaptiveModel", "metadata": {"name": "m"},
            "spec": {"model": SOURCE, "engine": {"queueLimit": 10**12},
                     "rollout": {"steps": [{"weight": "100%", "hold": "999999999d"}]}}}  # fmt: skip
    assert AdaptiveModel.model_validate(body).spec.engine.queue_limit == 10**12
