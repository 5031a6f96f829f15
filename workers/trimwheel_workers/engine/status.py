"""Small words that front and engine share: how a row ended, arms, why audits are lost."""

from __future__ import annotations

from enum import IntEnum

from trimwheel_api import names


class Status(IntEnum):
    """How a row ended."""

    ANSWERED = 0
    EXPIRED = 1  # its deadline passed while it waited: 503
    FAILED = 2  # the forward pass raised: 500
    NOT_FINITE = 3  # the answer is not made of numbers: 500


ARM_INDEX = {arm: index for index, arm in enumerate(names.ARMS)}

LOST_QUEUE_FULL = "queue_full"
LOST_NOT_FINITE = "not_finite"
LOST_ENGINE_DIED = "engine_died"
LOST_BACKLOG_FULL = "backlog_full"
LOST_REASONS = (LOST_QUEUE_FULL, LOST_NOT_FINITE, LOST_ENGINE_DIED, LOST_BACKLOG_FULL)
"""`reason` of trimwheel_records_dropped_total."""
