"""What an AdaptivePolicy's status says: its digest, whether it is certified, where it serves."""

from __future__ import annotations

from datetime import datetime

from trimwheel_api import names
from trimwheel_api.conditions import Row, with_conditions
from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, Condition
from trimwheel_api.kinds.adaptive_policy import ActiveIn, AdaptivePolicyStatus
from trimwheel_api.names import Reason
from trimwheel_api.policy import parse_policy
from trimwheel_operator.plan.actions import Action
from trimwheel_operator.plan.certificates import Standing, standing
from trimwheel_operator.plan.draft import Draft, status_patch
from trimwheel_operator.plan.isolation import attempt

MOST_PATCHES = 100
"""In one pass: of a model with thousands of policies the next pass writes more, and whatever is
decided in between does not wait for them."""


def patches(draft: Draft) -> list[Action]:
    """Status patches of the model's policies, at most `MOST_PATCHES`."""
    found: list[Action] = []
    for policy in draft.state.policies:
        found += attempt(draft, _patch, policy, otherwise=[])
        if len(found) >= MOST_PATCHES:
            break
    return found


def _patch(draft: Draft, policy: AdaptivePolicy) -> list[Action]:
    after = status_of(draft, policy)
    return status_patch(policy.kind, policy.metadata, policy.status, after)


def status_of(draft: Draft, policy: AdaptivePolicy) -> AdaptivePolicyStatus:
    """The status that follows from the document, its certificate and the assignment."""
    try:
        parsed = parse_policy(policy.spec.policy)
    except PolicyInvalid as error:
        return _invalid(policy, error, draft.now)
    model = draft.state.model
    certified = _standing(draft, policy, model)
    active = _active(draft, parsed.digest)
    where = ", ".join(one.arm for one in active)
    rows: list[Row] = [
        (names.READY, True, Reason.ACCEPTED, "the document is valid"),
        (names.RECONCILING, False, Reason.ACCEPTED, ""),
        (names.STALLED, False, Reason.ACCEPTED, ""),
        (names.CERTIFIED, certified.valid, certified.reason, certified.message),
        (names.ACTIVE, bool(active), Reason.ACCEPTED, f"serves as {where}" if where else ""),
    ]
    return AdaptivePolicyStatus(
        observed_generation=policy.metadata.generation,
        digest=parsed.digest,
        active=active,
        conditions=_conditions(policy, rows, draft.now),
    )


def _standing(draft: Draft, policy: AdaptivePolicy, model: AdaptiveModel | None) -> Standing:
    if model is None:
        message = f"spec.model: there is no AdaptiveModel {policy.spec.model!r}"
        return Standing("None", Reason.MODEL_NOT_FOUND, message)
    return standing(policy, model, draft.remembered, draft.now)


def _active(draft: Draft, digest: str) -> list[ActiveIn]:
    spec = draft.assignment
    if spec is None or draft.state.model is None:
        return []
    arms = [(names.ARM_STABLE, spec.stable), (names.ARM_CANDIDATE, spec.candidate)]
    return [
        ActiveIn(model=draft.state.name, arm=arm)
        for arm, assigned in arms
        if assigned is not None and assigned.digest == digest
    ]


def _invalid(policy: AdaptivePolicy, error: PolicyInvalid, now: datetime) -> AdaptivePolicyStatus:
    rows: list[Row] = [
        (names.READY, False, Reason.POLICY_INVALID, error.sentence()),
        (names.RECONCILING, False, Reason.POLICY_INVALID, ""),
        (names.STALLED, True, Reason.POLICY_INVALID, error.sentence()),
        (names.CERTIFIED, False, Reason.POLICY_INVALID, ""),
        (names.ACTIVE, False, Reason.POLICY_INVALID, ""),
    ]
    return AdaptivePolicyStatus(
        observed_generation=policy.metadata.generation, conditions=_conditions(policy, rows, now)
    )


def _conditions(policy: AdaptivePolicy, rows: list[Row], now: datetime) -> list[Condition]:
    return with_conditions(
        policy.status.conditions, rows, now=now, generation=policy.metadata.generation
    )
