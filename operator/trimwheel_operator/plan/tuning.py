"""TuningRuns become Jobs: one at a time for a model, found again by name, never twice.

A run's conditions have one writer at a time. Until its Job has reported they are the operator's:
the run waits, its Job was made, its pod cannot start. From then on they are the Job's, and the
operator speaks once more only to end a run whose Job cannot: it died without a word, or the model
was deleted. After an outcome nobody writes (`tuning_status` in pipelines keeps to the same).
A run that failed leaves the incumbent where it was. Pure.
"""

from __future__ import annotations

from datetime import timedelta

from trimwheel_api import names
from trimwheel_api.conditions import Row, with_conditions
from trimwheel_api.kinds import AdaptiveModel, TuningRun
from trimwheel_api.kinds.tuning_run import TuningRunStatus
from trimwheel_api.limits import beyond
from trimwheel_api.names import Reason
from trimwheel_api.times import parse, to_text
from trimwheel_operator.jobs import tuning_job
from trimwheel_operator.plan.actions import Action, CreateJob, DeleteJob
from trimwheel_operator.plan.draft import Draft, event_key, status_patch
from trimwheel_operator.plan.isolation import attempt
from trimwheel_operator.plan.observed import Cause, ObservedState, TuningJob
from trimwheel_operator.plan.validation import first_mistake

STOPPED = Reason.STOPPED
PATIENCE = timedelta(seconds=20)
"""In which the Job controller makes a pod of a Job, unless the API server refuses it."""


def story(draft: Draft) -> list[Action]:
    """Jobs to create or delete, and what the runs' statuses lack."""
    state = draft.state
    found = stray_jobs(state)
    runs = sorted(
        (run for run in state.runs if not is_finished(run)),
        key=lambda run: (run.metadata.creation_timestamp, run.name),
    )
    jobs = {run.name: job_of(state, run) for run in runs}
    under_way = [name for name, job in jobs.items() if job is not None and not job.finished]
    busy = under_way[0] if under_way else ""
    for run in runs:
        asked: list[Action] = attempt(draft, _run, run, jobs[run.name], busy, otherwise=[])
        if any(isinstance(action, CreateJob) for action in asked):
            busy = run.name
        found += asked
    return found


def _run(draft: Draft, run: TuningRun, job: TuningJob | None, busy: str) -> list[Action]:
    """What one unfinished run needs; `busy` is the run whose Job is under way."""
    model = draft.state.model
    if model is None or model.metadata.deletion_timestamp or (job and not is_for(job, model)):
        return _without_model(draft, run, job)
    if job is not None:
        return _follow(draft, run, job)
    if was_created(run):
        return _fail(draft, run, "its Job is gone, and it left no outcome")
    if mistake := next(beyond(run.spec), None):
        return _fail(draft, run, mistake.sentence(), Reason.INVALID_SPEC)
    if busy:
        return _wait(draft, run, f"TuningRun {busy} runs first")
    if mistake := first_mistake(model):
        return _wait(draft, run, f"model: {mistake.sentence()}")
    return _create(draft, run, model)


def is_finished(run: TuningRun) -> bool:
    """Pipelines, or the operator in their place, said how it ended."""
    return bool(run.status.outcome)


def was_created(run: TuningRun) -> bool:
    """Whether the Job of this run was made before."""
    found = run.status.condition(names.RECONCILING)
    started = bool(run.status.started_at or run.status.phase)
    return started or (found is not None and found.reason == Reason.JOB_CREATED)


def is_for(job: TuningJob, model: AdaptiveModel) -> bool:
    """Whether a Job was made for this very model, and not for one that had its name before."""
    return job.model_uid in ("", model.metadata.uid)


def job_of(state: ObservedState, run: TuningRun) -> TuningJob | None:
    """The run's Job."""
    return next((job for job in state.jobs if job.run_uid == run.metadata.uid), None)


def stray_jobs(state: ObservedState) -> list[Action]:
    """Jobs whose TuningRun was deleted, or stopped: nobody waits for their result."""
    known = {run.metadata.uid for run in state.runs if run.status.outcome != STOPPED}
    known |= {one.uid for one in state.unreadable}
    return [
        DeleteJob(state.settings.release_namespace, job.name, job.uid)
        for job in state.jobs
        if job.run_uid not in known
    ]


def _create(draft: Draft, run: TuningRun, model: AdaptiveModel) -> list[Action]:
    timeout = run.spec.budget.timeout or model.spec.tuning.timeout
    manifest = tuning_job(run, timeout, draft.state.settings, model.metadata.uid)
    message = f"Job {manifest['metadata']['name']} in {draft.state.settings.release_namespace}"
    draft.tell(run.kind, run.metadata, Reason.JOB_CREATED, message, key="job")
    rows: list[Row] = [
        (names.READY, False, Reason.RUNNING, "no outcome yet"),
        (names.RECONCILING, True, Reason.JOB_CREATED, message),
        (names.STALLED, False, Reason.JOB_CREATED, ""),
    ]
    return [CreateJob(manifest), *_patch(draft, run, rows)]


def _follow(draft: Draft, run: TuningRun, job: TuningJob) -> list[Action]:
    """Speak for a Job that ended without saying how, or whose pod cannot start."""
    if not job.finished:
        return _starting(draft, run, job)
    return _fail(draft, run, job.message or "its Job ended without an outcome")


def _starting(draft: Draft, run: TuningRun, job: TuningJob) -> list[Action]:
    """What keeps a Job that has not reported yet from its first word."""
    if run.status.phase or run.status.started_at:
        return []
    cause = job.cause or _without_pod(draft, job)
    reason = cause.reason if cause else Reason.RUNNING
    message = cause.message if cause else "no outcome yet"
    # Not the cause's reason: this one says that the Job was made, and is read back (was_created).
    made = f"Job {job.name}: {message}" if cause else f"Job {job.name}"
    rows: list[Row] = [
        (names.READY, False, reason, message),
        (names.RECONCILING, True, Reason.JOB_CREATED, made),
        (names.STALLED, False, Reason.JOB_CREATED, ""),
    ]
    before = run.status.condition(names.READY)
    if cause and (before is None or before.message != message):
        draft.tell(run.kind, run.metadata, reason, message, "Warning", event_key("cause", message))
    return _patch(draft, run, rows)


def _without_pod(draft: Draft, job: TuningJob) -> Cause | None:
    """A Job says nowhere that its pods are refused; that there is none for long says it."""
    created = parse(job.created)
    if job.has_pod or created is None or draft.now - created < PATIENCE:
        return None
    place = draft.state.settings.release_namespace
    return Cause(
        Reason.PODS_REFUSED,
        f"Job {job.name} has no pod: a quota or a webhook in {place} may refuse it "
        f"(kubectl -n {place} describe job {job.name})",
    )


def _fail(
    draft: Draft, run: TuningRun, message: str, reason: str = Reason.JOB_FAILED
) -> list[Action]:
    text = f"{message}; the incumbent policy stays"
    draft.tell(run.kind, run.metadata, reason, text, "Warning", key="failed")
    ended = {"outcome": Reason.FAILED, "finished_at": to_text(draft.now)}
    return _patch(draft, run, _stalled(reason, text), **ended)


def _wait(draft: Draft, run: TuningRun, message: str) -> list[Action]:
    rows: list[Row] = [
        (names.READY, False, Reason.RUNNING, message),
        (names.RECONCILING, True, Reason.RUNNING, message),
        (names.STALLED, False, Reason.RUNNING, ""),
    ]
    return _patch(draft, run, rows)


def _without_model(draft: Draft, run: TuningRun, job: TuningJob | None) -> list[Action]:
    """A run whose model is not there yet waits for it; one that had begun is stopped for good."""
    if job is None and not was_created(run):
        message = f"spec.model: there is no AdaptiveModel {run.spec.model!r} in this namespace"
        return _patch(draft, run, _stalled(Reason.MODEL_NOT_FOUND, message))
    message = f"AdaptiveModel {run.spec.model} was deleted"
    stops: list[Action] = []
    if job is not None:
        message += f"; Job {job.name} was stopped"
        stops = [DeleteJob(draft.state.settings.release_namespace, job.name, job.uid)]
    draft.tell(run.kind, run.metadata, Reason.MODEL_DELETED, message, key="stopped")
    ended = {"outcome": STOPPED, "finished_at": to_text(draft.now)}
    return [*stops, *_patch(draft, run, _stalled(Reason.MODEL_DELETED, message), **ended)]


def _stalled(reason: str, message: str) -> list[Row]:
    return [
        (names.READY, False, reason, message),
        (names.RECONCILING, False, reason, ""),
        (names.STALLED, True, reason, message),
    ]


def _patch(draft: Draft, run: TuningRun, rows: list[Row], **changes: str) -> list[Action]:
    generation = run.metadata.generation
    after: TuningRunStatus = run.status.model_copy(
        update={
            "conditions": with_conditions(
                run.status.conditions, rows, now=draft.now, generation=generation
            ),
            "observed_generation": generation,
            **changes,
        }
    )
    return status_patch(run.kind, run.metadata, run.status, after)
