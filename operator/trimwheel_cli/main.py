"""Entry point of `trimwheel` and `kubectl trimwheel`.

The root group turns the errors of `trimwheel_api.errors` into messages and exit codes, so that
verbs raise and never print failures themselves.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import click

from trimwheel_cli.lazy import LazyGroup
from trimwheel_cli.verbs import BENCH_GROUP, BENCHES, COMMANDS, COMMANDS_GROUP
from trimwheel_console.exits import ErrorHandling

_HELP = """Keep the adaptive policy of transformer serving right while traffic changes.

\b
  trimwheel status classifier           what serves, what is being rolled out, how it does
  trimwheel approve drift-7xk2 --reason "cheaper, certified"
  trimwheel rollback classifier --reason "support tickets"

Every verb takes -o json. Exit codes: 0 done or true, 1 the answer is no, 2 usage or a missing
prerequisite, 3 not reachable.
"""


class Root(ErrorHandling, LazyGroup):
    """All verbs."""


cli = Root(
    name="trimwheel",
    help=_HELP,
    entry_point_group=COMMANDS_GROUP,
    verbs=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
cli.add_command(
    LazyGroup(
        name="bench",
        help="Measure one part of Trimwheel; every figure of docs/benchmarks comes from here.\n\n"
        "\b\n  trimwheel bench replay --seed 1 -o json\n",
        short_help=COMMANDS["bench"].summary,
        entry_point_group=BENCH_GROUP,
        verbs=BENCHES,
    )
)
click.version_option(version("trimwheel"), "-V", "--version", message="trimwheel %(version)s")(cli)


def main() -> None:
    """Run the command line; kubectl finds the same program under its plugin name."""
    called = Path(sys.argv[0]).name
    cli(prog_name="kubectl trimwheel" if called.startswith("kubectl-") else "trimwheel")


if __name__ == "__main__":
    main()
