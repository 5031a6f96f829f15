"""The operator's memory of one model: pure functions from one journal to the next.

Called by the draft and the stories, which keep the journal of the pass; `Draft.effects` writes it
before anything that follows from it. Bounds are the kind's: what ends a canary always finds room,
what would start one waits (`has_room`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus
from trimwheel_api.kinds.policy_journal import (
    MAX_DECISIONS,
    MAX_DIGESTS,
    RESERVED,
    JournalDecision,
    PolicyJournalSpec,
    RejectedDigest,
    RevokedDigest,
    SeenRequest,
    Truncation,
)
from trimwheel_api.names import Action, Reason
from trimwheel_api.times import parse, to_micro

MAX_MESSAGE = 1024
MAX_GUARD_MESSAGE = 256
MIRRORED = 64
"""Digests that `AdaptiveModel.status.rejectedDigests` shows."""
LAZY = 16
"""Copied decisions stay until there are so many, or something else is written."""


def imported(
    namespace: str, model: str, status: AdaptiveModelStatus | None, now: datetime
) -> PolicyJournalSpec:
    """The journal of a model that has none: what its status remembers, from before journals."""
    spec = PolicyJournalSpec(namespace=namespace, model=model)
    if status is None:
        return spec
    moment = to_micro(now)
    for digest in status.rejected_digests:
        rejected = RejectedDigest(digest=digest, time=moment, reason=Reason.ACCEPTED_BY_UPGRADE)
        spec = reject(spec, rejected)
    marks = [(one.digest, one.revoked_at) for one in status.history]
    if status.certificate and status.certificate.digest:
        marks.append((status.certificate.digest, status.certificate.revoked_at))
    for digest, revoked_at in marks:
        if revoked_at:
            spec = revoke(spec, RevokedDigest(digest=digest, time=revoked_at))
    if status.intended and status.intended.waived:
        waiver = SeenRequest(
            rollout="", uid="", policy_digest=status.intended.digest, waiver=True, time=moment,
            witness="Upgrade",
        )  # fmt: skip
        spec = spec.model_copy(update={"requests": [waiver]})
    return spec


# --- digests -----------------------------------------------------------------------------------


def is_rejected(spec: PolicyJournalSpec, digest: str) -> bool:
    """Whether a policy was rolled back or rejected, and not brought back since."""
    return any(one.digest == digest for one in spec.rejected)


def reject(spec: PolicyJournalSpec, entry: RejectedDigest) -> PolicyJournalSpec:
    """Remember a digest that was rolled back or rejected; the first cause stays."""
    if is_rejected(spec, entry.digest):
        return spec
    return spec.model_copy(update={"rejected": [*spec.rejected, entry][-MAX_DIGESTS:]})


def lift(spec: PolicyJournalSpec, digest: str) -> PolicyJournalSpec:
    """A waived Canary with an approval brought it back."""
    kept = [one for one in spec.rejected if one.digest != digest]
    return spec.model_copy(update={"rejected": kept})


def revoked_at(spec: PolicyJournalSpec, digest: str) -> datetime | None:
    """Certificates of this digest that were issued until then are void."""
    times = [parse(one.time) for one in spec.revoked if one.digest == digest]
    return max((one for one in times if one is not None), default=None)


def revoke(spec: PolicyJournalSpec, entry: RevokedDigest) -> PolicyJournalSpec:
    """Remember a revocation; the latest of a digest counts."""
    known, moment = revoked_at(spec, entry.digest), parse(entry.time)
    if moment is None or (known is not None and known >= moment):
        return spec
    kept = [one for one in spec.revoked if one.digest != entry.digest]
    return spec.model_copy(update={"revoked": [*kept, entry][-MAX_DIGESTS:]})


def mirror(spec: PolicyJournalSpec) -> list[str]:
    """What the model's status shows of the rejected digests, newest last."""
    return [one.digest for one in spec.rejected][-MIRRORED:]


def make_room(spec: PolicyJournalSpec, reachable: Collection[str]) -> PolicyJournalSpec:
    """Drop the oldest digests that no object names any more, while a list is nearly full."""
    changes: dict[str, object] = {}
    dropped = 0
    for field in ("rejected", "revoked"):
        entries = list(getattr(spec, field))
        for one in list(entries):
            if len(entries) <= MAX_DIGESTS - RESERVED:
                break
            if one.digest not in reachable:
                entries.remove(one)
                dropped += 1
        changes[field] = entries
    if not dropped:
        return spec
    return spec.model_copy(update={**changes, "forgotten": spec.forgotten + dropped})


# --- decisions ---------------------------------------------------------------------------------


def fullness(spec: PolicyJournalSpec, cursor: int) -> str:
    """Why nothing new may be exposed; empty while there is room for what may have to end it."""
    waiting = [one for one in spec.decisions if one.sequence > cursor]
    if len(waiting) > MAX_DECISIONS - RESERVED:
        return (
            f"{len(waiting)} decisions wait to be copied to the ledger (room for {MAX_DECISIONS}): "
            "are the pipelines running, and does the ledger answer?"
        )
    for what in ("rejected", "revoked"):
        if len(getattr(spec, what)) > MAX_DIGESTS - RESERVED:
            return (
                f"the journal holds {len(getattr(spec, what))} {what} digests (room for "
                f"{MAX_DIGESTS}): delete AdaptivePolicies that nobody needs any more"
            )
    return ""


def append(spec: PolicyJournalSpec, entry: JournalDecision) -> PolicyJournalSpec:
    """Add a decision under the next sequence; beyond the bound the oldest goes, and is counted."""
    sequence = spec.sequence + 1
    guards = [
        one.model_copy(update={"message": one.message[:MAX_GUARD_MESSAGE]}) for one in entry.guards
    ]
    entry = entry.model_copy(
        update={
            "sequence": sequence,
            "seq": entry.seq or sequence,
            "message": entry.message[:MAX_MESSAGE],
            "guards": guards,
        }
    )
    decisions, truncated = [*spec.decisions, entry], spec.truncated
    if len(decisions) > MAX_DECISIONS:
        lost = decisions.pop(0)
        count = truncated.count if truncated else 0
        truncated = Truncation(count=count + 1, last_sequence=lost.sequence, time=entry.time)
    return spec.model_copy(
        update={"sequence": sequence, "decisions": decisions, "truncated": truncated}
    )


def unfulfilled(spec: PolicyJournalSpec, uid: str, after: int) -> list[JournalDecision]:
    """Decisions on an attempt that its status does not show: the operator stopped in between."""
    return [one for one in spec.decisions if one.rollout_uid == uid and one.seq > after]


def left_behind(
    spec: PolicyJournalSpec, epoch: int, present: Collection[str]
) -> list[JournalDecision]:
    """Decisions of attempts that are gone, or on the model, which no assignment ever carried."""
    gone = [one for one in spec.decisions if not one.rollout_uid or one.rollout_uid not in present]
    withdrawn = {
        (one.rollout_uid, other.sequence)
        for one in gone
        if one.action == Action.WITHDRAW
        for other in gone
        if other.rollout_uid == one.rollout_uid and other.sequence < one.sequence
    }
    return [
        one
        for one in gone
        if one.epoch > epoch
        and one.action != Action.WITHDRAW
        and (one.rollout_uid, one.sequence) not in withdrawn
    ]


def stamped(spec: PolicyJournalSpec, after: int, epoch: int) -> PolicyJournalSpec:
    """Say of the decisions of this pass with which epoch they take effect."""
    decisions = [
        one.model_copy(update={"epoch": epoch}) if one.sequence > after else one
        for one in spec.decisions
    ]
    return spec.model_copy(update={"decisions": decisions})


def pruned(
    spec: PolicyJournalSpec, cursor: int, shown: dict[str, int], *, always: bool
) -> PolicyJournalSpec:
    """Without what is in the ledger; `shown`: attempt -> its last decision that its status shows.

    What a status does not show yet is still needed after a crash.
    """
    kept = [
        one
        for one in spec.decisions
        if one.sequence > cursor or one.seq > shown.get(one.rollout_uid, one.seq)
    ]
    if not always and len(spec.decisions) - len(kept) < LAZY:
        return spec
    return spec.model_copy(update={"decisions": kept})


def is_spent(spec: PolicyJournalSpec, cursor: int) -> bool:
    """Whether nothing is left to remember: the model and all of it may be forgotten."""
    waiting = any(one.sequence > cursor for one in spec.decisions)
    return not (waiting or spec.rejected or spec.revoked or spec.under_way)


def sequences(entries: Iterable[JournalDecision]) -> list[int]:
    """Their sequences, for sentences."""
    return [one.sequence for one in entries]
