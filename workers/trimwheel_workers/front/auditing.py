"""Audits between answer and record: what the front knows of a request joins what the engine found.

The engine keeps token ids and gives back scores and verdicts; id, session, latency and input stay
here. Counts the disagreement and parity evidence and hands the record to the writer. Every audit
that was chosen ends as a record or in the count of lost ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from trimwheel_api import names
from trimwheel_workers.engine.status import LOST_ENGINE_DIED
from trimwheel_workers.front.dispatch import Answer, Caller, Ticket
from trimwheel_workers.front.guards import Guards, SessionMemory
from trimwheel_workers.front.metrics import WorkerMetrics
from trimwheel_workers.records.writer import RecordWriter


@dataclass(frozen=True, slots=True)
class Pending:
    """An answered request whose audit the engine owes."""

    ticket: Ticket
    answer: Answer
    answered: float  # Unix seconds
    latency: float


class AuditBook:
    """Audits that the engine has in hand."""

    def __init__(
        self,
        metrics: WorkerMetrics,
        guards: Guards,
        writer: RecordWriter | None,
        *,
        keep_inputs: bool,
    ) -> None:
        self._metrics = metrics
        self._guards = guards
        self._writer = writer
        self._keep_inputs = keep_inputs
        self._pending: dict[int, Pending] = {}
        self._sessions = SessionMemory()
        self.model_digest = ""

    def __len__(self) -> int:
        return len(self._pending)

    def expect(self, id_: int, ticket: Ticket, answer: Answer, now: float) -> None:
        """An audited request was answered; `now` is monotonic."""
        self._pending[id_] = Pending(ticket, answer, time.time(), now - ticket.received)

    def settle(self, row: list[Any]) -> None:
        """Take one row of an AUDITED frame: count the evidence, write the record."""
        id_, scores, predictions, stable, candidate, replayed = row
        pending = self._pending.pop(id_, None)
        if pending is None:
            return
        ticket, answer = pending.ticket, pending.answer
        snapshot = answer.snapshot
        first = bool(self._sessions.add(ticket.caller.session, 1))
        full_depth = predictions[-1]
        self._judge(names.ARM_STABLE, snapshot.stable.digest, ticket.caller,
                    agrees=stable[0] == full_depth)  # fmt: skip
        if candidate is not None and snapshot.candidate is not None:
            self._judge(names.ARM_CANDIDATE, snapshot.candidate.digest, ticket.caller,
                        agrees=candidate[0] == full_depth)  # fmt: skip
        served = snapshot.stable if answer.arm == names.ARM_STABLE else snapshot.candidate
        assert served is not None, "an arm that answered has a policy"
        guards = self._guards.of(answer.arm, served.digest)
        if guards is not None:
            caller = ticket.caller
            differs = replayed != [answer.prediction, answer.exit]
            guards.replayed(caller.session, caller.identity, differs=differs)
        self._metrics.first_exit_scores.inc(scores[0])
        if self._writer is not None:
            self._writer.put(
                self._record(pending, first, scores, predictions, stable, candidate, served.digest)
            )

    def settled(self, seconds: float) -> None:
        """An AUDITED frame was taken whole."""
        self._metrics.audit_seconds.inc(seconds)
        self._metrics.audit_backlog.set(len(self._pending))

    def lose(self, ids: list[int], reason: str) -> None:
        """Audits that will not be done."""
        known = [id_ for id_ in ids if self._pending.pop(id_, None) is not None]
        self._metrics.dropped[reason].inc(len(known))
        self._metrics.audit_backlog.set(len(self._pending))
        if self._writer is not None:
            self._writer.lost(len(known))

    def lose_all(self) -> None:
        """The engine died with all it had."""
        self.lose(list(self._pending), LOST_ENGINE_DIED)

    def _judge(self, arm: str, digest: str, caller: Caller, *, agrees: bool) -> None:
        self._metrics.audits[arm, agrees].inc()
        guards = self._guards.of(arm, digest)
        if guards is not None:
            guards.audited(caller.session, caller.identity, disagrees=not agrees)

    def _record(
        self,
        pending: Pending,
        first: bool,
        scores: list[float],
        predictions: list[int],
        stable: list[int],
        candidate: list[int] | None,
        served: str,
    ) -> tuple[Any, ...]:
        """A record in the order of `trimwheel_api.records.COLUMNS`."""
        ticket, answer = pending.ticket, pending.answer
        snapshot = answer.snapshot
        judged = candidate is not None and snapshot.candidate is not None
        session = ticket.caller.session
        return (
            ticket.server_id,
            pending.answered,
            blake2b(session.encode(), digest_size=8).hexdigest() if session else ticket.server_id,
            first,
            ticket.u,
            ticket.propensity,
            snapshot.epoch,
            self.model_digest,
            answer.tokens,
            answer.arm,
            served,
            answer.exit,
            answer.layers,
            answer.prediction,
            pending.latency,
            scores,
            predictions,
            snapshot.stable.digest,
            stable[0],
            stable[1],
            snapshot.candidate.digest if judged and snapshot.candidate else None,
            candidate[0] if judged and candidate else None,
            candidate[1] if judged and candidate else None,
            ticket.text if self._keep_inputs else None,
            ticket.caller.tenant or None,
        )
