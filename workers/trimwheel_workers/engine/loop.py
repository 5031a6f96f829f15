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
from dataclasses import replace
from typing import Any

from trimwheel_api import names
from trimwheel_workers.arms import STABLE_ONLY, ResidentPolicy, Snapshot
from trimwheel_workers.engine.audits import AuditQueue, AuditTask, Judged
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
        self._audit_ids: list[int] = []
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
        data = self._sock.recv(_RECEIVE_BYTES)
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
        if before is None or before.salt != snapshot.salt or _digest(before) != _digest(snapshot):
            self._tripwire = Tripwire(self._slo)
        if self._tripped == (snapshot.salt, _digest(snapshot)):
            # The front sent this before it heard of the trip.
            snapshot = snapshot.on_stable(snapshot.version)
        self._snapshot = _with_known(snapshot, known)
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
            self._send(
                Kind.ANSWERS, {"rows": [_unanswered(row, Status.EXPIRED) for row in expired]}
            )

    def _serve(self, now: float) -> bool:
        """Run the batch that is due, if any."""
        snapshot = self._snapshot
        if snapshot is None:
            return False
        batch = self._scheduler.start(now, lambda row: snapshot.policy(row.cohort).compute)
        if batch is None:
            return False
        on_candidate = [row for row in batch.rows if snapshot.policy(row.cohort) is not
                        snapshot.stable]  # fmt: skip
        if not self._run(batch, snapshot) and on_candidate and len(on_candidate) < len(batch.rows):
            # The candidate may have spoilt the batch for those on stable: run the two apart.
            alone = set(map(id, on_candidate))
            stable = [row for row in batch.rows if id(row) not in alone]
            self._run(Batch(batch.key, stable), snapshot, last_try=True)
            self._run(Batch(batch.key, on_candidate), snapshot, last_try=True)
        return True

    def _run(self, batch: Batch, snapshot: Snapshot, *, last_try: bool = False) -> bool:
        """Run a batch and answer it. False when it raised and should be tried apart."""
        policies = [snapshot.policy(row.cohort) for row in batch.rows]
        mixed = any(policy is not policies[0] for policy in policies)
        started = time.monotonic()
        try:
            tokens = self._runner.tokens([row.text for row in batch.rows])
            answers = self._runner.answer(tokens, policies, policies[0].compute)
        except Exception:
            # Whatever a forward pass raises must cost this batch only, and counts for the wire.
            _LOG.exception("a batch of %d rows raised; its rows get 500", len(batch.rows))
            if mixed and not last_try:
                return False
            self._send(
                Kind.ANSWERS, {"rows": [_unanswered(row, Status.FAILED) for row in batch.rows]}
            )
            self._watch(snapshot, policies, [True] * len(policies), time.monotonic() - started)
            return True
        elapsed = time.monotonic() - started
        self._answer(batch, snapshot, policies, tokens, answers, elapsed)
        failed = [not finite for finite in answers.finite]
        self._watch(snapshot, policies, failed, elapsed, sum(_work(tokens, answers.layers)))
        return True

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
             exit_, layers, ARM_INDEX[_arm(policy, snapshot)], len(ids)]
            for row, policy, ids, prediction, probability, exit_, layers, finite in zip(
                batch.rows, policies, tokens, answers.predictions, answers.probabilities,
                answers.exits, answers.layers, answers.finite, strict=True)
        ]  # fmt: skip
        self._send(
            Kind.ANSWERS,
            {
                "rows": rows,
                "seconds": _shared_out(elapsed, policies, snapshot, tokens, answers.layers),
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
            if _arm(policy, snapshot) == names.ARM_CANDIDATE
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
            self._audit_ids = [task.id for task in tasks]
            self._audit_seconds = 0.0
        try:
            next(self._audit_run)
        except StopIteration as end:
            self._audit_seconds += time.monotonic() - started
            self._audit_run = None
            self._report(end.value)
        except Exception:
            _LOG.exception("an audit of %d rows raised; they are lost", len(self._audit_ids))
            self._audit_run = None
            self._send(Kind.LOST, {"ids": self._audit_ids, "reason": LOST_NOT_FINITE})
        else:
            self._audit_seconds += time.monotonic() - started

    def _report(self, judged: list[Judged]) -> None:
        lost = [one.id for one in judged if not one.finite]
        if lost:
            self._send(Kind.LOST, {"ids": lost, "reason": LOST_NOT_FINITE})
        rows = [one.to_wire() for one in judged if one.finite]
        body = {"rows": rows, "seconds": self._audit_seconds, "backlog": len(self._audits)}
        self._send(Kind.AUDITED, body)


def _digest(snapshot: Snapshot) -> str:
    return snapshot.candidate.digest if snapshot.candidate else ""


def _with_known(snapshot: Snapshot, known: dict[str, ResidentPolicy]) -> Snapshot:
    """The snapshot with policies that were resident before as the same objects.

    Batches and audits tell policies apart by identity, which is cheaper than by digest.
    """
    stable = known.get(snapshot.stable.digest, snapshot.stable)
    candidate = snapshot.candidate and known.get(snapshot.candidate.digest, snapshot.candidate)
    if candidate is not None and candidate.digest == stable.digest:
        # The same bytes in both arms (an A/A control) stay two objects, or nobody would be
        # counted on the candidate.
        candidate = replace(stable)
    return replace(snapshot, stable=stable, candidate=candidate)


def _arm(policy: ResidentPolicy, snapshot: Snapshot) -> str:
    return names.ARM_STABLE if policy is snapshot.stable else names.ARM_CANDIDATE


def _unanswered(row: Row, status: Status) -> list[object]:
    return [row.id, status, 0, 0.0, 0, 0, 0, 0]


def _shared_out(
    elapsed: float,
    policies: list[ResidentPolicy],
    snapshot: Snapshot,
    tokens: list[list[int]],
    layers: list[int],
) -> list[float]:
    """A batch's seconds by arm, in proportion to layers x tokens: what the rows made it compute."""
    work = [0.0, 0.0]
    for policy, of_row in zip(policies, _work(tokens, layers), strict=True):
        work[ARM_INDEX[_arm(policy, snapshot)]] += of_row
    total = sum(work)
    return [elapsed * part / total for part in work]


def _work(tokens: list[list[int]], layers: list[int]) -> list[int]:
    """Layers x tokens of each row."""
    return [depth * len(ids) for ids, depth in zip(tokens, layers, strict=True)]
