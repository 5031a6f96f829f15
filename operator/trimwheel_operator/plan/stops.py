"""What ends a canary under way: a chain of checks, the first reason to stop wins.

Asked before anything else in each look, from the first request until promotion, AwaitingApproval
and pauses included. Each rule answers with a `Stop` or None. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from trimwheel_api import names
from trimwheel_api.kinds import AdaptiveModel, PolicyRollout
from trimwheel_api.names import Reason
from trimwheel_api.times import parse
from trimwheel_operator.plan import outcomes, phases
from trimwheel_operator.plan.approvals import approval, approval_required, rejection
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.isolation import attempt
from trimwheel_operator.plan.observed import Acknowledgement
from trimwheel_operator.plan.outcomes import Stop
from trimwheel_operator.plan.remembered import gap

StopRule = Callable[[Draft, PolicyRollout, AdaptiveModel], Stop | None]


def aborted(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """Somebody set spec.abort, or deleted it and a finalizer keeps it."""
    if rollout.metadata.deletion_timestamp:
        return Stop(Reason.ABORTED, "it was deleted")
    return Stop(Reason.ABORTED, "spec.abort is set") if rollout.spec.abort else None


def decided_before(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """An earlier look ended it, and the operator stopped before that took effect."""
    for one in draft.unfulfilled(rollout):
        if one.action in (names.Action.ROLL_BACK, names.Action.ABORT):
            return Stop(one.reason, one.message, one.actor)
    return None


def rejected(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """A person rejected it."""
    found = rejection(draft, rollout)
    if found is None:
        return None
    who, why = found.spec.approver, found.spec.reason
    return Stop(Reason.REJECTED, f"{who} rejected it: {why}" if why else f"{who} rejected it", who)


def guard_failed(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """A guard has shown harm, at its level, however often it was looked at."""
    failed = [one for one in draft.status(rollout).guards if one.verdict == names.VERDICT_FAIL]
    if not failed:
        return None
    sentences = [
        f"{one.name} {one.value} against a bound of {one.bound} after {one.samples} samples"
        for one in failed
    ]
    return Stop(Reason.GUARD_FAILED, "; ".join(sentences))


def model_changed(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """The evidence speaks of other weights than those now declared."""
    frozen, now = phases.rules(draft.status(rollout)).model_digest, model.spec.model.digest
    if frozen == now:
        return None
    return Stop(Reason.MODEL_DIGEST_CHANGED, f"spec.model.digest went from {frozen} to {now}")


def certificate_lapsed(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """An expired or revoked certificate never passes a gate."""
    found = outcomes.promise(draft, rollout, model)
    believed = draft.remembered.believes_request(rollout)
    if found.valid or (rollout.spec.allow_uncertified and believed):
        return None
    if rollout.spec.allow_uncertified:
        return Stop(Reason.ADMISSION_GAP, gap("rollout", rollout.name))
    return Stop(found.reason, f"policy {rollout.spec.policy}: {found.message}")


def refused_by_worker(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """A worker cannot load the candidate, so no evidence will ever come of it."""
    for ack in _current(draft):
        if ack.refused:
            return Stop(Reason.POLICY_INVALID, f"worker {ack.pod} refuses it: {ack.refused}")
    return None


def tripped(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """A worker left the candidate by itself: its batches failed and stable's did not."""
    for ack in _current(draft):
        if ack.tripped and ack.tripped != names.TRIPPED_BY_LEASE:
            return Stop(Reason.GUARD_FAILED, f"worker {ack.pod} left it by itself: {ack.tripped}")
    return None


def approval_expired(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """Nobody approved in time: what waits exposes half of the sessions, so it does not for ever.

    The deadline is the stricter of the frozen one and the model's now. An approval that promotes in
    this very pass is in time, however late the pass.
    """
    due = phases.approval_due(draft.status(rollout), model)
    if due is None or draft.now < due:
        return None
    given = approval(draft, rollout)
    passes = draft.status(rollout).verdict == names.VERDICT_PASS
    if given and passes and (parse(given.metadata.creation_timestamp) or draft.now) < due:
        return None
    limit = phases.approval_limit(draft.status(rollout), model)
    message = f"nobody approved it within rollout.approvalDeadline ({limit}); its weight is 0 again"
    return Stop(Reason.APPROVAL_EXPIRED, message)


def exposed_too_long(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """A step exposes people, and the question whether a person approves has not come up in time.

    Else whoever pauses a rollout at half of the sessions, or plans a hold of a year, would need no
    approval. A wait for approval itself has a deadline of its own.
    """
    status = draft.status(rollout)
    due = phases.exposure_due(status, model)
    if due is None or draft.now < due or not approval_required(draft, rollout):
        return None
    limit = phases.approval_limit(status, model)
    message = (
        f"step {status.step} served it beyond its hold and rollout.approvalDeadline ({limit}), and "
        "nobody has approved it; its weight is 0 again"
    )
    return Stop(Reason.APPROVAL_EXPIRED, message)


def _current(draft: Draft) -> list[Acknowledgement]:
    """What live workers say of the assignment as it is, candidate included."""
    observed = draft.state.assignment
    if observed is None or observed.spec.candidate is None:
        return []
    live = {pod.name for pod in draft.state.pods}
    return [
        ack
        for ack in draft.state.acknowledgements
        if ack.epoch >= observed.spec.epoch and ack.pod in live
    ]


STOPS: tuple[StopRule, ...] = (
    decided_before,
    aborted,
    rejected,
    guard_failed,
    tripped,
    refused_by_worker,
    model_changed,
    certificate_lapsed,
    approval_expired,
    exposed_too_long,
)


def first_stop(draft: Draft, rollout: PolicyRollout, model: AdaptiveModel) -> Stop | None:
    """The first rule's reason to end it, or None; a rule that raises does not stop the next."""
    for rule in STOPS:
        if stop := attempt(draft, rule, rollout, model, otherwise=None, about=rollout.name):
            return stop
    return None
