"""What the engine's loop works out of a batch and a snapshot: parts, arms, shares. Pure."""

from __future__ import annotations

from dataclasses import replace

from trimwheel_api import names
from trimwheel_workers.arms import ResidentPolicy, Snapshot
from trimwheel_workers.engine.scheduler import Batch, Row
from trimwheel_workers.engine.status import ARM_INDEX, Status


def parts(batch: Batch, policies: list[ResidentPolicy]) -> list[Batch]:
    """A batch in smaller ones: each policy's rows, then halves; nothing of a single row."""
    rows = batch.rows
    if any(policy is not policies[0] for policy in policies):
        first = [row for row, p in zip(rows, policies, strict=True) if p is policies[0]]
        other = [row for row, p in zip(rows, policies, strict=True) if p is not policies[0]]
        return [Batch(batch.key, first), Batch(batch.key, other)]
    middle = len(rows) // 2
    halves = (rows[:middle], rows[middle:]) if middle else ()
    return [Batch(batch.key, half) for half in halves]


def candidate_digest(snapshot: Snapshot) -> str:
    return snapshot.candidate.digest if snapshot.candidate else ""


def with_known(snapshot: Snapshot, known: dict[str, ResidentPolicy]) -> Snapshot:
    """The snapshot with policies that were resident before as the same objects.

    Batches and audits tell policies apart by identity, which is cheaper than by digest.
    """
    stable = known.get(snapshot.stable.digest, snapshot.stable)
    candidate = snapshot.candidate and known.get(snapshot.candidate.digest, snapshot.candidate)
    if candidate is not None and candidate.digest == stable.digest:
        # The same bytes in both arms (an A/A control) stay two objects, or nobody would be
        # counted on the candidate.
        candidate = replace(stable)
    return replace(snapshot, stable=stable, candidate=candidate)


def arm_of(policy: ResidentPolicy, snapshot: Snapshot) -> str:
    return names.ARM_STABLE if policy is snapshot.stable else names.ARM_CANDIDATE


def unanswered(row: Row, status: Status) -> list[object]:
    return [row.id, status, 0, 0.0, 0, 0, 0, 0]


def shared_out(
    elapsed: float,
    policies: list[ResidentPolicy],
    snapshot: Snapshot,
    tokens: list[list[int]],
    layers: list[int],
) -> list[float]:
    """A batch's seconds by arm, in proportion to layers x tokens: what the rows made it compute."""
    work = [0.0, 0.0]
    for policy, of_row in zip(policies, layer_tokens(tokens, layers), strict=True):
        work[ARM_INDEX[arm_of(policy, snapshot)]] += of_row
    total = sum(work)
    return [elapsed * part / total for part in work]


def layer_tokens(tokens: list[list[int]], layers: list[int]) -> list[int]:
    """Layers x tokens of each row."""
    return [depth * len(ids) for ids, depth in zip(tokens, layers, strict=True)]
