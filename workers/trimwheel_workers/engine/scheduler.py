"""Which requests share a batch, and when it starts: dynamic batching without torch or sockets.

One queue in order of arrival. A batch is the oldest request and those behind it that may share its
forward pass (equal compute keys), at most `max_batch`; it starts when full or when its oldest
request has waited `max_wait`. Requests past their deadline are given back unserved. The engine's
loop calls this; time is always an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Row:
    """One text on its way to an answer."""

    id: int
    text: str
    cohort: int
    deadline: float
    audited: bool
    arrived: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together, oldest first."""

    key: Hashable
    rows: Sequence[Row]


@dataclass(slots=True)
class Scheduler:
    """The queue. A row's key may change between calls (a policy swap); a batch freezes it."""

    max_batch: int
    max_wait: float
    _queue: deque[Row] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, rows: Iterable[Row]) -> None:
        """Queue rows in order of arrival."""
        self._queue.extend(rows)

    def take_expired(self, now: float) -> list[Row]:
        """Remove and return the rows whose deadline has passed."""
        if not self._queue or self._queue[0].deadline > now:
            # Deadlines grow with arrival, as every request gets the same allowance.
            return []
        expired = [row for row in self._queue if row.deadline <= now]
        self._queue = deque(row for row in self._queue if row.deadline > now)
        return expired

    def can_start(self, now: float) -> bool:
        """Whether a batch is due."""
        if not self._queue:
            return False
        return len(self._queue) >= self.max_batch or now >= self._queue[0].arrived + self.max_wait

    def wake_at(self) -> float | None:
        """When the next batch is due if nothing else arrives; None when there is nothing."""
        return self._queue[0].arrived + self.max_wait if self._queue else None

    def start(self, now: float, key: Callable[[Row], Hashable]) -> Batch | None:
        """Remove and return the batch that is due, or None.

        Rows of another key keep their places, so no key starves: the oldest row leads.
        """
        if not self.can_start(now):
            return None
        lead = key(self._queue[0])
        taken: list[Row] = []
        passed: list[Row] = []
        while self._queue and len(taken) < self.max_batch:
            row = self._queue.popleft()
            (taken if key(row) == lead else passed).append(row)
        self._queue.extendleft(reversed(passed))
        return Batch(lead, taken)
