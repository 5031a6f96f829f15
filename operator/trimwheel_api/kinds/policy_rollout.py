"""PolicyRollout: one attempt to make a policy stable, or to go back to a former one.

Created by pipelines or a person; only `paused` and `abort` may change afterwards. The operator
freezes the model's rules into `status.effective` at the start and never loosens them in flight.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trimwheel_api.kinds.adaptive_model import RolloutSpec, Step
from trimwheel_api.kinds.common import ConditionedStatus, Resource, Spec, Status, ruled
from trimwheel_api.values import Digest, Fraction, ModelName

FROZEN = ("model", "policy", "policyDigest", "type", "requestedBy", "allowUncertified", "reason")
_OPTIONAL = ("steps", "onBehalfOf")


def _frozen_rules() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [
        {
            "rule": f"self.{field} == oldSelf.{field}",
            "message": f"spec.{field} is immutable: only paused and abort may change",
        }
        for field in FROZEN
    ]
    rules += [
        {
            "rule": f"has(self.{field}) == has(oldSelf.{field}) && "
            f"(!has(self.{field}) || self.{field} == oldSelf.{field})",
            "message": f"spec.{field} is immutable: only paused and abort may change",
        }
        for field in _OPTIONAL
    ]
    rules.append(
        {
            "rule": "!oldSelf.abort || self.abort",
            "message": "spec.abort cannot be taken back: create another rollout",
        }
    )
    return rules


class PolicyRolloutSpec(Spec):
    """Which policy, how, and who asks."""

    model_config = ruled(
        *_frozen_rules(),
        {
            "rule": "self.type != 'Rollback' || !has(self.steps)",
            "message": "spec.steps must be unset for type Rollback, which is immediate",
        },
        {
            "rule": "self.type == 'Rollback' || self.policy != ''",
            "message": "spec.policy must name an AdaptivePolicy for type Canary",
        },
    )
    model: ModelName = Field(description="AdaptiveModel whose policy changes.")
    policy: str = Field(
        default="", description="AdaptivePolicy; may be empty for a Rollback.", max_length=253
    )
    policy_digest: Digest = Field(description="Digest of the policy: names the bytes.")
    type: Literal["Canary", "Rollback"] = Field(
        default="Canary", description="Canary goes through steps; Rollback is immediate."
    )
    requested_by: str = Field(
        description="User who asks; the API server checks it is you.", max_length=512
    )
    on_behalf_of: str | None = Field(
        default=None,
        description="User who asked for the TuningRun that this came from; set by its Job alone, "
        "and as little an approver as requestedBy.",
        max_length=512,
    )
    allow_uncertified: bool = Field(
        default=False, description="Roll out without a certificate; takes verb waive on the model."
    )
    reason: str = Field(default="", description="Why, for the record.", max_length=1024)
    steps: list[Step] | None = Field(
        default=None,
        description="Steps of this rollout; unset takes the model's. Looser than the model's, or "
        "without shadow, only with allowUncertified.",
        min_length=1,
        max_length=20,
    )
    paused: bool = Field(default=False, description="Stop advancing; rollback stays armed.")
    abort: bool = Field(default=False, description="Give up and serve stable.")


class EffectiveRollout(RolloutSpec):
    """The model's rollout rules with the steps that are taken: a shadow may have been put first."""

    steps: list[Step] = Field(description="The steps that are taken.", min_length=1, max_length=21)


class EffectiveRules(Status):
    """The rules of this attempt, frozen at its start."""

    rollout: EffectiveRollout = Field(description="Steps, approval, levels.")
    max_disagreement: Fraction = Field(description="Of the model's objectives.")
    error_budget: Fraction = Field(description="Of the model's objectives.")
    latency_slo: str = Field(description="Of the model's objectives, a duration.")
    latency_budget: Fraction = Field(description="Of the model's objectives.")
    capacity_target: Fraction = Field(description="Of the model's objectives.")
    stable_digest: str = Field(description="What is compared against, and returned to.")
    stable_policy: str = Field(default="", description="AdaptivePolicy of it, empty for dense.")
    salt: str = Field(description="Keys the cohorts of this attempt.")
    certified: bool = Field(description="Whether the candidate's certificate was valid.")
    model_digest: str = Field(default="", description="Model artifact that is served.")
    started_at: str = Field(description="When evidence began to count.")


class GuardStatus(Status):
    """One guard's verdict with its numbers."""

    name: str = Field(description="disagreement, errors, latency, capacity or parity.")
    verdict: Literal["Pass", "Fail", "NotEnoughEvidence"] = Field(
        description="What the evidence says; no data is never Pass."
    )
    value: str = Field(default="", description="Estimate, a decimal string.")
    bound: str = Field(default="", description="Promise, a decimal string.")
    samples: int = Field(default=0, description="Trials behind it.")
    message: str = Field(default="", description="A sentence for a person.")


class Decision(Status):
    """One decision of the operator, copied to the ledger by (uid, seq)."""

    seq: int = Field(description="Counts decisions of this rollout from 1.", ge=0)
    time: str = Field(description="When it was decided (RFC 3339).")
    action: str = Field(description="Start, Advance, Await, Promote, RollBack, Pause, ...")
    reason: str = Field(description="CamelCase reason.")
    message: str = Field(default="", description="A sentence for a person.")
    weight_basis_points: int = Field(default=0, description="Weight after it, 0-10000.")
    actor: str = Field(default="", description="User, where a person decided.")
    guards: list[GuardStatus] = Field(
        default_factory=list, description="The guards' verdicts it was decided on.", max_length=16
    )


class Actuation(Status):
    """How long a decision took to reach the last worker."""

    epoch: int = Field(default=0, description="Of the assignment that carries the decision.")
    decided_at: str = Field(default="", description="When the assignment was written.")
    last_worker_at: str = Field(default="", description="Last acknowledgement.")
    milliseconds: int | None = Field(default=None, description="Between the two.")
    lease_seconds: int = Field(default=0, description="Bound for workers that say nothing.")
    workers: int = Field(default=0, description="Acknowledgements waited for.")
    pending: list[str] = Field(default_factory=list, description="Pods still owed.", max_length=64)


class PolicyRolloutStatus(ConditionedStatus):
    """What the operator reports."""

    phase: str = Field(
        default="",
        description="Queued, Progressing, AwaitingApproval, Promoted, RollingBack, RolledBack or "
        "Stalled: the conditions in one word.",
    )
    effective: EffectiveRules | None = Field(
        default=None, description="The rules of this attempt, frozen at its start."
    )
    weight_basis_points: int = Field(default=0, description="Share of cohorts, 0-10000.")
    step: int = Field(default=0, description="Index of the current step.")
    step_started_at: str = Field(default="", description="When the step began.")
    verdict: Literal["Pass", "Fail", "NotEnoughEvidence"] = Field(
        default="NotEnoughEvidence", description="Over all guards."
    )
    guards: list[GuardStatus] = Field(
        default_factory=list, description="Each guard's verdict with its numbers.", max_length=16
    )
    decisions: list[Decision] = Field(
        default_factory=list, description="What was decided, oldest first.", max_length=64
    )
    actuation: Actuation | None = Field(
        default=None, description="How long the last decision took to reach the last worker."
    )
    finished_at: str = Field(default="", description="When it ended.")


class PolicyRollout(Resource[PolicyRolloutSpec, PolicyRolloutStatus]):
    """One attempt to make a policy stable, or to go back to a former one."""

    kind: str = "PolicyRollout"
    status: PolicyRolloutStatus = Field(default_factory=PolicyRolloutStatus)
