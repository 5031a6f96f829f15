"""Guarded values as text: what is looser than what was kept, for every field of the table."""

from __future__ import annotations

import json

import pytest

from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.loosening import FIELDS, STRICTEST, Guarded, guarded_values, loosened

SPEC = AdaptiveModelSpec.model_validate(
    {"model": {"uri": "models:/m/1", "digest": "sha256:" + "a" * 64}}
)
GUARDED = {path: entry for path, entry in FIELDS.items() if isinstance(entry, Guarded)}
SMALL_AND_LARGE = {
    "decimal": ("0.000000001", "1000000000"), "integer": ("0", "1000000"),
    "duration": ("1ms", "300d"), "word": ("", "another"),
}  # fmt: skip


def test_every_guarded_field_has_a_value_that_is_no_looser_than_itself() -> None:
    values = guarded_values(SPEC)
    assert set(values) == {*GUARDED, "rollout.steps"}
    assert loosened(values, values) == []
    assert loosened(values, {}) == [], "a field that an older version did not keep"


@pytest.mark.parametrize("path", GUARDED)
def test_a_value_in_the_looser_direction_is_found_and_the_other_is_not(path: str) -> None:
    entry, values = GUARDED[path], guarded_values(SPEC)
    small, large = SMALL_AND_LARGE[entry.measure]
    found = {value: loosened({**values, path: value}, values) for value in (small, large)}
    if entry.looser == "changed":
        assert found[large] == [path]
        if path in STRICTEST:
            assert loosened({path: STRICTEST[path]}, {path: large}) == []
    else:
        looser, stricter = (large, small) if entry.looser == "larger" else (small, large)
        assert found[looser] == [path] and found[stricter] == []


def test_steps_are_compared_as_a_whole() -> None:
    values = guarded_values(SPEC)
    steps = json.loads(values["rollout.steps"])
    widest = [*steps[:-1], {**steps[-1], "weight": "50%", "hold": "0s"}]
    assert loosened({**values, "rollout.steps": json.dumps(widest)}, values) == ["rollout.steps"]
    longer = [{**one, "hold": "9d"} for one in steps]
    assert loosened({**values, "rollout.steps": json.dumps(longer)}, values) == []
