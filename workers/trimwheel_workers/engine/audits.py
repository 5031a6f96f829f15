"""Audits waiting in the engine: bounded, in small chunks, never in the way of a request.

An audit keeps token ids and the policies of its moment and is recomputed when there is room. The
loop asks for a chunk; running it is the runner's. No torch, no sockets; time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trimwheel_workers.arms import ResidentPolicy

CHUNK_ROWS = 8
"""Larger chunks hold a request up longer; smaller ones compute less efficiently (measured)."""
LINGER_SECONDS = 0.25
"""An audit waits this long for company: eight rows cost about four times one row."""


@dataclass(frozen=True, slots=True)
class AuditTask:
    """One answered row to judge."""

    id: int
    tokens: list[int]
    served: ResidentPolicy
    stable: ResidentPolicy
    candidate: ResidentPolicy | None
    answered: float


class Verdict(NamedTuple):
    """What a policy answers to an audited row, and at which exit."""

    prediction: int
    exit: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The reference run of one row, and every policy's answer to it."""

    id: int
    finite: bool
    scores: list[float]
    predictions: list[int]
    stable: Verdict
    candidate: Verdict | None
    replayed: Verdict

    def to_wire(self) -> list[object]:
        """JSON values, as `frames.Kind.AUDITED` states."""
        candidate = None if self.candidate is None else list(self.candidate)
        return [self.id, self.scores, self.predictions, list(self.stable), candidate,
                list(self.replayed)]  # fmt: skip


class AuditQueue:
    """Audits in order of their answers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: deque[AuditTask] = deque()
        self._apart: deque[AuditTask] = deque()
        """Of a chunk that raised: the next chunks, one task each."""

    def __len__(self) -> int:
        return len(self._tasks) + len(self._apart)

    def offer(self, task: AuditTask) -> bool:
        """Queue a task; False when there is no room, and the audit is lost."""
        if len(self._tasks) >= self._limit:
            return False
        self._tasks.append(task)
        return True

    def put_back_apart(self, tasks: Sequence[AuditTask]) -> None:
        """Take tasks again whose chunk raised; whoever spoils it is then alone."""
        self._apart.extend(tasks)

    def due_at(self) -> float | None:
        """When a chunk should start if no other audit comes; None when none waits."""
        if self._apart:
            return self._apart[0].answered
        if not self._tasks:
            return None
        if len(self._tasks) >= CHUNK_ROWS:
            return self._tasks[0].answered
        return self._tasks[0].answered + LINGER_SECONDS

    def take(self, now: float, *, at_once: bool = False) -> list[AuditTask]:
        """Remove and return the chunk that is due, or nothing.

        Rows of one chunk share stable and candidate, or a swap would make it run more policies
        than it has to.
        """
        if self._apart:
            return [self._apart.popleft()]
        due = self.due_at()
        if due is None or (now < due and not at_once):
            return []
        lead = self._tasks[0]
        chunk: list[AuditTask] = []
        while self._tasks and len(chunk) < CHUNK_ROWS:
            task = self._tasks[0]
            if task.stable is not lead.stable or task.candidate is not lead.candidate:
                break
            chunk.append(self._tasks.popleft())
        return chunk
