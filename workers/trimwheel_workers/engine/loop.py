"""The engine process's loop: receive, batch, run, answer, and audit when nobody waits.

One thread. Between any two layers of an audit it looks at the socket, so a request waits for one
layer at most. A policy swap replaces one pointer between batches. It ends when the front closes the
socket or says STOP; it never outlives the front.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Generator
from typing import Any

from trimwheel_api import names
from trimwheel_workers.arms import STABLE_ONLY, ResidentPolicy, Snapshot
from trimwheel_workers.engine.audits import AuditQueue, AuditTask, Judged
from trimwheel_workers.engine.batches import (
    arm_of,
    candidate_digest,
    layer_tokens,
    parts,
    shared_out,
    unanswered,
    with_known,
)
from trimwheel_workers.engine.config import EngineConfig
from trimwheel_workers.engine.frames import Decoder, Kind, encode
from trimwheel_workers.engine.runner import Answers, Runner
from trimwheel_workers.engine.scheduler import Batch, Row, Scheduler
from trimwheel_workers.engine.status import ARM_INDEX, LOST_NOT_FINITE, LOST_QUEUE_FULL, Status
from trimwheel_workers.tripwire import Ran, Tripwire

_LOG = logging.getLogger(__name__)
_RECEIVE_BYTES = 1 << 18

AuditRun = Generator[None, None, list[Judged]]


class EngineLoop:
    """Serves one front over a connected stream socket."""

    def __init__(self, sock: socket.socket, config: EngineConfig, runner: Runner) -> None:
        self._sock = sock
        self._runner = runner
        self._decoder = Decoder()
        self._scheduler = Scheduler(config.max_batch, config.max_wait)
        self._audits = AuditQueue(config.audit_queue)
        self._audit_run: AuditRun | None = None
        self._audit_tasks: list[AuditTask] = []
        self._audit_seconds = 0.0
        self._snapshot: Snapshot | None = None
        self._slo = config.slo
        self._tripwire = Tripwire(config.slo)
        self._tripped: tuple[str, str] | None = None
        """(salt, digest) of the candidate that was taken out: none of its rollout serves again."""
        self._open = True
        self._stopping = False

    def run(self) -> None:
        """Serve until the front is gone, or said STOP and every audit is done."""
        while self._open:
            self._receive(self._patience(time.monotonic()))
            now = time.monotonic()
            self._give_back_expired(now)
            if not self._serve(now):
                self._audit(now)
            if self._stopping and not (self._audits or self._audit_run or self._scheduler):
                return

    # ------------------------------------------------------------------ waiting and receiving

    def _patience(self, now: float) -> float | None:
        """Seconds until there is something to do; None when only a frame can bring it."""
        if self._audit_run is not None or self._stopping:
            return 0.0
        moments = [t for t in (self._scheduler.wake_at(), self._audits.due_at()) if t is not None]
        if len(self._scheduler) >= self._scheduler.max_batch:
            return 0.0
        return max(0.0, min(moments) - now) if moments else None

    def _receive(self, timeout: float | None) -> None:
        if not select.select([self._sock], [], [], timeout)[0]:
            return
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except ConnectionResetError:
            data = b""  # the front died with bytes of ours unread
        if not data:
            self._open = False
            return
        for kind, body in self._decoder.feed(data):
            self._take(kind, body)

    def _take(self, kind: Kind, body: Any) -> None:
        if kind is Kind.REQUESTS:
            salt, rows = body
            now = time.monotonic()
            # A cohort hashed under another rollout's salt says nothing about this one.
            current = self._snapshot is not None and salt == self._snapshot.salt
            self._scheduler.add(
                Row(id_, text, cohort if current else STABLE_ONLY, deadline, audited, now)
                for id_, text, cohort, deadline, audited in rows
            )
        elif kind is Kind.SNAPSHOT:
            self._swap(Snapshot.from_wire(body))
        elif kind is Kind.STOP:
            self._stopping = True

    def _swap(self, snapshot: Snapshot) -> None:
        before = self._snapshot
        known = {p.digest: p for p in (before.stable, before.candidate) if p} if before else {}
        if (
            before is None
            or before.salt != snapshot.salt
            or candidate_digest(before) != candidate_digest(snapshot)
        ):
            self._tripwire = Tripwire(self._slo)
        if self._tripped == (snapshot.salt, candidate_digest(snapshot)):
            # The front sent this before it heard of the trip.
            snapshot = snapshot.on_stable(snapshot.version)
        self._snapshot = with_known(snapshot, known)
        self._send(Kind.APPLIED, {"version": snapshot.version})

    def _send(self, kind: Kind, body: Any) -> None:
        try:
            self._sock.sendall(encode(kind, body))
        except (BrokenPipeError, ConnectionResetError):
            self._open = False

    # ------------------------------------------------------------------ serving

    def _give_back_expired(self, now: float) -> None:
        expired = self._scheduler.take_expired(now)
        if expired:
            self._send(Kind.ANSWERS, {"rows": [unanswered(row, Status.EXPIRED) for row in expired]})

    def _serve(self, now: float) -> bool:
        """Run the batch that is due, if any."""
        snapshot = self._snapshot
        if snapshot is None:
            return False
        batch = self._scheduler.start(now, lambda row: snapshot.policy(row.cohort).compute)
        if batch is None:
            return False
        self._run(batch, snapshot)
        return True

    def _run(self, batch: Batch, snapshot: Snapshot, *, part: bool = False) -> None:
        """Run a batch and answer it; one that raises is run in parts, until who spoils it is alone.

        Thirty-two rows take ten more runs for that, and everybody else is answered.
        """
        policies = [snapshot.policy(row.cohort) for row in batch.rows]
        started = time.monotonic()
        try:
            tokens = self._runner.tokens([row.text for row in batch.rows])
            answers = self._runner.answer(tokens, policies, policies[0].compute)
        except Exception:
            # Whatever a forward pass raises must cost its row only, and counts for the wire.
            elapsed = time.monotonic() - started
            if not part:
                _LOG.exception("a batch of %d rows raised; it is run in parts", len(batch.rows))
            smaller = parts(batch, policies)
            for one in smaller:
                self._run(one, snapshot, part=True)
            if not smaller:
                self._fail(batch.rows[0], snapshot, elapsed, spoils_others=part)
            return
        elapsed = time.monotonic() - started
        self._answer(batch, snapshot, policies, tokens, answers, elapsed)
        failed = [
            not finite and not self._is_the_rows_fault(row, policy, snapshot)
            for row, policy, finite in zip(batch.rows, policies, answers.finite, strict=True)
        ]
        self._watch(snapshot, policies, failed, elapsed, sum(layer_tokens(tokens, answers.layers)))

    def _fail(self, row: Row, snapshot: Snapshot, elapsed: float, *, spoils_others: bool) -> None:
        """Answer a row that raises by itself; evidence against its policy unless it is the row."""
        self._send(Kind.ANSWERS, {"rows": [unanswered(row, Status.FAILED)]})
        policy = snapshot.policy(row.cohort)
        on_stable = policy is snapshot.stable
        if on_stable and spoils_others:
            return  # the others of its batch were answered under the same policy
        if not self._is_the_rows_fault(row, policy, snapshot):
            self._watch(snapshot, [policy], [True], elapsed)

    def _is_the_rows_fault(self, row: Row, policy: ResidentPolicy, snapshot: Snapshot) -> bool:
        """Whether a row that failed on the candidate fails on stable as well.

        Otherwise a client that has found a text no policy can answer could end every canary.
        """
        if policy is snapshot.stable:
            return False
        try:
            tokens = self._runner.tokens([row.text])
            answers = self._runner.answer(tokens, [snapshot.stable], snapshot.stable.compute)
        except Exception:
            return True
        return not answers.finite[0]

    def _answer(
        self,
        batch: Batch,
        snapshot: Snapshot,
        policies: list[ResidentPolicy],
        tokens: list[list[int]],
        answers: Answers,
        elapsed: float,
    ) -> None:
        rows = [
            [row.id, Status.ANSWERED if finite else Status.NOT_FINITE, prediction, probability,
             exit_, layers, ARM_INDEX[arm_of(policy, snapshot)], len(ids)]
            for row, policy, ids, prediction, probability, exit_, layers, finite in zip(
                batch.rows, policies, tokens, answers.predictions, answers.probabilities,
                answers.exits, answers.layers, answers.finite, strict=True)
        ]  # fmt: skip
        self._send(
            Kind.ANSWERS,
            {
                "rows": rows,
                "seconds": shared_out(elapsed, policies, snapshot, tokens, answers.layers),
                "experts": answers.expert_tokens,
                "queue": len(self._scheduler),
            },
        )
        now = time.monotonic()
        lost = [
            row.id
            for row, policy, ids, finite in zip(
                batch.rows, policies, tokens, answers.finite, strict=True
            )
            if row.audited
            and finite
            and not self._audits.offer(
                AuditTask(row.id, ids, policy, snapshot.stable, snapshot.candidate, now)
            )
        ]
        if lost:
            self._send(Kind.LOST, {"ids": lost, "reason": LOST_QUEUE_FULL})

    def _watch(
        self,
        snapshot: Snapshot,
        policies: list[ResidentPolicy],
        failed: list[bool],
        elapsed: float,
        work: int = 1,
    ) -> None:
        """Feed the tripwire; when it trips, everybody is on stable from the next batch on."""
        of_candidate = [
            bad
            for policy, bad in zip(policies, failed, strict=True)
            if arm_of(policy, snapshot) == names.ARM_CANDIDATE
        ]
        ran = Ran(any(of_candidate or failed), elapsed, work)
        if not of_candidate:
            self._tripwire.saw_stable_batch(ran)
        elif self._tripwire.saw_candidate_batch(ran) and snapshot.candidate:
            _LOG.error(
                "the tripwire took candidate %s out of service; its last batch %s",
                snapshot.candidate.digest,
                "failed" if ran.failed else f"ran {elapsed:.3f} s over {work} layer-tokens",
            )
            self._tripped = (snapshot.salt, snapshot.candidate.digest)
            self._snapshot = snapshot.on_stable(snapshot.version)
            self._send(
                Kind.TRIPPED, {"version": snapshot.version, "digest": snapshot.candidate.digest}
            )

    # ------------------------------------------------------------------ audits

    def _audit(self, now: float) -> None:
        """Start or advance one chunk by one layer."""
        started = time.monotonic()
        if self._audit_run is None:
            tasks = self._audits.take(now, at_once=self._stopping)
            if not tasks:
                return
            self._audit_run = self._runner.audit_steps(tasks)
            self._audit_tasks = tasks
            self._audit_seconds = 0.0
        try:
            next(self._audit_run)
        except StopIteration as end:
            self._audit_seconds += time.monotonic() - started
            self._audit_run = None
            self._report(end.value)
        except Exception:
            self._audit_run = None
            tasks = self._audit_tasks
            if len(tasks) > 1:
                _LOG.exception("an audit of %d rows raised; each is done by itself", len(tasks))
                self._audits.put_back_apart(tasks)
            else:
                self._send(Kind.LOST, {"ids": [tasks[0].id], "reason": LOST_NOT_FINITE})
        else:
            self._audit_seconds += time.monotonic() - started

    def _report(self, judged: list[Judged]) -> None:
        lost = [one.id for one in judged if not one.finite]
        if lost:
            self._send(Kind.LOST, {"ids": lost, "reason": LOST_NOT_FINITE})
        rows = [one.to_wire() for one in judged if one.finite]
        body = {"rows": rows, "seconds": self._audit_seconds, "backlog": len(self._audits)}
        self._send(Kind.AUDITED, body)
