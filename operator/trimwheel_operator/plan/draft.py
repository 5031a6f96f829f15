"""The next state of one model while a plan is being made: statuses, assignment, Events.

The stories change a draft; `effects` turns its difference to what was observed into actions. The
assignment comes first among the writes: it is the durable record, statuses mirror it. A draft
lives within one call of `plan`; from outside that is a pure function.
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
from trimwheel_api.kinds.policy_rollout import Decision, PolicyRolloutStatus
from trimwheel_api.times import to_micro
from trimwheel_operator.plan.actions import (
    Action,
    Decided,
    PatchStatus,
    PostEvent,
    RuleFailure,
    WriteAssignment,
    merge_patch,
)
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.plan.phases import age

MAX_DECISIONS = 64
Checkpoint = tuple[
    AdaptiveModelStatus,
    dict[str, PolicyRolloutStatus],
    PolicyAssignmentSpec | None,
    tuple[int, int, int],
]
_WARNINGS = frozenset({names.Action.ROLL_BACK, names.Action.REFUSE, names.Action.HOLD})


@dataclass(slots=True)
class Draft:
    """What a plan is making of an observed state."""

    state: ObservedState
    now: datetime
    model: AdaptiveModelStatus
    rollouts: dict[str, PolicyRolloutStatus]
    assignment: PolicyAssignmentSpec | None
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
            failures=list(state.failures),
        )

    def checkpoint(self) -> Checkpoint:
        """What `restore` goes back to; statuses and specs are values, lists only grow."""
        lengths = (len(self.events), len(self.decided), len(self.actuations))
        return self.model, dict(self.rollouts), self.assignment, lengths

    def restore(self, checkpoint: Checkpoint) -> None:
        """Forget what was drafted since a checkpoint."""
        self.model, self.rollouts, self.assignment, lengths = checkpoint
        events, decided, actuations = lengths
        del self.events[events:], self.decided[decided:], self.actuations[actuations:]

    def failed(self, rollout: PolicyRollout) -> bool:
        """Whether a rule about this rollout, or about all of them, raised in this pass."""
        return any(one.about in ("", rollout.name) for one in self.failures)

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
        """Record a decision of this pass: in the status, in an Event, for the metrics."""
        before = self.status(rollout).decisions
        decision = Decision(
            seq=before[-1].seq + 1 if before else 1,
            time=to_micro(self.now),
            action=action,
            reason=reason,
            message=message,
            weight_basis_points=self.status(rollout).weight_basis_points,
            actor=actor,
            guards=self.status(rollout).guards,
        )
        self.update(rollout, decisions=[*before, decision][-MAX_DECISIONS:])
        self.decided.append(Decided(action, reason))
        text = f"{action}: {message}" if message else action
        kind: Literal["Normal", "Warning"] = "Warning" if action in _WARNINGS else "Normal"
        self.tell(rollout.kind, rollout.metadata, reason, text, kind, f"decision-{decision.seq}")

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
        """The writes: assignment, then statuses, oldest rollout first.

        So whoever sees that a Rollback is Ready sees that what it ended is RolledBack.
        """
        found: list[Action] = [*self._assignment_write()]
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

    def _assignment_write(self) -> list[Action]:
        observed, model = self.state.assignment, self.state.model
        if self.assignment is None or model is None:
            return []
        if observed is None:
            return [
                WriteAssignment(
                    namespace=self.state.namespace,
                    name=self.state.name,
                    spec=dump(self.assignment),
                    owner=owner_reference(model.kind, model.metadata),
                )
            ]
        if self.assignment == observed.spec:
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
