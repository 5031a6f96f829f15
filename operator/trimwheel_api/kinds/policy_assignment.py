"""PolicyAssignment: what the workers of one model run; internal, written by the operator alone.

It is the durable record of a rollout: statuses mirror it. `epoch` grows with every change and
`renewals` while nothing else changes, so a worker can tell news from a heartbeat.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trimwheel_api.kinds.common import Resource, Spec, Status, ruled
from trimwheel_api.policy import MAX_DOCUMENT_BYTES
from trimwheel_api.values import AtMost, Digest, Fraction

MOST_WRITES = 2**53
"""No JSON reader loses a count below it."""

_MONOTONE = (
    "self.epoch > oldSelf.epoch || (self.epoch == oldSelf.epoch && "
    "self.renewals >= oldSelf.renewals && self.stable.digest == oldSelf.stable.digest && "
    "has(self.candidate) == has(oldSelf.candidate) && "
    "(!has(self.candidate) || self.candidate.digest == oldSelf.candidate.digest) && "
    "self.weightBasisPoints == oldSelf.weightBasisPoints && self.salt == oldSelf.salt && "
    "self.auditRate == oldSelf.auditRate && self.leaseSeconds == oldSelf.leaseSeconds && "
    "self.hold == oldSelf.hold)"
)


class AssignedPolicy(Spec):
    """A policy by digest, with its canonical document."""

    digest: Digest = Field(description="Workers recompute it and refuse another document.")
    document: str = Field(default="{}", description="RFC 8785 JSON.", max_length=MAX_DOCUMENT_BYTES)


class PolicyAssignmentSpec(Spec):
    """What every worker of the model does."""

    model_config = ruled(
        {
            "rule": _MONOTONE,
            "message": "epoch must grow when anything but renewals changes, and renewals "
            "never shrink within an epoch",
        },
        {
            "rule": "self.weightBasisPoints == 0 || has(self.candidate)",
            "message": "weightBasisPoints must be 0 without a candidate",
        },
    )
    epoch: Annotated[int, AtMost(MOST_WRITES)] = Field(description="Grows with every change.", ge=1)
    renewals: Annotated[int, AtMost(MOST_WRITES)] = Field(
        default=0, description="Grows while the operator lives.", ge=0
    )
    stable: AssignedPolicy = Field(description="Served outside the candidate's cohorts.")
    candidate: AssignedPolicy | None = Field(
        default=None, description="Resident beside stable; evaluated in audits even at weight 0."
    )
    weight_basis_points: int = Field(
        default=0, description="Cohorts below this are the candidate's.", ge=0, le=10000
    )
    salt: str = Field(default="", description="Keys the cohort hash.", max_length=64)
    audit_rate: Fraction = Field(default="0.02", description="Share of requests audited.")
    lease_seconds: int = Field(
        default=30, description="Serve stable after this long without news.", ge=3, le=3600
    )
    hold: bool = Field(default=False, description="A person stopped everything.")
    decided_at: str = Field(default="", description="When the operator decided.", max_length=40)
    rollout: str = Field(default="", description="PolicyRollout behind it.", max_length=253)


class PolicyAssignmentStatus(Status):
    """Nothing: acknowledgements are Leases."""


class PolicyAssignment(Resource[PolicyAssignmentSpec, PolicyAssignmentStatus]):
    """What every worker of one model runs; internal, written by the operator alone."""

    kind: str = "PolicyAssignment"
    status: PolicyAssignmentStatus = Field(default_factory=PolicyAssignmentStatus)
