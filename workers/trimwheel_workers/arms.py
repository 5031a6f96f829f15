"""Arms: the policies in force as one immutable snapshot, and which of them serves a request.

The front builds a snapshot from an assignment and sends it to the engine, which swaps one pointer
between batches. Everything a batch needs (thresholds as numbers, the compute key) is worked out
here, once, so that a swap does no work on the request path. Pure; no torch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from trimwheel_api import names
from trimwheel_api.cohorts import COHORTS
from trimwheel_api.kinds.policy_assignment import AssignedPolicy
from trimwheel_api.policy import Policy, parse_canonical, parse_policy

RESIDENT_POLICIES = 5
"""Stable, candidate and the last three: a rollback to one of them parses nothing."""


class ComputeKey(NamedTuple):
    """Batch knobs: what has to be equal for two requests to share a forward pass."""

    top_k: int
    router_blend: float
    score: str


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the engine says of the model that it loaded."""

    digest: str
    score_digest: str
    layers: int
    exits: tuple[int, ...]
    experts: int
    moe_layer: int
    default_top_k: int
    classes: tuple[str, ...]
    device: str = "cpu"
    dtype: str = "float32"
    """Of weights and activations, as it was chosen."""
    characters: int = 65_536
    """How much of a text the model can read at most."""
    kernels: str = ""
    """Which ways were measured to be the fastest, for people."""

    @property
    def dense_key(self) -> ComputeKey:
        """Compute key of the reference run."""
        return ComputeKey(self.default_top_k, 0.0, "learned")

    def to_wire(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> ModelShape:
        """Inverse of `to_wire`."""
        return cls(**body | {"exits": tuple(body["exits"]), "classes": tuple(body["classes"])})


@dataclass(frozen=True, slots=True)
class ResidentPolicy:
    """A policy ready to serve: numbers instead of a document."""

    digest: str
    thresholds: tuple[float, ...]  # as `trimwheel_api.decide.as_compared` gives them
    depth_cap: int  # index of the latest exit to answer at; the number of exits means no cap
    compute: ComputeKey

    def to_wire(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"compute": list(self.compute)}

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> ResidentPolicy:
        """Inverse of `to_wire`."""
        return cls(
            body["digest"],
            tuple(body["thresholds"]),
            body["depth_cap"],
            ComputeKey(*body["compute"]),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is served from one moment to the next; never changed, only replaced."""

    version: int
    """Of this process: grows with every swap, also where the epoch does not (a lease ran out)."""
    epoch: int
    salt: str
    weight: int
    """Cohorts below this are the candidate's; 0 on hold, without a lease, and after a trip."""
    audit_rate: float
    stable: ResidentPolicy
    candidate: ResidentPolicy | None

    def arm(self, cohort: int) -> str:
        """Name of the arm that serves a cohort."""
        on_candidate = cohort < self.weight and self.candidate is not None
        return names.ARM_CANDIDATE if on_candidate else names.ARM_STABLE

    def policy(self, cohort: int) -> ResidentPolicy:
        """Policy that serves a cohort; `COHORTS` is always stable's."""
        if cohort < self.weight and self.candidate is not None:
            return self.candidate
        return self.stable

    def on_stable(self, version: int) -> Snapshot:
        """The same with nobody on the candidate, which stays resident and is still audited."""
        return replace(self, version=version, weight=0)

    def to_wire(self) -> dict[str, Any]:
        """JSON values."""
        candidate = self.candidate.to_wire() if self.candidate else None
        return asdict(self) | {"stable": self.stable.to_wire(), "candidate": candidate}

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> Snapshot:
        """Inverse of `to_wire`."""
        policies = {
            "stable": ResidentPolicy.from_wire(body["stable"]),
            "candidate": body["candidate"] and ResidentPolicy.from_wire(body["candidate"]),
        }
        return cls(**body | policies)


STABLE_ONLY = COHORTS
"""A cohort that no weight reaches: requests hashed under another rollout's salt get it."""


def resident(policy: Policy, shape: ModelShape) -> ResidentPolicy:
    """A policy as numbers for this model. Raises PolicyInvalid where it does not fit."""
    checked = parse_policy(policy.document(), exits=len(shape.exits), experts=shape.experts)
    exits = len(shape.exits)
    cap = checked.exit.max_depth
    return ResidentPolicy(
        digest=checked.digest,
        thresholds=checked.thresholds(exits),
        depth_cap=exits if cap is None or not checked.exit.enabled else min(cap, exits),
        compute=ComputeKey(
            checked.moe.top_k or shape.default_top_k,
            float(checked.moe.router_blend),
            checked.exit.score if checked.exit.enabled else "learned",
        ),
    )


class Residents:
    """The last few policies of a model, ready to serve, by digest."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._policies: OrderedDict[str, ResidentPolicy] = OrderedDict()

    def load(self, assigned: AssignedPolicy) -> ResidentPolicy:
        """The assigned policy, parsed unless resident. Raises PolicyInvalid."""
        known = self._policies.get(assigned.digest)
        if known is None:
            document = parse_canonical(assigned.document, assigned.digest)
            known = resident(document, self._shape)
        self._policies[known.digest] = known
        self._policies.move_to_end(known.digest)
        while len(self._policies) > RESIDENT_POLICIES:
            self._policies.popitem(last=False)
        return known

    def digests(self) -> tuple[str, ...]:
        """Resident digests, the latest used last."""
        return tuple(self._policies)
