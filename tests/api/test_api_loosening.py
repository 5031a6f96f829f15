"""The table of looser fields: every field has an entry, and the order of steps is sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.admission_policy import defaults, text
from trimwheel_api.crd import manifests
from trimwheel_api.kinds.adaptive_model import Step, default_steps
from trimwheel_api.loosening import FIELDS, STRICTEST, Free, Guarded, looser_steps, sentence


def spec_schema() -> dict[str, Any]:
    [crd] = [one for one in manifests() if one["spec"]["names"]["kind"] == "AdaptiveModel"]
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return dict(schema["properties"]["spec"])


def leaves(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that holds a value: lists and maps as one."""
    for name, inner in part.get("properties", {}).items():
        if "properties" in inner:
            yield from leaves(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", inner


LEAVES = dict(leaves(spec_schema()))


def test_every_field_of_the_spec_has_an_entry_and_no_entry_is_of_another() -> None:
    assert set(FIELDS) == set(LEAVES)


def test_every_entry_says_why() -> None:
    assert [path for path, entry in FIELDS.items() if len(entry.why) < 12 and path != "task"] == []


def test_the_measure_of_an_entry_is_what_its_field_holds() -> None:
    for path, entry in FIELDS.items():
        if not isinstance(entry, Guarded):
            continue
        part = LEAVES[path]
        held = (
            "integer" if part["type"] == "integer"
            else "word" if "enum" in part
            else "duration" if "ms|s|m|h|d" in part["pattern"]
            else "decimal"
        )  # fmt: skip
        assert entry.measure == held, path


def test_words_have_a_strictest_value_which_is_their_default() -> None:
    words = {path for path, entry in FIELDS.items()
             if isinstance(entry, Guarded) and entry.measure == "word"}  # fmt: skip
    assert words == set(STRICTEST)
    assert {path: defaults()[path] for path in words} == STRICTEST
    for path in words:
        assert STRICTEST[path] in LEAVES[path]["enum"]


def test_what_takes_a_verb_is_said_where_kubectl_explain_reads() -> None:
    for path, entry in FIELDS.items():
        said = sentence(path)
        assert bool(said) is not isinstance(entry, Free), path
        assert said in LEAVES[path]["description"]


def test_the_admission_policy_names_each_guarded_field_and_no_free_one() -> None:
    policy = text()
    for path, entry in FIELDS.items():
        assert (f"'spec.{path}: " in policy) is not isinstance(entry, Free), path


# --- steps ------------------------------------------------------------------------------------
RAMP = [("0%", "10m", 0), ("5%", "10m", 100), ("50%", "20m", 300)]
ORDER: dict[str, tuple[list[tuple[str, str, int]], str]] = {
    "the same": (RAMP, ""),
    "longer holds": ([("0%", "1h", 0), ("5%", "10m", 100), ("50%", "20m", 300)], ""),
    "a step more in between": (
        [("0%", "10m", 0), ("1%", "1m", 0), ("5%", "10m", 100), ("50%", "20m", 300)], "",
    ),
    "the waiting done earlier": ([("0%", "40m", 0), ("4%", "0s", 400), ("50%", "0s", 0)], ""),
    "a smaller largest weight": ([("0%", "10m", 0), ("5%", "30m", 400)], ""),
    "no shadow": ([("5%", "20m", 100), ("50%", "20m", 300)], "no shadow step"),
    "a larger weight": ([*RAMP[:2], ("50.01%", "20m", 300)], "a step at 50.01%"),
    "all at once": ([("0%", "0s", 0), ("50%", "40m", 400)], "less holding time"),
    "a shorter shadow": ([("0%", "9m59s", 0), *RAMP[1:]], "less holding time"),
    "fewer requests": ([*RAMP[:2], ("50%", "20m", 299)], "fewer requests"),
    "requests seen later": (
        [("0%", "10m", 0), ("5%", "10m", 0), ("50%", "20m", 400)], "fewer requests",
    ),
    "the jump sooner": ([("0%", "10m", 0), ("6%", "10m", 100), ("50%", "20m", 300)], "less"),
}  # fmt: skip


def steps(rows: list[tuple[str, str, int]]) -> list[Step]:
    return [Step(weight=weight, hold=hold, min_requests=count) for weight, hold, count in rows]


@pytest.mark.parametrize("name", ORDER)
def test_steps_are_looser_when_they_expose_more_or_sooner(name: str) -> None:
    rows, why = ORDER[name]
    found = looser_steps(steps(rows), steps(RAMP))
    assert (why in found) if why else found == ""


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["0%", "1%", "5%", "25%", "50%"]),
        st.sampled_from(["0s", "30s", "10m", "1h"]),
        st.integers(0, 500),
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: steps(sorted(rows, key=lambda row: float(row[0].rstrip("%")))))


@given(ROWS, ROWS, ROWS)
def test_the_order_of_steps_is_one(a: list[Step], b: list[Step], c: list[Step]) -> None:
    assert looser_steps(a, a) == ""
    if not looser_steps(a, b) and not looser_steps(b, c):
        assert looser_steps(a, c) == ""


def test_the_default_steps_are_no_looser_than_themselves() -> None:
    assert looser_steps(default_steps(), default_steps()) == ""
