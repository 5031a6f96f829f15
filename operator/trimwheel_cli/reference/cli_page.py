"""docs/reference/cli.md: every verb, from the click commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from trimwheel_cli.main import cli
from trimwheel_cli.reference.markdown import code, page, table

_INTRO = """\
Install the package as a kubectl plugin by having `kubectl-trimwheel` on PATH: `kubectl trimwheel
status` and `trimwheel status` are the same program. Every verb takes `-o json`; results go to
stdout, notes and errors to stderr.

| exit code | meaning |
| --- | --- |
| 0 | done, or the answer is yes |
| 1 | the answer is no: a negative verdict, a refusal by the API server |
| 2 | usage, or a missing prerequisite |
| 3 | a service did not answer |
| 130 | interrupted with Ctrl-C |"""


def render() -> str:
    """The page. Raises SetupFailed when a verb's extra is not installed."""
    root = click.Context(cli, info_name="trimwheel")
    return page("Command line", "the commands", _INTRO, *_commands(cli, root))


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{name} is listed"
        inner = click.Context(command, info_name=name, parent=context)
        yield _command(command, inner)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", f"```\n{usage}\n```", *_prose(command.help or "")]
    rows = [
        (", ".join(code(name) for name in (*option.opts, *option.secondary_opts)), _meaning(option))
        for option in command.params
        if isinstance(option, click.Option) and option.name not in ("help", "output")
    ]
    if rows:
        parts.append(table(("option", "meaning"), rows))
    return "\n\n".join(parts)


def _meaning(option: click.Option) -> str:
    said = [option.help or ""]
    if isinstance(option.type, click.Choice):
        said.append("One of " + ", ".join(code(choice) for choice in option.type.choices) + ".")
    if option.required:
        said.append("Required.")
    elif option.show_default and option.default not in (None, "", False) and not option.multiple:
        said.append(f"Default {code(option.default)}.")
    if isinstance(option.envvar, str):
        said.append(f"Or {code(option.envvar)}.")
    return " ".join(part for part in said if part)


def _prose(help_text: str) -> Iterator[str]:
    """Paragraphs; those that click keeps as they are (after \\b) become code blocks."""
    for paragraph in inspect.cleandoc(help_text).split("\n\n"):
        kept = paragraph.removeprefix("\b\n")
        if kept != paragraph:
            yield "```sh\n" + inspect.cleandoc(kept) + "\n```"
        else:
            yield " ".join(paragraph.split())
