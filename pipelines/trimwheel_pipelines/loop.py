"""The watch loop: one pass over all models every few seconds.

`python -m trimwheel_pipelines run`. Read `Loop.look_after` top to bottom: that is what happens to a
model in a pass. What should happen is decided in `watch`, `decisions` and `housekeeping`; here are
the effects. The loop remembers only what it has read (segments, telemetry) and writes that down
every few minutes; decisions follow from objects, so it may be killed at any moment.

A service that is away costs its own part of a pass and nothing else: without Prometheus audits
still judge, without MLflow aliases move later, without records nothing is judged, without the
ledger nothing is pruned. Each failure is counted and logged once until it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from trimwheel_api import metrics, names
from trimwheel_api.errors import Conflict, TrimwheelError, Unavailable
from trimwheel_api.kinds import (
    AdaptiveModel,
    AdaptivePolicy,
    PolicyApproval,
    PolicyRollout,
    TuningRun,
)
from trimwheel_api.kinds.tuning_run import TuningRunSpec
from trimwheel_pipelines import checkpoints
from trimwheel_pipelines.alarm_budget import spent_alarms
from trimwheel_pipelines.decisions import Wanted, drift_updates, wanted_run
from trimwheel_pipelines.exposition import Heartbeat, PipelinesMetrics
from trimwheel_pipelines.housekeeping import ledger_events, prunable, without_rollout
from trimwheel_pipelines.journals import copy_all
from trimwheel_pipelines.kube import Objects
from trimwheel_pipelines.ledger import Ledger
from trimwheel_pipelines.merging import settle
from trimwheel_pipelines.model_gauges import ModelGauges
from trimwheel_pipelines.open_runs import OpenRuns
from trimwheel_pipelines.promotion import Aliases
from trimwheel_pipelines.record_care import RecordCare
from trimwheel_pipelines.settings import KEEP_DELETED
from trimwheel_pipelines.tuning_world import utc_now
from trimwheel_pipelines.view import View
from trimwheel_pipelines.watching import Watched
from trimwheel_telemetry.client import Prometheus

log = logging.getLogger(__name__)

STORE = "record store"
CHECKPOINT_SECONDS = 300.0
"""What a killed loop reads again."""
DROP_EVERY = 3600.0
"""Seconds between two looks for approvals that belong to no rollout, and the least age of such."""
API_SERVER = "API server"
ALL_MODELS = "all models"
HANG_LIMIT = 180.0
"""Seconds without a pass after which the process counts as hung."""


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
    release_namespace: str = names.RELEASE_NAMESPACE
    open_runs: OpenRuns | None = None
    keep_deleted: float = KEEP_DELETED
    clock: Callable[[], datetime] = utc_now
    _watched: dict[str, Watched] = field(default_factory=dict)
    _failing: dict[str, str] = field(default_factory=dict)
    _user: str = ""
    _dropped: datetime | None = None
    _account: str = ""
    _gauges: ModelGauges = field(init=False)
    _care: RecordCare = field(init=False)

    def __post_init__(self) -> None:
        self._gauges = ModelGauges(self.exposed)
        self._care = RecordCare(self.records_uri, self.keep_deleted)

    def once(self) -> None:
        """One pass over all models."""
        try:
            views = self._views()
            self._guard("journals", ALL_MODELS, self._copy_journals)
            for view in views:
                self._guard("model", view.subject, partial(self.look_after, view))
            self._forget_others(views)
            self._guard("deleted models", ALL_MODELS, partial(self._sweep, views))
            self._guard("approvals", ALL_MODELS, self._drop_approvals)
            self._recovered(API_SERVER)
        except TrimwheelError as error:
            self._failed(API_SERVER, API_SERVER, error)
        finally:
            self.heartbeat.beat()

    def look_after(self, view: View) -> None:
        """Everything that a pass does for one model."""
        view = self._observed(view)
        wanted = wanted_run(view)
        subject = view.subject
        if wanted is not None:
            self._guard("tuning", subject, partial(self._start_run, view, wanted))
        for run, state in (*drift_updates(view), *spent_alarms(view)):
            log.info(
                "%s: drift of TuningRun %s is %s after %d audits.",
                subject, run.name, state.verdict, state.audits,
            )  # fmt: skip
            self._guard("drift status", subject, partial(self._write_drift, run, state))
        self._gauges.count_ended(view)
        if self._guard("ledger", subject, partial(self._copy_decisions, view)):
            self._prune(view)
            if self.aliases is not None:
                self._guard("MLflow", subject, partial(self.aliases.follow, view))
        if self.open_runs is not None:
            self._guard("MLflow runs", subject, partial(self.open_runs.end_stale, view))
        held = self._watched.get(view.model.metadata.uid)
        if held is not None:
            purge = partial(self._care.purge, view, held.reader, self._account)
            self._guard("retention", subject, purge)

    # ------------------------------------------------------------------ reading

    def _views(self) -> list[View]:
        """All models with what belongs to them."""
        models = self.objects.list(AdaptiveModel)
        policies = self.objects.list(AdaptivePolicy)
        runs = self.objects.list(TuningRun)
        rollouts = self.objects.list(PolicyRollout)
        if not self._user:
            self._user = self.objects.whoami()
            self._account = self.objects.account_uid()
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
        now, watched = view.now.timestamp(), self._watch(view)
        audits = 0

        def read() -> None:
            nonlocal audits
            corrupt = watched.reader.corrupt
            try:
                audits = watched.read(now)
            finally:
                found = watched.reader.corrupt - corrupt
                self.exposed.of(metrics.LOOP_ERRORS, "corrupt segment").inc(found)

        readable = self._guard(STORE, view.subject, read)
        pull = partial(watched.pull, self.prometheus, now)
        self._guard("Prometheus", view.subject, pull)
        self._gauges.show_certificate(view)
        if watched.watch is None:
            self._gauges.hide_drift(view)
        if readable:
            self._guard("merging", view.subject, partial(self._merge, view, watched))
        judgement = watched.judge(now) if readable else None
        if judgement is None:
            return replace(view, audits=audits)
        self._gauges.show_drift(view, judgement)
        self._guard("checkpoint", view.subject, partial(self._save, view, watched))
        return replace(view, audits=audits, verdict=judgement.verdict)

    def _watch(self, view: View) -> Watched:
        """What was read of this model; anew when another policy became stable."""
        uid = view.model.metadata.uid
        held = self._watched.get(uid)
        if held is not None and held.fits(view.model):
            return held
        fresh = Watched.of(self.records_uri, view.model)
        if held is None and self.records_uri:
            load = partial(checkpoints.load, self.records_uri, self._account, uid, fresh)
            if not self._guard("checkpoint", view.subject, load):
                # The store is away, so nothing is read either: ask again in the next pass.
                return fresh
        fresh.saved = view.now.timestamp()
        self._watched[uid] = fresh
        return fresh

    def _merge(self, view: View, watched: Watched) -> None:
        """Merge a piece; a merge is settled once a checkpoint knows of it."""
        save = partial(self._save, view, watched, 0.0)
        plans = watched.merge(view.now.timestamp(), save)
        if plans:
            save()
            settle(watched.reader, plans)

    def _save(self, view: View, watched: Watched, after: float = CHECKPOINT_SECONDS) -> None:
        """Write the checkpoint, if the last one is older than this many seconds."""
        now = view.now.timestamp()
        if watched.watch is not None and now - watched.saved >= after:
            checkpoints.save(self.records_uri, self._account, view.model.metadata.uid, watched)
            watched.saved = now

    def close(self) -> None:
        """Write down what was read since the last checkpoints; the ledger is closed."""
        for uid, watched in self._watched.items():
            if watched.watch is not None:
                save = partial(checkpoints.save, self.records_uri, self._account, uid, watched)
                self._guard("checkpoint", uid, save)
        if self.ledger is not None:
            self.ledger.close()

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
        spec = TuningRunSpec(model=model.name, reason=wanted.reason, requested_by=self._user)
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

    def _prune(self, view: View) -> None:
        """Delete what the ledger has; one object that cannot be deleted stops no other."""
        for old in prunable(view):
            log.info("%s: removing %s %s, it is in the ledger.", view.subject, old.kind, old.name)
            self._guard("pruning", view.subject, partial(self.objects.delete, old))

    def _copy_journals(self) -> None:
        """First, since a journal has what was decided on rollouts that are gone."""
        added = copy_all(
            self.objects, self.ledger, self.release_namespace, self.operator_user, self.clock(),
            self._guard,
        )  # fmt: skip
        if added:
            self.exposed.of(metrics.LEDGER_EVENTS).inc(added)

    def _drop_approvals(self) -> None:
        """Delete approvals that belong to no rollout, once an hour."""
        now = self.clock()
        if self._dropped is not None and (now - self._dropped).total_seconds() < DROP_EVERY:
            return
        approvals = self.objects.list(PolicyApproval)
        before = now - timedelta(seconds=DROP_EVERY)
        for one in without_rollout(approvals, self.objects.list(PolicyRollout), before):
            log.info("%s: removing PolicyApproval %s, its rollout is gone.", one.key[0], one.name)
            self._guard("approvals", one.key[0], partial(self.objects.delete, one))
        self._dropped = now

    def _copy_decisions(self, view: View) -> None:
        if self.ledger is None:
            raise Unavailable("no ledger is configured (TRIMWHEEL_LEDGER_URL)")
        added = self.ledger.append(ledger_events(view, self.operator_user, self._user))
        if added:
            self.exposed.of(metrics.LEDGER_EVENTS).inc(added)

    def _forget_others(self, views: list[View]) -> None:
        """Drop what is held of models that are gone."""
        uids = {view.model.metadata.uid for view in views}
        subjects = {view.subject for view in views}
        self._watched = {uid: held for uid, held in self._watched.items() if uid in uids}
        self._failing = {
            place: text
            for place, text in self._failing.items()
            if place.partition(": ")[0] in subjects | {ALL_MODELS, API_SERVER}
        }
        for held in (self.aliases, self.open_runs):
            if held is not None:
                held.keep_only(subjects)
        self._care.keep_only(uids)
        self._gauges.keep_only(views)

    def _sweep(self, views: list[View]) -> None:
        living = partial(self.objects.names, AdaptiveModel)
        uids = {view.model.metadata.uid for view in views}
        self._care.sweep(living, uids, self._account, self.clock().timestamp())

    # ------------------------------------------------------------------ telling

    def _guard(self, what: str, subject: str, action: Callable[[], object]) -> bool:
        """Run a part of a pass; our own errors are counted and told, and the pass goes on."""
        place = f"{subject}: {what}"
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
