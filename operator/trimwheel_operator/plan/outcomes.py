"""The few ways in which a rollout changes state, each written once.

Used both when a decision is made and when, after a crash, it is read back from the assignment.
Each function drafts the assignment, the rollout's status and what the model remembers.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from trimwheel_api import names
from trimwheel_api.kinds import AdaptiveModel, PolicyRollout, dump
from trimwheel_api.kinds.adaptive_model import FormerStable, StablePolicy, Step
from trimwheel_api.kinds.policy_assignment import AssignedPolicy, PolicyAssignmentSpec
from trimwheel_api.kinds.policy_journal import RejectedDigest
from trimwheel_api.kinds.policy_rollout import EffectiveRollout, EffectiveRules
from trimwheel_api.names import Action, Reason
from trimwheel_api.policy import DENSE
from trimwheel_api.times import parse, to_micro, to_text
from trimwheel_api.values import basis_points, percent
from trimwheel_operator.plan import actuation, journal, phases
from trimwheel_operator.plan.certificates import (
    DENSE_STANDING,
    Standing,
    standing,
)
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.stable import policy_of_digest

MAX_REMEMBERED = 64
_REJECTS_DIGEST = frozenset({Reason.GUARD_FAILED, Reason.REJECTED})
_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a rollout under way ends."""

    reason: str
    message: str
    actor: str = ""


def preempted_by(rollback: PolicyRollout) -> Stop:
    """A person went back: the canary's own record says who, and why."""
    spec = rollback.spec
    message = f"rollout {rollback.name} goes back for {spec.requested_by}"
    message += f": {spec.reason}" if spec.reason else ""
    return Stop(Reason.PREEMPTED, message, spec.requested_by)


def freeze(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel, certified: bool) -> None:
    """Accept a rollout: its rules are the model's as of now, and are not loosened in flight."""
    spec, assignment = model.spec, draft.assignment
    if assignment is None:
        raise RuntimeError("freeze: the model has no assignment yet")
    steps = bounded_steps(rollout, spec.rollout.steps)
    effective = EffectiveRules(
        rollout=EffectiveRollout.model_validate({**dump(spec.rollout), "steps": steps}),
        max_disagreement=spec.objectives.max_disagreement,
        error_budget=spec.objectives.error_budget,
        latency_slo=spec.objectives.latency.slo,
        latency_budget=spec.objectives.latency.budget,
        capacity_target=spec.objectives.capacity_target,
        stable_digest=assignment.stable.digest,
        stable_policy=draft.model.stable.policy if draft.model.stable else "",
        salt=salt_of(rollout),
        certified=certified,
        model_digest=spec.model.digest,
        started_at=to_micro(draft.now),
    )
    draft.update(rollout, effective=effective, phase=phases.PROGRESSING)
    draft.condition(rollout, names.QUEUED, False, Reason.ACCEPTED)
    draft.condition(rollout, names.STALLED, False, Reason.ACCEPTED)
    draft.condition(rollout, names.READY, False, Reason.STARTED, "not promoted yet")
    draft.condition(rollout, names.RECONCILING, True, Reason.STARTED, "the rules are frozen")


def bounded_steps(rollout: PolicyRollout, of_model: list[Step]) -> list[Step]:
    """The steps that are taken: half of the cohorts at most, and from the shadow unless waived.

    Admission and schema say so of what is written; this holds for what they have not seen.
    """
    bound = percent(phases.MOST_EXPOSED)
    steps = [
        step.model_copy(update={"weight": bound})
        if basis_points(step.weight) > phases.MOST_EXPOSED
        else step
        for step in rollout.spec.steps or of_model
    ]
    if phases.exposed(steps[0]) and not rollout.spec.allow_uncertified:
        steps.insert(0, Step(weight="0%"))  # held as long as the schema's default
    return steps


def promise(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Standing:
    """Where the certificate of the rollout's policy stands, waiver or not."""
    spec = rollout.spec
    if spec.policy_digest == DENSE.digest:
        return DENSE_STANDING
    policy = policy_of_digest(draft.state, spec.policy_digest, spec.policy)
    if policy is None:
        return Standing("None", Reason.UNCERTIFIED, "it is gone, and its certificate with it")
    return standing(policy, model, draft.remembered, draft.now)


def salt_of(rollout: PolicyRollout) -> str:
    """Keys the cohorts of one attempt; derived, so that a restart draws the same."""
    return _salt(rollout.metadata.uid)


def _salt(uid: str) -> str:
    return blake2b(uid.encode(), digest_size=_SALT_BYTES).hexdigest()


def is_decision_on(spec: PolicyAssignmentSpec, rollout: PolicyRollout) -> bool:
    """Whether the assignment's last decision is about this very attempt.

    The salt holds its uid: a name may be used again, and says nothing by itself.
    """
    return is_decision_on_attempt(spec, rollout.name, rollout.metadata.uid)


def is_decision_on_attempt(spec: PolicyAssignmentSpec, name: str, uid: str) -> bool:
    """The same about an attempt whose object may be gone."""
    return (spec.rollout, spec.salt) == (name, _salt(uid))


def _assign(draft: Draft, rollout: PolicyRollout, **changes: Any) -> None:
    """Change the assignment by a decision on this rollout, to be read back after a crash."""
    draft.assign(rollout=rollout.name, salt=salt_of(rollout), **changes)


def expose(draft: Draft, rollout: PolicyRollout, candidate: AssignedPolicy) -> None:
    """Make the candidate resident in every worker, at the first step's weight."""
    effective = phases.rules(draft.status(rollout))
    weight = phases.exposed(effective.rollout.steps[0])
    _assign(
        draft,
        rollout,
        candidate=candidate,
        weight_basis_points=weight,
        lease_seconds=effective.rollout.lease_seconds,
    )
    record_start(draft, rollout, weight, to_micro(draft.now))


def record_start(draft: Draft, rollout: PolicyRollout, weight: int, at: str) -> None:
    """Say that the candidate is resident."""
    draft.begin(rollout)
    draft.update(rollout, step=0, step_started_at=at, weight_basis_points=weight)
    shadow = weight == 0
    reason = Reason.SHADOW if shadow else Reason.STARTED
    message = "shadow: audits judge it, nobody is served it" if shadow else f"{percent(weight)}"
    draft.decide(rollout, Action.START, reason, message)
    draft.condition(rollout, names.RECONCILING, True, reason, f"step 0 at {percent(weight)}")


def enter_step(draft: Draft, rollout: PolicyRollout, step: int, at: str) -> None:
    """Say that the rollout is on another step."""
    steps = phases.rules(draft.status(rollout)).rollout.steps
    weight = phases.exposed(steps[step])
    draft.update(rollout, step=step, step_started_at=at, weight_basis_points=weight)
    message = f"step {step} of {len(steps) - 1} at {percent(weight)}"
    draft.decide(rollout, Action.ADVANCE, Reason.STEP_ADVANCED, message)
    draft.condition(rollout, names.RECONCILING, True, Reason.STEP_ADVANCED, message)


def promote(draft: Draft, rollout: PolicyRollout, reason: str, actor: str) -> None:
    """Everyone is served the candidate: in the assignment, and for the record."""
    _assign(draft, rollout, candidate=None, weight_basis_points=0)
    record_promotion(draft, rollout, reason, actor)


def record_promotion(draft: Draft, rollout: PolicyRollout, reason: str, actor: str) -> None:
    """Say that a rollout was promoted."""
    spec = rollout.spec
    certified = phases.rules(draft.status(rollout)).certified
    intend(draft, spec.policy_digest, spec.policy, waived=not certified)
    draft.update(
        rollout,
        phase=phases.PROMOTED,
        weight_basis_points=0,
        finished_at=to_text(draft.now),
    )
    message = f"policy {spec.policy} is stable" + (f"; approved by {actor}" if actor else "")
    draft.decide(rollout, Action.PROMOTE, reason, message, actor)
    draft.end(rollout)
    if rollout.spec.allow_uncertified and actor:
        draft.journal = journal.lift(draft.journal, spec.policy_digest)
    draft.condition(rollout, names.READY, True, Reason.PROMOTED, message)
    draft.condition(rollout, names.RECONCILING, False, Reason.PROMOTED)
    draft.condition(rollout, names.STALLED, False, Reason.PROMOTED)
    draft.condition(rollout, names.PAUSED, False, Reason.PROMOTED)
    draft.condition(rollout, names.AWAITING_APPROVAL, False, reason)


def roll_back(draft: Draft, rollout: PolicyRollout, stop: Stop) -> None:
    """Nobody is served the candidate: first the assignment, then the record."""
    _assign(draft, rollout, candidate=None, weight_basis_points=0)
    record_rollback(draft, rollout, stop)


def record_rollback(draft: Draft, rollout: PolicyRollout, stop: Stop) -> None:
    """Say that a rollout was rolled back, and wait for the workers to say so too."""
    _begin_actuation(draft, rollout)
    action = Action.ABORT if stop.reason in (Reason.ABORTED, Reason.PREEMPTED) else Action.ROLL_BACK
    draft.decide(rollout, action, stop.reason, stop.message, stop.actor)
    draft.end(rollout)
    draft.condition(rollout, names.READY, False, stop.reason, stop.message)
    draft.condition(rollout, names.STALLED, True, stop.reason, stop.message)
    draft.condition(rollout, names.RECONCILING, True, stop.reason, "waiting for the workers")
    draft.condition(rollout, names.ROLLED_BACK, False, stop.reason, "waiting for the workers")
    draft.condition(rollout, names.AWAITING_APPROVAL, False, stop.reason)
    draft.condition(rollout, names.PAUSED, False, stop.reason)
    if stop.reason in _REJECTS_DIGEST:
        reject_digest(draft, rollout, rollout.spec.policy_digest, stop.reason, stop.actor)


def go_back(draft: Draft, rollout: PolicyRollout) -> None:
    """Carry out a rollout of type Rollback: at once, and it lifts a hold that is older."""
    held, asked = draft.state.held_since, parse(rollout.metadata.creation_timestamp)
    assignment = draft.assignment
    newer_hold = held is not None and asked is not None and asked < held.replace(microsecond=0)
    hold = assignment is not None and assignment.hold and newer_hold
    _assign(draft, rollout, candidate=None, weight_basis_points=0, hold=hold)
    record_return(draft, rollout)


def record_return(draft: Draft, rollout: PolicyRollout) -> None:
    """Say that the model was sent back to a former policy."""
    spec, model = rollout.spec, draft.state.model
    if model is None:
        raise RuntimeError("record_return: the model is gone")
    left = draft.model.intended
    certified = promise(draft, rollout, model).valid
    policy = policy_of_digest(draft.state, spec.policy_digest, spec.policy)
    freeze(draft, rollout, model, certified)
    if not _is_meant_and_served(draft, spec.policy_digest):
        name = policy.name if policy else ""
        intend(draft, spec.policy_digest, name, waived=not certified)
    if left and left.digest not in (DENSE.digest, spec.policy_digest):
        cause, who = Reason.ROLLED_BACK_TO_STABLE, spec.requested_by
        reject_digest(draft, rollout, left.digest, cause, who)
    _begin_actuation(draft, rollout)
    message = f"back to {spec.policy or spec.policy_digest} for {spec.requested_by}: {spec.reason}"
    draft.decide(
        rollout, Action.ROLL_BACK, Reason.ROLLED_BACK_TO_STABLE, message, spec.requested_by
    )
    draft.condition(
        rollout, names.ROLLED_BACK, False, Reason.ROLLED_BACK_TO_STABLE, "waiting for the workers"
    )


def _is_meant_and_served(draft: Draft, digest: str) -> bool:
    """Whether a Rollback to it only ended a canary: then nothing else about it changes.

    Its time matters: harm that was shown after its promotion must not become older than it.
    """
    known = (draft.model.intended, draft.model.stable)
    return all(one is not None and one.digest == digest for one in known)


def complete(draft: Draft, rollout: PolicyRollout) -> None:
    """See how far a rollback has reached; RolledBack is said only when it has reached all."""
    status = draft.status(rollout)
    if status.actuation is None:
        raise RuntimeError("complete: the rollout has no actuation")
    record, done = actuation.progress(draft.state, status.actuation, draft.now)
    draft.update(rollout, actuation=record)
    if not done:
        return
    message = actuation.summary(record)
    draft.update(rollout, phase=phases.ROLLED_BACK, finished_at=to_text(draft.now))
    draft.condition(rollout, names.ROLLED_BACK, True, Reason.ACKNOWLEDGED, message)
    draft.condition(rollout, names.RECONCILING, False, Reason.ACKNOWLEDGED)
    if rollout.spec.type == phases.ROLLBACK:
        draft.condition(rollout, names.READY, True, Reason.ROLLED_BACK_TO_STABLE, message)
    draft.tell(
        rollout.kind, rollout.metadata, Reason.ACKNOWLEDGED, message, key=f"epoch-{record.epoch}"
    )
    draft.actuations.append((record.milliseconds or 0) / 1000)


def intend(draft: Draft, digest: str, policy: str, waived: bool) -> None:
    """Make a policy the one that is meant to be served; the former one may be gone back to."""
    before, assignment = draft.model.intended, draft.assignment
    moment = (assignment.decided_at if assignment else "") or to_micro(draft.now)
    history = draft.model.history
    if before is not None and before.digest != digest:
        revoked = draft.remembered.revocation(before.digest)
        former = FormerStable(
            digest=before.digest,
            policy=before.policy,
            since=before.since,
            until=moment,
            revoked_at=to_micro(revoked) if revoked else "",
        )
        history = [one for one in history if one.digest != before.digest]
        history = [*history, former][-MAX_REMEMBERED:]
    draft.update_model(
        intended=StablePolicy(
            digest=digest,
            policy=policy,
            since=moment,
            waived=waived,
            model_digest=draft.state.model.spec.model.digest if draft.state.model else "",
        ),
        history=history,
    )


def reject_digest(
    draft: Draft, rollout: PolicyRollout, digest: str, reason: str, actor: str
) -> None:
    """Remember a digest that was rolled back or rejected; the model's status mirrors it."""
    entry = RejectedDigest(
        digest=digest, time=to_micro(draft.now), reason=reason, by=actor, rollout=rollout.name
    )
    draft.journal = journal.reject(draft.journal, entry)


def _begin_actuation(draft: Draft, rollout: PolicyRollout) -> None:
    assignment = draft.assignment
    if assignment is None:
        raise RuntimeError("actuation: there is no assignment")
    record = actuation.begin(
        draft.state,
        epoch=assignment.epoch,
        decided_at=assignment.decided_at or to_micro(draft.now),
        lease_seconds=assignment.lease_seconds,
    )
    draft.update(rollout, phase=phases.ROLLING_BACK, weight_basis_points=0, actuation=record)
