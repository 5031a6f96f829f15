"""Which approvals count: a person's, on this rollout and these bytes, given when it was asked for.

The API server's admission policies say all of this already; it is said again because they can be
deleted. While the self-test does not find them at work, no approval counts at all. Pure.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from trimwheel_api import names
from trimwheel_api.kinds import PolicyApproval, PolicyRollout
from trimwheel_api.names import Action, Reason
from trimwheel_api.times import parse
from trimwheel_operator.plan import phases
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.gates import is_person
from trimwheel_operator.plan.witness import SETTLING


def approval(
    draft: Draft, rollout: PolicyRollout, after: datetime | None = None
) -> PolicyApproval | None:
    """The oldest Approve that counts for what the rollout waits for now."""
    asked = _asked_since(draft, rollout)
    if asked is None:
        return None
    used = _used_until(draft, rollout)
    for one in _counted(draft, rollout, "Approve"):
        given = parse(one.metadata.creation_timestamp)
        if given is None or given < asked or (used and given <= used):
            continue
        if after and given < after.replace(microsecond=0):
            continue
        if one.spec.approver not in (rollout.spec.requested_by, rollout.spec.on_behalf_of):
            return one
    return None


def approval_required(draft: Draft, rollout: PolicyRollout) -> bool:
    """Whether the model asks for a person, now or when the rules were frozen.

    What was taken back before always takes one.
    """
    model, frozen = draft.state.model, phases.rules(draft.status(rollout)).rollout
    asked = [frozen.approval, *([model.spec.rollout.approval] if model else [])]
    return "Required" in asked or draft.remembered.was_taken_back(rollout.spec.policy_digest)


def rejection(draft: Draft, rollout: PolicyRollout) -> PolicyApproval | None:
    """The oldest Reject of the rollout; it may come at any time."""
    return next(iter(_counted(draft, rollout, "Reject")), None)


def _counted(
    draft: Draft, rollout: PolicyRollout, decision: Literal["Approve", "Reject"]
) -> list[PolicyApproval]:
    admission = draft.state.admission
    if not admission.armed:
        return []
    since = admission.armed_since + SETTLING if admission.armed_since else None
    found = []
    for one in draft.state.approvals:
        spec, given = one.spec, parse(one.metadata.creation_timestamp)
        same = (spec.rollout, spec.rollout_uid) == (rollout.name, rollout.metadata.uid)
        exact = same and spec.policy_digest == rollout.spec.policy_digest
        guarded = since is None or (given is not None and given >= since)
        if exact and spec.decision == decision and is_person(spec.approver) and guarded:
            found.append(one)
    return sorted(found, key=lambda one: (one.metadata.creation_timestamp, one.name))


def _asked_since(draft: Draft, rollout: PolicyRollout) -> datetime | None:
    """When AwaitingApproval became True, as the API server's admission saw it."""
    observed = rollout.status.condition(names.AWAITING_APPROVAL)
    if observed is None or observed.status != "True":
        return None
    return parse(observed.last_transition_time)


def _used_until(draft: Draft, rollout: PolicyRollout) -> datetime | None:
    """When an approval last lifted a hold: that one does not also promote."""
    lifted = [
        parse(one.time)
        for one in draft.status(rollout).decisions
        if one.action == Action.RESUME and one.reason == Reason.APPROVED
    ]
    return max((time for time in lifted if time), default=None)
