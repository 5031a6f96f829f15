"""What can stop a rollout from starting: a chain of checks, the first refusal wins.

Each gate is a pure function of one `Request` and answers with a `Refusal` or None. A refusal is
final when nothing that may still change would lift it: specs of rollouts and policies are
immutable. The others are asked again at every look. What stops a rollout under way is in `stops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout
from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus, Step
from trimwheel_api.loosening import looser_steps
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_api.times import to_text
from trimwheel_api.values import basis_points
from trimwheel_operator.plan.certificates import Standing, digest_of_policy, standing
from trimwheel_operator.plan.remembered import Remembered, gap
from trimwheel_operator.plan.validation import first_mistake

SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class Request:
    """A rollout that asks to start, and all that the gates may look at."""

    rollout: PolicyRollout
    model: AdaptiveModel
    status: AdaptiveModelStatus
    remembered: Remembered
    policy: AdaptivePolicy | None
    """The policy that spec.policy names or, for a Rollback, that has the digest."""
    document_known: bool
    """The document is at hand though its AdaptivePolicy may be gone."""
    now: datetime


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a rollout may not start; `final` when that will never change."""

    reason: str
    message: str
    final: bool = True


Gate = Callable[[Request], Refusal | None]


def first_refusal(request: Request, gates: Sequence[Gate]) -> Refusal | None:
    """The first gate's refusal, or None when all let it pass."""
    for gate in gates:
        if refusal := gate(request):
            return refusal
    return None


def is_person(user: str) -> bool:
    """Whether a username is not a service account's."""
    return not user.startswith(SERVICE_ACCOUNT_PREFIX)


def model_is_valid(request: Request) -> Refusal | None:
    """Evidence is judged by the model's rules, so they have to hold water."""
    if mistake := first_mistake(request.model):
        return Refusal(Reason.INVALID_SPEC, f"model: {mistake.sentence()}", final=False)
    return None


def policy_exists(request: Request) -> Refusal | None:
    """The policy may come later: `kubectl apply -f folder/` has no order."""
    spec = request.rollout.spec
    if request.policy is None:
        message = f"spec.policy: there is no AdaptivePolicy {spec.policy!r} in this namespace"
        return Refusal(Reason.POLICY_NOT_FOUND, message, final=False)
    return None


def policy_is_for_model(request: Request) -> Refusal | None:
    """A policy speaks of one model."""
    policy, wanted = request.policy, request.rollout.spec.model
    if policy and policy.spec.model != wanted:
        message = f"policy {policy.name} is for model {policy.spec.model}, not {wanted}"
        return Refusal(Reason.POLICY_INVALID, message)
    return None


def policy_is_valid(request: Request) -> Refusal | None:
    """The document must parse; workers would refuse it anyway, later."""
    if request.policy is None:
        return None
    try:
        parse_policy(request.policy.spec.policy)
    except PolicyInvalid as error:
        return Refusal(Reason.POLICY_INVALID, f"policy {request.policy.name}: {error.sentence()}")
    return None


def digest_matches(request: Request) -> Refusal | None:
    """The rollout names bytes; the digest is recomputed from them, never trusted."""
    if request.policy is None:
        return None
    digest, named = digest_of_policy(request.policy), request.rollout.spec.policy_digest
    if digest != named:
        message = f"spec.policyDigest is {named}, but policy {request.policy.name} has {digest}"
        return Refusal(Reason.DIGEST_MISMATCH, message)
    return None


def policy_fits_model_digest(request: Request) -> Refusal | None:
    """A policy may insist on the weights that it was made for."""
    policy, digest = request.policy, request.model.spec.model.digest
    if policy and policy.spec.model_digest and policy.spec.model_digest != digest:
        message = f"policy {policy.name} is for model {policy.spec.model_digest}, not {digest}"
        return Refusal(Reason.MODEL_DIGEST_CHANGED, message)
    return None


def is_not_stable_already(request: Request) -> Refusal | None:
    """A canary of what everyone is served compares a policy with itself."""
    digest, stable = request.rollout.spec.policy_digest, request.status.stable
    if stable and stable.digest == digest:
        return Refusal(Reason.ALREADY_STABLE, f"spec.policyDigest: {digest} is stable already")
    return None


def is_not_rejected(request: Request) -> Refusal | None:
    """What was rolled back comes again only when a person who may waive asks for it."""
    spec = request.rollout.spec
    asked = spec.allow_uncertified and is_person(spec.requested_by)
    if request.remembered.is_rejected(spec.policy_digest) and not asked:
        message = (
            f"spec.policyDigest: {spec.policy_digest} was rolled back or rejected before; only a "
            f"Canary with spec.allowUncertified, by a person who holds verb waive on "
            f"adaptivemodels/{spec.model}, brings it back, not {spec.requested_by}"
        )
        return Refusal(Reason.REJECTED_DIGEST, message)
    return None


def was_asked_for_under_admission(request: Request) -> Refusal | None:
    """A Canary that was written in a gap of admission may be in anybody's name, and waive at will.

    It may still be noted when the self-test holds again, so the refusal is not final.
    """
    if request.remembered.believes_request(request.rollout):
        return None
    return Refusal(Reason.ADMISSION_GAP, gap("rollout", request.rollout.name), final=False)


def promise_is_believed(request: Request) -> Refusal | None:
    """A model that was loosened in a gap of admission exposes nobody to anything new."""
    fields = request.remembered.unbelieved_fields(request.model)
    if not fields:
        return None
    what = f"{request.model.name} (spec.{', spec.'.join(fields)})"
    return Refusal(Reason.ADMISSION_GAP, gap("promise", what), final=False)


def is_certified(request: Request) -> Refusal | None:
    """A valid certificate for this very model, or a waiver."""
    spec = request.rollout.spec
    if spec.allow_uncertified or spec.policy_digest == DENSE.digest:
        return None
    if request.policy is None:
        reason = "its AdaptivePolicy is gone, and its certificate with it"
        return _uncertified(request, reason)
    found = standing(request.policy, request.model, request.remembered, request.now)
    if found.reason == Reason.ADMISSION_GAP:
        return Refusal(found.reason, found.message, final=False)
    return None if found.valid else _uncertified(request, found.message)


def _uncertified(request: Request, why: str) -> Refusal:
    return Refusal(
        Reason.UNCERTIFIED,
        f"{why}; a holder of verb waive on adaptivemodels/{request.rollout.spec.model} may set "
        "spec.allowUncertified",
    )


def steps_are_as_strict(request: Request) -> Refusal | None:
    """Own steps may be stricter than the model's; looser ones take a waiver."""
    spec = request.rollout.spec
    if spec.steps is None or spec.allow_uncertified:
        return None
    if why := looser_steps(spec.steps, request.model.spec.rollout.steps):
        message = f"spec.steps: {why}; looser steps take spec.allowUncertified"
        return Refusal(Reason.STEPS_LOOSER_THAN_MODEL, message)
    return None


def steps_ramp(request: Request) -> Refusal | None:
    """A ramp only grows, with or without a waiver: nobody flips back while it does."""
    weights = [_weight(step) for step in request.rollout.spec.steps or ()]
    if weights != sorted(weights):
        return Refusal(Reason.INVALID_SPEC, "spec.steps: weights must not shrink from step to step")
    return None


def _weight(step: Step) -> int:
    return basis_points(step.weight)


def was_stable(request: Request) -> Refusal | None:
    """A Rollback goes back: to full depth, to what is intended, or to what was stable before."""
    status, digest = request.status, request.rollout.spec.policy_digest
    known = {DENSE.digest, *(one.digest for one in status.history)}
    if status.intended:
        known.add(status.intended.digest)
    if digest not in known:
        message = f"spec.policyDigest: {digest} never was stable; use type Canary"
        return Refusal(Reason.NOT_FORMERLY_STABLE, message)
    return None


def target_is_not_rejected(request: Request) -> Refusal | None:
    """A Rollback serves at once and without approval, so never what was taken back before.

    Back to what everyone is served it only ends a canary. A certificate that is younger than the
    revocation answers it.
    """
    digest, stable = request.rollout.spec.policy_digest, request.status.stable
    if digest == DENSE.digest or (stable and stable.digest == digest):
        return None
    why = ""
    if request.remembered.is_rejected(digest):
        why = "was rolled back or rejected"
    elif (moment := request.remembered.revocation(digest)) and not _certified_anew(request):
        why = f"was revoked at {to_text(moment)}"
    if not why:
        return None
    message = (
        f"spec.policyDigest: {digest} {why}; only a Canary with spec.allowUncertified, by a holder "
        f"of verb waive on adaptivemodels/{request.rollout.spec.model}, and an approval bring it "
        "back. A Rollback may go to full depth (the digest of {}) at any time"
    )
    return Refusal(Reason.TARGET_REJECTED, message)


def _certified_anew(request: Request) -> bool:
    """Whether the policy carries a valid certificate that is younger than every revocation."""
    if request.policy is None:
        return False
    found: Standing = standing(request.policy, request.model, request.remembered, request.now)
    return (
        found.reason != Reason.CERTIFICATE_REVOKED and request.policy.spec.certificate is not None
    )


def is_certified_or_served(request: Request) -> Refusal | None:
    """A Rollback to what everyone is served exposes nobody to it: it ends the canary, no more."""
    stable = request.status.stable
    if stable and stable.digest == request.rollout.spec.policy_digest:
        return None
    return is_certified(request)


def document_is_known(request: Request) -> Refusal | None:
    """A Rollback needs the document of what it goes back to."""
    if request.document_known:
        return None
    digest = request.rollout.spec.policy_digest
    message = f"spec.policyDigest: no AdaptivePolicy has {digest} any more"
    return Refusal(Reason.POLICY_NOT_FOUND, message, final=False)


CANARY: tuple[Gate, ...] = (
    model_is_valid,
    policy_exists,
    policy_is_for_model,
    policy_is_valid,
    digest_matches,
    policy_fits_model_digest,
    is_not_stable_already,
    promise_is_believed,
    was_asked_for_under_admission,
    is_not_rejected,
    is_certified,
    steps_ramp,
    steps_are_as_strict,
)
ROLLBACK: tuple[Gate, ...] = (
    target_is_not_rejected,
    was_stable,
    document_is_known,
    policy_is_for_model,
    digest_matches,
    is_certified_or_served,
)
