"""The command line itself: help without imports, exit codes, errors, verbs of other packages."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from trimwheel_api.errors import (
    Conflict,
    InvalidInput,
    NotEnoughData,
    Overloaded,
    PolicyInvalid,
    Refused,
    SetupFailed,
    Unavailable,
)
from trimwheel_cli.lazy import LazyGroup
from trimwheel_cli.main import cli
from trimwheel_cli.verbs import BENCH_GROUP, BENCHES, COMMANDS, COMMANDS_GROUP, Verb
from trimwheel_console import NEGATIVE, UNREACHABLE, USAGE, emit, exit_code, output_option
from trimwheel_console.exits import ErrorHandling
from trimwheel_console.output import text_table

HEAVY = {"kubernetes", "torch", "ray", "mlflow", "optuna", "sqlmodel", "numpy", "yaml",
         "grafana_foundation_sdk", "trimwheel_dashboards", "trimwheel_local"}  # fmt: skip


def test_help_lists_every_verb_and_imports_no_package_of_theirs():
    code = (
        "import sys; from trimwheel_cli.main import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "print('\\n' + ' '.join(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, loaded = done.stdout.rsplit("\n\n", 1)
    assert not HEAVY & set(loaded.split())
    for name, verb in COMMANDS.items():
        assert f"  {name} " in text
        assert verb.summary in text


def test_every_verb_of_the_table_is_an_entry_point_and_the_other_way_round():
    installed = {point.name for point in entry_points(group=COMMANDS_GROUP)}
    assert installed | {"bench"} == set(COMMANDS)
    assert {point.name for point in entry_points(group=BENCH_GROUP)} == set(BENCHES)


def test_a_verb_without_its_extra_says_what_to_install(monkeypatch):
    broken = EntryPoint("status", "package_that_is_not_installed:command", COMMANDS_GROUP)
    monkeypatch.setattr("trimwheel_cli.lazy.entry_points", lambda group: [broken])
    done = CliRunner().invoke(cli, ["status"])
    assert done.exit_code == USAGE
    assert "pip install 'trimwheel[cli]'" in done.stderr


def test_another_distribution_may_bring_a_verb(monkeypatch):
    other = EntryPoint("extra", "trimwheel_cli.policies:crds", COMMANDS_GROUP)
    monkeypatch.setattr("trimwheel_cli.lazy.entry_points", lambda group: [other])
    group = LazyGroup(name="g", entry_point_group=COMMANDS_GROUP, verbs={"known": Verb("...")})
    done = CliRunner().invoke(group, ["--help"])
    assert "Others:" in done.stdout
    assert CliRunner().invoke(group, ["extra"]).exit_code == 0


def test_an_unknown_verb_is_a_usage_error():
    assert CliRunner().invoke(cli, ["no-such-verb"]).exit_code == USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("f", "r"), USAGE),
        (PolicyInvalid("f", "r"), USAGE),
        (SetupFailed("x"), USAGE),
        (Unavailable("x"), UNREACHABLE),
        (Overloaded("x"), UNREACHABLE),
        (Refused("x"), NEGATIVE),
        (Conflict("x"), NEGATIVE),
        (NotEnoughData("x", 1, 2), NEGATIVE),
    ],
)
def test_exit_codes_follow_the_kind_of_error(error, code):
    assert exit_code(error) == code


@click.group(cls=ErrorHandling)
def _group() -> None:
    """A group with one failing verb."""


@_group.command("fail")
@output_option
def _fail(output: str) -> None:
    raise PolicyInvalid("policy.exit.score", "must be one of four", "luck", "Use learned")


def test_an_error_goes_to_stderr_and_leaves_stdout_empty():
    done = CliRunner().invoke(_group, ["fail"])
    assert done.exit_code == USAGE
    assert done.stdout == ""
    assert "policy.exit.score: must be one of four, but got 'luck'. Use learned" in done.stderr


def test_an_error_is_json_when_json_was_asked_for():
    done = CliRunner().invoke(_group, ["fail", "-o", "json"])
    told = json.loads(done.stderr)["error"]
    assert {key: told[key] for key in ("type", "field", "rule", "remedy")} == {
        "type": "PolicyInvalid",
        "field": "policy.exit.score",
        "rule": "must be one of four",
        "remedy": "Use learned",
    }


def test_tables_align_and_end_without_spaces():
    lines = text_table(("name", "n"), [("a", 1), ("longer", None)]).split("\n")
    assert lines == ["NAME     N", "a        1", "longer"]


def test_json_output_says_everything_that_a_table_may_leave_out(capsys):
    emit({"a": 1, "path": Path("x")}, "json", table="short")
    assert json.loads(capsys.readouterr().out) == {"a": 1, "path": "x"}


def test_the_server_that_does_not_answer_is_exit_code_three(tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
                "current-context": "c",
            }
        )
    )
    for verb in (["status", "m"], ["approve", "r", "--reason", "x"], ["doctor"]):
        done = CliRunner().invoke(cli, [*verb, "--kubeconfig", str(kubeconfig)])
        assert done.exit_code == UNREACHABLE, (verb, done.output)
        assert "127.0.0.1:9" in done.stderr


def test_a_missing_kubeconfig_is_a_usage_error(tmp_path):
    done = CliRunner().invoke(cli, ["status", "--kubeconfig", str(tmp_path / "none")])
    assert done.exit_code == USAGE


MALFORMED = {
    "not YAML": b"a: b: c",
    "a list": b"[1, 2]",
    "a word": b"just text",
    "not text": b"\xff\xfe\x00",
    "numbers for lists": b"{kind: Config, clusters: 3, contexts: x, current-context: y}",
    "a context without a cluster": b"{current-context: x, contexts: [{name: x}], clusters: []}",
    "empty": b"",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("named_by", ["option", "environment"])
def test_a_kubeconfig_that_is_none_is_one_sentence_with_the_remedy(
    tmp_path, monkeypatch, content, named_by
):
    path = tmp_path / "kubeconfig"
    path.write_bytes(content)
    options = ["--kubeconfig", str(path)] if named_by == "option" else []
    if not options:
        monkeypatch.setenv("KUBECONFIG", str(path))
    done = CliRunner().invoke(cli, ["status", *options])
    assert done.exit_code == USAGE, done.output
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr and "--kubeconfig or KUBECONFIG" in done.stderr


@pytest.mark.parametrize("kept", [(), ("what was downloaded is kept",)])
def test_an_interrupt_names_the_verb_and_what_is_kept(kept, monkeypatch, capsys):
    @click.group(cls=ErrorHandling, name="trimwheel")
    def root():
        pass

    @root.group()
    def cluster():
        pass

    @cluster.command()
    @click.option("--index")
    def up(index):
        interrupt = KeyboardInterrupt()
        for each in kept:
            interrupt.add_note(each)
        raise interrupt

    monkeypatch.setattr(sys, "argv", ["trimwheel", "cluster", "up", "--index", "1"])
    with pytest.raises(SystemExit) as ended:
        root(prog_name="trimwheel")
    assert ended.value.code == 130
    said = capsys.readouterr().err.strip()
    assert said == "; ".join(["interrupted: trimwheel cluster up", *kept])
