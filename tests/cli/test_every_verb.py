"""Over all verbs: no number, file or address ends in a traceback, and reading creates nothing."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.cli.verbs import VERBS, required
from tests.repo.repository import ROOT

from trimwheel_cli.main import cli
from trimwheel_console.ranges import Real, Whole, WholeList

NUMBERS = [
    (verb, param)
    for verb, command in VERBS.items()
    for param in command.params
    if isinstance(param.type, (Whole, Real, WholeList))
]
NO_NUMBERS = ("nan", "NaN", "inf", "-inf", "1e400", "-1e400", "9" * 25, "9" * 5000, "-1", "", "x",
              "0x10", "1_0", "١٢", "1,,2", "None", "true")  # fmt: skip


def ends(verb: str, *words: str, stdin: str | None = None) -> tuple[int, str]:
    """Exit code and everything said; fails on anything but a sentence."""
    done = CliRunner().invoke(cli, [*verb.split(), *words], input=stdin)
    if done.exc_info is not None and not isinstance(done.exception, (SystemExit, type(None))):
        raise AssertionError(f"{verb} {words}: traceback") from done.exception
    assert "Traceback" not in done.output
    return done.exit_code, done.output


def test_every_number_of_every_verb_has_a_smallest_and_a_largest_value() -> None:
    free = [
        f"{verb} {param.opts[0]}: {param.type}"
        for verb, command in VERBS.items()
        for param in command.params
        if isinstance(param.type, (type(click.INT), type(click.FLOAT), click.IntRange,
                                   click.FloatRange))
        and not isinstance(param.type, (Whole, Real))
    ]  # fmt: skip
    assert free == []
    assert len(NUMBERS) > 30


@pytest.mark.parametrize(
    ("verb", "param"), NUMBERS, ids=[f"{verb} {param.opts[0]}" for verb, param in NUMBERS]
)
def test_what_is_no_number_in_range_is_refused_with_the_option_and_the_range(
    verb: str, param: click.Parameter, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = VERBS[verb]
    monkeypatch.setattr(command, "callback", lambda **_: pytest.fail("the verb was run"))
    for value in NO_NUMBERS:
        given = f"{param.opts[0]}={value}"
        code, said = ends(verb, given, *required(command, param))
        assert code == 2, (value, said)
        assert param.opts[0] in said, said
        assert any(word in said for word in ("range", "whole number from", "list of")), said
        assert len(said) < 1200, "the value is shortened"


@pytest.mark.parametrize(
    ("verb", "param"), NUMBERS, ids=[f"{verb} {param.opts[0]}" for verb, param in NUMBERS]
)
def test_a_default_lies_in_its_own_range(verb: str, param: click.Parameter) -> None:
    default = param.get_default(click.Context(VERBS[verb]))
    if default is None or "UNSET" in str(default):
        return
    values = default if param.multiple else [default]
    for value in values:
        param.type.convert(str(value), param, None)


def test_numbers_from_the_environment_are_held_to_the_same_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = 0
    for verb, param in NUMBERS:
        if not param.envvar:
            continue
        seen += 1
        for value in ("nan", "-1", "9" * 25, "x"):
            monkeypatch.setenv(str(param.envvar), value)
            code, said = ends(verb, *required(VERBS[verb]))
            assert code == 2 and param.opts[0] in said, said
            assert value == "-1" or f"(from {param.envvar})" in said, said
        monkeypatch.delenv(str(param.envvar))
    assert seen >= 4


def test_what_the_machine_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMWHEEL_STATE", "/dev/null/state")
    monkeypatch.setenv("TRIMWHEEL_INDEX", "240")
    code, said = ends("cluster up")
    assert code == 2 and "Not a directory" in said and "/dev/null/state" in said
    code, said = ends("cluster status")
    assert code == 3
    code, said = ends("cluster up", "-o", "json")
    assert code == 2 and json.loads(said.splitlines()[-1])["error"]["type"] == "NotADirectoryError"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--interval", v) for v in ("0s", "-1m", "nan", "soon", "", "1m]", "99999999999d")]
    + [(o, v) for o in ("--model", "--namespace") for v in ('a"}', "A", "../x", "", "a\n")],
)
def test_queries_are_made_of_names_and_durations_alone(option: str, value: str) -> None:
    code, said = ends("dashboards queries", option, value)
    assert code == 2 and f"error: {option}: must be" in said


def test_every_number_of_the_charts_values_has_a_smallest_and_a_largest_value() -> None:
    schema = json.loads((ROOT / "charts/trimwheel/values.schema.json").read_text())
    free, seen = [], 0
    waiting = [("values", schema)]
    while waiting:
        place, node = waiting.pop()
        if isinstance(node, list):
            waiting += [(place, each) for each in node]
        if not isinstance(node, dict):
            continue
        waiting += [(f"{place}.{key}", each) for key, each in node.items()]
        kinds = node.get("type")
        if {"integer", "number"} & set(kinds if isinstance(kinds, list) else [kinds]):
            seen += 1
            least = {"minimum", "exclusiveMinimum"} & node.keys()
            most = {"maximum", "exclusiveMaximum"} & node.keys()
            free += [place] if not (least and most) else []
    assert free == [] and seen >= 4
