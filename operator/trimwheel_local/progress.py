"""A progress bar for terminals, one line a step elsewhere. Used by the CLI verbs and builds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from trimwheel_local.reporting import Progress


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `Progress` that draws on stderr, so that stdout stays for results."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:28}"), BarColumn(24), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Bar(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:

        def report(name: str, done: float, total: float, message: str) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total or None, note=message)
                if not console.is_terminal:
                    console.print(f"{name}: {message}")
            bar.update(tasks[name], completed=done, total=total or None, note=message)

        yield report
