"""What the visitor sees: headings, one live line while waiting, commands to try, a summary table.

All output of the demo goes through here, so that a pipe gets plain lines and a terminal a live one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trimwheel_api.errors import TrimwheelError

T = TypeVar("T")
POLL_SECONDS = 0.5
QUIET_SECONDS = 15.0


def error_console() -> Console:
    """For a story whose stdout carries a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class TimedOut(TrimwheelError):
    """Something that the story waits for did not happen in time."""


class Teller:
    """Tells the story on a console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.begun = time.monotonic()

    def heading(self, number: int, text: str) -> None:
        """A stage begins."""
        clock = self._clock()
        self.console.print(f"\n[bold cyan]{number}. {escape(text)}[/]  [dim]{clock}[/]")

    def say(self, text: str) -> None:
        """A finding."""
        self.console.print(f"   {escape(text)}")

    def good(self, text: str) -> None:
        """Something that had to happen did."""
        self.console.print(f"   [green]✓[/] {escape(text)}")

    def bad(self, text: str) -> None:
        """Something that should not happen did."""
        self.console.print(f"   [red]✗[/] {escape(text)}")

    def command(self, line: str) -> None:
        """A line that the visitor can run."""
        self.console.print(f"   [dim]$ {escape(line)}[/]")

    def wait(
        self,
        what: str,
        probe: Callable[[], T | None],
        timeout: float,
        detail: Callable[[], str] | None = None,
    ) -> T:
        """Poll until `probe` gives something; shows `detail` meanwhile. Raises TimedOut."""
        deadline = time.monotonic() + timeout
        spoken = time.monotonic()
        with self._live(what) as show:
            while True:
                found = probe()
                if found is not None and found is not False:
                    return found
                line = detail() if detail else ""
                if time.monotonic() > deadline:
                    raise TimedOut(f"{what}: not within {timeout:.0f} s ({line or 'no detail'})")
                show(line)
                if not self.console.is_terminal and time.monotonic() - spoken > QUIET_SECONDS:
                    spoken = time.monotonic()
                    self.console.print(f"   ... {escape(what)} {escape(line)}  {self._clock()}")
                time.sleep(POLL_SECONDS)

    @contextmanager
    def _live(self, what: str) -> Iterator[Callable[[str], None]]:
        if not self.console.is_terminal:
            yield lambda line: None
            return
        with self.console.status(f"{escape(what)}") as status:
            yield lambda line: status.update(f"{escape(what)} [dim]{escape(line)}[/]")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of strings."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print()
        self.console.print(table)

    def ask(self, question: str) -> bool:
        """Ask the person at the terminal; yes without asking when there is none."""
        if not (sys.stdin.isatty() and self.console.is_terminal):
            return True
        answer = self.console.input(f"   [bold]{escape(question)}[/] [Y/n] ")
        return answer.strip().lower() in ("", "y", "yes")

    def _clock(self) -> str:
        elapsed = time.monotonic() - self.begun
        return f"{int(elapsed // 60)}:{int(elapsed % 60):02d}"
