"""Copies decisions from the operator's journals to the ledger, by cursor; deletions lose none.

Called by `loop` in each pass, before it copies what statuses show. Rows are keyed as those are, by
(uid of the rollout, number of the decision), so copying from both, or twice, changes nothing. The
cursor moves only when the rows are written; whatever was dropped from a full journal is a row too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial

from trimwheel_api.errors import Conflict, Unavailable
from trimwheel_api.kinds import PolicyJournal, dump
from trimwheel_api.kinds.policy_journal import JournalDecision, PolicyJournalStatus
from trimwheel_api.kinds.policy_rollout import Decision
from trimwheel_api.times import to_text
from trimwheel_pipelines.kube import Objects
from trimwheel_pipelines.ledger import Event, Ledger

Guard = Callable[[str, str, Callable[[], object]], bool]
LOST = "DecisionsLost"
"""Kind of the row that says which decisions a full journal had to drop."""


def copy_all(
    objects: Objects, ledger: Ledger | None, namespace: str, operator: str, now: datetime,
    guard: Guard,
) -> int:  # fmt: skip
    """Copy from every journal of the release; how many rows are new. One that fails stops none."""
    if ledger is None:
        raise Unavailable("no ledger is configured (TRIMWHEEL_LEDGER_URL)")
    added: list[int] = []
    for journal in objects.list(PolicyJournal, namespace):
        if journal.spec.sequence <= journal.status.cursor:
            continue
        copy = partial(_copy, objects, ledger, journal, operator, now, added)
        guard("journal", subject_of(journal), copy)
    return sum(added)


def subject_of(journal: PolicyJournal) -> str:
    """The model as the ledger names it."""
    return f"{journal.spec.namespace}/{journal.spec.model}"


def _copy(
    objects: Objects, ledger: Ledger, journal: PolicyJournal, operator: str, now: datetime,
    added: list[int],
) -> None:  # fmt: skip
    added.append(ledger.append(events_of(journal, operator)))
    cursor = PolicyJournalStatus(cursor=journal.spec.sequence, copied_at=to_text(now))
    try:
        objects.write_status(journal, cursor)
    except Conflict:
        return  # the operator decided meanwhile: the next pass copies that, and moves the cursor


def events_of(journal: PolicyJournal, operator: str) -> list[Event]:
    """The ledger's rows of what lies beyond the cursor."""
    spec, cursor = journal.spec, journal.status.cursor
    rows = [_event(journal, one, operator) for one in spec.decisions if one.sequence > cursor]
    lost = spec.truncated
    if lost is None or lost.last_sequence <= cursor:
        return rows
    payload = {"afterSequence": cursor, **dump(lost)}
    gap = Event(
        at=lost.time, actor=operator, kind=LOST, subject=subject_of(journal),
        uid=journal.metadata.uid, source_seq=lost.last_sequence, payload=payload,
    )  # fmt: skip
    return [gap, *rows]


def _event(journal: PolicyJournal, entry: JournalDecision, operator: str) -> Event:
    about = {
        "rollout": entry.rollout,
        "type": entry.type,
        "policy": entry.policy,
        "policyDigest": entry.policy_digest,
        "requestedBy": entry.requested_by,
        **({"onBehalfOf": entry.on_behalf_of} if entry.on_behalf_of else {}),
    }
    decision = Decision.model_validate(entry.model_dump())
    return Event(
        at=entry.time,
        actor=entry.actor or operator,
        kind=entry.action,
        subject=subject_of(journal),
        uid=entry.rollout_uid or journal.metadata.uid,
        source_seq=entry.seq if entry.rollout_uid else entry.sequence,
        payload={**about, **dump(decision)},
    )
