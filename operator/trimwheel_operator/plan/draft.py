"""The next state of one model while a plan is being made: journal, assignment, statuses, Events.

The stories change a draft; `effects` turns its difference to what was observed into actions. The
journal comes first among the writes, so that no decision takes effect without being in it; then
the assignment, the durable record that statuses mirror. After a crash in between the next pass
finds the decision in the journal, and takes it again or withdraws it. A draft lives within one call
of `plan`; from outside that is a pure function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal

from trimwheel_api import names
from trimwheel_api.conditions import State, with_condition
from trimwheel_api.kinds import PolicyRollout, dump
from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus
from trimwheel_api.kinds.common import Metadata
from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec
from trimwheel_api.kinds.policy_journal import JournalDecision, PolicyJournalSpec, UnderWay
from trimwheel_api.kinds.policy_rollout import Decision, PolicyRolloutStatus
from trimwheel_api.times import to_micro
from trimwheel_operator.plan import journal as journals
from trimwheel_operator.plan.actions import (
    Action,
    Decided,
    PatchStatus,
    PostEvent,
    RuleFailure,
    WriteAssignment,
    WriteJournal,
    merge_patch,
)
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.plan.phases import age
from trimwheel_operator.plan.remembered import Remembered

MAX_DECISIONS = 64
Checkpoint = tuple[
    AdaptiveModelStatus,
    dict[str, PolicyRolloutStatus],
    PolicyAssignmentSpec | None,
    PolicyJournalSpec,
    tuple[int, int, int],
]
_WARNINGS = frozenset({names.Action.ROLL_BACK, names.Action.REFUSE, names.Action.HOLD})
_EXPOSES = frozenset(
    {names.Action.START, names.Action.ADVANCE, names.Action.PROMOTE, names.Action.RESUME}
)
"""What may not take effect unless the journal has it; what ends a canary goes on regardless."""


@dataclass(slots=True)
class Draft:
    """What a plan is making of an observed state."""

    state: ObservedState
    now: datetime
    model: AdaptiveModelStatus
    rollouts: dict[str, PolicyRolloutStatus]
    assignment: PolicyAssignmentSpec | None
    journal: PolicyJournalSpec
    events: list[PostEvent] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    actuations: list[float] = field(default_factory=list)
    """Seconds of the rollbacks that were found complete in this pass."""
    failures: list[RuleFailure] = field(default_factory=list)

    @classmethod
    def of(cls, state: ObservedState, now: datetime) -> Draft:
        """A draft that changes nothing."""
        return cls(
            state=state,
            now=now,
            model=state.model.status if state.model else AdaptiveModelStatus(),
            rollouts={one.name: one.status for one in state.rollouts},
            assignment=state.assignment.spec if state.assignment else None,
            journal=_journal(state, now),
            failures=list(state.failures),
        )

    def checkpoint(self) -> Checkpoint:
        """What `restore` goes back to; statuses and specs are values, lists only grow."""
        lengths = (len(self.events), len(self.decided), len(self.actuations))
        return self.model, dict(self.rollouts), self.assignment, self.journal, lengths

    def restore(self, checkpoint: Checkpoint) -> None:
        """Forget what was drafted since a checkpoint."""
        self.model, self.rollouts, self.assignment, self.journal, lengths = checkpoint
        events, decided, actuations = lengths
        del self.events[events:], self.decided[decided:], self.actuations[actuations:]

    def failed(self, rollout: PolicyRollout) -> bool:
        """Whether a rule about this rollout, or about all of them, raised in this pass."""
        return any(one.about in ("", rollout.name) for one in self.failures)

    @property
    def remembered(self) -> Remembered:
        """What counts of the model's past, as drafted so far."""
        return Remembered(self.model, self.journal, self.state.notes_since is None)

    def status(self, rollout: PolicyRollout) -> PolicyRolloutStatus:
        """The rollout's status as drafted so far."""
        return self.rollouts[rollout.name]

    def update(self, rollout: PolicyRollout, **changes: Any) -> None:
        """Change fields of a rollout's status."""
        self.rollouts[rollout.name] = self.status(rollout).model_copy(update=changes)

    def condition(
        self,
        rollout: PolicyRollout,
        kind: str,
        state: State | bool,
        reason: str,
        message: str = "",
    ) -> None:
        """Set one condition of a rollout."""
        status = self.status(rollout)
        generation = rollout.metadata.generation
        conditions = with_condition(
            status.conditions, kind, state, reason, message, now=self.now, generation=generation
        )
        self.update(rollout, conditions=conditions, observed_generation=generation)

    def update_model(self, **changes: Any) -> None:
        """Change fields of the model's status."""
        self.model = self.model.model_copy(update=changes)

    def model_condition(self, kind: str, state: State | bool, reason: str, message: str) -> None:
        """Set one condition of the model; an Event tells of a flip to or from trouble."""
        model = self.state.model
        if model is None:
            return
        was = self.model.condition(kind)
        conditions = with_condition(
            self.model.conditions,
            kind,
            state,
            reason,
            message,
            now=self.now,
            generation=model.metadata.generation,
        )
        self.update_model(conditions=conditions)
        after = self.model.condition(kind)
        troubles = (names.DEGRADED, names.DRIFTED, names.STALLED)
        if kind in troubles and after and (was.status if was else "False") != after.status:
            bad = after.status == "True"
            self.tell(model.kind, model.metadata, reason, message, "Warning" if bad else "Normal")

    def assign(self, **changes: Any) -> None:
        """Change the assignment; the epoch grows once a pass, and only when something differs."""
        if self.assignment is None:
            raise RuntimeError("assign: there is no assignment yet")
        wanted = self.assignment.model_copy(update=changes)
        if wanted == self.assignment:
            return
        observed = self.state.assignment
        epoch = observed.spec.epoch + 1 if observed else self.assignment.epoch
        self.assignment = wanted.model_copy(
            update={"epoch": epoch, "renewals": 0, "decided_at": to_micro(self.now)}
        )

    def renew(self) -> None:
        """Tell the workers that the operator lives, unless this pass says more anyway."""
        observed = self.state.assignment
        if observed and self.assignment == observed.spec:
            self.assignment = observed.spec.model_copy(
                update={"renewals": observed.spec.renewals + 1}
            )

    def decide(
        self, rollout: PolicyRollout, action: str, reason: str, message: str, actor: str = ""
    ) -> None:
        """Record a decision of this pass: in journal and status, in an Event, for the metrics.

        One that the journal has already, from a look that a crash cut off, is taken up as it is.
        """
        pending = self.unfulfilled(rollout)
        if pending and action not in (pending[0].action, names.Action.WITHDRAW):
            self.withdraw(rollout)
            pending = self.unfulfilled(rollout)
        known = next((one for one in pending if one.action == action), None)
        if known is not None:
            decision = Decision.model_validate(known.model_dump())
        else:
            decision = self._journaled(rollout, action, reason, message, actor)
        before = self.status(rollout).decisions
        self.update(rollout, decisions=[*before, decision][-MAX_DECISIONS:])
        self.decided.append(Decided(action, reason))
        if self.journal.under_way and self.journal.under_way.uid == rollout.metadata.uid:
            under_way = self.journal.under_way.model_copy(update={"seq": decision.seq})
            self.journal = self.journal.model_copy(update={"under_way": under_way})
        text = f"{action}: {decision.message}" if decision.message else action
        kind: Literal["Normal", "Warning"] = "Warning" if action in _WARNINGS else "Normal"
        self.tell(rollout.kind, rollout.metadata, reason, text, kind, f"decision-{decision.seq}")

    def begin(self, rollout: PolicyRollout) -> None:
        """Remember the canary that workers have resident: it may be deleted in mid-flight."""
        spec = rollout.spec
        under_way = UnderWay(
            rollout=rollout.name,
            uid=rollout.metadata.uid,
            policy=spec.policy,
            policy_digest=spec.policy_digest,
            requested_by=spec.requested_by,
            on_behalf_of=spec.on_behalf_of or "",
            seq=_last(rollout),
        )
        self.journal = self.journal.model_copy(update={"under_way": under_way})

    def end(self, rollout: PolicyRollout) -> None:
        """It is under way no more."""
        known = self.journal.under_way
        if known is not None and known.uid == rollout.metadata.uid:
            self.journal = self.journal.model_copy(update={"under_way": None})

    def close(self, known: UnderWay | None, rollout: str, reason: str, message: str) -> None:
        """Record that a canary ended whose rollout is gone, so that no status can say it."""
        decision = Decision(
            seq=known.seq + 1 if known else 0,
            time=to_micro(self.now),
            action=names.Action.ABORT,
            reason=reason,
            message=message,
        )
        about = {"rollout": rollout}
        if known is not None:
            about |= {
                "rollout_uid": known.uid,
                "type": "Canary",
                "policy": known.policy,
                "policy_digest": known.policy_digest,
                "requested_by": known.requested_by,
                "on_behalf_of": known.on_behalf_of,
            }
        self.record(decision, **about)
        self.journal = self.journal.model_copy(update={"under_way": None})

    def fullness(self) -> str:
        """Why nothing new may be exposed; empty while the journal has room."""
        observed = self.state.journal
        if self.state.cannot_read("PolicyJournal"):
            return "the model's PolicyJournal was written by another version and cannot be read"
        return journals.fullness(self.journal, observed.status.cursor if observed else 0)

    def unfulfilled(self, rollout: PolicyRollout) -> list[JournalDecision]:
        """Decisions in the journal that the status does not show: a crash came in between."""
        before = self.status(rollout).decisions
        after = before[-1].seq if before else 0
        return journals.unfulfilled(self.journal, rollout.metadata.uid, after)

    def withdraw(self, rollout: PolicyRollout) -> None:
        """Say of journaled decisions that they never took effect."""
        pending = self.unfulfilled(rollout)
        said = ", ".join(f"{one.seq} ({one.action})" for one in pending)
        message = f"decision {said} was not carried out: the operator stopped before, and the next "
        self.decide(
            rollout, names.Action.WITHDRAW, names.Reason.NOT_CARRIED_OUT, message + "look differs"
        )

    def _journaled(
        self, rollout: PolicyRollout, action: str, reason: str, message: str, actor: str
    ) -> Decision:
        """A new decision, in the journal as well."""
        status, spec = self.status(rollout), rollout.spec
        known = [one.seq for one in (*status.decisions, *self.unfulfilled(rollout))]
        decision = Decision(
            seq=max(known, default=0) + 1,
            time=to_micro(self.now),
            action=action,
            reason=reason,
            message=message,
            weight_basis_points=status.weight_basis_points,
            actor=actor,
            guards=status.guards,
        )
        self.record(
            decision,
            rollout=rollout.name,
            rollout_uid=rollout.metadata.uid,
            type=spec.type,
            policy=spec.policy,
            policy_digest=spec.policy_digest,
            requested_by=spec.requested_by,
            on_behalf_of=spec.on_behalf_of or "",
        )
        return decision

    def record(self, decision: Decision, **about: str) -> None:
        """Put a decision into the journal; without a rollout it is about the model itself."""
        entry = JournalDecision(sequence=1, **decision.model_dump(), **about)
        self.journal = journals.append(self.journal, entry)

    def tell(
        self,
        kind: str,
        metadata: Metadata,
        reason: str,
        message: str,
        type: Literal["Normal", "Warning"] = "Normal",
        key: str = "",
    ) -> None:
        """Post an Event about an object."""
        self.events.append(
            PostEvent(
                kind=kind,
                namespace=metadata.namespace,
                name=metadata.name,
                uid=metadata.uid,
                type=type,
                reason=reason,
                message=message,
                key=key or f"{reason.lower()}-{int(self.now.timestamp())}",
            )
        )

    def effects(self) -> list[Action]:
        """The writes: journal, assignment, then statuses, oldest rollout first.

        So whoever sees that a Rollback is Ready sees that what it ended is RolledBack.
        """
        assignment = self._assignment_write()
        found: list[Action] = [*self._journal_write(bool(assignment)), *assignment]
        model = self.state.model
        if model is not None:
            found += status_patch(model.kind, model.metadata, model.status, self.model)
        for rollout in sorted(self.state.rollouts, key=age):
            found += status_patch(
                rollout.kind, rollout.metadata, rollout.status, self.status(rollout)
            )
        return found

    def take_events(self) -> list[PostEvent]:
        """The Events since the last call: they follow the writes that they tell of."""
        taken, self.events = self.events, []
        return taken

    def _journal_write(self, assigns: bool) -> list[Action]:
        """The journal as of this pass, without what the ledger has."""
        state, observed = self.state, self.state.journal
        if state.cannot_read("PolicyJournal"):
            return []
        before = (
            observed.spec
            if observed
            else journals.imported(state.namespace, state.name, None, self.now)
        )
        after, cursor = self.journal, observed.status.cursor if observed else 0
        if assigns and self.assignment is not None:
            after = journals.stamped(after, before.sequence, self.assignment.epoch)
        shown = {one.metadata.uid: _last(one) for one in state.rollouts}
        after = journals.pruned(after, cursor, shown, always=after != before)
        if after == before:
            return []
        fresh = [one for one in after.decisions if one.sequence > before.sequence]
        return [
            WriteJournal(
                namespace=state.settings.release_namespace,
                name=names.journal_name(state.namespace, state.name),
                spec=merge_patch(dump(before), dump(after)) if observed else dump(after),
                uid=observed.metadata.uid if observed else "",
                resource_version=observed.metadata.resource_version if observed else "",
                required=any(one.action in _EXPOSES for one in fresh),
            )
        ]

    def _assignment_write(self) -> list[Action]:
        observed, model = self.state.assignment, self.state.model
        if self.assignment is None or (model is None and observed is None):
            return []
        if observed is None and model is not None:
            return [
                WriteAssignment(
                    namespace=self.state.namespace,
                    name=self.state.name,
                    spec=dump(self.assignment),
                    owner=owner_reference(model.kind, model.metadata),
                )
            ]
        if observed is None or self.assignment == observed.spec:
            return []
        patch = merge_patch(dump(observed.spec), dump(self.assignment))
        return [
            WriteAssignment(
                namespace=self.state.namespace,
                name=self.state.name,
                spec=patch,
                uid=observed.metadata.uid,
                resource_version=observed.metadata.resource_version,
            )
        ]


def status_patch(kind: str, metadata: Metadata, before: Any, after: Any) -> list[Action]:
    """The patch that turns one status into another; nothing when they are alike."""
    patch = merge_patch(dump(before), dump(after))
    if not patch:
        return []
    return [
        PatchStatus(
            kind=kind,
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            resource_version=metadata.resource_version,
            patch=patch,
        )
    ]


def event_key(what: str, message: str) -> str:
    """Key of an Event that is told once for each thing that it may say."""
    return f"{what}-{blake2b(message.encode(), digest_size=8).hexdigest()}"


def _journal(state: ObservedState, now: datetime) -> PolicyJournalSpec:
    if state.journal is not None:
        return state.journal.spec
    status = state.model.status if state.model else None
    return journals.imported(state.namespace, state.name, status, now)


def _last(rollout: PolicyRollout) -> int:
    """Number of the last decision that a status shows, as it was observed."""
    return rollout.status.decisions[-1].seq if rollout.status.decisions else 0


def owner_reference(kind: str, metadata: Metadata) -> dict[str, Any]:
    """Owner reference to an object of ours: its children go when it goes."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
