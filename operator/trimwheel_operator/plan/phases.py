"""Where a rollout stands, read from its status: the vocabulary of the rollout stories. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from trimwheel_api import names
from trimwheel_api.kinds import AdaptiveModel, PolicyRollout
from trimwheel_api.kinds.adaptive_model import Step
from trimwheel_api.kinds.policy_rollout import EffectiveRules, PolicyRolloutStatus
from trimwheel_api.phases import (
    AWAITING_APPROVAL,
    CANARY,
    PROGRESSING,
    PROMOTED,
    QUEUED,
    ROLLBACK,
    ROLLED_BACK,
    ROLLING_BACK,
    STALLED,
    is_finished,
)
from trimwheel_api.phases import is_waiting as is_pending
from trimwheel_api.times import parse
from trimwheel_api.values import LARGEST_WEIGHT, basis_points, span

__all__ = [
    "AWAITING_APPROVAL",
    "CANARY",
    "PROGRESSING",
    "PROMOTED",
    "QUEUED",
    "ROLLBACK",
    "ROLLED_BACK",
    "ROLLING_BACK",
    "STALLED",
    "is_finished",
    "is_pending",
]

MOST_EXPOSED = basis_points(LARGEST_WEIGHT)
"""Basis points that any rollout may expose before it is promoted."""


def is_unfinished(status: PolicyRolloutStatus) -> bool:
    """Waits, is under way, or is on its way back."""
    return not is_finished(status)


def is_rolling_back(status: PolicyRolloutStatus) -> bool:
    """Decided, and not yet known to have reached every worker."""
    return status.phase == ROLLING_BACK and not is_finished(status)


def is_active(status: PolicyRolloutStatus) -> bool:
    """A canary under way: at most one of a model."""
    running = status.effective is not None and not is_finished(status)
    return running and status.phase != ROLLING_BACK


def was_started(status: PolicyRolloutStatus) -> bool:
    """Whether the start, that is the first assignment with the candidate, was recorded.

    Not by its decision: of those only the last 64 are kept.
    """
    return bool(status.step_started_at)


def rules(status: PolicyRolloutStatus) -> EffectiveRules:
    """The frozen rules of an active rollout. Raises ValueError on one that has none."""
    if status.effective is None:
        raise ValueError("effective: the rollout has not started")
    return status.effective


def current_step(status: PolicyRolloutStatus) -> Step:
    """The step that the rollout is on."""
    steps = rules(status).rollout.steps
    return steps[min(status.step, len(steps) - 1)]


def step_weight(status: PolicyRolloutStatus) -> int:
    """Basis points of the current step."""
    return exposed(current_step(status))


def exposed(step: Step) -> int:
    """Basis points that a step may expose, whatever it says: at most half before promotion.

    The schema says so as well; steps that were stored before it are cut here.
    """
    return min(basis_points(step.weight), MOST_EXPOSED)


def beyond_limits(broken: Sequence[str]) -> str:
    """The sentence for condition OutsideLimits."""
    text = "; ".join(broken)
    return (
        f"stored before its limits were made, and refused if written again: {text}. At most "
        f"{LARGEST_WEIGHT} of the cohorts are exposed, and no span is longer than a hundred years"
    )[:32_000]


def approval_limit(status: PolicyRolloutStatus, model: AdaptiveModel) -> str:
    """The stricter of the frozen approval deadline and the model's now."""
    frozen, now = rules(status).rollout.approval_deadline, model.spec.rollout.approval_deadline
    return min(frozen, now, key=span)


def approval_due(status: PolicyRolloutStatus, model: AdaptiveModel) -> datetime | None:
    """When the wait for an approval ends; None while none is waited for."""
    asked = status.condition(names.AWAITING_APPROVAL)
    if status.phase != AWAITING_APPROVAL or asked is None or asked.status != "True":
        return None
    since = parse(asked.last_transition_time)
    return since + span(approval_limit(status, model)) if since else None


def exposure_due(status: PolicyRolloutStatus, model: AdaptiveModel) -> datetime | None:
    """When a step that serves the candidate has to have ended; None while none does.

    The deadline, after the step's hold or a hold as long as the deadline: neither a pause, nor
    missing evidence, nor a hold of a year exposes people for ever to what nobody approved.
    """
    since = parse(status.step_started_at)
    if since is None or not status.weight_basis_points or status.phase == AWAITING_APPROVAL:
        return None
    limit = span(approval_limit(status, model))
    return since + min(span(current_step(status).hold), limit) + limit


def is_last_step(status: PolicyRolloutStatus) -> bool:
    """Whether promotion is what comes next."""
    return status.step >= len(rules(status).rollout.steps) - 1


def age(rollout: PolicyRollout) -> tuple[str, str]:
    """Sort key: oldest first, then by name."""
    return rollout.metadata.creation_timestamp, rollout.name
