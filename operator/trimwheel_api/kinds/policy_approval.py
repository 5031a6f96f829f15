"""PolicyApproval: one person's decision on one rollout, bound to its uid and the policy's bytes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimwheel_api.kinds.common import Resource, Spec, Status, immutable, ruled
from trimwheel_api.values import Digest, Name


class PolicyApprovalSpec(Spec):
    """Who decides what on which rollout."""

    model_config = ruled(immutable("spec"))
    rollout: Name = Field(description="PolicyRollout that is decided on.")
    rollout_uid: str = Field(description="metadata.uid of that rollout.", max_length=64)
    policy_digest: Digest = Field(description="Digest that the rollout names.")
    decision: Literal["Approve", "Reject"] = Field(description="What is decided.")
    approver: str = Field(
        description="User who decides; the API server checks it is you.", max_length=512
    )
    reason: str = Field(default="", description="Why, for the record.", max_length=1024)


class PolicyApprovalStatus(Status):
    """Nothing: an approval is a fact."""


class PolicyApproval(Resource[PolicyApprovalSpec, PolicyApprovalStatus]):
    """One person's decision on one rollout, bound to its uid and the policy's bytes."""

    kind: str = "PolicyApproval"
    status: PolicyApprovalStatus = Field(default_factory=PolicyApprovalStatus)
