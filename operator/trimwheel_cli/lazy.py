"""A click group whose commands are entry points, each loaded only when it is called.

Help shows the lines of `trimwheel_cli.verbs` and imports nothing. A command that cannot be
imported, because its extra is not installed, says which one to install.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

import click

from trimwheel_api.errors import SetupFailed
from trimwheel_cli.verbs import Verb


class LazyGroup(click.Group):
    """Commands of one entry-point group, beside those added by hand."""

    def __init__(
        self, *, entry_point_group: str, verbs: Mapping[str, Verb], **settings: object
    ) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self._entry_point_group = entry_point_group
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order, then those of other distributions."""
        known = {*self.commands, *self._points()}
        return [name for name in self._verbs if name in known] + sorted(known - set(self._verbs))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command. Raises SetupFailed when its package lacks what it imports."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        point = self._points().get(cmd_name)
        return None if point is None else self._loaded(point)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A section for each heading of the table."""
        names = self.list_commands(ctx)
        others = Verb("(of another distribution)", section="Others")
        verbs = {name: self._verbs.get(name, others) for name in names}
        for section in dict.fromkeys(verb.section for verb in verbs.values()):
            rows = [(name, verb.summary) for name, verb in verbs.items() if verb.section == section]
            with formatter.section(section or "Commands"):
                formatter.write_dl(rows)

    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self._entry_point_group)}

    def _loaded(self, point: EntryPoint) -> click.Command:
        try:
            command = point.load()
        except ModuleNotFoundError as error:
            extra = self._verbs.get(point.name, Verb("")).extra
            remedy = f"pip install 'trimwheel[{extra}]'" if extra else "reinstall trimwheel"
            raise SetupFailed(
                f"{point.name} needs {error.name}, not installed: {remedy}"
            ) from error
        assert isinstance(command, click.Command), f"{point.value} is a click command"
        return command
