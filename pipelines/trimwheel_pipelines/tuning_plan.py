"""What a TuningRun will do, fixed before any record is read; and how its end is written down.

Pure: objects and numbers in, objects and numbers out; `tune` has the effects. Fixing everything
here first is what the certificate rests on: how many audits, how many looks, which window, how many
finalists share delta.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from trimwheel_api import names
from trimwheel_api.errors import PolicyInvalid, SpecInvalid
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, TuningRun
from trimwheel_api.kinds.adaptive_policy import Certificate as CertificateSpec
from trimwheel_api.kinds.adaptive_policy import CertificateClusters
from trimwheel_api.policy import DENSE, Policy, parse_policy
from trimwheel_api.times import instant, to_text
from trimwheel_api.values import decimal_string, seconds
from trimwheel_pipelines.audit_window import LOOK_SHARES
from trimwheel_pipelines.certificate import Certificate
from trimwheel_pipelines.knobs import KnobSplit, split_knobs
from trimwheel_pipelines.loss_tests import BETTING, BINOMIAL
from trimwheel_pipelines.trials import Dtype

LOOKS = len(LOOK_SHARES)
DENSE_COST = 1.0
"""Costs are shares of the dense model's compute."""
TOLERANCE = 0.005
"""A winner must save at least this share of full compute: less is not worth a rollout."""
RENEWAL_SHARE = 0.25
"""With less than this share of its life left, a certificate is renewed even without a gain."""
DEADLINE_SHARE = 0.95
"""Part of the Job's deadline after which the run ends by itself, with a reason."""
OPENS_AFTER = 1.0
"""Seconds after a run's creation at which its certifying window opens: `creationTimestamp` is cut
to seconds, and an alarm was raised by audits before it."""
_NAME_LIMIT = 63

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One run's numbers; times are Unix seconds."""

    namespace: str
    run: str
    uid: str
    model: str
    model_uri: str
    model_digest: str
    dtype: Dtype
    reason: str
    requested_by: str | None
    seed: int
    trials: int
    knobs: KnobSplit
    keeps_inputs: bool
    epsilon: float
    delta: float
    search_records: int
    n: int
    finalists: int
    created: float
    deadline: float
    ttl: float
    rollout: bool

    @property
    def opens(self) -> float:
        """The certifying window's start: the first whole second after the run's creation.

        See `window_opens`, which says the same of an object.
        """
        return self.created + OPENS_AFTER

    @property
    def runs_model(self) -> bool:
        """Whether trials may run the model: a knob asks for it, and records keep inputs."""
        return self.keeps_inputs and bool(self.knobs.run)

    @property
    def first_level(self) -> float:
        """Level of the first look, for one finalist."""
        return self.delta * LOOK_SHARES[0] / self.finalists


def plan_of(run: TuningRun, model: AdaptiveModel) -> Plan:
    """The numbers of a run: its own, or the model's where it leaves them open.

    Raises SpecInvalid for a promise that no number of audits can certify.
    """
    tuning, objectives = model.spec.tuning, model.spec.objectives
    check_promise(run, model)
    created = instant(run.metadata.creation_timestamp).timestamp()
    confidence = 1.0 - float(objectives.confidence)
    timeout = seconds(run.spec.budget.timeout or tuning.timeout)
    return Plan(
        namespace=run.metadata.namespace,
        run=run.name,
        uid=run.metadata.uid,
        model=model.name,
        model_uri=model.spec.model.uri,
        model_digest=model.spec.model.digest,
        dtype=model.spec.engine.dtype,
        reason=run.spec.reason,
        requested_by=run.spec.requested_by,
        seed=run.spec.seed,
        trials=run.spec.budget.trials or tuning.trials,
        knobs=split_knobs(run.spec.knobs or tuning.knobs),
        keeps_inputs=model.spec.audits.inputs == "sampled",
        epsilon=float(run.spec.risk.epsilon or objectives.max_disagreement),
        delta=float(run.spec.risk.delta) if run.spec.risk.delta else round(confidence, 9),
        search_records=tuning.search_records,
        n=tuning.certify_records,
        finalists=tuning.finalists,
        created=created,
        deadline=created + DEADLINE_SHARE * timeout,
        ttl=seconds(tuning.certificate_ttl),
        rollout=run.spec.rollout,
    )


def check_promise(run: TuningRun, model: AdaptiveModel) -> None:
    """Raise SpecInvalid, naming the field, unless epsilon and delta lie inside (0, 1)."""
    risk, objectives = run.spec.risk, model.spec.objectives
    epsilon = ("TuningRun spec.risk.epsilon", risk.epsilon) if risk.epsilon else (
        "AdaptiveModel spec.objectives.maxDisagreement", objectives.max_disagreement
    )  # fmt: skip
    delta = ("TuningRun spec.risk.delta", risk.delta) if risk.delta else (
        "AdaptiveModel spec.objectives.confidence", objectives.confidence
    )  # fmt: skip
    for field, value in (epsilon, delta):
        if not 0.0 < float(value) < 1.0:
            raise SpecInvalid(
                field,
                "must be above 0 and below 1: no audits prove a promise without a margin",
                value,
                "Create a new TuningRun with a value such as 0.02.",
            )


def window_opens(run: TuningRun) -> float:
    """When a run's certifying window opens at the earliest, Unix seconds."""
    return instant(run.metadata.creation_timestamp).timestamp() + OPENS_AFTER


@dataclass(frozen=True)
class Incumbent:
    """The policy that a winner is compared with, and the one the search starts from."""

    served: Policy
    """What everyone is served now; dense after harm, or before any certificate."""
    starting_point: Policy
    """The last promoted policy: after harm still the best guess."""
    expires_at: str = ""
    """When the served policy's certificate ends; empty without one."""


def incumbent_of(model: AdaptiveModel, policies: list[AdaptivePolicy], reason: str) -> Incumbent:
    """The incumbent of a run; a policy that is gone, or cannot be read, counts as dense."""
    by_name = {policy.name: policy for policy in policies}
    status = model.status
    served = _document(by_name.get(status.stable.policy), DENSE) if status.stable else DENSE
    promoted = served
    if status.intended:
        promoted = _document(by_name.get(status.intended.policy), served)
    certificate = status.certificate
    valid = certificate is not None and certificate.state == "Valid"
    if reason == names.Reason.HARMFUL or not valid:
        served = DENSE
    expires = certificate.expires_at if certificate is not None and valid else ""
    return Incumbent(served, promoted, expires)


def _document(policy: AdaptivePolicy | None, otherwise: Policy) -> Policy:
    """The document of an object; only those that are needed are parsed, others may be broken."""
    if policy is None:
        return otherwise
    try:
        return parse_policy(policy.spec.policy)
    except PolicyInvalid as error:
        log.warning("AdaptivePolicy %s is left out: %s", policy.name, error)
        return otherwise


@dataclass(frozen=True)
class Measured:
    """What a policy costs and risks on the certifying audits."""

    cost: float
    risk: float


def is_improvement(
    winner: float, incumbent: Measured, plan: Plan, expires_at: str, now: datetime
) -> bool:
    """Whether a certified winner of this cost should be rolled out.

    It should when it saves compute, when the incumbent broke the promise on the same audits (then
    cost is no excuse), and when the incumbent's certificate is about to end.
    """
    if incumbent.risk > plan.epsilon or winner < incumbent.cost - TOLERANCE:
        return True
    if not expires_at:
        return False
    left = (instant(expires_at) - now).total_seconds()
    return winner <= incumbent.cost + TOLERANCE and left < RENEWAL_SHARE * plan.ttl


def certificate_spec(
    found: Certificate, policy: Policy, plan: Plan, score_digest: str, now: datetime
) -> CertificateSpec:
    """A released certificate as the API carries it."""
    assert found.certified and found.p_value is not None and found.design_effect is not None
    shares = [
        f"audits of {plan.namespace}/{plan.model}, all tenants, with u < {found.lowest_rate:g}",
        f"{found.sessions} sessions",
        *found.warnings,
    ]
    return CertificateSpec(
        epsilon=decimal_string(plan.epsilon),
        delta=decimal_string(plan.delta),
        n=found.n,
        errors=found.errors if found.test == BINOMIAL.name else None,
        test="betting" if found.test == BETTING.name else "binomial",
        loss_sum=decimal_string(found.loss_sum, 6),
        clusters=_clusters(found),
        design_effect=decimal_string(found.design_effect, 4),
        missing=decimal_string(found.missing),
        p_value=decimal_string(found.p_value),
        window_start=to_text(found.opened),
        window_end=to_text(found.closed),
        short=found.short,
        population="; ".join(shares)[:512],
        policy_digest=policy.digest,
        model_digest=plan.model_digest,
        score_digest=score_digest,
        looks=found.look + 1,
        finalists=len(found.finalists),
        issued_at=to_text(now),
        expires_at=to_text(now + timedelta(seconds=plan.ttl)),
        tuning_run=plan.run,
    )


def _clusters(found: Certificate) -> CertificateClusters | None:
    report = found.clusters
    if report is None:
        return None
    return CertificateClusters(
        sessions=report.sessions,
        session_keys=cast(Any, report.session_keys),
        session_effect=decimal_string(report.session_effect, 4),
        copies_effect=decimal_string(report.copies_effect, 4),
        assumed_effect=decimal_string(report.assumed_effect, 4),
        effective=decimal_string(report.effective, 1),
    )


def object_name(plan: Plan, policy: Policy) -> str:
    """Name of the policy and rollout of a run: the same again after a restart.

    The run's uid tells apart two certificates of the same document.
    """
    tail = f"-{policy.digest.removeprefix('sha256:')[:8]}-{plan.uid[:4]}"
    return plan.model[: _NAME_LIMIT - len(tail)].rstrip("-.") + tail
