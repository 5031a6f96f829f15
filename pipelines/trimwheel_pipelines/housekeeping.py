"""What the ledger must hold of a model, and which finished objects may go afterwards.

Pure, from one `View`. Called by `loop`, which copies first and removes then: nothing is pruned that
the ledger does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from trimwheel_api.kinds import (
    AdaptivePolicy,
    PolicyApproval,
    PolicyRollout,
    TuningRun,
    dump,
)
from trimwheel_api.times import instant
from trimwheel_pipelines.ledger import Event
from trimwheel_pipelines.view import View

_STARTED, _ENDED = 0, 1
"""Numbers of a TuningRun's own events in the ledger."""


def ledger_events(view: View, operator: str, pipelines: str) -> list[Event]:
    """All that happened to a model, as the ledger numbers it; the ledger skips what it has.

    `operator`, `pipelines`: the usernames that decide where no person did.
    """
    events = [event for run in view.runs for event in _run_events(view, run, pipelines)]
    for rollout in view.rollouts:
        for decision in rollout.status.decisions:
            payload = {
                "rollout": rollout.name,
                "type": rollout.spec.type,
                "policy": rollout.spec.policy,
                "policyDigest": rollout.spec.policy_digest,
                "requestedBy": rollout.spec.requested_by,
                **_on_behalf(rollout),
                **dump(decision),
            }
            events.append(
                Event(
                    at=decision.time,
                    actor=decision.actor or operator,
                    kind=decision.action,
                    subject=view.subject,
                    uid=rollout.metadata.uid,
                    source_seq=decision.seq,
                    payload=payload,
                )
            )
    return sorted(events, key=lambda event: (event.at, event.uid, event.source_seq))


def prunable(view: View) -> list[PolicyRollout | TuningRun | AdaptivePolicy]:
    """Finished objects beyond `historyLimit`, oldest first; never one that something refers to.

    Policies made by hand are their owners'.
    """
    limit = view.model.spec.rollout.history_limit
    status = view.model.status
    active = status.candidate.rollout if status.candidate else ""
    finished = [one for one in view.rollouts if one.status.finished_at and one.name != active]
    old_rollouts = finished[: max(0, len(finished) - limit)]
    carrier = status.drift.tuning_run if status.drift else ""
    ended = [run for run in view.runs if run.status.outcome and run.name != carrier]
    old_runs = ended[: max(0, len(ended) - limit)]
    kept_rollouts = [one for one in view.rollouts if one not in old_rollouts]
    kept_runs = [one for one in view.runs if one not in old_runs]
    referred = {one.spec.policy for one in kept_rollouts} | {one.status.policy for one in kept_runs}
    referred |= {one.policy for one in (status.stable, status.intended) if one}
    referred |= {one.policy for one in status.history}
    referred |= {status.candidate.policy} if status.candidate else set()
    ours = [
        one
        for one in view.policies
        if one.spec.certificate is not None
        and one.spec.certificate.tuning_run
        and one.name not in referred
    ]
    return [*old_rollouts, *old_runs, *ours[: max(0, len(ours) - limit)]]


def without_rollout(
    approvals: Sequence[PolicyApproval], rollouts: Sequence[PolicyRollout], before: datetime
) -> list[PolicyApproval]:
    """Approvals made before a time whose rollout is gone, or never was: they decide nothing.

    `rollouts` were listed after `approvals`, so that one which is new is not missed.
    """
    known = {one.metadata.uid for one in rollouts}
    return [
        one
        for one in approvals
        if one.spec.rollout_uid not in known and instant(one.metadata.creation_timestamp) < before
    ]


def _on_behalf(rollout: PolicyRollout) -> dict[str, str]:
    """Who asked for the TuningRun behind a rollout, where somebody did."""
    who = rollout.spec.on_behalf_of
    return {"onBehalfOf": who} if who else {}


def _run_events(view: View, run: TuningRun, pipelines: str) -> list[Event]:
    """A TuningRun's start and end."""
    status = run.status
    asked = {"tuningRun": run.name, "reason": run.spec.reason, "seed": run.spec.seed}
    drift = {"drift": dump(status.drift)} if status.drift else {}
    asked_by = run.spec.requested_by or ""
    actor = asked_by if run.spec.reason == "Manual" else pipelines
    uid = run.metadata.uid
    start = Event(
        run.metadata.creation_timestamp, actor, "TuningStarted", view.subject, uid, _STARTED, asked
    )
    if not status.outcome:
        return [start]
    ready = status.condition("Ready")
    result = {
        "outcome": status.outcome,
        "message": ready.message if ready else "",
        "policy": status.policy,
        "policyDigest": status.policy_digest,
        "rollout": status.rollout,
        "mlflowRunID": status.mlflow_run_id,
        "searchRecords": status.search_records,
        "certifyRecords": status.certify_records,
    }
    if status.certificate is not None:
        result["certificate"] = dump(status.certificate)
    at = status.finished_at or run.metadata.creation_timestamp
    ended = asked | drift | result
    return [start, Event(at, pipelines, "TuningEnded", view.subject, uid, _ENDED, ended)]
