"""Which audits may certify: decided from rates, hashes and counts before any loss is read.

Called by the tuning run between its search and its certificate; the result also tells it which
inputs a finalist must be run on. Pure. The rules, with the error that each prevents:

* Only audits with `u < min q_t` over the window count. A rate raised halfway would fill the window
  with the traffic of that moment.
* n is fixed before; at most three looks, at n, 2n and 4n audits, which split delta. Looking until
  it passes multiplies the error.
* Lost audits follow load and load follows content, so they are assumed wrong: their share is
  taken off epsilon, and above a quarter of it the window is void.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LOOK_SHARES: Final = (0.5, 0.25, 0.25)
"""Share of delta that each look may spend; look j reads the first `n * 2**j` audits."""
SHORT_WINDOW: Final = timedelta(hours=24)
"""A shorter window names a shorter population: a day's risk varies over its hours."""
FIRST_AUDIT_WARNING: Final = 0.7
"""Warn when fewer audits than this are the first of their session."""
MISSING_LIMIT: Final = 0.25
"""Share of epsilon that lost audits may take before the window is void."""


MIN_SESSION_AUDITS: Final = 50
"""Fewer audits say nothing about how clients use the session key."""


class SessionKeys(StrEnum):
    """How clients use the session key, as far as audits show."""

    MIXED = "mixed"
    ONE = "one"  # the same key for everybody
    UNIQUE = "unique"  # a new key for every request, or none


class Outcome(StrEnum):
    """How a certification ended."""

    CERTIFIED = "Certified"
    FULL_DEPTH = "FullDepth"  # nothing cheaper passed; full depth is always legal
    VOID = "Void"  # too many audits were lost
    TOO_FEW_AUDITS = "TooFewAudits"
    TOO_FEW_CLUSTERS = "TooFewClusters"  # enough audits, too few that are independent


@dataclass(frozen=True)
class AuditWindow:
    """The audit stream since the window opened, oldest first.

    `u` is the keyed hash of each request's id in [0, 1), `rate` the audit rate in force when it was
    drawn (so u < rate). `lowest_rate` states the lowest rate that was in force at any time, when
    that is known and lower than any rate an audit recorded. `lost` counts audits that were drawn
    but not finished.
    """

    u: Floats  # [N]
    rate: Floats  # [N]
    sessions: npt.NDArray[Any]  # [N], any hashable dtype
    opened: datetime
    closed: datetime
    lost: int = 0
    lowest_rate: float | None = None


@dataclass(frozen=True)
class Promise:
    """What is to be certified, fixed before any loss is read."""

    epsilon: float
    delta: float
    n: int  # audits at the first look
    finalists: int = 1
    look: int = 0  # 0, 1 or 2

    def __post_init__(self) -> None:
        rules = (
            ("epsilon", 0.0 < self.epsilon < 1.0, "must lie inside (0, 1)", self.epsilon),
            ("delta", 0.0 < self.delta < 1.0, "must lie inside (0, 1)", self.delta),
            ("n", self.n >= 1, "must be at least 1", self.n),
            ("finalists", self.finalists >= 1, "must be at least 1", self.finalists),
            ("look", self.look in range(len(LOOK_SHARES)), "must be 0, 1 or 2", self.look),
        )
        for field, holds, rule, value in rules:
            if not holds:
                raise ValueError(f"{field}: {rule}, got {value}")

    @property
    def audits(self) -> int:
        """Audits that this look reads."""
        return int(self.n * 2**self.look)

    @property
    def level(self) -> float:
        """The level at which each finalist is tested at this look."""
        return self.delta * LOOK_SHARES[self.look] / self.finalists


@dataclass(frozen=True)
class Selection:
    """Which audits certify, and what is to be said about them. No loss was read for it."""

    rows: npt.NDArray[np.int64]  # indices into the window, oldest first
    sessions: npt.NDArray[Any]
    missing: float
    lowest_rate: float
    first_audit_share: float
    short: bool
    opened: datetime
    closed: datetime
    refusal: Outcome | None
    reason: str

    @property
    def seconds_per_audit(self) -> float:
        """How long one audit took to come in, on average over the window."""
        length = (self.closed - self.opened).total_seconds()
        return max(length, 0.0) / max(len(self.rows), 1)

    @property
    def session_keys(self) -> SessionKeys:
        """What the clients' session keys can tell of the audits' dependence."""
        count = len(np.unique(self.sessions))
        if len(self.rows) < MIN_SESSION_AUDITS:
            return SessionKeys.MIXED
        if count == 1:
            return SessionKeys.ONE
        return SessionKeys.UNIQUE if count == len(self.rows) else SessionKeys.MIXED

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences a reader of the certificate should see."""
        found = []
        if self.session_keys is SessionKeys.ONE:
            found.append("session key: the same for everybody, so all audits are one observation")
        elif self.session_keys is SessionKeys.UNIQUE:
            found.append(
                "session key: new for every request (or none), so only copies in the stream show "
                "which requests belong together"
            )
        if self.short:
            length = self.closed - self.opened
            found.append(f"short: the window covers {length}, so it speaks for that time only")
        if self.first_audit_share < FIRST_AUDIT_WARNING:
            found.append(
                f"sessions: only {self.first_audit_share:.0%} of the audits are their session's "
                "first, so the design effect carries much of the bound"
            )
        return tuple(found)


def select_audits(window: AuditWindow, promise: Promise) -> Selection:
    """The audits that certify at this look: the first `promise.audits` with `u < min q_t`.

    Refuses (with the reason in the result, not an exception) when audits were lost beyond
    epsilon / 4 or there are not enough yet.
    """
    drawn = len(window.u) + window.lost
    missing = window.lost / drawn if drawn else 0.0
    rates = [float(window.rate.min())] if len(window.rate) else []
    rates += [window.lowest_rate] if window.lowest_rate is not None else []
    lowest = min(rates, default=0.0)
    rows = np.flatnonzero(window.u < lowest)
    available = len(rows)
    rows = rows[: promise.audits]
    sessions = window.sessions[rows]
    refusal, reason = None, ""
    if missing > promise.epsilon * MISSING_LIMIT:
        refusal = Outcome.VOID
        reason = (
            f"{missing:.2%} of the audits were lost, more than a quarter of epsilon "
            f"({promise.epsilon:.2%}); lower the audit rate or add workers, and collect anew"
        )
    elif available < promise.audits:
        refusal = Outcome.TOO_FEW_AUDITS
        reason = f"{available} of {promise.audits} audits with u < {lowest:g} so far"
    first = len(np.unique(sessions)) / len(rows) if len(rows) else 1.0
    return Selection(
        rows=rows,
        sessions=sessions,
        missing=missing,
        lowest_rate=lowest,
        first_audit_share=first,
        short=window.closed - window.opened < SHORT_WINDOW,
        opened=window.opened,
        closed=window.closed,
        refusal=refusal,
        reason=reason,
    )
