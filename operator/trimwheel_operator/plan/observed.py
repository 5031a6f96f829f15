"""Everything a plan may look at, frozen: the objects of one model, its workers, its evidence.

Built by `gather` (or by a test), read by the stories of the plan. Nothing here calls anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from trimwheel_api.kinds import (
    AdaptiveModel,
    AdaptivePolicy,
    PolicyApproval,
    PolicyAssignment,
    PolicyJournal,
    PolicyRollout,
    TuningRun,
)
from trimwheel_api.kinds.policy_rollout import GuardStatus
from trimwheel_operator.plan.actions import RuleFailure
from trimwheel_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Pod:
    """A worker pod that may be serving: Running, and Ready or already acknowledging."""

    name: str
    uid: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A worker's Lease: the newest epoch it applied, and when it said so."""

    pod: str
    epoch: int
    at: datetime
    refused: str = ""
    """Why this worker cannot serve what it was told to."""
    tripped: str = ""
    """Why it left the candidate by itself."""


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """The part of a Deployment's status that readiness follows from."""

    generation: int = 0
    observed_generation: int = 0
    replicas: int = 0
    updated: int = 0
    ready: int = 0

    def applied(self, wanted: int) -> bool:
        """Whether its newest template runs in every replica and in nothing else."""
        return (
            self.observed_generation >= self.generation
            and self.updated >= wanted
            and self.replicas == self.updated
        )


@dataclass(frozen=True, slots=True)
class Cause:
    """Why pods do not start."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Children:
    """Objects that the operator made for the model."""

    hashes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(kind, name) -> hash of the manifest it was last made from; absent objects are absent."""
    deployment: DeploymentState = DeploymentState()
    cause: Cause | None = None
    """What keeps the workers from starting."""
    cluster_ip: str = ""
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(kind, name) -> what the API server said when it last refused this object."""
    taken: frozenset[tuple[str, str]] = frozenset()
    """(kind, name) of objects that somebody else made under the names of ours."""
    check: bool = False
    """It is time to apply every manifest again, whatever the hashes say: somebody may have
    edited an object by hand."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What Prometheus says of the active rollout, judged."""

    rollout_uid: str
    guards: tuple[GuardStatus, ...]
    step_requests: int | None
    """Requests that the candidate answered on the step; None when nobody knows."""
    step_started_at: str
    """Begin of the step that `step_requests` speaks of, as in the rollout's status."""


@dataclass(frozen=True, slots=True)
class AdmissionCheck:
    """Result of the newest self-test: whether each policy refused a forgery, in its own name."""

    armed: bool | None
    """None while it has not run."""
    message: str = ""
    armed_since: datetime | None = None
    """What is older than the policies as they are was checked by others, or by nobody."""


UNCHECKED = AdmissionCheck(None, "the admission self-test has not run yet")


@dataclass(frozen=True, slots=True)
class TuningJob:
    """A Job of a TuningRun."""

    name: str
    uid: str
    run_uid: str
    finished: bool = False
    failed: bool = False
    message: str = ""
    cause: Cause | None = None
    """What keeps its pod from starting."""
    model_uid: str = ""
    """The model that it was made for; Jobs of earlier versions do not say."""
    created: str = ""
    has_pod: bool = True


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An object that another version of its kind may have written."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ObservedState:
    """One model and all that belongs to it, as read at one moment."""

    namespace: str
    name: str
    settings: Settings
    model: AdaptiveModel | None = None
    assignment: PolicyAssignment | None = None
    journal: PolicyJournal | None = None
    """What is remembered of the model; None before anything was."""
    notes_since: datetime | None = None
    """Since when certificates and requests are noted; None: not yet, so all are believed."""
    held_since: datetime | None = None
    """When a person set hold on the assignment."""
    last_renewal: datetime | None = None
    """When this process last wrote the assignment; None after a restart: renew at once."""
    policies: tuple[AdaptivePolicy, ...] = ()
    rollouts: tuple[PolicyRollout, ...] = ()
    approvals: tuple[PolicyApproval, ...] = ()
    runs: tuple[TuningRun, ...] = ()
    jobs: tuple[TuningJob, ...] = ()
    pods: tuple[Pod, ...] = ()
    acknowledgements: tuple[Acknowledgement, ...] = ()
    children: Children = field(default_factory=Children)
    evidence: Evidence | None = None
    admission: AdmissionCheck = UNCHECKED
    full_depth_load: float | None = None
    """Utilisation that full depth is projected to cause; None when nobody knows, or asked."""
    unreadable: tuple[Unreadable, ...] = ()
    """Objects that do not parse as their kind: they are there, and left alone."""
    failures: tuple[RuleFailure, ...] = ()
    """What raised while evidence was read: none is there then, and the pass goes on."""

    def cannot_read(self, *kinds: str) -> bool:
        """Whether some object of these kinds is there that says nothing we understand."""
        return any(one.kind in kinds for one in self.unreadable)
