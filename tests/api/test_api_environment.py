"""Variables of a process: read once, and named when they are broken."""

from __future__ import annotations

import importlib
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


@pytest.mark.parametrize("text", ["1000001", "9" * 18, "9" * 5000, "1_0", "١٢", "1e3", "nan"])
def test_a_count_has_an_end(text: str) -> None:
    with pytest.raises(SpecInvalid, match="^NAME: must be a whole number"):
        of(text).count("NAME", 1)


@pytest.mark.parametrize("text", ["0", "0.01", "61", "1e300", "999999999d", "400h"])
def test_a_duration_has_a_range(text: str) -> None:
    with pytest.raises(SpecInvalid, match="^NAME: must be a duration from 0.1 to 60 seconds"):
        of(text).span("NAME", 1.0, 0.1, 60)


@pytest.mark.parametrize("text", ["[", "[" * 100_000, "9" * 5000, "7", "null", '"x"', "{}", "nope"])
def test_a_list_is_a_list(text: str) -> None:
    with pytest.raises(SpecInvalid, match="^NAME: must be (a JSON list|JSON)"):
        of(text).json("NAME", [])


PROCESSES = {
    "operator": "trimwheel_operator.settings",
    "pipelines": "trimwheel_pipelines.settings",
    "workers": "trimwheel_workers.settings",
}
BAD = ("nan", "inf", "-1", "1e400", "9" * 25, "9" * 5000, "999999999d", "soon", "[]", "0x10")


@pytest.mark.parametrize("process", PROCESSES)
def test_every_number_of_every_process_is_held_to_a_range(
    process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = importlib.import_module(PROCESSES[process])
    asked: set[str] = set()
    for kind in ("count", "span"):
        real = getattr(Environment, kind)

        def spy(self: Environment, name: str, *rest: Any, real: Any = real) -> Any:
            asked.add(name)
            return real(self, name, *rest)

        monkeypatch.setattr(Environment, kind, lambda s, n, *a, spy=spy, **k: spy(s, n, *a))
    settings.from_environment({})
    monkeypatch.undo()
    assert len(asked) >= 4
    for name in asked:
        for value in BAD:
            with pytest.raises(SpecInvalid, match=f"^{name}: must be"):
                settings.from_environment({name: value})
