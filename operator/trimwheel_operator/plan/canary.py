"""One canary under way: what holds it, what moves it on, who approves it; `stops` ends it.

`drive` is the table of contents; the order of its steps is the order of their importance. Ending
comes first and is armed from the first request until promotion, AwaitingApproval included.
"""

from __future__ import annotations

from trimwheel_api import names
from trimwheel_api.conditions import is_true
from trimwheel_api.kinds import AdaptiveModel, PolicyRollout
from trimwheel_api.kinds.policy_rollout import GuardStatus
from trimwheel_api.names import Action, Reason
from trimwheel_api.times import parse, parse_or, to_micro
from trimwheel_api.values import percent, span
from trimwheel_operator.plan import outcomes, phases
from trimwheel_operator.plan.approvals import approval, approval_required
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.isolation import attempt
from trimwheel_operator.plan.outcomes import Stop
from trimwheel_operator.plan.stable import assigned_policy, known_document, policy_of_digest
from trimwheel_operator.plan.stops import first_stop


def drive(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> None:
    """Move an active canary by at most one decision."""
    attempt(draft, judge, rollout, otherwise=None, about=rollout.name)
    if stop := first_stop(draft, rollout, model):
        end(draft, rollout, stop)
        return
    attempt(draft, cap, rollout, otherwise=None, about=rollout.name)
    # While a rule that might have ended it could not be asked, nothing moves it on.
    if not draft.failed(rollout):
        attempt(draft, move, rollout, otherwise=None, about=rollout.name)


def end(draft: Draft, rollout: PolicyRollout, stop: Stop) -> None:
    """Serve nobody the candidate, even if what is written about it cannot be."""
    recorded = attempt(draft, _roll_back, rollout, stop, otherwise=False, about=rollout.name)
    if not recorded:
        draft.assign(candidate=None, weight_basis_points=0)


def _roll_back(draft: Draft, rollout: PolicyRollout, stop: Stop) -> bool:
    outcomes.roll_back(draft, rollout, stop)
    return True


def cap(draft: Draft, rollout: PolicyRollout) -> None:
    """Expose half of the cohorts at most, whatever was assigned before this was a rule."""
    spec = draft.assignment
    if spec is not None and spec.weight_basis_points > phases.MOST_EXPOSED:
        draft.assign(weight_basis_points=phases.MOST_EXPOSED)
        draft.update(rollout, weight_basis_points=phases.MOST_EXPOSED)


def move(draft: Draft, rollout: PolicyRollout) -> None:
    """What may hold it, then what moves it on."""
    watch_admission(draft, rollout)
    if hold(draft, rollout) or pause(draft, rollout):
        return
    if full := draft.fullness():
        draft.condition(rollout, names.RECONCILING, True, Reason.JOURNAL_FULL, full)
        return
    if not phases.was_started(draft.status(rollout)):
        start(draft, rollout)
    elif draft.status(rollout).phase == phases.AWAITING_APPROVAL:
        await_approval(draft, rollout)
    else:
        take_step(draft, rollout)


# --- evidence ----------------------------------------------------------------------------------


def judge(draft: Draft, rollout: PolicyRollout) -> None:
    """Mirror the guards' verdicts; without evidence of this very attempt there are none."""
    evidence = draft.state.evidence
    if evidence is None or evidence.rollout_uid != rollout.metadata.uid:
        unknown = [
            guard.model_copy(update={"verdict": names.VERDICT_NOT_ENOUGH, "message": "no evidence"})
            for guard in draft.status(rollout).guards
        ]
        draft.update(rollout, guards=unknown, verdict=names.VERDICT_NOT_ENOUGH)
        return
    guards = list(evidence.guards)
    draft.update(rollout, guards=guards, verdict=overall(guards))


def overall(guards: list[GuardStatus]) -> str:
    """Fail if any guard fails, Pass if all pass; no guards are not enough evidence."""
    verdicts = {guard.verdict for guard in guards}
    if names.VERDICT_FAIL in verdicts:
        return names.VERDICT_FAIL
    return names.VERDICT_PASS if verdicts == {names.VERDICT_PASS} else names.VERDICT_NOT_ENOUGH


# --- what holds it -----------------------------------------------------------------------------


def watch_admission(draft: Draft, rollout: PolicyRollout) -> None:
    """Say so while approvals could be forged: nothing is promoted then."""
    admission, status = draft.state.admission, draft.status(rollout)
    missing = admission.armed is False
    known = status.condition(names.STALLED)
    stalled = known is not None and known.status == "True"
    if missing:
        draft.condition(rollout, names.STALLED, True, Reason.ADMISSION_MISSING, admission.message)
        if not stalled:
            draft.tell(
                rollout.kind,
                rollout.metadata,
                Reason.ADMISSION_MISSING,
                admission.message,
                "Warning",
            )
    elif stalled and admission.armed:
        draft.condition(rollout, names.STALLED, False, Reason.ACCEPTED)


def hold(draft: Draft, rollout: PolicyRollout) -> bool:
    """Honour a person's break-glass: weight stays 0 until a person's approval newer than it."""
    assignment = draft.assignment
    if assignment is None or not assignment.hold:
        return False
    status = draft.status(rollout)
    since = draft.state.held_since
    if (
        since is None
        and (paused := status.condition(names.PAUSED))
        and paused.reason == Reason.HELD
    ):
        since = parse(paused.last_transition_time)
    found = approval(draft, rollout, after=since) if since else None
    if found is not None:
        lift_hold(draft, rollout, found.spec.approver)
        return True
    draft.update(rollout, weight_basis_points=assignment.weight_basis_points)
    message = "a person set hold on the assignment; a newer approval or Rollback lifts it"
    known = status.condition(names.PAUSED)
    if known is None or known.status != "True" or known.reason != Reason.HELD:
        draft.condition(rollout, names.AWAITING_APPROVAL, False, Reason.HELD)
        draft.decide(rollout, Action.HOLD, Reason.HELD, message)
    draft.condition(rollout, names.PAUSED, True, Reason.HELD, message)
    draft.condition(rollout, names.AWAITING_APPROVAL, True, Reason.HELD, message)
    draft.condition(rollout, names.READY, False, Reason.HELD, message)
    return True


def lift_hold(draft: Draft, rollout: PolicyRollout, approver: str) -> None:
    """Go on where the hold found it; promotion takes another approval."""
    started = phases.was_started(draft.status(rollout))
    weight = phases.step_weight(draft.status(rollout)) if started else 0
    draft.assign(hold=False, weight_basis_points=weight)
    draft.update(
        rollout,
        phase=phases.PROGRESSING,
        weight_basis_points=weight,
        step_started_at=to_micro(draft.now) if started else "",
    )
    message = f"{approver} lifted the hold; {percent(weight)}"
    draft.decide(rollout, Action.RESUME, Reason.APPROVED, message, approver)
    draft.condition(rollout, names.PAUSED, False, Reason.APPROVED, message)
    draft.condition(rollout, names.AWAITING_APPROVAL, False, Reason.APPROVED, message)
    draft.condition(rollout, names.READY, False, Reason.RESUMED, message)


def pause(draft: Draft, rollout: PolicyRollout) -> bool:
    """Honour spec.paused: no advance and no promotion, while rollback stays armed."""
    known = draft.status(rollout).condition(names.PAUSED)
    by_user = known is not None and known.status == "True" and known.reason == Reason.PAUSED_BY_USER
    if rollout.spec.paused:
        if not by_user:
            draft.decide(rollout, Action.PAUSE, Reason.PAUSED_BY_USER, "spec.paused is set")
        draft.condition(rollout, names.PAUSED, True, Reason.PAUSED_BY_USER, "spec.paused is set")
        return True
    if by_user:
        draft.decide(rollout, Action.RESUME, Reason.RESUMED, "spec.paused was taken back")
        draft.condition(rollout, names.PAUSED, False, Reason.RESUMED)
    return False


# --- what moves it on --------------------------------------------------------------------------


def start(draft: Draft, rollout: PolicyRollout) -> None:
    """The rules are frozen and stored: make the candidate resident."""
    spec = rollout.spec
    policy = policy_of_digest(draft.state, spec.policy_digest, spec.policy)
    found = assigned_policy(policy) if policy else known_document(draft.state, spec.policy_digest)
    if found is None:
        message = f"policy {spec.policy} is gone"
        outcomes.roll_back(draft, rollout, Stop(Reason.POLICY_NOT_FOUND, message))
        return
    outcomes.expose(draft, rollout, found)


def take_step(draft: Draft, rollout: PolicyRollout) -> None:
    """Advance when the step has shown enough; pause when its time ran out without that."""
    status = draft.status(rollout)
    step = phases.current_step(status)
    spent = draft.now - parse_or(status.step_started_at, draft.now)
    last = phases.is_last_step(status)
    enough = has_enough(draft, rollout) and (not last or status.verdict == names.VERDICT_PASS)
    if enough and spent >= span(step.hold):
        draft.condition(rollout, names.PAUSED, False, Reason.STEP_ADVANCED)
        if not last:
            advance(draft, rollout)
        elif approval_required(draft, rollout):
            ask(draft, rollout)
        elif draft.state.admission.armed:
            outcomes.promote(draft, rollout, Reason.PROMOTED, actor="")
    elif spent >= span(step.max_duration):
        time_out(draft, rollout, step.max_duration)


def has_enough(draft: Draft, rollout: PolicyRollout) -> bool:
    """Whether the step saw its requests, and audits speak at all: no data is never a Pass."""
    evidence, status = draft.state.evidence, draft.status(rollout)
    if evidence is None or evidence.rollout_uid != rollout.metadata.uid:
        return False
    if evidence.step_started_at != status.step_started_at:
        return False
    step = phases.current_step(status)
    if not any(guard.samples for guard in evidence.guards):
        return False
    return step.min_requests == 0 or (evidence.step_requests or 0) >= step.min_requests


def advance(draft: Draft, rollout: PolicyRollout) -> None:
    """Go to the next step."""
    step = draft.status(rollout).step + 1
    outcomes.enter_step(draft, rollout, step, to_micro(draft.now))
    draft.assign(weight_basis_points=draft.status(rollout).weight_basis_points)


def time_out(draft: Draft, rollout: PolicyRollout, limit: str) -> None:
    """Stop and say so; evidence that comes later still moves it on."""
    message = f"no sufficient evidence within {limit} on step {draft.status(rollout).step}"
    if not is_true(draft.status(rollout).conditions, names.PAUSED):
        draft.decide(rollout, Action.PAUSE, Reason.STEP_TIMED_OUT, message)
    draft.condition(rollout, names.PAUSED, True, Reason.STEP_TIMED_OUT, message)


def ask(draft: Draft, rollout: PolicyRollout) -> None:
    """Every guard passes: a person decides, and rollback stays armed meanwhile."""
    draft.update(rollout, phase=phases.AWAITING_APPROVAL)
    message = (
        f"every guard passes; approve {rollout.spec.policy_digest} with a PolicyApproval of "
        f"rollout {rollout.name}"
    )
    draft.decide(rollout, Action.AWAIT, Reason.APPROVAL_REQUIRED, message)
    draft.condition(rollout, names.AWAITING_APPROVAL, True, Reason.APPROVAL_REQUIRED, message)
    draft.condition(rollout, names.READY, False, Reason.APPROVAL_REQUIRED, message)


def await_approval(draft: Draft, rollout: PolicyRollout) -> None:
    """Promote on a person's approval, and only while every guard passes."""
    found = approval(draft, rollout)
    if found is None or draft.status(rollout).verdict != names.VERDICT_PASS:
        return
    outcomes.promote(draft, rollout, Reason.APPROVED, found.spec.approver)
