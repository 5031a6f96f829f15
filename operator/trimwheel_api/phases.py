"""Where a rollout stands, in one word: the phases, and which of them are an end.

The one home for operator, CLI and demo. A rollout has ended when `status.finishedAt` is set, and at
no other time: a Stalled one without it was refused for now, and the operator asks again at every
look. Pure.
"""

from __future__ import annotations

from trimwheel_api import names
from trimwheel_api.kinds.policy_rollout import PolicyRolloutStatus
from trimwheel_api.names import Reason

QUEUED = "Queued"
PROGRESSING = "Progressing"
AWAITING_APPROVAL = "AwaitingApproval"
PROMOTED = "Promoted"
ROLLING_BACK = "RollingBack"
ROLLED_BACK = "RolledBack"
STALLED = "Stalled"

ROLLBACK = "Rollback"
CANARY = "Canary"

ENDED_BY_PEOPLE = frozenset({Reason.ABORTED, Reason.PREEMPTED, Reason.REJECTED})
"""Reasons of an end that somebody asked for: nothing failed."""


def is_finished(status: PolicyRolloutStatus) -> bool:
    """Ended, one way or another; never looked at again."""
    return bool(status.finished_at)


def is_retried(status: PolicyRolloutStatus) -> bool:
    """Refused for now: it may start as soon as what stands against it is gone."""
    return status.phase == STALLED and not is_finished(status)


def is_waiting(status: PolicyRolloutStatus) -> bool:
    """Not started: its rules are not frozen yet."""
    return status.effective is None and not is_finished(status)


def is_as_intended(kind: str, status: PolicyRolloutStatus) -> bool:
    """Whether it ended, or is ending, as somebody wanted; `kind` is the rollout's type."""
    if status.phase == PROMOTED:
        return True
    if kind == ROLLBACK:
        return status.phase in (ROLLING_BACK, ROLLED_BACK)
    stalled = status.condition(names.STALLED)
    return stalled is not None and stalled.reason in ENDED_BY_PEOPLE
