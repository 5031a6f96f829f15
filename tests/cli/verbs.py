"""All verbs, walked from the entry points, and the least arguments that each can be called with."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

import click

from trimwheel_cli.main import cli
from trimwheel_cli.verbs import BENCH_GROUP, COMMANDS_GROUP

STOREHOUSE = {
    "--reason": "because",
    "--model": "shop/classifier",
    "--tenant": "acme",
    "--uri": "file:///nowhere/records",
    "--url": "sqlite:////nowhere/ledger.db",
}
"""A value for each option that some verb requires."""


def leaves() -> dict[str, click.Command]:
    """Every verb that does something, by its words: `ledger show`."""
    found: dict[str, click.Command] = {}
    for group, prefix in ((COMMANDS_GROUP, ""), (BENCH_GROUP, "bench ")):
        for point in entry_points(group=group):
            found |= dict(_leaves(prefix + point.name, point.load()))
    return found


def _leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for sub, each in command.commands.items():
        yield from _leaves(f"{name} {sub}", each)


def required(command: click.Command, instead_of: click.Parameter | None = None) -> list[str]:
    """Arguments and options that the command must have, but for one that the test gives itself."""
    words: list[str] = []
    for param in command.params:
        if not param.required or param is instead_of:
            continue
        if isinstance(param, click.Argument):
            known = isinstance(param.type, click.Choice)
            words.append(str(list(param.type.choices)[0]) if known else "classifier")  # type: ignore[attr-defined]
        else:
            words += [param.opts[0], STOREHOUSE[param.opts[0]]]
    return words


VERBS = leaves()
assert cli.list_commands(click.Context(cli))
