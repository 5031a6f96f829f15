"""One worker as its parts meet: requests, engine, policies, audits, records, readiness.

`app` asks it to infer; the assignment loop (another thread) asks it to apply; the engine tells it
what happened. Everything here runs on the event loop; only `apply_from_thread` is called from
outside.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import PolicyInvalid, Unavailable
from trimwheel_api.kinds.policy_assignment import AssignedPolicy, PolicyAssignmentSpec
from trimwheel_api.values import seconds
from trimwheel_api.worker_config import WorkerConfig
from trimwheel_workers.arms import ModelShape, ResidentPolicy, Residents, Snapshot
from trimwheel_workers.assignment.loop import Applied, AssignmentLoop
from trimwheel_workers.assignment.rule import CAUSE_LEASE, Effective
from trimwheel_workers.engine.config import EngineConfig
from trimwheel_workers.engine.frames import Kind
from trimwheel_workers.engine.status import Status
from trimwheel_workers.front.auditing import AuditBook
from trimwheel_workers.front.dispatch import NOBODY, Answer, Caller, Dispatcher, Limits
from trimwheel_workers.front.engine_client import EngineClient
from trimwheel_workers.front.guards import Guards
from trimwheel_workers.front.metrics import TRIP_BATCHES, WorkerMetrics
from trimwheel_workers.records.writer import RecordWriter

_LOG = logging.getLogger(__name__)
_APPLY_SECONDS = 10.0
"""The engine applies a snapshot after the batch in hand; longer means that it hangs."""
STALL_SECONDS = 20.0
"""An engine that owes answers and says nothing for this long is ended and started again."""


class Worker:
    """The front's state; implements `EngineEvents`."""

    def __init__(
        self, config: WorkerConfig, metrics: WorkerMetrics, writer: RecordWriter | None
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.writer = writer
        self.engine = EngineClient(EngineConfig.of_worker(config), self)
        self.draining = False
        self.assignments: AssignmentLoop | None = None
        guards = Guards(metrics)
        limits = Limits(
            queue=config.engine.queue_limit + config.engine.max_batch,
            deadline=seconds(config.engine.deadline),
            slo=seconds(config.objectives.latency.slo),
        )
        self.requests = Dispatcher(config.model, limits, metrics, guards, self.engine.send)
        self.requests.stalled = self._check_stall
        self.audits = AuditBook(metrics, guards, writer, keep_inputs=config.keep_inputs)
        self._guards = guards
        self._residents: Residents | None = None
        self._versions = itertools.count(1)
        self._applying: dict[int, tuple[Snapshot, asyncio.Future[None]]] = {}
        self._tripped: tuple[str, str] | None = None  # (salt, candidate digest)

    # ------------------------------------------------------------------ what HTTP asks

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.serving and not self.draining

    @property
    def serving(self) -> bool:
        """Whether requests that come anyway are answered."""
        return self.engine.ready and self.requests.serving is not None

    @property
    def version(self) -> str:
        """Model version as clients see it: the short digest of the artifact."""
        return names.digest_label(self.config.model_digest)

    async def infer(self, texts: Sequence[str], caller: Caller = NOBODY) -> list[Answer]:
        """Answer texts. Raises Overloaded (429) and Unavailable (503)."""
        if not self.serving:
            raise Unavailable("the engine is not ready")
        shape = self.engine.shape
        if shape is not None:
            # What the model cannot read is neither kept nor sent.
            texts = [text[: shape.characters] for text in texts]
        futures = self.requests.submit(texts, caller)
        if len(futures) == 1:
            return [await futures[0]]
        return list(await asyncio.gather(*futures))

    # ------------------------------------------------------------------ what the engine says

    def engine_ready(self, shape: ModelShape) -> None:
        """A model is loaded: give it the policies in force, then look for newer ones."""
        if self._residents is None:
            self._residents = Residents(shape)
            self.metrics.know_model(shape)
            self.audits.model_digest = shape.digest
        if self.requests.target is not None:
            self._send_snapshot(self.requests.target)
        if self.assignments is not None:
            self.assignments.poke()

    def engine_frame(self, kind: Kind, body: Any) -> None:
        """A frame of a running engine."""
        if kind is Kind.ANSWERS:
            self._answers(body)
        elif kind is Kind.AUDITED:
            for row in body["rows"]:
                self.audits.settle(row)
            self.audits.settled(body["seconds"])
        elif kind is Kind.LOST:
            self.audits.lose(body["ids"], body["reason"])
        elif kind is Kind.APPLIED:
            self._applied(body["version"])
        elif kind is Kind.TRIPPED:
            self._trip(body["digest"])

    def engine_down(self) -> None:
        """The engine died: nobody waits for it any longer."""
        self.requests.serving_lost()
        self.audits.lose_all()
        for _, future in self._applying.values():
            future.cancel()
        self._applying.clear()
        if not self.draining:
            self.metrics.engine_restarts.inc()

    def _answers(self, body: dict[str, Any]) -> None:
        now = time.monotonic()
        layers_run, rows_done, tokens = [0, 0], [0, 0], 0
        for row in body["rows"]:
            settled = self.requests.settle(row, now)
            if settled is None:
                continue
            ticket, answer = settled
            if answer.status != Status.ANSWERED:
                continue
            arm = row[6]
            layers_run[arm] += answer.layers
            rows_done[arm] += 1
            tokens += answer.tokens
            if ticket.audited:
                self.audits.expect(row[0], ticket, answer, now)
        if "seconds" not in body:
            return
        depth = self.engine.shape.layers if self.engine.shape else 0
        for arm in (0, 1):
            if rows_done[arm]:
                self.metrics.layers_run[arm].inc(layers_run[arm])
                self.metrics.layers_full[arm].inc(rows_done[arm] * depth)
                self.metrics.device_seconds[arm].inc(body["seconds"][arm])
        self.metrics.input_tokens.inc(tokens)
        self.metrics.batch_size.observe(len(body["rows"]))
        self.metrics.queue_depth.set(body["queue"])
        self.metrics.audit_backlog.set(len(self.audits))
        for counter, visits in zip(self.metrics.expert_tokens, body["experts"], strict=True):
            counter.inc(visits)

    def _check_stall(self) -> None:
        """Rows were given up by the front: is the engine alive at all?"""
        since = max(self.engine.heard_at, self.requests.owing_since)
        if time.monotonic() - since > STALL_SECONDS:
            _LOG.error("the engine said nothing for %.0f s; starting another", STALL_SECONDS)
            self.engine.kill()

    # ------------------------------------------------------------------ policies

    def apply_from_thread(self, loop: asyncio.AbstractEventLoop, effective: Effective) -> Applied:
        """`Apply` of the assignment loop, which runs in another thread."""
        future = asyncio.run_coroutine_threadsafe(self.apply(effective), loop)
        try:
            return future.result(_APPLY_SECONDS)
        except TimeoutError as error:
            future.cancel()
            raise Unavailable("the engine did not apply the assignment in time") from error

    async def apply(self, effective: Effective) -> Applied:
        """Put an assignment in force; returns when the engine serves it.

        A candidate that this model cannot serve is refused alone; a stable policy that it cannot
        serve leaves the last good one in force, without a candidate. Raises Unavailable while the
        engine is away, and PolicyInvalid when there is no last good one.
        """
        spec = effective.spec
        residents = self._residents
        if residents is None or not self.engine.ready:
            raise Unavailable("the engine is loading")
        try:
            stable = residents.load(spec.stable)
        except PolicyInvalid as error:
            return await self._keep_last_good(error)
        candidate, refused = self._load_candidate(residents, spec.candidate)
        snapshot = self._snapshot(effective, stable, candidate)
        if effective.cause == CAUSE_LEASE:
            self.metrics.trips[CAUSE_LEASE].inc()
        await self._put_in_force(snapshot)
        tripped = TRIP_BATCHES if candidate and self._is_tripped(spec.salt, candidate) else ""
        return Applied(
            spec.epoch, stable.digest, candidate.digest if candidate else "", refused, tripped
        )

    def _load_candidate(
        self, residents: Residents, assigned: AssignedPolicy | None
    ) -> tuple[ResidentPolicy | None, str]:
        if assigned is None:
            return None, ""
        try:
            return residents.load(assigned), ""
        except PolicyInvalid as error:
            _LOG.error("candidate %s is refused: %s", assigned.digest, error)
            self.metrics.refusals[names.ARM_CANDIDATE].inc()
            return None, error.sentence()

    def _snapshot(
        self, effective: Effective, stable: ResidentPolicy, candidate: ResidentPolicy | None
    ) -> Snapshot:
        spec: PolicyAssignmentSpec = effective.spec
        off = candidate is None or self._is_tripped(spec.salt, candidate)
        return Snapshot(
            version=next(self._versions),
            epoch=spec.epoch,
            salt=spec.salt,
            weight=0 if off else effective.weight,
            audit_rate=float(spec.audit_rate),
            stable=stable,
            candidate=candidate,
        )

    async def _keep_last_good(self, error: PolicyInvalid) -> Applied:
        last = self.requests.target
        _LOG.error("the stable policy is refused: %s", error)
        self.metrics.refusals[names.ARM_STABLE].inc()
        if last is None:
            raise error
        if last.weight:
            # Whatever the new assignment wants, it is not the exposure of the old one.
            await self._put_in_force(last.on_stable(next(self._versions)))
        return Applied(last.epoch, last.stable.digest, "", error.sentence())

    async def _put_in_force(self, snapshot: Snapshot) -> None:
        policies = {names.ARM_STABLE: snapshot.stable.digest}
        if snapshot.candidate is not None:
            policies[names.ARM_CANDIDATE] = snapshot.candidate.digest
        self._guards.reside(snapshot.salt, policies)
        self.metrics.show_policies(policies)
        self.requests.retarget(snapshot)
        try:
            await self._send_snapshot(snapshot)
        except asyncio.CancelledError as error:
            if self.engine.ready:
                raise
            raise Unavailable("the engine died while it applied the assignment") from error

    def _send_snapshot(self, snapshot: Snapshot) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._applying[snapshot.version] = snapshot, future
        self.engine.send(Kind.SNAPSHOT, snapshot.to_wire())
        return future

    def _applied(self, version: int) -> None:
        snapshot, future = self._applying.pop(version)
        if snapshot.candidate is not None and self._is_tripped(snapshot.salt, snapshot.candidate):
            # Sent before the trip was heard of: the engine keeps everybody on stable.
            snapshot = snapshot.on_stable(snapshot.version)
        self.requests.serving = snapshot
        self.metrics.policy_epoch.set(snapshot.epoch)
        if not future.done():
            future.set_result(None)

    def _is_tripped(self, salt: str, candidate: ResidentPolicy) -> bool:
        return self._tripped == (salt, candidate.digest)

    def _trip(self, digest: str) -> None:
        """The engine took the candidate out of service; remember it for this rollout."""
        serving, target = self.requests.serving, self.requests.target
        assert serving is not None and target is not None, "only a served candidate trips"
        self._tripped = (serving.salt, digest)
        self.metrics.trips[TRIP_BATCHES].inc()
        self.requests.serving = serving.on_stable(serving.version)
        if target.salt == serving.salt and target.candidate is not None:
            self.requests.retarget(target.on_stable(target.version))
        if self.assignments is not None:
            self.assignments.tripped(TRIP_BATCHES)
