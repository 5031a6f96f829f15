"""One TuningRun, as its Job runs it: collect, search, certify, register.

`python -m trimwheel_pipelines tune --namespace NS --name NAME`. Read `Tuning.play` top to bottom:
that is the whole procedure. Everything the certificate rests on is fixed by `tuning_plan` before a
record is read; search uses audits from before the window opens, certification those after it, once.

A Job that is restarted starts over and ends the same: the window, the seed and all names follow
from the TuningRun. Whatever goes wrong ends in the status with a reason, and the incumbent stays.
"""

from __future__ import annotations

import logging

from trimwheel_api import names
from trimwheel_api.errors import NotEnoughData, SpecInvalid, TrimwheelError
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, TuningRun
from trimwheel_api.names import Reason
from trimwheel_api.values import decimal_string
from trimwheel_pipelines import evidence
from trimwheel_pipelines.audit_window import Outcome
from trimwheel_pipelines.certificate import Certificate
from trimwheel_pipelines.certifying import Model, Winner, certify_proposals, measure
from trimwheel_pipelines.collecting import Collector, SearchData
from trimwheel_pipelines.knobs import search_space
from trimwheel_pipelines.open_runs import GONE
from trimwheel_pipelines.publishing import publish_policy, request_rollout
from trimwheel_pipelines.registry import CERTIFICATE_FILE, RunRef, RunStatus
from trimwheel_pipelines.study import (
    Study,
    TrialRecord,
    certifiable_risk,
    finalists_of,
    run_study,
)
from trimwheel_pipelines.trials import Audits, Search
from trimwheel_pipelines.tuning_plan import (
    Incumbent,
    Measured,
    Plan,
    incumbent_of,
    is_improvement,
    plan_of,
)
from trimwheel_pipelines.tuning_status import Gone, Reporter, Superseded
from trimwheel_pipelines.tuning_world import World

log = logging.getLogger(__name__)

CERTIFIED = names.CERTIFIED
"""Outcome of a run whose policy goes to a rollout; the other outcomes are reasons."""


def tune(world: World, namespace: str, name: str) -> str:
    """Play a TuningRun to its end and return its outcome.

    Raises SpecInvalid when there is no such run. Everything else ends in its status.
    """
    run = world.patience.call(
        "Reading the TuningRun", lambda: world.objects.get(TuningRun, namespace, name)
    )
    if run is None:
        raise SpecInvalid("--name", "must name a TuningRun of the namespace", f"{namespace}/{name}")
    if run.status.outcome:
        log.info("TuningRun %s/%s ended before: %s.", namespace, name, run.status.outcome)
        return run.status.outcome
    uid = run.metadata.uid
    reporter = Reporter(world.objects, namespace, name, uid, world.clock, world.patience)
    try:
        return _played(world, reporter, run)
    except Gone as error:
        log.warning("%s. Stopping.", error)
        return Reason.FAILED


def _played(world: World, reporter: Reporter, run: TuningRun) -> str:
    """Play the run; every failure becomes its outcome, in MLflow too."""
    tuning: Tuning | None = None
    try:
        model = world.patience.call(
            "Reading the AdaptiveModel",
            lambda: world.objects.get(AdaptiveModel, run.metadata.namespace, run.spec.model),
        )
        if model is not None:
            tuning = Tuning(world, reporter, model, plan_of(run, model))
            return tuning.play()
        message = f"spec.model: there is no AdaptiveModel {run.spec.model!r}"
        reporter.finish(Reason.FAILED, Reason.MODEL_NOT_FOUND, message)
    except Gone:
        _abandon(tuning, "KILLED", GONE, "The TuningRun was deleted, or stopped by the operator.")
        raise
    except NotEnoughData as error:
        text = f"{error}; the incumbent stays"
        _abandon(tuning, "FAILED", Reason.TOO_FEW_RECORDS, text)
        reporter.finish(Reason.FAILED, Reason.TOO_FEW_RECORDS, text)
    except Superseded as error:
        _abandon(tuning, "KILLED", Reason.SUPERSEDED, str(error))
        reporter.finish(Reason.SUPERSEDED, Reason.SUPERSEDED, str(error))
        return Reason.SUPERSEDED
    except SpecInvalid as error:
        text = f"{error}; the incumbent stays"
        _abandon(tuning, "FAILED", Reason.INVALID_SPEC, text)
        reporter.finish(Reason.FAILED, Reason.INVALID_SPEC, text)
    except TrimwheelError as error:
        log.exception("The TuningRun failed.")
        text = f"{error}; the incumbent stays"
        _abandon(tuning, "FAILED", Reason.FAILED, text)
        reporter.finish(Reason.FAILED, Reason.FAILED, text)
    except Exception as error:
        # A defect: told where people look, then raised, so that the Job fails loudly as well.
        text = f"{type(error).__name__}: {error}; the incumbent stays"
        _abandon(tuning, "FAILED", Reason.FAILED, text)
        reporter.finish(Reason.FAILED, Reason.FAILED, text)
        raise
    return Reason.FAILED


def _abandon(tuning: Tuning | None, status: RunStatus, outcome: str, note: str) -> None:
    """End the MLflow run of a TuningRun without a result, if one was opened; one try.

    Whatever MLflow answers, the outcome goes to the status: the watch loop ends what stays open.
    """
    if tuning is None or tuning.opened is None or tuning.world.registry is None:
        return
    try:
        tuning.world.registry.abandon_run(tuning.opened.run_id, status, outcome, note)
    except TrimwheelError as error:
        log.warning("The MLflow run stays open for now: %s", error)


class Tuning:
    """One run in progress."""

    def __init__(self, world: World, reporter: Reporter, model: AdaptiveModel, plan: Plan) -> None:
        self.world, self.reporter, self.spec, self.plan = world, reporter, model, plan
        self.collector = Collector(world, reporter, plan)
        self.opened: RunRef | None = None
        """The MLflow run, once there is one."""

    def play(self) -> str:
        """The whole procedure; returns the outcome."""
        data = self.collector.for_search()
        model = Model(*self.world.load_model(self.plan))
        incumbent = self._incumbent()
        run = self._open_run(data, incumbent)
        study = self._search(data, model, incumbent)
        proposals = finalists_of(study, self.plan.epsilon, self.plan.finalists, model.dense)
        winner, certificate = certify_proposals(self.collector, data, proposals, model, self.plan)
        # Read again: harm may have taken the incumbent out of service meanwhile.
        rival = self._incumbent()
        measured = measure(rival.served, winner, model)
        outcome, reason, message = self._judge(winner, certificate, measured, rival)
        self.reporter.check(self.plan.model)
        self.reporter.phase("Registering", message, dense_cost=decimal_string(measured.cost, 4))
        self._log_evidence(run, study, certificate, measured, message)
        made = self._publish(run, winner, incumbent, model) if winner else {}
        if winner and outcome == CERTIFIED:
            made |= request_rollout(self.world, self.plan, self.spec, winner)
        self._close_run(run, winner is not None, message)
        self.reporter.finish(outcome, reason, message, **made)
        return outcome

    def _incumbent(self) -> Incumbent:
        """The incumbent as the API server knows it now."""
        namespace, name = self.plan.namespace, self.plan.model
        objects, patience = self.world.objects, self.world.patience
        model = patience.call(
            "Reading the AdaptiveModel", lambda: objects.get(AdaptiveModel, namespace, name)
        )
        policies = patience.call(
            "Reading policies", lambda: objects.list(AdaptivePolicy, namespace)
        )
        ours = [one for one in policies if one.spec.model == name]
        return incumbent_of(model or self.spec, ours, self.plan.reason)

    def _open_run(self, data: SearchData, incumbent: Incumbent) -> RunRef | None:
        registry, plan = self.world.registry, self.plan
        if registry is None:
            return None
        params = evidence.run_params(plan, len(data.records), data.opens, incumbent)
        params["executor"] = self.world.executor.name
        run = self.world.patience.call(
            "Opening the MLflow run",
            lambda: registry.open_run(plan.namespace, plan.model, plan.run, plan.uid, params),
        )
        self.opened = run
        self.reporter.phase(
            "Searching", f"MLflow: {run.url}", mlflow_url=run.url, mlflow_run_id=run.run_id
        )
        return run

    def _search(self, data: SearchData, model: Model, incumbent: Incumbent) -> Study:
        plan, config = self.plan, model.loaded.config
        start = incumbent.starting_point
        space = search_space(plan.knobs.run, config) if plan.runs_model else {}
        search = Search(
            audits=Audits.of(data.records),
            config=config,
            model=model.reference if plan.runs_model else None,
            epsilon=plan.epsilon,
            aim=certifiable_risk(plan.n, plan.first_level, plan.epsilon),
            seed=plan.seed,
            fixed=None if plan.knobs.replay else start.exit.thresholds or None,
        )
        for line in evidence.search_lines(search, [*space, *plan.knobs.replay], plan):
            log.info("%s", line)

        so_far = Study()

        def told(record: TrialRecord) -> None:
            so_far.trials.append(record)
            log.info("%s", evidence.trial_line(record, plan.trials))
            self.reporter.progress(
                "Searching",
                f"{len(so_far.trials)} of at most {plan.trials} trials",
                trials_done=len(so_far.trials),
                model_run_trials=so_far.model_runs,
            )

        name = self.world.executor.name
        self.reporter.phase("Searching", f"at most {plan.trials} trials on {name}", executor=name)
        with self.world.executor as executor:
            study = run_study(search, space, start, plan.trials, executor, told, plan.deadline)
        self.reporter.check(plan.model)
        best = study.results[0]
        self.reporter.phase(
            "Searching",
            f"{len(study.trials)} trials, {study.model_runs} ran the model; "
            f"best cost {best.cost:.3f} of full depth",
            trials_done=len(study.trials),
            model_run_trials=study.model_runs,
            best_cost=decimal_string(best.cost, 4),
            best_risk=decimal_string(best.risk, 4),
        )
        return study

    def _judge(
        self,
        winner: Winner | None,
        certificate: Certificate,
        measured: Measured,
        incumbent: Incumbent,
    ) -> tuple[str, str, str]:
        """(outcome, reason, message) of the run."""
        if winner is None:
            message = f"nothing certified, full depth is kept: {certificate.reason}"
            few = certificate.outcome is Outcome.TOO_FEW_CLUSTERS
            reason = Reason.TOO_FEW_CLUSTERS if few else Reason.NOTHING_CERTIFIED
            return Reason.NOTHING_CERTIFIED, reason, message
        assert certificate.cost is not None
        now = self.world.clock()
        stable = f"the stable policy needs {measured.cost:.3f}"
        found = f"certified at {certificate.cost:.3f} of full compute, {certificate.reason}"
        if is_improvement(certificate.cost, measured, self.plan, incumbent.expires_at, now):
            return CERTIFIED, Reason.SUCCEEDED, f"{found}; {stable}"
        return Reason.NO_IMPROVEMENT, Reason.NO_IMPROVEMENT, f"{found}, but {stable}: no rollout"

    def _log_evidence(
        self,
        run: RunRef | None,
        study: Study,
        certificate: Certificate,
        measured: Measured,
        message: str,
    ) -> None:
        """Trials, plots and the certificate to MLflow, with patience."""
        registry = self.world.registry
        if registry is None or run is None:
            return
        pack = evidence.evidence_of(self.plan, study, certificate, measured, message)

        def write() -> None:
            registry.log_trials(run, pack.trials)
            registry.log_results(run, pack.metrics, pack.tags)
            for name, figure in pack.figures.items():
                registry.log_figure(run, figure, name)
            registry.log_json(run, pack.certificate, CERTIFICATE_FILE)

        self.world.patience.call("Writing to MLflow", write)

    def _publish(
        self, run: RunRef | None, winner: Winner, incumbent: Incumbent, model: Model
    ) -> dict[str, object]:
        return publish_policy(
            self.world,
            self.plan,
            self.spec,
            winner,
            parent=incumbent.starting_point.digest,
            score_digest=model.loaded.score_digest,
            run=run,
        )

    def _close_run(self, run: RunRef | None, good: bool, message: str) -> None:
        registry = self.world.registry
        if registry is not None and run is not None:
            self.world.patience.call(
                "Closing the MLflow run", lambda: registry.close_run(run, good, message)
            )
