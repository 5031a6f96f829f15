"""Words for numbers and times, and the sentences that `status` and `explain` share.

Pure: the clock is an argument. Nothing here talks to a server.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from trimwheel_api import names
from trimwheel_api.kinds import PolicyRollout
from trimwheel_api.kinds.adaptive_model import DriftState
from trimwheel_api.kinds.policy_rollout import GuardStatus
from trimwheel_api.policy import DENSE
from trimwheel_api.times import instant
from trimwheel_api.values import percent

SHORT_DIGEST = 19
"""`sha256:` and twelve hex digits: unique in practice, short on a screen."""

EVENT_WORDS = {
    names.GUARD_DISAGREEMENT: "answers differ from full depth",
    names.GUARD_ERRORS: "sessions see an error",
    names.GUARD_LATENCY: "sessions wait longer than the SLO",
    names.GUARD_CAPACITY: "of the device would be busy at full weight",
    names.GUARD_PARITY: "answers are not what replay says",
}


def short(digest: str) -> str:
    """A digest for the eye; the dense policy by its name."""
    if not digest:
        return "-"
    return "dense" if digest == DENSE.digest else digest[:SHORT_DIGEST]


def age(since: str, now: datetime) -> str:
    """`5d`, `3h`, `12m` or `40s` since an RFC 3339 time; `-` when there is none."""
    return span((now - instant(since)).total_seconds()) if since else "-"


def until(end: str, now: datetime) -> str:
    """`in 29d` or `3h ago` for an RFC 3339 time."""
    left = (instant(end) - now).total_seconds()
    return f"in {span(left)}" if left >= 0 else f"{span(-left)} ago"


def span(seconds: float) -> str:
    """The two largest units at most, as kubectl writes ages."""
    left = max(0, int(seconds))
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    if days:
        return f"{days}d{hours}h" if days < 7 and hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{left}s" if minutes < 10 and left else f"{minutes}m"
    return f"{left}s"


def share(text: str) -> str:
    """A decimal string in [0, 1] as a percentage with three significant digits."""
    if not text:
        return "-"
    return f"{float(Decimal(text) * 100):.3g}%"


def weight(rollout: PolicyRollout) -> str:
    """`25% (step 3 of 5)`; steps are counted from 1, as people do."""
    status = rollout.status
    said = percent(status.weight_basis_points)
    if status.effective is None or rollout.spec.type == "Rollback":
        return said
    steps = rollout.spec.steps or status.effective.rollout.steps
    return f"{said} (step {min(status.step + 1, len(steps))} of {len(steps)})"


def guard_numbers(guard: GuardStatus) -> str:
    """`0.9% of at most 3%, 945 samples`."""
    if not guard.samples:
        return guard.message or "no evidence yet"
    return f"{share(guard.value)} of at most {share(guard.bound)}, {guard.samples} samples"


def drift_numbers(drift: DriftState, now: datetime) -> str:
    """What moved, in which window, and how old the verdict is; empty when there is none."""
    if not drift.signal:
        return ""
    audited = drift.signal == names.GUARD_DISAGREEMENT
    value, bound = ((share if audited else str)(one) for one in (drift.value, drift.bound))
    text = f"{drift.signal} {value} of at most {bound}, {drift.audits} audits"
    if drift.since:
        text += f" since {drift.since[:16].replace('T', ' ')}Z"
    if drift.time:
        text += f", judged {age(drift.time, now)} ago"
    return text


def guard_sentence(guard: GuardStatus) -> str:
    """What a guard saw, what it may see, and what that means."""
    event = EVENT_WORDS.get(guard.name, "went wrong")
    if not guard.samples:
        return f"{guard.name}: no evidence yet. {guard.message}".rstrip()
    meaning = {
        names.VERDICT_PASS: "shown to keep its promise",
        names.VERDICT_FAIL: "shown to break its promise",
        names.VERDICT_NOT_ENOUGH: "not enough evidence either way",
    }[guard.verdict]
    seen = f"{share(guard.value)} {event} in {guard.samples} samples, at most {share(guard.bound)}"
    return f"{guard.name}: {seen} is allowed: {meaning}. {guard.message}".rstrip()
