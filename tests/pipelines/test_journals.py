"""Decisions reach the ledger from journals: once, in order, whatever was deleted meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.conftest import MemoryObjects

from trimwheel_api import metrics, names
from trimwheel_api.errors import Unavailable
from trimwheel_api.kinds import AdaptiveModel, PolicyJournal, PolicyRollout
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.kinds.policy_journal import (
    JournalDecision,
    PolicyJournalSpec,
    Truncation,
)
from trimwheel_api.kinds.policy_rollout import Decision, PolicyRolloutSpec
from trimwheel_pipelines.exposition import Heartbeat, PipelinesMetrics
from trimwheel_pipelines.ledger import Ledger, payload_of
from trimwheel_pipelines.loop import Loop

NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
SUBJECT = "shop/intent"


class Api(MemoryObjects):
    """With a journal, as the operator writes it."""

    def decided(self, *entries: JournalDecision, **spec: Any) -> None:
        """The operator appends to the journal of shop/intent."""
        key = ("PolicyJournal", names.RELEASE_NAMESPACE, names.journal_name("shop", "intent"))
        if key not in self.stored:
            metadata = {"name": key[2], "namespace": key[1]}
            empty = PolicyJournalSpec(namespace="shop", model="intent")
            self.create(PolicyJournal, metadata, empty)
        held = self.stored[key]
        assert isinstance(held, PolicyJournal)
        self.version += 1
        newest = max([held.spec.sequence, *(one.sequence for one in entries)])
        changed = held.spec.model_copy(
            update={"decisions": [*held.spec.decisions, *entries], "sequence": newest, **spec}
        )
        metadata_ = held.metadata.model_copy(update={"resource_version": str(self.version)})
        self.stored[key] = held.model_copy(update={"spec": changed, "metadata": metadata_})

    @property
    def journal(self) -> Any:
        [found] = self.list(PolicyJournal)
        return found


def entry(sequence: int, action: str, **fields: Any) -> JournalDecision:
    about = {
        "rollout": "ramp", "rollout_uid": "uid-ramp", "type": "Canary", "policy": "good",
        "policy_digest": DIGEST, "requested_by": "rita", "on_behalf_of": "mia", "seq": sequence,
    }  # fmt: skip
    base = {"time": f"2026-11-22T10:00:0{sequence}.000000Z", "action": action, "reason": "Because"}
    return JournalDecision.model_validate({**about, **base, "sequence": sequence, **fields})


@pytest.fixture
def api() -> Api:
    return Api(NOW)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.db")


@pytest.fixture
def loop(api: Api, ledger: Ledger, tmp_path: Path) -> Loop:
    return Loop(
        objects=api,  # type: ignore[arg-type]
        records_uri=str(tmp_path / "records"), prometheus=None, ledger=ledger, aliases=None,
        exposed=PipelinesMetrics(), heartbeat=Heartbeat(60.0), operator_user="the-operator",
        clock=lambda: NOW,
    )  # fmt: skip


def rows(ledger: Ledger) -> list[tuple[str, str, int]]:
    return [(one.kind, one.uid, one.source_seq) for one in ledger.entries(SUBJECT)]


def test_a_rollout_that_is_gone_is_in_the_ledger_with_its_model_gone_as_well(
    api: Api, ledger: Ledger, loop: Loop
) -> None:
    api.decided(entry(1, "Start"), entry(2, "Advance"), entry(3, "Abort", reason="RolloutGone"))
    loop.once()
    assert rows(ledger) == [
        ("Start", "uid-ramp", 1), ("Advance", "uid-ramp", 2), ("Abort", "uid-ramp", 3),
    ]  # fmt: skip
    last = list(ledger.entries(SUBJECT))[-1]
    assert payload_of(last) | {"requestedBy": "rita", "onBehalfOf": "mia"} == payload_of(last)
    assert last.actor == "the-operator" and ledger.verify() is None
    assert api.journal.status.cursor == 3 and api.journal.status.copied_at
    value = loop.exposed.registry.get_sample_value
    assert value(metrics.LEDGER_EVENTS.name) == 3.0


def test_copying_again_and_after_a_crash_before_the_cursor_moved_changes_nothing(
    api: Api, ledger: Ledger, loop: Loop
) -> None:
    api.decided(entry(1, "Start"))
    loop.once()
    loop.once()
    api.stored = {
        key: one.model_copy(update={"status": type(one.status)(cursor=0)})
        for key, one in api.stored.items()
    }
    loop.once()
    assert rows(ledger) == [("Start", "uid-ramp", 1)] and api.journal.status.cursor == 1


def test_a_decision_that_comes_while_the_cursor_is_written_is_copied_next(
    api: Api, ledger: Ledger, loop: Loop
) -> None:
    api.decided(entry(1, "Start"))
    write, cut = api.write_status, [entry(2, "Advance")]

    def raced(observed: Any, status: Any) -> Any:
        if cut:
            api.decided(cut.pop())
        return write(observed, status)

    api.write_status = raced  # type: ignore[method-assign]
    loop.once()
    assert api.journal.status.cursor == 0, "the write met another version"
    loop.once()
    assert [kind for kind, _, _ in rows(ledger)] == ["Start", "Advance"]
    assert api.journal.status.cursor == 2


def test_statuses_and_journal_together_neither_double_nor_lose(
    api: Api, ledger: Ledger, loop: Loop
) -> None:
    """An upgrade in mid-canary: the first decision is in the status alone, the second in both."""
    model = AdaptiveModelSpec.model_validate({"model": {"uri": "models:/m/1", "digest": DIGEST}})
    api.put(AdaptiveModel, "intent", model)
    spec = PolicyRolloutSpec(
        model="intent", policy="good", policy_digest=DIGEST, requested_by="rita"
    )
    made = api.put(PolicyRollout, "ramp", spec)
    old = Decision(seq=1, time="2026-11-22T09:59:00Z", action="Start", reason="Shadow")
    new = Decision.model_validate(entry(2, "Advance").model_dump())
    api.write_status(made, made.status.model_copy(update={"decisions": [old, new]}))
    uid = made.metadata.uid
    api.decided(entry(1, "Advance", seq=2, rollout_uid=uid))
    loop.once()
    loop.once()
    assert sorted(rows(ledger)) == [("Advance", uid, 2), ("Start", uid, 1)]


def test_decisions_on_the_model_itself_and_dropped_ones_have_rows_of_the_journal(
    api: Api, ledger: Ledger, loop: Loop
) -> None:
    lost = Truncation(count=4, last_sequence=4, time="2026-11-22T10:00:00Z")
    about = {"rollout": "", "rollout_uid": "", "policy": "good"}
    api.decided(entry(5, "FallBack", **about), entry(6, "Restore", **about), truncated=lost)
    loop.once()
    loop.once()
    uid = api.journal.metadata.uid
    assert rows(ledger) == [("DecisionsLost", uid, 4), ("FallBack", uid, 5), ("Restore", uid, 6)]
    first = next(iter(ledger.entries(SUBJECT)))
    assert payload_of(first) == {
        "afterSequence": 0, "count": 4, "lastSequence": 4, "time": "2026-11-22T10:00:00Z",
    }  # fmt: skip


def test_a_ledger_that_is_away_moves_no_cursor_and_loses_nothing(
    api: Api, ledger: Ledger, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.decided(entry(1, "Start"))
    with monkeypatch.context() as patch:

        def away(*_: Any) -> int:
            raise Unavailable("ledger: away")

        patch.setattr(ledger, "append", away)
        loop.once()
    assert api.journal.status.cursor == 0 and rows(ledger) == []
    loop.once()
    assert api.journal.status.cursor == 1 and len(rows(ledger)) == 1


def test_a_journal_that_cannot_be_copied_stops_no_other(
    api: Api, ledger: Ledger, loop: Loop
) -> None:
    metadata = {"name": "a.broken", "namespace": names.RELEASE_NAMESPACE}
    broken = PolicyJournalSpec(
        namespace="a", model="broken", sequence=1, decisions=[entry(1, "Start")]
    )
    api.create(PolicyJournal, metadata, broken)
    append = ledger.append
    ledger.append = lambda events: (  # type: ignore[method-assign]
        append(events) if events[0].subject == SUBJECT else 1 // 0
    )
    api.decided(entry(1, "Start"))
    loop.once()
    assert rows(ledger) == [("Start", "uid-ramp", 1)]
