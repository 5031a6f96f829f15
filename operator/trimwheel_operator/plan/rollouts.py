"""All rollouts of one model: what was decided before a crash, who waits, who goes, who is next.

At most one canary is active; others are Queued, oldest first. A Rollback does not queue: it
pre-empts. What happens inside an active canary is `canary`.
"""

from __future__ import annotations

from collections.abc import Callable

from trimwheel_api import names
from trimwheel_api.conditions import is_true
from trimwheel_api.kinds import AdaptiveModel, PolicyRollout
from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec
from trimwheel_api.kinds.policy_rollout import PolicyRolloutStatus
from trimwheel_api.limits import beyond
from trimwheel_api.names import Action, Reason
from trimwheel_api.times import to_text
from trimwheel_operator.plan import canary, gates, outcomes, phases, stops
from trimwheel_operator.plan.actions import Decided
from trimwheel_operator.plan.approvals import rejection
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.gates import Refusal, Request
from trimwheel_operator.plan.isolation import attempt
from trimwheel_operator.plan.outcomes import Stop
from trimwheel_operator.plan.stable import known_document, policy_of_digest


def story(draft: Draft, model: AdaptiveModel) -> None:
    """Everything about this model's rollouts, in order."""
    for rollout in _with(draft, phases.is_finished):
        _each(draft, acknowledge, rollout)
    settle(draft, model)
    for rollout in _with(draft, phases.is_rolling_back):
        _each(draft, outcomes.complete, rollout)
    attempt(draft, abandon, model, otherwise=None)
    admitted = []
    for rollout in _with(draft, phases.is_pending):
        if attempt(draft, admit, rollout, model, otherwise=False, about=rollout.name):
            admitted.append(rollout)
    for rollout in _with(draft, phases.is_unfinished):
        _each(draft, report_limits, rollout)
    if draft.assignment is None:
        return
    for urgent in admitted:
        if urgent.spec.type == phases.ROLLBACK and _each(draft, go_back, urgent):
            return
    for rollout in _with(draft, phases.is_active):
        canary.drive(draft, rollout, model)
    attempt(draft, queue, [one for one in admitted if one.spec.type != phases.ROLLBACK], model,
            otherwise=None)  # fmt: skip


def _each(draft: Draft, rule: Callable[[Draft, PolicyRollout], None], one: PolicyRollout) -> bool:
    """Ask a rule about one rollout, by itself; whether it did not raise."""
    before = len(draft.failures)
    attempt(draft, rule, one, otherwise=None, about=one.name)
    return len(draft.failures) == before


def go_back(draft: Draft, rollback: PolicyRollout) -> None:
    """A Rollback comes first: it ends what is under way and is carried out at once."""
    preempt(draft, rollback)
    outcomes.go_back(draft, rollback)


def report_limits(draft: Draft, rollout: PolicyRollout) -> None:
    """Name what was stored before a limit of its field was made, and is cut."""
    effective = draft.status(rollout).effective
    found = list(beyond(rollout.spec))
    if effective is not None and not found:
        found = list(beyond(effective, "status.effective"))
    if found:
        message = phases.beyond_limits([one.sentence() for one in found])
        draft.condition(rollout, names.OUTSIDE_LIMITS, True, Reason.LIMIT_EXCEEDED, message)


def orphans(draft: Draft) -> None:
    """Rollouts whose model is not there (yet, or any more)."""
    for rollout in draft.state.rollouts:
        status = draft.status(rollout)
        if phases.is_finished(status):
            continue
        model = rollout.spec.model
        message = f"spec.model: there is no AdaptiveModel {model!r} in this namespace"
        refuse(
            draft, rollout, Refusal(Reason.MODEL_NOT_FOUND, message, not phases.is_pending(status))
        )
        draft.end(rollout)
    known = draft.journal.under_way
    if known is not None and not draft.state.cannot_read("PolicyRollout"):
        message = f"AdaptiveModel {draft.state.name} was deleted, and its canary with it"
        draft.close(known, known.rollout, Reason.MODEL_GONE, message)


def acknowledge(draft: Draft, rollout: PolicyRollout) -> None:
    """A finished rollout may still be paused or aborted, which changes nothing: it was seen."""
    status, generation = draft.status(rollout), rollout.metadata.generation
    if status.observed_generation == generation:
        return
    seen = {"observed_generation": generation}
    conditions = [one.model_copy(update=seen) for one in status.conditions]
    draft.update(rollout, conditions=conditions, **seen)


def _with(draft: Draft, predicate: Callable[[PolicyRolloutStatus], bool]) -> list[PolicyRollout]:
    found = [one for one in draft.state.rollouts if predicate(draft.status(one))]
    return sorted(found, key=phases.age)


# --- after a crash -----------------------------------------------------------------------------


def settle(draft: Draft, model: AdaptiveModel) -> None:
    """Read back from the assignment what was decided and not yet recorded.

    The assignment is written before any status, so a status may be a decision behind it, or several
    after several crashes: what was read back is acted upon, whether or not it could be written.
    """
    spec = draft.assignment
    if spec is None:
        return
    for rollout in _with(draft, phases.is_active):
        if rollout.spec.type == phases.CANARY:
            attempt(draft, _settle_canary, rollout, spec, model, otherwise=None, about=rollout.name)
    for rollout in _with(draft, phases.is_pending):
        if rollout.spec.type == phases.ROLLBACK and outcomes.is_decision_on(spec, rollout):
            _each(draft, outcomes.record_return, rollout)


def _settle_canary(
    draft: Draft, rollout: PolicyRollout, spec: PolicyAssignmentSpec, model: AdaptiveModel
) -> None:
    status, digest = draft.status(rollout), rollout.spec.policy_digest
    started = phases.was_started(status)
    if not outcomes.is_decision_on(spec, rollout):
        if started:
            outcomes.record_rollback(draft, rollout, _came_first(draft, spec.rollout))
        return
    if spec.candidate is not None and spec.candidate.digest == digest:
        if not started:
            weight = 0 if spec.hold else phases.step_weight(status)
            outcomes.record_start(draft, rollout, weight, spec.decided_at)
        if not spec.hold:
            _settle_step(draft, rollout, spec)
        return
    if spec.stable.digest == digest:
        _settle_promotion(draft, rollout)
        return
    outcomes.record_rollback(draft, rollout, _likely_stop(draft, rollout, model))


def _came_first(draft: Draft, name: str) -> Stop:
    """Why the assignment speaks of another rollout: a Rollback pre-empted this one."""
    found = next((one for one in draft.state.rollouts if one.name == name), None)
    if found is not None and found.spec.type == phases.ROLLBACK:
        return outcomes.preempted_by(found)
    return Stop(Reason.PREEMPTED, f"rollout {name} came first")


def _settle_step(draft: Draft, rollout: PolicyRollout, spec: PolicyAssignmentSpec) -> None:
    status = draft.status(rollout)
    steps = phases.rules(status).rollout.steps
    if spec.weight_basis_points == phases.step_weight(status):
        return
    for index in range(status.step + 1, len(steps)):
        if phases.exposed(steps[index]) == spec.weight_basis_points:
            for passed in range(status.step + 1, index + 1):
                outcomes.enter_step(draft, rollout, passed, spec.decided_at)
            return


def _settle_promotion(draft: Draft, rollout: PolicyRollout) -> None:
    given = [one for one in draft.state.approvals if one.spec.rollout_uid == rollout.metadata.uid]
    approver = next((one.spec.approver for one in given if one.spec.decision == "Approve"), "")
    reason = Reason.APPROVED if approver else Reason.PROMOTED
    outcomes.record_promotion(draft, rollout, reason, approver)


def _likely_stop(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop:
    """Why the candidate was taken away: as the journal says, else as the objects still tell."""
    if known := stops.decided_before(draft, rollout, model):
        return known
    if rollout.spec.abort:
        return Stop(Reason.ABORTED, "spec.abort is set")
    if (found := rejection(draft, rollout)) is not None:
        return Stop(Reason.REJECTED, f"{found.spec.approver} rejected it", found.spec.approver)
    canary.judge(draft, rollout)
    failed = stops.guard_failed(draft, rollout, model)
    return failed or Stop(
        Reason.GUARD_FAILED, "a guard failed; the operator restarted before it wrote which"
    )


def abandon(draft: Draft, model: AdaptiveModel) -> None:
    """End a candidate that no rollout speaks for any more: deleted, or finished without it."""
    spec = draft.assignment
    if spec is None or spec.candidate is None:
        return
    if any(outcomes.is_decision_on(spec, one) for one in _with(draft, phases.is_unfinished)):
        return
    if draft.state.cannot_read("PolicyRollout"):
        return
    draft.assign(candidate=None, weight_basis_points=0)
    message = f"rollout {spec.rollout} is gone: everyone is served stable"
    draft.decided.append(Decided(Action.ABORT, Reason.ROLLOUT_GONE))
    known = draft.journal.under_way
    if known is None or not outcomes.is_decision_on_attempt(spec, known.rollout, known.uid):
        known = None
    draft.close(known, spec.rollout, Reason.ROLLOUT_GONE, message)
    draft.tell(model.kind, model.metadata, Reason.ROLLOUT_GONE, message, "Warning")


# --- who may start -----------------------------------------------------------------------------


def admit(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> bool:
    """Whether a pending rollout passes its gates; a refusal is in its conditions."""
    if rollout.spec.abort:
        refuse(draft, rollout, Refusal(Reason.ABORTED, "spec.abort is set"))
        return False
    spec = rollout.spec
    if spec.type == phases.ROLLBACK:
        policy = policy_of_digest(draft.state, spec.policy_digest, spec.policy)
    else:
        policy = next((one for one in draft.state.policies if one.name == spec.policy), None)
    request = Request(
        rollout=rollout,
        model=model,
        status=draft.model,
        remembered=draft.remembered,
        policy=policy,
        document_known=known_document(draft.state, spec.policy_digest) is not None,
        now=draft.now,
    )
    chain = gates.ROLLBACK if spec.type == phases.ROLLBACK else gates.CANARY
    refusal = gates.first_refusal(request, chain)
    if refusal is not None:
        refuse(draft, rollout, refusal)
        return False
    if is_true(draft.status(rollout).conditions, names.STALLED):
        draft.condition(rollout, names.STALLED, False, Reason.ACCEPTED)
    return True


def refuse(draft: Draft, rollout: PolicyRollout, refusal: Refusal) -> None:
    """Say why it may not start; a final refusal ends it."""
    known = draft.status(rollout).condition(names.STALLED)
    told = known is not None and known.status == "True" and known.reason == refusal.reason
    draft.update(rollout, phase=phases.STALLED)
    if refusal.final:
        draft.update(rollout, finished_at=to_text(draft.now), weight_basis_points=0)
        draft.decide(rollout, Action.REFUSE, refusal.reason, refusal.message)
    elif not told:
        draft.tell(rollout.kind, rollout.metadata, refusal.reason, refusal.message, "Warning")
    draft.condition(rollout, names.STALLED, True, refusal.reason, refusal.message)
    draft.condition(rollout, names.READY, False, refusal.reason, refusal.message)
    draft.condition(rollout, names.RECONCILING, False, refusal.reason)
    draft.condition(rollout, names.QUEUED, False, refusal.reason)


def preempt(draft: Draft, rollback: PolicyRollout) -> None:
    """End what is under way in favour of a Rollback."""
    for rollout in _with(draft, phases.is_active):
        outcomes.roll_back(draft, rollout, outcomes.preempted_by(rollback))


def queue(draft: Draft, admitted: list[PolicyRollout], model: AdaptiveModel) -> None:
    """Freeze the rules of the oldest when nothing is under way; the others wait."""
    busy = [
        one.name
        for one in draft.state.rollouts
        if phases.is_active(draft.status(one)) or phases.is_rolling_back(draft.status(one))
    ]
    held = draft.assignment is not None and draft.assignment.hold
    full = draft.fullness()
    for rollout in admitted:
        if full:
            wait(draft, rollout, Reason.JOURNAL_FULL, full)
        elif held:
            message = "a person set hold on the assignment; a Rollback newer than it lifts it"
            wait(draft, rollout, Reason.HELD, message)
        elif busy:
            wait(draft, rollout, Reason.ANOTHER_ROLLOUT_ACTIVE, f"after rollout {busy[0]}")
        else:
            certified = outcomes.promise(draft, rollout, model).valid
            outcomes.freeze(draft, rollout, model, certified)
            busy.append(rollout.name)


def wait(draft: Draft, rollout: PolicyRollout, reason: str, message: str) -> None:
    """Say that it waits, and for what."""
    draft.update(rollout, phase=phases.QUEUED)
    draft.condition(rollout, names.QUEUED, True, reason, message)
    draft.condition(rollout, names.READY, False, reason, message)
    draft.condition(rollout, names.RECONCILING, True, reason, message)
