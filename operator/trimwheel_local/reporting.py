"""How far a long step is: the callback that builders call, and the share done of a whole.

Standard library alone, since the set-up runs before any package is installed; `progress` draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str, float, float, str], None]
"""Called with (step, done, total, message); `total` 0 means that the end is unknown."""

MB = 1_000_000


def no_progress(name: str, done: float, total: float, message: str) -> None:
    """A `Progress` that says nothing."""


def megabytes(size: float) -> str:
    """A size as people write it, `84 MB`; one decimal below ten."""
    return f"{size / MB:.0f} MB" if size >= 10 * MB else f"{size / MB:.1f} MB"


@dataclass
class Shares:
    """How much of a whole is done whose parts report in one unit, as a `Progress` is called."""

    _parts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def update(self, name: str, done: float, total: float) -> None:
        """Part `name` is at `done` of `total`; without a total it is where it was."""
        if total > 0:
            self._parts[name] = (min(done, total), total)

    @property
    def share(self) -> float:
        """0 to 1."""
        whole = sum(total for _, total in self._parts.values())
        return sum(done for done, _ in self._parts.values()) / whole if whole else 0.0
