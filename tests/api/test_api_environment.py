"""Variables of a process: read once, and named when they are broken."""

from __future__ import annotations

from typing import Any

import pytest

from trimwheel_api.environment import Environment
from trimwheel_api.errors import SpecInvalid


def of(value: str) -> Environment:
    return Environment({"NAME": value})


@pytest.mark.parametrize("unset", [Environment({}), of("")])
def test_an_empty_variable_is_an_unset_one(unset: Environment) -> None:
    found: tuple[Any, ...] = (
        unset.text("NAME", "x"), unset.words("NAME"), unset.count("NAME", 3), unset.span("NAME", 4)
    )  # fmt: skip
    assert found == ("x", (), 3, 4)


def test_values_are_read_as_a_person_writes_them() -> None:
    assert of(" a, b ,,").words("NAME") == ("a", "b")
    assert of("8080").count("NAME", 1) == 8080
    spans = ("500ms", 0.5), ("1m30s", 90.0), ("2", 2.0), ("2.5", 2.5), ("0", 0.0)
    assert [of(text).span("NAME", 9.0) for text, _ in spans] == [value for _, value in spans]


@pytest.mark.parametrize("text", ["soon", "5x", "-1", "nan", "inf", "1s 2", "1e999"])
def test_what_is_no_duration_names_its_variable(text: str) -> None:
    with pytest.raises(SpecInvalid, match="^NAME: must be a duration such as 30s, but got '"):
        of(text).span("NAME", 1.0)


@pytest.mark.parametrize("text", ["many", "0", "-2", "1.5"])
def test_what_is_no_count_names_its_variable(text: str) -> None:
    with pytest.raises(SpecInvalid, match="^NAME: must be a whole number, 1 or more, but got '"):
        of(text).count("NAME", 1)
