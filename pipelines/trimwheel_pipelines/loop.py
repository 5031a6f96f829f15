"""The watch loop: one pass over all models every few seconds.

`python -m trimwheel_pipelines run`. Read `Loop.look_after` top to bottom: that is what happens to a
model in a pass. What should happen is decided in `watch`, `decisions` and `housekeeping`; here are
the effects. The loop remembers only what it has read (segments, telemetry); decisions follow from
objects, so it may be killed at any moment.

A service that is away costs its own part of a pass and nothing else: without Prometheus audits
still judge, without MLflow aliases move later, without records nothing is judged, without the
ledger nothing is pruned. Each failure is counted and logged once until it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from trimwheel_api import metrics, names
from trimwheel_api.errors import Conflict, TrimwheelError, Unavailable
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout, TuningRun
from trimwheel_api.kinds.tuning_run import TuningRunSpec
from trimwheel_api.times import instant
from trimwheel_api.values import seconds
from trimwheel_pipelines.alarm_budget import spent_alarms
from trimwheel_pipelines.covariates import newest_z
from trimwheel_pipelines.decisions import Wanted, drift_updates, wanted_run
from trimwheel_pipelines.exposition import Heartbeat, PipelinesMetrics
from trimwheel_pipelines.housekeeping import ledger_events, prunable
from trimwheel_pipelines.kube import Objects
from trimwheel_pipelines.ledger import Ledger
from trimwheel_pipelines.promotion import Aliases
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.retention import purge
from trimwheel_pipelines.signals import Telemetry
from trimwheel_pipelines.tuning_world import utc_now
from trimwheel_pipelines.view import View
from trimwheel_pipelines.watch import (
    AuditLog,
    drift_settings,
    verdict_of,
    watched_since,
)
from trimwheel_telemetry.client import Prometheus

log = logging.getLogger(__name__)

PURGE_EVERY = 3600.0
SEGMENTS_A_PASS = 500
"""Segments read of one model in one pass: a loop that starts on a long history catches up."""
SLACK = 3600.0
"""A segment that began this long before a promotion may hold audits from after it."""
API_SERVER = "API server"
HANG_LIMIT = 180.0
"""Seconds without a pass after which the process counts as hung."""


@dataclass
class Watched:
    """What the loop has read of one model; thrown away when its stable policy changes."""

    reader: RecordReader
    audits: AuditLog
    telemetry: Telemetry
    since: float | None


@dataclass
class Loop:
    """The loop's services and what it has read. `ledger` and `aliases` may be absent."""

    objects: Objects
    records_uri: str
    prometheus: Prometheus | None
    ledger: Ledger | None
    aliases: Aliases | None
    exposed: PipelinesMetrics
    heartbeat: Heartbeat
    operator_user: str
    clock: Callable[[], datetime] = utc_now
    _watched: dict[str, Watched] = field(default_factory=dict)
    _purged: dict[str, float] = field(default_factory=dict)
    _failing: dict[str, str] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _user: str = ""

    def once(self) -> None:
        """One pass over all models."""
        try:
            for view in self._views():
                self._guard("model", view, partial(self.look_after, view))
            self._recovered(API_SERVER)
        except TrimwheelError as error:
            self._failed(API_SERVER, API_SERVER, error)
        finally:
            self.heartbeat.beat()

    def look_after(self, view: View) -> None:
        """Everything that a pass does for one model."""
        view = self._observed(view)
        wanted = wanted_run(view)
        if wanted is not None:
            self._start_run(view, wanted)
        for run, state in (*drift_updates(view), *spent_alarms(view)):
            log.info(
                "%s: drift of TuningRun %s is %s after %d audits.",
                view.subject, run.name, state.verdict, state.audits,
            )  # fmt: skip
            self._write_drift(run, state)
        self._count_ended(view)
        if self._guard("ledger", view, lambda: self._copy_decisions(view)):
            for old in prunable(view):
                log.info(
                    "%s: removing %s %s, it is in the ledger.", view.subject, old.kind, old.name
                )
                self.objects.delete(old)
            if self.aliases is not None:
                aliases = self.aliases
                self._guard("MLflow", view, lambda: aliases.follow(view))
        self._guard("retention", view, lambda: self._purge(view))

    # ------------------------------------------------------------------ reading

    def _views(self) -> list[View]:
        """All models with what belongs to them."""
        models = self.objects.list(AdaptiveModel)
        policies = self.objects.list(AdaptivePolicy)
        runs = self.objects.list(TuningRun)
        rollouts = self.objects.list(PolicyRollout)
        if not self._user:
            self._user = self.objects.whoami()
        now = self.clock()

        def of(model: AdaptiveModel, found: list[Any]) -> list[Any]:
            mine = (model.metadata.namespace, model.name)
            return [one for one in found if (one.metadata.namespace, one.spec.model) == mine]

        return [
            View(model, of(model, policies), of(model, runs), of(model, rollouts), now)
            for model in models
            if not model.metadata.deletion_timestamp
        ]

    def _observed(self, view: View) -> View:
        """The view with audits counted and drift judged, as far as the services answer."""
        watched = self._watch(view)
        found: dict[str, Any] = {}

        def read() -> None:
            days = watched.reader.files.days()
            found["audits"] = sum(day.audits for day in days)
            if watched.since is not None:
                corrupt = watched.reader.corrupt
                since = watched.since - SLACK
                watched.audits.add(watched.reader.read_new(since, SEGMENTS_A_PASS, days))
                for _ in range(watched.reader.corrupt - corrupt):
                    self.exposed.of(metrics.LOOP_ERRORS, "corrupt segment").inc()

        def pull() -> None:
            if self.prometheus is not None and watched.since is not None:
                now = view.now.timestamp()
                watched.telemetry.refresh(self.prometheus, watched.since, now)

        readable = self._guard("record store", view, read)
        self._guard("Prometheus", view, pull)
        self._show_certificate(view)
        if not readable or watched.since is None:
            return replace(view, **found)
        now = view.now.timestamp()
        settings = drift_settings(view.model)
        signals = [watched.audits.score_signal(), *watched.telemetry.signals()]
        verdict = verdict_of(watched.audits, signals, settings, watched.since, now)
        key = (view.model.metadata.namespace, view.model.name)
        self.exposed.of(metrics.DRIFT_EVIDENCE, *key).set(verdict.evidence)
        share = watched.audits.disagreement(watched.since)
        if share is not None:
            self.exposed.of(metrics.DISAGREEMENT_ESTIMATE, *key).set(share)
        for signal in signals:
            z = newest_z(signal, settings.covariates, watched.since, now)
            if z is not None:
                self.exposed.of(metrics.DRIFT_SIGNAL, *key, signal.name).set(z)
        return replace(view, **found, verdict=verdict)

    def _watch(self, view: View) -> Watched:
        """What was read of this model; anew when another policy became stable."""
        model, since = view.model, watched_since(view.model)
        stable = model.status.stable.digest if model.status.stable else ""
        held = self._watched.get(model.metadata.uid)
        if held is not None and held.audits.digest == stable and held.since == since:
            return held
        namespace, name = model.metadata.namespace, model.name
        keep = 2 * seconds(model.spec.drift.reference)
        self._watched[model.metadata.uid] = Watched(
            reader=RecordReader(self.records_uri, namespace, name),
            audits=AuditLog(stable),
            telemetry=Telemetry(namespace, name, keep),
            since=since,
        )
        return self._watched[model.metadata.uid]

    # ------------------------------------------------------------------ acting

    def _start_run(self, view: View, wanted: Wanted) -> None:
        model = view.model
        name = f"{model.name[:40].rstrip('-.')}-{wanted.reason.lower()}-{view.now:%m%d-%H%M%S}"
        log.info("%s: TuningRun %s, because %s.", view.subject, name, wanted.why)
        metadata = {
            "name": name,
            "namespace": model.metadata.namespace,
            "labels": {names.LABEL_MODEL: model.name, names.LABEL_PART_OF: names.PART_OF},
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": "AdaptiveModel",
                    "name": model.name,
                    "uid": model.metadata.uid,
                }
            ],
        }
        spec = TuningRunSpec(model=model.name, reason=wanted.reason)
        try:
            made = self.objects.create(TuningRun, metadata, spec)
        except Conflict:
            log.info("%s: TuningRun %s is there already.", view.subject, name)
            return
        if wanted.drift is not None:
            self._write_drift(made, wanted.drift)

    def _write_drift(self, run: TuningRun, state: Any) -> None:
        """Write `status.drift`; somebody else's write in between is met in the next pass."""
        try:
            status = run.status.model_copy(update={"drift": state})
            self.objects.write_status(run, status)
        except Conflict:
            log.debug("TuningRun %s changed meanwhile; the next pass writes its drift.", run.name)

    def _copy_decisions(self, view: View) -> None:
        if self.ledger is None:
            raise Unavailable("no ledger is configured (TRIMWHEEL_LEDGER_URL)")
        added = self.ledger.append(ledger_events(view, self.operator_user, self._user))
        if added:
            self.exposed.of(metrics.LEDGER_EVENTS).inc(added)

    def _purge(self, view: View) -> None:
        """Delete records beyond the model's retention, once an hour."""
        uid, now = view.model.metadata.uid, view.now.timestamp()
        if now - self._purged.get(uid, 0.0) < PURGE_EVERY:
            return
        gone = purge(self._watched[uid].reader, now - seconds(view.model.spec.audits.retention))
        self._purged[uid] = now
        if gone:
            log.info("%s: %d segments were beyond retention.", view.subject, gone)

    # ------------------------------------------------------------------ telling

    def _count_ended(self, view: View) -> None:
        key = (view.model.metadata.namespace, view.model.name)
        for run in view.runs:
            if run.status.outcome and run.metadata.uid not in self._ended:
                self._ended.add(run.metadata.uid)
                labels = (*key, run.spec.reason, run.status.outcome)
                self.exposed.of(metrics.TUNING_RUNS, *labels).inc()

    def _show_certificate(self, view: View) -> None:
        certificate = view.model.status.certificate
        if certificate is not None and certificate.expires_at:
            key = (view.model.metadata.namespace, view.model.name)
            ends = instant(certificate.expires_at).timestamp()
            self.exposed.of(metrics.CERTIFICATE_EXPIRY, *key).set(ends)

    def _guard(self, what: str, view: View, action: Callable[[], None]) -> bool:
        """Run a part of a pass; our own errors are counted and told, and the pass goes on."""
        place = f"{view.subject}: {what}"
        try:
            action()
        except TrimwheelError as error:
            self._failed(what, place, error)
            return False
        except Exception as error:
            # A defect in one model's part must not stop the watch over the others.
            log.exception("%s failed.", place)
            self._failed(what, place, error)
            return False
        self._recovered(place)
        return True

    def _failed(self, what: str, place: str, error: Exception) -> None:
        self.exposed.of(metrics.LOOP_ERRORS, what).inc()
        if place not in self._failing:
            log.warning("%s: %s", place, error)
        self._failing[place] = str(error)

    def _recovered(self, place: str) -> None:
        if self._failing.pop(place, None) is not None:
            log.info("%s works again.", place)
