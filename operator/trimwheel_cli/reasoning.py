"""`trimwheel explain`: why a model or a rollout is where it is, and what would change that.

Pure: builds sentences from a snapshot; each rests on a field of the objects, so that a reader can
check it with kubectl.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from trimwheel_api import names, phases
from trimwheel_api.cohorts import cohort, in_candidate
from trimwheel_api.kinds import PolicyRollout
from trimwheel_api.kinds.common import ConditionedStatus
from trimwheel_api.policy import DENSE
from trimwheel_api.values import percent
from trimwheel_cli import words
from trimwheel_cli.snapshot import Snapshot, is_finished, is_queued


def explain_model(snapshot: Snapshot, now: datetime) -> list[str]:
    """What serves and why, what is being tried, what the newest drift verdict means."""
    return [
        *_serving(snapshot, now),
        *_drift(snapshot, now),
        *_tuning(snapshot),
        *(explain_rollout(snapshot, snapshot.active, now) if snapshot.active else _idle(snapshot)),
    ]


def explain_rollout(snapshot: Snapshot, rollout: PolicyRollout, now: datetime) -> list[str]:
    """Where a rollout stands, what each guard says, and what it waits for."""
    who = rollout.spec.requested_by or "somebody"
    if rollout.spec.on_behalf_of:
        who += f" on behalf of {rollout.spec.on_behalf_of}"
    why = f' because "{rollout.spec.reason}"' if rollout.spec.reason else ""
    said = words.short(rollout.spec.policy_digest)
    lines = [
        f"{rollout.name} is a {rollout.spec.type} of {said} on model {rollout.spec.model}, "
        f"asked for by {who} {words.age(rollout.metadata.creation_timestamp, now)} ago{why}."
    ]
    lines += _condition_sentences(rollout.status)
    lines += [f"Guard {words.guard_sentence(guard)}" for guard in rollout.status.guards]
    lines += _last_decision(rollout)
    lines += _actuation(rollout)
    lines += list(_next(snapshot, rollout, now))
    return lines


def explain_session(snapshot: Snapshot, session: str) -> list[str]:
    """Which arm a session key belongs to, by the same hash as the workers'."""
    assigned = snapshot.assignment
    if assigned is None or assigned.spec.candidate is None:
        return [f"Session {session!r} is served by stable: there is no candidate."]
    spec = assigned.spec
    number = cohort(session, spec.salt)
    chosen = in_candidate(session, spec.salt, spec.weight_basis_points)
    arm = names.ARM_CANDIDATE if chosen else names.ARM_STABLE
    return [
        f"Session {session!r} is cohort {number} of 10000; the candidate serves cohorts below "
        f"{spec.weight_basis_points}, so it is served by {arm}."
    ]


def _serving(snapshot: Snapshot, now: datetime) -> list[str]:
    status = snapshot.model.status
    if status.stable is None:
        return [f"{snapshot.model.name} has not been reconciled yet: is the operator running?"]
    dense = status.stable.digest == DENSE.digest
    what = "the dense policy (full depth)" if dense else words.short(status.stable.digest)
    lines = [f"{snapshot.model.name} serves {what} for {words.age(status.stable.since, now)}."]
    lines += _condition_sentences(status)
    certificate = status.certificate
    if certificate and certificate.state != "None":
        ends = certificate.expires_at
        when = f", ends {words.until(ends, now)}" if ends else ""
        lines.append(
            f"The certificate of {words.short(certificate.digest)} is {certificate.state}{when}. "
            f"{certificate.message}".rstrip()
        )
    return lines


def _drift(snapshot: Snapshot, now: datetime) -> list[str]:
    drift = snapshot.model.status.drift
    if drift is None or not drift.signal:
        return ["No drift verdict has been reported of the policy that is meant to be served."]
    sure = f" (confidence {drift.confidence})" if drift.confidence else ""
    return [f"Drift is {drift.verdict}{sure}: {words.drift_numbers(drift, now)}."]


def _tuning(snapshot: Snapshot) -> Iterator[str]:
    if not snapshot.tuning_runs:
        return
    run = snapshot.tuning_runs[-1]
    status = run.status
    if status.outcome:
        told = status.condition(names.READY)
        why = f": {told.message}" if told and told.message else ""
        said = f" and created {status.policy}" if status.policy else why
        yield f"The newest TuningRun, {run.name} ({run.spec.reason}), ended {status.outcome}{said}."
    else:
        yield (
            f"TuningRun {run.name} ({run.spec.reason}) is {status.phase or 'waiting for its Job'}: "
            f"{status.trials_done} trials, {status.certify_records} of {status.certify_needed} "
            "fresh audits."
        )


def _idle(snapshot: Snapshot) -> list[str]:
    queued = [one.name for one in snapshot.rollouts if is_queued(one) and not is_finished(one)]
    return [f"Queued rollouts: {', '.join(queued)}."] if queued else ["No rollout is under way."]


def _condition_sentences(status: ConditionedStatus) -> list[str]:
    told = [one for one in status.conditions if one.status == "True" or one.type == names.READY]
    return [
        f"{one.type} is {one.status} ({one.reason}){': ' + one.message if one.message else ''}"
        for one in told
    ]


def _last_decision(rollout: PolicyRollout) -> list[str]:
    if not rollout.status.decisions:
        return []
    last = rollout.status.decisions[-1]
    by = f" by {last.actor}" if last.actor else ""
    return [f"Last decision at {last.time}: {last.action} ({last.reason}){by}. {last.message}"]


def _actuation(rollout: PolicyRollout) -> list[str]:
    done = rollout.status.actuation
    if done is None:
        return []
    if done.milliseconds is None:
        owed = ", ".join(done.pending) or "none named"
        return [
            f"Epoch {done.epoch} is on its way to {done.workers} workers; still owed: {owed}. A "
            f"worker that hears nothing serves stable after {done.lease_seconds} s."
        ]
    return [
        f"Epoch {done.epoch} reached {done.workers} workers in {done.milliseconds} ms; silent "
        f"workers would have served stable after {done.lease_seconds} s."
    ]


def _next(snapshot: Snapshot, rollout: PolicyRollout, now: datetime) -> Iterator[str]:
    """What the rollout waits for."""
    status = rollout.status
    if is_finished(rollout):
        when = words.age(status.finished_at, now)
        yield f"It is finished: {status.phase}, {when} ago."
    elif phases.is_retried(status):
        yield "It is refused for now; the operator asks again at every look."
    elif status.is_true(names.AWAITING_APPROVAL):
        yield (
            "It waits for a person who holds verb approve on policyrollouts and did not ask for "
            f"it: trimwheel approve {rollout.name} -n {rollout.metadata.namespace} --reason ..."
        )
    elif rollout.spec.paused:
        yield "It is paused by spec.paused; rollback stays armed."
    elif is_queued(rollout):
        active = snapshot.active
        yield f"It waits for {active.name if active else 'the operator'}."
    elif status.effective is not None and rollout.spec.type == "Canary":
        steps = rollout.spec.steps or status.effective.rollout.steps
        step = steps[min(status.step, len(steps) - 1)]
        spent = words.age(status.step_started_at, now)
        yield (
            f"At {percent(status.weight_basis_points)} for {spent}; the step takes no Fail, at "
            f"least {step.hold} and {step.min_requests} candidate requests, and pauses after "
            f"{step.max_duration} without evidence."
        )
