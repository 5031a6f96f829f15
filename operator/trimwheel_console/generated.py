"""Generated files that are committed: write those that are not current, or only say which.

Used by the commands behind `make generate`, each of which makes its files' content.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from trimwheel_console.exits import NEGATIVE
from trimwheel_console.output import emit


def keep_current(made: Mapping[Path, str], root: Path, *, check: bool, output: str) -> None:
    """Bring files to their content; with `check` write nothing, and exit 1 if any differs.

    `root` shortens the paths that are told.
    """
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    if not check:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path])
    names = [str(path.relative_to(root)) for path in stale]
    said = "not current" if check else "written"
    emit({said.replace(" ", "_"): names}, output, table=f"{said}: {', '.join(names) or 'none'}")
    if check and stale:
        click.get_current_context().exit(NEGATIVE)
