"""TuningRun: one search for a better policy, run as a Job in the release's namespace.

Created by pipelines (drift, schedule, bootstrap) or by hand; its status is written by pipelines.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimwheel_api.kinds.adaptive_model import DriftState, Knob
from trimwheel_api.kinds.adaptive_policy import Certificate
from trimwheel_api.kinds.common import (
    ConditionedStatus,
    Resource,
    Spec,
    immutable,
    ruled,
)
from trimwheel_api.values import ModelName, PositiveDuration, Risk, Share

TuningReason = Literal["Manual", "Bootstrap", "Scheduled", "CovariateDrift", "Harmful"]
ALARM_REASONS = ("CovariateDrift", "Harmful")
"""Reasons that only the pipelines account may give: they speak of evidence."""


class TuningBudget(Spec):
    """What the search may spend; unset fields take the model's."""

    trials: int | None = Field(default=None, description="Optuna trials.", ge=1, le=10000)
    timeout: PositiveDuration | None = Field(default=None, description="Deadline of the Job.")


class TuningRisk(Spec):
    """The promise to certify; unset fields take the model's."""

    epsilon: Risk | None = Field(default=None, description="Largest disagreement.")
    delta: Share | None = Field(default=None, description="1 - confidence.")


class TuningRunSpec(Spec):
    """What is searched, and why."""

    model_config = ruled(immutable("spec"))
    model: ModelName = Field(description="AdaptiveModel to tune.")
    reason: TuningReason = Field(default="Manual", description="Why it runs.")
    requested_by: str | None = Field(
        default=None,
        description="User who asks; the API server checks at creation that it is you, and nobody "
        "approves what they asked for.",
        max_length=512,
    )
    budget: TuningBudget = Field(default_factory=TuningBudget, description="What it may spend.")
    knobs: list[Knob] = Field(
        default_factory=list, description="What may change; empty takes the model's.", max_length=16
    )
    risk: TuningRisk = Field(default_factory=TuningRisk, description="The promise to certify.")
    seed: int = Field(default=0, description="Of the search.", ge=0, le=2**31 - 1)
    rollout: bool = Field(default=True, description="Create a PolicyRollout on success.")


class TuningRunStatus(ConditionedStatus):
    """What pipelines report."""

    outcome: str = Field(
        default="",
        description="Certified, NothingCertified, NoImprovement, Superseded (harm started a newer "
        "run), Stopped (the model was deleted) or Failed; empty while running.",
    )
    phase: str = Field(
        default="", description="Collecting, Searching, Certifying, Registering or Finished."
    )
    executor: str = Field(default="", description="Where trials run: ray or serial.")
    trials_done: int = Field(default=0, description="Optuna trials told.")
    model_run_trials: int = Field(
        default=0, description="Trials that ran the model; the others replayed records alone."
    )
    search_records: int = Field(default=0, description="Audits the search used.")
    certify_records: int = Field(default=0, description="Fresh audits collected so far.")
    certify_needed: int = Field(default=0, description="Fresh audits of the next look.")
    best_cost: str = Field(default="", description="Compute fraction of full depth.")
    best_risk: str = Field(default="", description="Estimated disagreement on search data.")
    dense_cost: str = Field(default="", description="Compute fraction of the incumbent.")
    mlflow_url: str = Field(default="", description="Page of the parent run.")
    mlflow_run_id: str = Field(default="", description="Parent run.")
    policy: str = Field(default="", description="AdaptivePolicy that was created.")
    policy_digest: str = Field(default="", description="Its digest.")
    rollout: str = Field(default="", description="PolicyRollout that was created.")
    certificate: Certificate | None = Field(default=None, description="What was certified.")
    drift: DriftState | None = Field(default=None, description="Alarm that started the run.")
    started_at: str = Field(default="", description="When the Job began (RFC 3339).")
    finished_at: str = Field(default="", description="When it ended (RFC 3339).")


class TuningRun(Resource[TuningRunSpec, TuningRunStatus]):
    """One search for a better policy, run as a Job in the release's namespace."""

    kind: str = "TuningRun"
    status: TuningRunStatus = Field(default_factory=TuningRunStatus)
