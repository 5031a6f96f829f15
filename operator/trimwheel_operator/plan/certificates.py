"""Does the promise behind a policy stand? Valid, expired, revoked, or never made.

Asked by the gates (may this candidate start, may it be promoted) and by the stable-policy rule
(may everyone be served this). An expired certificate acts like a revoked one. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy
from trimwheel_api.kinds.adaptive_model import (
    AdaptiveModelSpec,
    CertificateState,
    DriftState,
    StablePolicy,
)
from trimwheel_api.kinds.adaptive_policy import Certificate
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_api.times import parse, to_micro, to_text
from trimwheel_operator.plan.remembered import Remembered, gap

MAX_MISSING_SHARE = 0.25
"""Of epsilon: above this share of lost audits a certificate's window is void."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a policy may be trusted, and why."""

    state: Literal["None", "Valid", "Expired", "Revoked"]
    reason: str
    message: str

    @property
    def valid(self) -> bool:
        """Whether it may be served to everyone: the dense policy needs no certificate."""
        return self.state == "Valid" or self.reason == Reason.DENSE


DENSE_STANDING = Standing("None", Reason.DENSE, "full depth needs no certificate")


def digest_of_policy(policy: AdaptivePolicy) -> str | None:
    """Digest of the document, or None when it breaks a rule."""
    try:
        return parse_policy(policy.spec.policy).digest
    except PolicyInvalid:
        return None


def standing(
    policy: AdaptivePolicy, model: AdaptiveModel, remembered: Remembered, now: datetime
) -> Standing:
    """Judge a policy's certificate for a model as it is declared now."""
    digest = digest_of_policy(policy)
    if digest == DENSE.digest:
        return DENSE_STANDING
    certificate = policy.spec.certificate
    if certificate is None:
        return Standing("None", Reason.UNCERTIFIED, f"policy {policy.name} has no certificate")
    if certificate.policy_digest != digest:
        return Standing(
            "None",
            Reason.UNCERTIFIED,
            f"the certificate names policy digest {certificate.policy_digest}, not {digest}",
        )
    if not remembered.believes_certificate(policy):
        return Standing("None", Reason.ADMISSION_GAP, gap("certificate", policy.name))
    if certificate.model_digest != model.spec.model.digest:
        return Standing(
            "Revoked",
            Reason.MODEL_DIGEST_CHANGED,
            f"the certificate is for model {certificate.model_digest}, but "
            f"spec.model.digest is {model.spec.model.digest}",
        )
    if weaker := _weaker_than_promised(certificate, model.spec):
        return Standing("None", Reason.UNCERTIFIED, weaker)
    return _in_time(certificate, remembered.revocation(digest), now)


def _in_time(certificate: Certificate, revoked_at: datetime | None, now: datetime) -> Standing:
    issued, expires = parse(certificate.issued_at), parse(certificate.expires_at)
    if revoked_at and (issued is None or issued <= revoked_at):
        when = to_text(revoked_at)
        return Standing("Revoked", Reason.CERTIFICATE_REVOKED, f"revoked by harm at {when}")
    if expires is None or now >= expires:
        return Standing(
            "Expired", Reason.CERTIFICATE_EXPIRED, f"expired at {certificate.expires_at}"
        )
    return Standing(
        "Valid",
        Reason.CERTIFICATE_VALID,
        f"at most {certificate.epsilon} disagreement until {certificate.expires_at}",
    )


def _weaker_than_promised(certificate: Certificate, spec: AdaptiveModelSpec) -> str:
    """Why the certificate promises less than the model's objectives; empty when it does not."""
    promised, wanted = float(certificate.epsilon), float(spec.objectives.max_disagreement)
    if promised > wanted:
        return f"the certificate promises {promised}, but objectives.maxDisagreement is {wanted}"
    risk, allowed = float(certificate.delta), 1.0 - float(spec.objectives.confidence)
    if risk > allowed + 1e-9:
        return f"the certificate risks {risk}, but objectives.confidence allows {allowed:g}"
    if float(certificate.missing) > MAX_MISSING_SHARE * promised:
        return f"{certificate.missing} of its audits were lost, more than epsilon / 4"
    return ""


def harm_since(intended: StablePolicy, drift: DriftState | None) -> datetime | None:
    """When audits showed harm of the intended policy; None when they did not, or it is older."""
    if drift is None or drift.verdict != "Harmful":
        return None
    decided, promoted = parse(drift.time), parse(intended.since)
    if decided is None or (promoted is not None and decided <= promoted):
        return None
    return decided


def of_intended(
    remembered: Remembered,
    model: AdaptiveModel,
    policy: AdaptivePolicy | None,
    now: datetime,
) -> tuple[CertificateState, Standing]:
    """The state of the certificate behind the intended policy, with its reason.

    Remembers a revocation: once harm was shown, neither a deleted TuningRun nor a changed clock nor
    a way back to the policy brings the promise back; only a certificate that was issued later does.
    """
    intended = remembered.status.intended
    if intended is None or intended.digest == DENSE.digest:
        return CertificateState(), DENSE_STANDING
    harm = shown_harm(remembered, intended)
    revoked = harm or remembered.revocation(intended.digest)
    if policy is None:
        found = Standing(
            "None",
            Reason.UNCERTIFIED,
            f"policy {intended.policy} is gone, and its certificate with it",
        )
    else:
        found = standing(policy, model, remembered.with_revocation(intended.digest, harm), now)
    if found.state == "None" and revoked:
        found = Standing("Revoked", Reason.CERTIFICATE_REVOKED, "audits showed harm")
    certificate = policy.spec.certificate if policy else None
    state = CertificateState(
        state=found.state,
        digest=intended.digest,
        expires_at=certificate.expires_at if certificate else "",
        revoked_at=to_micro(revoked) if revoked else "",
        message=found.message,
    )
    return state, found


def shown_harm(remembered: Remembered, intended: StablePolicy) -> datetime | None:
    """When harm of the intended policy was shown; None when that was before it was promoted."""
    known, promoted = remembered.revocation(intended.digest), parse(intended.since)
    if known and (promoted is None or known >= promoted):
        return known
    return harm_since(intended, remembered.status.drift)
