"""What everyone is served: the intended policy while its promise stands, else full depth.

This rule needs nobody's approval and has no memory but the objects: it runs in every pass, and
one assignment write carries it out. Also here: the audit rate, and where documents come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, TuningRun
from trimwheel_api.kinds.adaptive_model import StablePolicy
from trimwheel_api.kinds.policy_assignment import AssignedPolicy
from trimwheel_api.kinds.policy_journal import PolicyJournalSpec
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_operator.plan.certificates import (
    Standing,
    digest_of_policy,
    harm_since,
    shown_harm,
)
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.plan.remembered import Remembered

DENSE_ASSIGNED = AssignedPolicy(digest=DENSE.digest, document=DENSE.canonical_bytes().decode())


@dataclass(frozen=True, slots=True)
class StableChoice:
    """The policy that everyone shall be served, and why it is not the intended one."""

    assigned: AssignedPolicy
    policy: str
    standing: Standing
    degraded: bool = False
    no_room: bool = False
    """It does harm and is served all the same: the workers could not carry full depth."""


UNKNOWN_PROMISE = StableChoice(
    DENSE_ASSIGNED,
    "",
    Standing("None", Reason.RULE_FAILED, "whether its promise stands could not be decided"),
    degraded=True,
)
"""When the rule itself raises: nobody can say that the promise stands."""


def choose(draft: Draft, model: AdaptiveModel, found: Standing) -> StableChoice:
    """The stable policy that follows from the intended one and its certificate's standing."""
    intended = draft.model.intended
    if intended is None or intended.digest == DENSE.digest:
        return StableChoice(DENSE_ASSIGNED, "", found)
    document = known_document(draft.state, intended.digest)
    if document is None:
        return StableChoice(DENSE_ASSIGNED, "", found, degraded=True)
    if found.valid or _tolerated(draft, model, intended, found):
        return StableChoice(document, intended.policy, found)
    same_model = not _other_model(model, intended, found)
    if same_model and shown_harm(draft.remembered, intended) and _too_busy(draft, model):
        return StableChoice(document, intended.policy, found, no_room=True)
    return StableChoice(DENSE_ASSIGNED, "", found, degraded=True)


def _tolerated(draft: Draft, model: AdaptiveModel, intended: StablePolicy, found: Standing) -> bool:
    """Whether a person decided that it may be served without a valid certificate.

    A waiver covers what was known when it was given, an older revocation too, and no later harm.
    """
    if shown_harm(draft.remembered, intended):
        alert = model.spec.drift.on_harm == "alert"
        return alert and "drift.onHarm" not in draft.remembered.unbelieved_fields(model)
    if _other_model(model, intended, found):
        return False
    return intended.waived and draft.remembered.believes_waiver(intended.digest)


def _other_model(model: AdaptiveModel, intended: StablePolicy, found: Standing) -> bool:
    """Whether it was certified or waived for other weights than those now declared."""
    known = intended.model_digest
    changed = bool(known) and known != model.spec.model.digest
    return changed or found.reason == Reason.MODEL_DIGEST_CHANGED


def _too_busy(draft: Draft, model: AdaptiveModel) -> bool:
    """Whether the workers, projected to full depth, have less room than the objectives ask for.

    Not known means no: wrong answers are certain, an overload is not. What is at full depth stays
    there, so that a load around the target does not make the policy flap.
    """
    load, served = draft.state.full_depth_load, draft.assignment
    if load is None or served is None or served.stable.digest == DENSE.digest:
        return False
    return load >= float(model.spec.objectives.capacity_target)


def harm_asks_for_full_depth(state: ObservedState) -> bool:
    """Whether a policy that does harm is being served: then the load has to be known."""
    model, assignment = state.model, state.assignment
    if model is None or assignment is None or model.spec.drift.on_harm == "alert":
        return False
    intended = model.status.intended
    if intended is None or assignment.spec.stable.digest == DENSE.digest:
        return False
    journal = state.journal.spec if state.journal else PolicyJournalSpec(namespace=state.namespace)
    if shown_harm(Remembered(model.status, journal), intended):
        return True
    return any(harm_since(intended, run.status.drift) for run in state.runs)


def known_document(state: ObservedState, digest: str) -> AssignedPolicy | None:
    """The document behind a digest, from the assignment or from any policy of the model."""
    if digest == DENSE.digest:
        return DENSE_ASSIGNED
    spec = state.assignment.spec if state.assignment else None
    for assigned in (spec.stable, spec.candidate) if spec else ():
        if assigned and assigned.digest == digest:
            return assigned
    policy = policy_of_digest(state, digest)
    return assigned_policy(policy) if policy else None


def assigned_policy(policy: AdaptivePolicy) -> AssignedPolicy | None:
    """A policy as an assignment carries it, or None when its document breaks a rule."""
    try:
        parsed = parse_policy(policy.spec.policy)
    except PolicyInvalid:
        return None
    return AssignedPolicy(digest=parsed.digest, document=parsed.canonical_bytes().decode())


def policy_of_digest(state: ObservedState, digest: str, name: str = "") -> AdaptivePolicy | None:
    """The policy with this digest; the named one first, then the newest that has a certificate.

    Two policies may hold the same document with different certificates.
    """
    same = [one for one in state.policies if digest_of_policy(one) == digest]
    same.sort(
        key=lambda one: (
            one.name == name,
            one.spec.certificate is not None,
            one.metadata.creation_timestamp,
            one.name,
        )
    )
    return same[-1] if same else None


def audit_rate(state: ObservedState, model: AdaptiveModel) -> str:
    """The model's rate, or its alarm rate while a covariate alarm waits for its verdict.

    The alarm may spend only so many audits; what it spent is told by pipelines, which count them.
    """
    audits = model.spec.audits
    for run in state.runs:
        spent = run.status.drift.alarm_audits if run.status.drift else 0
        if is_unjudged_alarm(run) and spent < audits.alarm_audits:
            return audits.alarm_rate
    return audits.rate


def is_unjudged_alarm(run: TuningRun) -> bool:
    """Inputs moved, and audits have not said yet whether that does harm."""
    if run.spec.reason != Reason.COVARIATE_DRIFT or run.status.outcome or run.status.finished_at:
        return False
    drift = run.status.drift
    return drift is None or drift.verdict == "NotEnoughEvidence"
