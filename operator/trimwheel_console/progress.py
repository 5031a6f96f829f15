"""Progress for long steps, on stderr: bars on a terminal, a line at start and end elsewhere.

`progress` is a rich Progress for loops with a known length; `steps` names steps one after another
and times them, for set-up work. Results never go through here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
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


class Steps:
    """Named steps with their times; `seconds` keeps them for a report."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show a spinner while the body runs, then one line with its time, even if it fails."""
        started = time.monotonic()
        mark = "[red]failed[/]"
        spinner = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        spinner.add_task(name, total=None)
        try:
            with spinner:
                yield
            mark = "[green]done[/]"
        finally:
            self.seconds[name] = time.monotonic() - started
            self._console.print(f"{mark} {name} ({self.seconds[name]:.1f} s)", highlight=False)


@contextmanager
def steps() -> Iterator[Steps]:
    """Steps that report on stderr."""
    yield Steps(Console(stderr=True))
