"""Raw counter samples of one rollout, kept between looks so that each look asks for the newest.

Used by `evidence`. Without it a rollout of six hours over fifty workers would fetch a million
samples at every scrape. Losing it (a restart) costs one long query; the samples are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trimwheel_telemetry.answers import Series

Floats = npt.NDArray[np.float64]
Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Samples:
    """All lines of one metric, from the start of its window up to the newest look."""

    lines: dict[Labels, tuple[Floats, Floats]] = field(default_factory=dict)
    until: float | None = None

    def missing_since(self, start: float, overlap: float) -> float:
        """From when to ask: a little before the last look, since scrapes arrive late."""
        return start if self.until is None else max(start, self.until - overlap)

    def take(self, series: Iterable[Series], until: float) -> tuple[Series, ...]:
        """Add what is newer than what is known; everything known, as one series a line."""
        for line in series:
            key = tuple(sorted(line.labels.items()))
            times, values = self.lines.get(key, (np.empty(0), np.empty(0)))
            newer = line.times > times[-1] if len(times) else np.ones(len(line.times), bool)
            self.lines[key] = (
                np.concatenate([times, line.times[newer]]),
                np.concatenate([values, line.values[newer]]),
            )
        self.until = until
        return tuple(
            Series(dict(key), times, values) for key, (times, values) in self.lines.items()
        )
