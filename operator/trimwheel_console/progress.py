"""Progress of loops with a known length: a bar on stderr on a terminal, and nothing elsewhere.

Results never go through here.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress(console: Console | None = None) -> Progress:
    """A bar with count, elapsed and remaining time; use as a context manager.

    with progress() as bar:
        for item in bar.track(items, description="trials"):
            ...
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
    )
