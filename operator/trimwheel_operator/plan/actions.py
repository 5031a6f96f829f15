"""What a plan may ask for: the closed set of effects, as data.

Made by the stories, carried out by `apply`, compared by tests. `Plan.actions` is in order, and an
action that meets a conflict ends the pass: the rest was decided on a world that has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimwheel_api.kinds.policy_rollout import GuardStatus

Json = dict[str, Any]
Place = tuple[str, str]
"""(kind, name) of a worker object."""


@dataclass(frozen=True, slots=True)
class Ensure:
    """Make a worker object like this manifest (server-side apply)."""

    manifest: Json

    @property
    def place(self) -> Place:
        """Which object this is."""
        return self.manifest["kind"], self.manifest["metadata"]["name"]


@dataclass(frozen=True, slots=True)
class WriteAssignment:
    """Create (no resourceVersion) or change the assignment that was observed."""

    namespace: str
    name: str
    spec: Json
    uid: str = ""
    resource_version: str = ""
    owner: Json | None = None


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """Merge a patch into the status of the object that was observed."""

    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str
    patch: Json


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Create (no resourceVersion) or change the model's journal as it was observed."""

    namespace: str
    name: str
    spec: Json
    uid: str = ""
    resource_version: str = ""
    required: bool = True
    """Nothing else of the pass may happen without it; else the API server's no is only logged."""


@dataclass(frozen=True, slots=True)
class DeleteJournal:
    """Delete a journal that holds nothing any more."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class CreateJob:
    """Create a TuningRun Job; one of the same name is that very Job."""

    manifest: Json


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete a Job whose TuningRun is gone."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class PostEvent:
    """Tell people; `key` names it, so that saying it twice makes one Event."""

    kind: str
    namespace: str
    name: str
    uid: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str


Action = (
    Ensure
    | WriteAssignment
    | WriteJournal
    | DeleteJournal
    | PatchStatus
    | CreateJob
    | DeleteJob
    | PostEvent
)


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that this pass made, for the metrics."""

    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class RuleFailure:
    """A rule that raised in this pass; the others ran."""

    rule: str
    about: str
    """The rollout it was asked about; empty for a rule about the model."""
    error: Exception

    def sentence(self) -> str:
        """For a condition."""
        return f"rule {self.rule} raised {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True, slots=True)
class Report:
    """What the metrics show of one model after a plan."""

    degraded: bool = False
    weight: int = 0
    guards: tuple[GuardStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and when to look again though nothing happens."""

    actions: tuple[Action, ...] = ()
    next_look: float = 30.0
    decided: tuple[Decided, ...] = ()
    actuations: tuple[float, ...] = ()
    """Seconds from decision to last acknowledgement, of rollbacks found complete now."""
    report: Report = Report()
    failures: tuple[RuleFailure, ...] = ()


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Json:
    """The RFC 7386 patch that turns `before` into `after`; {} when they are alike."""
    patch: Json = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch
