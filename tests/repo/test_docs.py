"""Documentation is tested: links and paths exist, and nothing that can be used goes unnamed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from tests.repo.repository import ROOT, packages, project, tracked

from trimwheel_api.kinds import KINDS
from trimwheel_api.metrics import METRICS
from trimwheel_api.policy import parse_policy
from trimwheel_cli.main import cli
from trimwheel_cli.verbs import BENCHES, COMMANDS
from trimwheel_local.golang import SWITCHING_GO
from trimwheel_workers.model.config import EncoderConfig

PAGES = [path for path in tracked() if path.suffix == ".md"]
README = (ROOT / "README.md").read_text()
ROOTS = (
    "operator",
    "workers",
    "pipelines",
    "dashboards",
    "charts",
    "tests",
    "docs",
    "requirements",
)
PATH = re.compile(rf"(?<![\w/.-])((?:{'|'.join(ROOTS)})/[\w./*-]*[\w*])")


def test_every_path_that_the_readme_names_exists():
    named = sorted(set(PATH.findall(README)))
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_package_and_top_level_folder_is_in_the_readme():
    assert [str(path) for path in packages() if f"`{path}`" not in README] == []
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1}
    hidden = {name for name in folders if name.startswith(".")}
    assert [name for name in sorted(folders - hidden) if f"`{name}" not in README] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", (ROOT / page).read_text())
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (ROOT / page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_of_ours_in_prose_exist(page):
    text = (ROOT / page).read_text()
    named = {path for path in re.findall(r"`([\w./-]+)`", text) if PATH.fullmatch(path)}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_in_the_docs_are_verbs_that_exist(page):
    """`trimwheel VERB` in a code block or inline code is a verb, with options it has and needs."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```.*?\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    for block in blocks:
        for line in re.findall(r"(?:^|[\s(/])trimwheel ([a-z][^\n|;)#]*)", block):
            _check_call(page, line)


def _check_call(page: Path, line: str) -> None:
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    # A usage line, such as `policy [OPTIONS] COMMAND [ARGS]...`, holds placeholders.
    words = words[: words.index("[OPTIONS]")] if "[OPTIONS]" in words else words
    if not words:
        return
    if words[0] not in COMMANDS:
        assert words[0].isupper() or not words[0].isalpha(), f"{page}: trimwheel {line}"
        return
    if words[0] == "bench":
        assert len(words) < 2 or set(words[1].split("|")) <= set(BENCHES), f"{page}: {line}"
        return
    command = cli.get_command(click.Context(cli), words.pop(0))
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert "|" in name or name in command.commands, f"{page}: {line}"
        command = command.commands.get(name)
    if command is not None:
        known = {option for param in command.params for option in param.opts} | {"-h", "--help"}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known, f"{page}: {line}"
        # A bare verb is a mention; with an argument it is a line to copy.
        needed = [
            one.opts
            for one in command.params
            if isinstance(one, click.Option) and one.required and not one.envvar
        ]
        missing = [opts for opts in needed if words and not used & set(opts)]
        assert not missing, f"{page}: {line} lacks {missing}"


def test_the_reference_names_every_metric_kind_and_verb():
    metrics = (ROOT / "docs/reference/metrics.md").read_text()
    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in metrics] == []
    kinds = (ROOT / "docs/reference/kinds.md").read_text()
    assert [kind.name for kind in KINDS if f"\n## {kind.name}\n" not in kinds] == []
    verbs = (ROOT / "docs/reference/cli.md").read_text()
    assert [name for name in COMMANDS if f"\n## trimwheel {name}\n" not in verbs] == []
    assert [name for name in BENCHES if f"\n## trimwheel bench {name}\n" not in verbs] == []


def test_every_verb_needs_an_extra_that_exists():
    extras = set(project()["project"]["optional-dependencies"])
    needed = {verb.extra for verb in (*COMMANDS.values(), *BENCHES.values())} - {""}
    assert needed <= extras


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_a_verb_teaches_with_an_example(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(200) == COMMANDS[name].summary
    each = [command]
    if isinstance(command, click.Group) and name != "bench":
        each += command.commands.values()
    assert any("trimwheel" in (one.help or "") for one in each), name
    for one in each:
        for param in one.params:
            if isinstance(param, click.Option) and param.name != "help":
                assert param.help, f"{name}: {param.opts}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BENCHES))
def test_help_of_a_bench_teaches_with_an_example(name):
    bench = cli.get_command(click.Context(cli), "bench")
    assert isinstance(bench, click.Group)
    command = bench.get_command(click.Context(bench), name)
    assert command is not None
    assert command.get_short_help_str(200) == BENCHES[name].summary
    assert f"trimwheel bench {name}" in (command.help or "")
    options = {option for param in command.params for option in param.opts}
    assert options & {"--seed", "--seeds"}
    assert "-o" in options


def test_decisions_are_numbered_without_gaps():
    names = [path.name for path in tracked() if path.parent == Path("docs/decisions")]
    numbers = sorted(int(name[:4]) for name in names if name[:4].isdigit())
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    "path", [path for path in tracked() if path.parts[:2] == ("docs", "examples")], ids=str
)
def test_examples_are_objects_that_the_kinds_accept(path):
    models = {kind.name: kind.model for kind in KINDS}
    for document in yaml.safe_load_all((ROOT / path).read_text()):
        if document and document["kind"] in models:
            models[document["kind"]].model_validate({"status": {}} | document)


def test_the_example_policy_has_a_threshold_for_each_exit_of_the_demos_encoder():
    path = ROOT / "docs" / "examples" / "adaptivepolicy.yaml"
    document = yaml.safe_load(path.read_text())["spec"]["policy"]
    usual = EncoderConfig(vocabulary=1000, classes=("a", "b"))
    assert parse_policy(document, exits=len(usual.exits)).exit.enabled


def test_the_readme_names_the_oldest_go_that_set_up_accepts():
    assert "[Go](https://go.dev/dl) {}.{} or newer".format(*SWITCHING_GO) in README
