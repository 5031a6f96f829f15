"""`metav1.Condition` lists as values: set one, and the transition time moves only on a flip.

Used by the operator's plan and by a TuningRun's reporter. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from trimwheel_api.kinds import Condition
from trimwheel_api.times import to_text

State = Literal["True", "False", "Unknown"]
Row = tuple[str, State | bool, str, str]
"""Type, status, reason and message of a condition."""


def truth(value: bool) -> State:
    """A Python truth as a condition's status."""
    return "True" if value else "False"


def with_condition(
    conditions: Iterable[Condition],
    kind: str,
    state: State | bool,
    reason: str,
    message: str,
    *,
    now: datetime,
    generation: int,
) -> list[Condition]:
    """The list with this condition; its place is kept, and its transition time unless it flips."""
    kept = list(conditions)
    place = next((index for index, one in enumerate(kept) if one.type == kind), None)
    before = None if place is None else kept[place]
    status: State = truth(state) if isinstance(state, bool) else state
    flipped = before is None or before.status != status
    after = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=to_text(now)
        if flipped or before is None
        else before.last_transition_time,
        observed_generation=max(generation, 0),
    )
    if place is None:
        return [*kept, after]
    kept[place] = after
    return kept


def with_conditions(
    conditions: Iterable[Condition], rows: Iterable[Row], *, now: datetime, generation: int
) -> list[Condition]:
    """The list with all of these."""
    found = list(conditions)
    for kind, state, reason, message in rows:
        found = with_condition(found, kind, state, reason, message, now=now, generation=generation)
    return found


def is_true(conditions: Iterable[Condition], kind: str) -> bool:
    """Whether a condition is there and True."""
    return any(one.type == kind and one.status == "True" for one in conditions)
