"""Requests in flight: admitted, sent to the engine, matched with their answers, given up in time.

One frame for each turn of the event loop carries all requests that arrived in it. Admission is
bounded, so that overload is answered at once with 429 instead of piling up. Called by `app` through
`worker`; every row that ends is accounted here, once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trimwheel_api import names
from trimwheel_api.cohorts import audit_score, cohort
from trimwheel_api.errors import Overloaded, Unavailable
from trimwheel_workers.arms import Snapshot
from trimwheel_workers.engine.frames import Kind
from trimwheel_workers.engine.status import Status
from trimwheel_workers.front.guards import Guards
from trimwheel_workers.front.metrics import WorkerMetrics

_GRACE_SECONDS = 0.25
"""Beyond a deadline the front gives a row up by itself: the engine should have by then."""
FRAME_BYTES = 4 * 2**20
"""A frame of requests takes at most this and one text: the engine reads it in milliseconds."""
_STATUS_CODES = {
    Status.ANSWERED: 200, Status.EXPIRED: 503, Status.FAILED: 500, Status.NOT_FINITE: 500,
}  # fmt: skip
ENGINE_DOWN = -1
"""Status of rows whose engine died."""


def server_ids() -> Iterator[str]:
    """Endless random ids, 24 hex characters each; no client can choose or foresee one.

    Taken from the system 256 at a time: a system call for each would cost as much as a hash.
    """
    while True:
        block = os.urandom(12 * 256).hex()
        for start in range(0, len(block), 24):
            yield block[start : start + 24]


def _in_frames(rows: list[list[Any]]) -> Iterator[list[list[Any]]]:
    """Rows in parts that each make a frame far below MAX_FRAME, whatever their characters."""
    part: list[list[Any]] = []
    size = 0
    for row in rows:
        # JSON writes a control character as six bytes, and every other one in fewer.
        needs = 6 * len(row[1])
        if part and size + needs > FRAME_BYTES:
            yield part
            part, size = [], 0
        part.append(row)
        size += needs
    yield part


class Answer(NamedTuple):
    """How one row ended; beyond `status` only meaningful when it is `Status.ANSWERED`."""

    status: int
    prediction: int
    probability: float
    exit: int
    layers: int
    arm: str
    tokens: int
    snapshot: Snapshot


class Caller(NamedTuple):
    """Who sent a request: what a client states of itself, and what it cannot choose."""

    session: str = ""
    """Session key; decides the arm. Empty: every request is a session of its own."""
    tenant: str = ""
    """Owner of the records that are kept of it."""
    identity: str = ""
    """Subject of its token, else its peer's address: whose evidence it is."""


NOBODY = Caller()


@dataclass(slots=True)
class Ticket:
    """One row in flight."""

    server_id: str
    caller: Caller
    text: str
    arm: str
    audited: bool
    u: float
    propensity: float
    received: float
    deadline: float
    future: asyncio.Future[Answer]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a request is refused or given up."""

    queue: int
    deadline: float
    slo: float


class Dispatcher:
    """The rows in flight of one worker."""

    def __init__(
        self,
        model: str,
        limits: Limits,
        metrics: WorkerMetrics,
        guards: Guards,
        send: Callable[[Kind, object], None],
    ) -> None:
        self._model = model
        self._limits = limits
        self._metrics = metrics
        self._guards = guards
        self._send = send
        self._ids = itertools.count(1)
        self._server_ids = server_ids()
        self._tickets: dict[int, Ticket] = {}
        self._outgoing: list[list[Any]] = []
        self._sweep: asyncio.TimerHandle | None = None
        self.target: Snapshot | None = None
        """Newest snapshot sent to the engine: what cohorts and audits of new requests go by."""
        self.serving: Snapshot | None = None
        """Snapshot that the engine answers under."""
        self.stalled: Callable[[], None] = lambda: None
        """Called when rows had to be given up."""
        self.owing_since = 0.0
        """Monotonic time since when the engine has owed answers, also to rows given up here."""
        self._owed = 0

    @property
    def in_flight(self) -> int:
        """Rows without an answer."""
        return len(self._tickets)

    def submit(self, texts: Sequence[str], caller: Caller = NOBODY) -> list[asyncio.Future[Answer]]:
        """Send the texts of one request on their way, all or none.

        Raises Overloaded (429) or Unavailable (503).
        """
        snapshot = self.target
        if snapshot is None:
            raise Unavailable("no policy is assigned yet")
        if len(self._tickets) + len(texts) > self._limits.queue:
            raise Overloaded(
                f"queue full: {len(self._tickets)} of {self._limits.queue}, "
                f"the request adds {len(texts)}"
            )
        return [self._submit(text, caller, snapshot) for text in texts]

    def _submit(self, text: str, caller: Caller, snapshot: Snapshot) -> asyncio.Future[Answer]:
        server_id = next(self._server_ids)
        place = cohort(caller.session or server_id, snapshot.salt)
        u = audit_score(server_id, self._model)
        now = time.monotonic()
        loop = asyncio.get_running_loop()
        ticket = Ticket(
            server_id, caller, text, snapshot.arm(place), u < snapshot.audit_rate, u,
            snapshot.audit_rate, now, now + self._limits.deadline, loop.create_future(),
        )  # fmt: skip
        row = next(self._ids)
        if not self._owed:
            self.owing_since = now
        self._owed += 1
        self._tickets[row] = ticket
        if not self._outgoing:
            loop.call_soon(self.flush)
        self._outgoing.append([row, text, place, ticket.deadline, ticket.audited])
        if self._sweep is None:
            self._sweep = loop.call_later(self._limits.deadline + _GRACE_SECONDS, self._give_up)
        return ticket.future

    def flush(self) -> None:
        """Send what was gathered in this turn of the loop, hashed under the target's salt."""
        if self._outgoing and self.target is not None:
            for rows in _in_frames(self._outgoing):
                self._send(Kind.REQUESTS, [self.target.salt, rows])
        self._outgoing = []

    def retarget(self, snapshot: Snapshot) -> None:
        """Later requests go by this snapshot; those gathered so far leave under the former one."""
        self.flush()
        self.target = snapshot

    def settle(self, row: list[float], now: float) -> tuple[Ticket, Answer] | None:
        """Take one row of an ANSWERS frame; None when it was given up before."""
        id_, status, prediction, probability, exit_index, layers, arm, tokens = row
        self._owed -= 1
        ticket = self._tickets.pop(int(id_), None)
        if ticket is None:
            return None
        snapshot = self.serving
        assert snapshot is not None, "answers come after the first snapshot was applied"
        served = names.ARMS[int(arm)] if status == Status.ANSWERED else ticket.arm
        answer = Answer(
            int(status), int(prediction), probability, int(exit_index), int(layers), served,
            int(tokens), snapshot,
        )  # fmt: skip
        self._finish(ticket, answer, now)
        return ticket, answer

    def serving_lost(self) -> None:
        """The engine died: every row ends with 503, and none is served until it is back."""
        tickets = list(self._tickets.values())
        self._tickets.clear()
        self._outgoing = []
        self._owed = 0
        now = time.monotonic()
        for ticket in tickets:
            self._finish(ticket, self._unanswered(ticket, ENGINE_DOWN), now)
        self.serving = None

    def account(self, arm: str, caller: Caller, code: int) -> None:
        """Count a request that never was in flight (4xx, 429, 503)."""
        self._metrics.requests(arm, None, code).inc()
        snapshot = self.target
        if code >= 500 and snapshot is not None:
            self._guard(snapshot, arm, caller, failed=True, slow=False)

    def refused(self, code: int) -> None:
        """Count what was refused before it was a request, which is evidence of nothing."""
        self._metrics.requests(names.ARM_STABLE, None, code).inc()

    def arm_of(self, session: str) -> str:
        """Arm that a session's request would be served by; stable before any policy."""
        snapshot = self.target
        if snapshot is None or not session:
            return names.ARM_STABLE
        return snapshot.arm(cohort(session, snapshot.salt))

    # ------------------------------------------------------------------ ends of rows

    def _finish(self, ticket: Ticket, answer: Answer, now: float) -> None:
        answered = answer.status == Status.ANSWERED
        elapsed = now - ticket.received
        arm = answer.arm
        code = _STATUS_CODES.get(Status(answer.status), 503) if answer.status >= 0 else 503
        self._metrics.requests(arm, answer.exit if answered else None, code).inc()
        self._metrics.duration[arm].observe(elapsed)
        self._guard(
            answer.snapshot, arm, ticket.caller, failed=not answered,
            slow=elapsed > self._limits.slo,
        )  # fmt: skip
        if not ticket.future.done():
            ticket.future.set_result(answer)

    def _guard(
        self, snapshot: Snapshot, arm: str, caller: Caller, *, failed: bool, slow: bool
    ) -> None:
        policy = snapshot.candidate if arm == names.ARM_CANDIDATE else snapshot.stable
        guards = self._guards.of(arm, policy.digest) if policy else None
        if guards is not None:
            guards.served(caller.session, caller.identity, failed=failed, slow=slow)

    def _unanswered(self, ticket: Ticket, status: int) -> Answer:
        snapshot = self.serving or self.target
        assert snapshot is not None, "a row in flight was admitted under a snapshot"
        return Answer(status, 0, 0.0, 0, 0, ticket.arm, 0, snapshot)

    def _give_up(self) -> None:
        """End rows that the engine should have given back; watch on while there are others."""
        self._sweep = None
        now = time.monotonic()
        late = now - _GRACE_SECONDS
        overdue = list(
            itertools.takewhile(lambda item: item[1].deadline <= late, self._tickets.items())
        )
        for id_, ticket in overdue:
            del self._tickets[id_]
            self._finish(ticket, self._unanswered(ticket, Status.EXPIRED), now)
        if overdue:
            self.stalled()
        if self._tickets:
            oldest = next(iter(self._tickets.values()))
            wait = max(0.01, oldest.deadline + _GRACE_SECONDS - now)
            self._sweep = asyncio.get_running_loop().call_later(wait, self._give_up)
