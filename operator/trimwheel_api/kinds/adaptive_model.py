"""AdaptiveModel: a model, how it is served, what is promised, and how its policy may change.

Written by users; reconciled by the operator; read by pipelines (objectives, audits, drift, tuning).
Defaults are those of production traffic at about 100 requests a second.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from trimwheel_api.kinds.common import ConditionedStatus, Resource, Spec, Status, ruled
from trimwheel_api.values import (
    MODEL_NAME_PATTERN,
    AccessSecretName,
    AtMost,
    Digest,
    Duration,
    Fraction,
    Margin,
    NumberFromOne,
    PositiveDuration,
    PositiveShortDuration,
    Quantity,
    Retention,
    Risk,
    Rule,
    Share,
    ShortDuration,
    Weight,
)

Knob = Literal["exit.thresholds", "moe.topK", "moe.routerBlend"]
"""What a tuning run may change."""


class ModelSource(Spec):
    """Which weights are served."""

    uri: str = Field(
        description="Where the artifact folder is: models:/NAME/VERSION (MLflow) or an fsspec "
        "address such as s3:// or file://; only prefixes that the chart allows.",
        min_length=1,
        max_length=1024,
    )
    digest: Digest = Field(description="Digest of the artifact; the engine refuses another one.")


class Resources(Spec):
    """Requests and limits of a worker container, as in a Pod."""

    requests: Annotated[dict[str, Quantity], AtMost(32)] = Field(
        default_factory=dict, description="Resources asked for."
    )
    limits: Annotated[dict[str, Quantity], AtMost(32)] = Field(
        default_factory=dict, description="Limits, such as nvidia.com/gpu: 1."
    )


class EngineSpec(Spec):
    """How a worker runs the model."""

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Type of weights and activations; auto is the one that each worker measures to "
        "be the faster on its processor.",
    )
    threads: int = Field(default=1, description="Compute threads of the engine.", ge=1, le=256)
    max_batch: int = Field(default=32, description="Most requests in one batch.", ge=1, le=1024)
    max_wait: ShortDuration = Field(
        default="2ms", description="How long a batch waits for company after its first request."
    )
    queue_limit: Annotated[int, AtMost(100_000)] = Field(
        default=512, description="Waiting requests beyond which a worker answers 429.", ge=1
    )
    deadline: ShortDuration = Field(
        default="2s", description="A request that waited this long is answered 503."
    )


class Access(Spec):
    """Who may ask the workers, and over what."""

    tokens_secret: AccessSecretName | None = Field(
        default=None,
        description="Secret trimwheel-... of the model's namespace with a key for each client (its "
        "subject) and that client's bearer token (16 characters or more) as value. Unset: whoever "
        "reaches the Service may ask, and is known by its address.",
    )
    tls_secret: AccessSecretName | None = Field(
        default=None,
        description="Secret trimwheel-... of type kubernetes.io/tls in the model's namespace. "
        "Unset: plain HTTP.",
    )


class LatencyObjective(Spec):
    """Share of requests that may be slower than the SLO."""

    slo: PositiveShortDuration = Field(
        default="250ms", description="Slower than this counts against budget."
    )
    budget: Share = Field(default="0.01", description="Share of requests that may be slower.")


class Objectives(Spec):
    """What is promised of every policy."""

    max_disagreement: Risk = Field(
        default="0.02",
        description="Epsilon: largest share of requests whose answer may differ from full depth.",
    )
    confidence: Share = Field(
        default="0.9", description="1 - delta: confidence with which a certificate holds."
    )
    error_budget: Share = Field(
        default="0.002", description="Largest share of sessions that may see a server error."
    )
    latency: LatencyObjective = Field(
        default_factory=LatencyObjective, description="The latency promise."
    )
    capacity_target: Share = Field(
        default="0.8", description="Utilisation below which the capacity guard passes."
    )


class Audits(Spec):
    """Which requests are recomputed at full depth, and what is kept of them."""

    rate: Fraction = Field(default="0.02", description="Share of requests that are audited.")
    alarm_rate: Fraction = Field(
        default="0.2",
        description="The share after a covariate alarm, until it is judged or has spent "
        "alarmAudits.",
    )
    alarm_audits: int = Field(
        default=4000,
        description="Audits after a covariate alarm at which the rate falls back to normal.",
        ge=1,
        le=1_000_000,
    )
    inputs: Literal["none", "sampled"] = Field(
        default="none",
        description="sampled keeps inputs in the records: knobs that run the model need them.",
    )
    retention: Retention = Field(default="30d", description="Records older than this are deleted.")


class DriftSpec(Spec):
    """When traffic counts as changed."""

    false_alarm_audits: NumberFromOne = Field(
        default="5000000",
        description="Mean number of audits to a false Harmful verdict at the promised risk.",
    )
    on_harm: Literal["fullDepth", "alert"] = Field(
        default="fullDepth",
        description="What a Harmful verdict does besides starting a TuningRun. fullDepth waits "
        "while it is projected to bring utilisation to objectives.capacityTarget or above.",
    )
    block: PositiveDuration = Field(default="15m", description="Length of a covariate block.")
    reference: PositiveDuration = Field(
        default="14d", description="Clean history that sets the alarm."
    )


def _all_knobs() -> list[Knob]:
    return list(get_args(Knob))


class TuningSpec(Spec):
    """How a new policy is searched for."""

    trials: int = Field(default=24, description="Optuna trials that run the model.", ge=1, le=10000)
    search_records: Annotated[int, AtMost(10_000_000)] = Field(
        default=2000, description="Audits the search needs.", ge=50
    )
    certify_records: Annotated[int, AtMost(10_000_000)] = Field(
        default=2000, description="Fresh audits of the first certification look.", ge=50
    )
    finalists: int = Field(default=2, description="Candidates that share delta.", ge=1, le=8)
    knobs: list[Knob] = Field(
        default_factory=_all_knobs,
        description="What may change.",
        min_length=1,
        max_length=16,
    )
    timeout: PositiveDuration = Field(default="6h", description="Deadline of the Job.")
    certificate_ttl: PositiveDuration = Field(
        default="30d", description="How long a certificate is valid after release."
    )
    schedule: PositiveDuration | None = Field(
        default=None, description="Tune this often even without drift; unset means never."
    )
    bootstrap: bool = Field(
        default=True, description="Tune once when enough audits exist and no policy was certified."
    )


class Step(Spec):
    """One step of a rollout."""

    model_config = ruled(
        {
            "rule": "self.weight != '0%' || self.minRequests == 0",
            "message": "minRequests must be 0 at weight 0% (a shadow serves nobody)",
        },
    )
    weight: Weight = Field(
        description='Share of cohorts on the candidate; "0%" is a shadow. At most 50%: beyond it '
        "lies promotion."
    )
    min_requests: Annotated[int, AtMost(1_000_000_000)] = Field(
        default=0, description="Candidate requests this step must see.", ge=0
    )
    hold: Duration = Field(default="10m", description="Shortest time on this step.")
    max_duration: Duration = Field(
        default="6h", description="Longest time without evidence before the rollout pauses."
    )


def default_steps() -> list[Step]:
    """Shadow, then 1, 5, 25 and 50 %."""
    ramp = [("0%", 0), ("1%", 0), ("5%", 250), ("25%", 750), ("50%", 1500)]
    return [Step(weight=weight, min_requests=count) for weight, count in ramp]


class RolloutSpec(Spec):
    """How a candidate becomes stable."""

    approval: Literal["Required", "Automatic"] = Field(
        default="Required",
        description="Whether a person must create a PolicyApproval.",
    )
    approval_deadline: PositiveDuration = Field(
        default="72h",
        description="How long a candidate may wait for approval; then its weight goes back to 0.",
    )
    steps: list[Step] = Field(
        default_factory=default_steps,
        description="Weights in order; the first is a shadow at 0%.",
        min_length=1,
        max_length=20,
    )
    alpha: Share = Field(default="0.001", description="False Fail level of one guard.")
    beta: Share = Field(default="0.05", description="False Pass level of one guard.")
    pass_margin: Margin = Field(
        default="1.5",
        description="A certified candidate passes disagreement when it is shown below margin x "
        "epsilon.",
    )
    parity_budget: Share = Field(
        default="0.005", description="Share of answers that replay may not reproduce."
    )
    lease_seconds: int = Field(
        default=30,
        description="A worker that hears nothing for this long serves stable.",
        ge=3,
        le=3600,
    )
    history_limit: int = Field(default=10, description="Finished rollouts kept.", ge=1, le=100)


class AdaptiveModelSpec(Spec):
    """What a user declares."""

    model: ModelSource = Field(description="Which weights.")
    task: Literal["textClassification"] = Field(
        default="textClassification", description="What the model does."
    )
    replicas: int = Field(default=1, description="Workers.", ge=0, le=1000)
    access: Access = Field(default_factory=Access, description="Who may ask.")
    resources: Resources = Field(default_factory=Resources, description="Of a worker container.")
    engine: EngineSpec = Field(default_factory=EngineSpec, description="How the model is run.")
    objectives: Objectives = Field(default_factory=Objectives, description="What is promised.")
    audits: Audits = Field(default_factory=Audits, description="What is recomputed and kept.")
    drift: DriftSpec = Field(default_factory=DriftSpec, description="When traffic has changed.")
    tuning: TuningSpec = Field(default_factory=TuningSpec, description="How policies are found.")
    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="How policies change.")


class StablePolicy(Status):
    """What workers are told to serve."""

    digest: str = Field(description="Policy digest; the dense one while Degraded.")
    policy: str = Field(default="", description="AdaptivePolicy, empty for dense.")
    since: str = Field(default="", description="When it became stable.")
    waived: bool = Field(
        default=False, description="Made stable without a certificate, by a holder of waive."
    )
    model_digest: str = Field(
        default="", description="Model artifact it was made stable for; a waiver ends with it."
    )


class CandidatePolicy(Status):
    """What is being rolled out."""

    digest: str = Field(description="Policy digest.")
    policy: str = Field(default="", description="AdaptivePolicy.")
    rollout: str = Field(default="", description="PolicyRollout.")


class CertificateState(Status):
    """Whether the promise behind the intended policy stands."""

    state: Literal["None", "Valid", "Expired", "Revoked"] = Field(
        default="None", description="None for dense, which needs none."
    )
    digest: str = Field(default="", description="Policy digest that it certifies.")
    expires_at: str = Field(default="", description="When it ends.")
    revoked_at: str = Field(default="", description="When harm revoked it.")
    message: str = Field(default="", description="Why.")


class DriftState(Status):
    """The newest drift verdict, mirrored from a TuningRun."""

    verdict: Literal["Harmful", "Harmless", "NotEnoughEvidence"] = Field(
        default="NotEnoughEvidence", description="What audits say of the stable policy."
    )
    signal: str = Field(default="", description="Which signal moved.")
    value: str = Field(default="", description="What it is now, a decimal string.")
    bound: str = Field(default="", description="What it may be, a decimal string.")
    confidence: str = Field(default="", description="Of the verdict, a decimal string.")
    audits: int = Field(
        default=0, description="First audits of sessions that the verdict rests on."
    )
    alarm_audits: int = Field(
        default=0, description="Audits of any kind since the covariate alarm began."
    )
    time: str = Field(default="", description="When it was decided.")
    since: str = Field(
        default="",
        description="Begin of the window that value and audits are of: the estimated change of the "
        "traffic, or the alarm. Shares over other windows differ.",
    )
    policy_digest: str = Field(
        default="", description="Policy that it speaks of; with another in its place it ends."
    )
    tuning_run: str = Field(default="", description="TuningRun that carries it.")


class FormerStable(Status):
    """A policy that was stable once: what a Rollback may name."""

    digest: str = Field(description="Policy digest.")
    policy: str = Field(default="", description="AdaptivePolicy, empty for dense.")
    since: str = Field(default="", description="When it became stable.")
    until: str = Field(default="", description="When another took its place.")
    revoked_at: str = Field(default="", description="When harm revoked its certificate.")


class AdaptiveModelStatus(ConditionedStatus):
    """What the operator reports."""

    stable: StablePolicy | None = Field(default=None, description="Served by everyone.")
    intended: StablePolicy | None = Field(
        default=None, description="Last promoted policy; differs from stable while Degraded."
    )
    candidate: CandidatePolicy | None = Field(default=None, description="Being rolled out.")
    certificate: CertificateState | None = Field(default=None, description="Of the intended one.")
    drift: DriftState | None = Field(default=None, description="Newest verdict.")
    replicas: int = Field(default=0, description="Worker pods.")
    ready_replicas: int = Field(default=0, description="Ready worker pods.")
    selector: str = Field(default="", description="Label selector of the workers, for scale.")
    endpoint: str = Field(default="", description="Address of the Service, http.")
    history: list[FormerStable] = Field(
        default_factory=list, description="Formerly stable policies, newest last.", max_length=64
    )
    rejected_digests: list[str] = Field(
        default_factory=list,
        description="Rolled back or rejected; not rolled out again unless a person asks.",
        max_length=64,
    )


class AdaptiveModel(Resource[AdaptiveModelSpec, AdaptiveModelStatus]):
    """A model, how it is served, what is promised of it, and how its policy may change."""

    model_config = ruled(
        Rule(
            f"self.metadata.name.matches('{MODEL_NAME_PATTERN}')",
            "metadata.name must be at most 63 of a-z, 0-9 and -, starting with a letter "
            "(the Service takes it)",
            value="self.metadata.name",
            remedy="choose another name",
        ).as_cel()
    )
    kind: str = "AdaptiveModel"
    status: AdaptiveModelStatus = Field(default_factory=AdaptiveModelStatus)
