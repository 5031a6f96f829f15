"""How far a decision has reached: which workers acknowledged its epoch, and when the last did.

A worker that says nothing serves stable by itself once its lease has run out, so `leaseSeconds`
after the decision everybody does. Both numbers are reported apart. Pure.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from trimwheel_api.kinds.policy_rollout import Actuation
from trimwheel_api.times import parse, parse_or, to_micro
from trimwheel_operator.plan.observed import ObservedState

MAX_PENDING = 64


def begin(state: ObservedState, epoch: int, decided_at: str, lease_seconds: int) -> Actuation:
    """The record of a decision that is written in this pass."""
    return Actuation(
        epoch=epoch,
        decided_at=decided_at,
        lease_seconds=lease_seconds,
        workers=len(state.pods),
        pending=sorted(pod.name for pod in state.pods)[:MAX_PENDING],
    )


def progress(state: ObservedState, before: Actuation, now: datetime) -> tuple[Actuation, bool]:
    """The record as of now, and whether every live worker is known to serve stable.

    A pod that is gone serves nobody; one that started later became Ready on a newer epoch.
    """
    decided = parse_or(before.decided_at, now)
    bound = decided + timedelta(seconds=before.lease_seconds)
    heard = {ack.pod: ack for ack in state.acknowledgements if ack.epoch >= before.epoch}
    silent = sorted(pod.name for pod in state.pods if pod.name not in heard)
    times = [max(ack.at, decided) for ack in heard.values()]
    if known := parse(before.last_worker_at):
        times.append(known)
    done = not silent or now >= bound
    if silent and done:
        times.append(bound)
    last = max(times, default=decided if done else None)
    record = before.model_copy(
        update={
            "pending": silent[:MAX_PENDING],
            "workers": max(before.workers, len(state.pods)),
            "last_worker_at": to_micro(last) if last else "",
            "milliseconds": round((last - decided).total_seconds() * 1000)
            if done and last
            else None,
        }
    )
    return record, done


def summary(record: Actuation) -> str:
    """One sentence for the condition."""
    if record.pending:
        names = ", ".join(record.pending[:5])
        return (
            f"{record.workers - len(record.pending)} of {record.workers} workers acknowledged; "
            f"leases of {names} ran out after {record.lease_seconds} s"
        )
    return f"all {record.workers} workers acknowledged within {record.milliseconds} ms"
