"""The plan: from everything observed about one model, and the time, to a list of actions.

`plan` is pure and total: the same observation at the same time gives the same actions, and an
action that was carried out is not asked for again. The stories (`models`, `rollouts`, `policies`,
`tuning`) hold the rules; this module says in which order they are told. Each rule runs in
isolation: one that raises stops no other (`isolation`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from trimwheel_api import names
from trimwheel_api.errors import SpecInvalid
from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.kinds.policy_rollout import PolicyRolloutStatus
from trimwheel_api.times import parse
from trimwheel_api.values import span
from trimwheel_operator.plan import memory, models, phases, policies, rollouts, tuning, witness
from trimwheel_operator.plan.actions import Action, Plan, Report
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.isolation import attempt, report_failures
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.plan.validation import first_mistake

SOONEST = 0.05
"""Seconds; a look that is due at once still lets the API server breathe."""

GUARDS_SHOWN = timedelta(hours=1)
"""How long gauges show what a rollout's guards ended with: long enough to be seen."""

__all__ = ["SOONEST", "plan"]


def plan(state: ObservedState, now: datetime) -> Plan:
    """What to do about one model now."""
    draft = Draft.of(state, now)
    if state.cannot_read("AdaptiveModel", "PolicyAssignment"):
        # Neither absent nor known: whatever followed from it would be a guess.
        return Plan(next_look=state.settings.resync)
    model = state.model
    if model is not None and model.metadata.deletion_timestamp:
        model = None
    attempt(draft, witness.take_notes, otherwise=None)
    mistake = attempt(draft, _mistake, model, otherwise=None)
    worker_objects: list[Action] = []
    if model is None:
        attempt(draft, rollouts.orphans, otherwise=None)
        attempt(draft, memory.leave_full_depth, otherwise=None)
    else:
        worker_objects = _model(draft, model, mistake)
    attempt(draft, memory.close_pass, otherwise=None)
    forgotten: list[Action] = attempt(draft, memory.forget, otherwise=[])
    if forgotten:
        return Plan(actions=tuple(forgotten), next_look=state.settings.resync)
    told = draft.take_events()
    patches = policies.patches(draft)
    later = [*patches, *tuning.story(draft), *draft.take_events()]
    next_look = attempt(draft, _next_look, otherwise=state.settings.scrape_interval)
    if len(patches) >= policies.MOST_PATCHES:
        next_look = SOONEST
    report_failures(draft)
    if model is not None:
        attempt(draft, models.report_stalled, model, mistake, otherwise=None)
    # Decisions first: neither pods that the API server refuses nor a search may hold them up.
    decisions = [*draft.effects(), *told, *draft.take_events()]
    return Plan(
        actions=(*decisions, *worker_objects, *later),
        next_look=next_look,
        decided=tuple(draft.decided),
        actuations=tuple(draft.actuations),
        report=attempt(draft, _report, otherwise=Report()),
        failures=tuple(draft.failures),
    )


def _model(draft: Draft, model: AdaptiveModel, mistake: SpecInvalid | None) -> list[Action]:
    found: list[Action] = []
    drift_known = attempt(draft, models.mirror_drift, otherwise=False)
    if mistake is None:
        found += attempt(draft, models.worker_manifests, model, otherwise=[])
        attempt(draft, models.begin_assignment, model, otherwise=None)
    rollouts.story(draft, model)
    choice = models.tell_workers(draft, model, mistake, drift_known)
    models.report(draft, model, choice, mistake)
    return found


def _mistake(draft: Draft, model: AdaptiveModel | None) -> SpecInvalid | None:
    return first_mistake(model) if model else None


def _report(draft: Draft) -> Report:
    """The guards are the active rollout's; for an hour after it those that the last ended with.

    Longer they would speak of a policy that is judged by nobody any more.
    """
    spec = draft.assignment
    judged = [one for one in draft.rollouts.values() if one.guards and _is_recent(draft, one)]
    judged.sort(key=lambda one: (phases.is_active(one), one.finished_at))
    return Report(
        degraded=draft.model.is_true(names.DEGRADED),
        weight=spec.weight_basis_points if spec else 0,
        guards=tuple(judged[-1].guards) if judged else (),
    )


def _is_recent(draft: Draft, status: PolicyRolloutStatus) -> bool:
    ended = parse(status.finished_at)
    return ended is None or draft.now - ended < GUARDS_SHOWN


def _next_look(draft: Draft) -> float:
    """Seconds until something follows from the clock alone."""
    now, settings = draft.now, draft.state.settings
    waits = [settings.resync]
    spec = draft.assignment
    if spec and spec.candidate and spec.weight_basis_points:
        waits.append(models.renewal_interval(spec).total_seconds() / 2)
    for status in draft.rollouts.values():
        if phases.is_active(status):
            waits.append(settings.scrape_interval)
            if status.step_started_at and (began := parse(status.step_started_at)):
                ends = began + span(phases.current_step(status).hold)
                waits += [(ends - now).total_seconds()] if ends > now else []
            if draft.state.model and (due := phases.approval_due(status, draft.state.model)):
                waits.append((due - now).total_seconds())
        if phases.is_rolling_back(status) and status.actuation:
            waits.append(settings.scrape_interval)
            if decided := parse(status.actuation.decided_at):
                bound = decided + timedelta(seconds=status.actuation.lease_seconds)
                waits.append((bound - now).total_seconds())
    certificate = draft.model.certificate
    if certificate and certificate.state == "Valid" and (ends_at := parse(certificate.expires_at)):
        waits.append((ends_at - now).total_seconds())
    return max(SOONEST, min(waits))
