"""AdaptivePolicy: an immutable policy document with the evidence that it is safe.

Created by pipelines (with a certificate, which takes verb `certify`) or by hand (without one).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from trimwheel_api.kinds.common import (
    ConditionedStatus,
    Resource,
    Spec,
    Status,
    immutable,
    ruled,
)
from trimwheel_api.values import (
    AtMost,
    Digest,
    Fraction,
    ModelName,
    Moment,
    PositiveNumber,
    Share,
)

_MOST_AUDITS = 10**12


class CertificateClusters(Spec):
    """What clustering was looked for, and what was assumed before any loss was read."""

    sessions: Annotated[int, AtMost(_MOST_AUDITS)] = Field(
        description="Sessions among the audits.", ge=0
    )
    session_keys: Literal["mixed", "one", "unique"] = Field(
        default="mixed",
        description="How clients use the session key: one is the same for everybody, unique is "
        "new for every request (or none), so that it shows no clusters.",
    )
    session_effect: PositiveNumber = Field(
        default="1", description="Design effect if all audits of a session share one loss."
    )
    copies_effect: PositiveNumber = Field(
        default="0",
        description="Added by near-copies of different sessions that come close together.",
    )
    assumed_effect: PositiveNumber = Field(
        default="1", description="Design effect before any loss was read."
    )
    effective: PositiveNumber = Field(
        default="0", description="Independent observations that the audits are worth."
    )


class Certificate(Spec):
    """With confidence 1 - delta the policy disagrees on at most epsilon of this traffic."""

    epsilon: Share = Field(description="Promised share of disagreement.")
    delta: Share = Field(description="Chance that the promise is wrong.")
    n: Annotated[int, AtMost(_MOST_AUDITS)] = Field(description="Audits that were tested.", ge=1)
    errors: Annotated[int, AtMost(_MOST_AUDITS)] | None = Field(
        default=None, description="Disagreements among them; unset where losses are graded.", ge=0
    )
    test: Literal["binomial", "betting"] = Field(
        default="binomial",
        description="binomial for a loss of 0 or 1, betting for one between (exact at any look).",
    )
    loss_sum: PositiveNumber | None = Field(
        default=None, description="Sum of the losses of the tested audits."
    )
    clusters: CertificateClusters | None = Field(
        default=None,
        description="Clustering that was looked for; unset: sessions only, by their errors.",
    )
    design_effect: PositiveNumber = Field(
        default="1",
        description="How many times more the mean loss varies than if audits were independent.",
    )
    missing: Fraction = Field(default="0", description="Share of audits that were lost.")
    p_value: Fraction = Field(description="Of the fixed-sequence test at its last point.")
    window_start: Moment = Field(description="When the tested audits began (RFC 3339).")
    window_end: Moment = Field(description="When they ended (RFC 3339).")
    short: bool = Field(default=False, description="The window is under 24 h: it names itself.")
    population: str = Field(default="", description="Whose traffic this speaks of.", max_length=512)
    policy_digest: Digest = Field(description="Of the policy document.")
    model_digest: Digest = Field(description="Of the model artifact.")
    score_digest: str = Field(default="", description="Of the agreement score.", max_length=71)
    looks: int = Field(default=1, description="Looks taken.", ge=1, le=3)
    finalists: Annotated[int, AtMost(64)] = Field(
        default=1, description="Candidates that shared delta.", ge=1
    )
    issued_at: Moment = Field(description="When it was released (RFC 3339).")
    expires_at: Moment = Field(description="When it ends (RFC 3339).")
    tuning_run: str = Field(default="", description="TuningRun that issued it.", max_length=253)


class MlflowReference(Spec):
    """Where the evidence lies."""

    run_id: str = Field(default="", description="Parent run.", max_length=64)
    experiment: str = Field(default="", description="Experiment name.", max_length=512)
    model_version: str = Field(default="", description="Version of the policy.", max_length=16)


class AdaptivePolicySpec(Spec):
    """The policy and where it comes from."""

    model_config = ruled(immutable("spec"))
    model: ModelName = Field(description="AdaptiveModel that it is for.")
    policy: dict[str, Any] = Field(
        default_factory=dict,
        description="The policy document; {} is the dense model. See the policy reference.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    parent: str = Field(default="", description="Digest it was derived from.", max_length=71)
    model_digest: str = Field(
        default="", description="Model artifact it was made for; empty: any.", max_length=71
    )
    certificate: Certificate | None = Field(
        default=None, description="Evidence; setting it takes verb certify on the model."
    )
    mlflow: MlflowReference | None = Field(default=None, description="Where the evidence lies.")


class ActiveIn(Status):
    """One place where the policy serves."""

    model: str = Field(description="AdaptiveModel.")
    arm: str = Field(description="stable or candidate.")


class AdaptivePolicyStatus(ConditionedStatus):
    """What the operator reports."""

    digest: str = Field(default="", description="Digest of the document.")
    active: list[ActiveIn] = Field(
        default_factory=list, description="Where it serves.", max_length=4
    )


class AdaptivePolicy(Resource[AdaptivePolicySpec, AdaptivePolicyStatus]):
    """An immutable policy document and, when certified, the evidence that it is safe."""

    kind: str = "AdaptivePolicy"
    status: AdaptivePolicyStatus = Field(default_factory=AdaptivePolicyStatus)
