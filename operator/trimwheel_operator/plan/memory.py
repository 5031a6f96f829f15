"""What a pass puts into the model's journal beside decisions on rollouts, and what it leaves out.

Called by `plan` and `models`. Falling back to full depth is a decision on the model itself; a
revocation outlives the TuningRun that showed it; a decision that never took effect is withdrawn.
"""

from __future__ import annotations

from trimwheel_api import names
from trimwheel_api.kinds.adaptive_model import CertificateState
from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec
from trimwheel_api.kinds.policy_journal import JournalDecision, RevokedDigest
from trimwheel_api.kinds.policy_rollout import Decision
from trimwheel_api.names import Action, Reason
from trimwheel_api.policy import DENSE
from trimwheel_api.times import to_micro
from trimwheel_operator.plan import journal, outcomes, phases
from trimwheel_operator.plan.actions import Action as Effect
from trimwheel_operator.plan.actions import Decided, DeleteJournal
from trimwheel_operator.plan.certificates import digest_of_policy
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.stable import DENSE_ASSIGNED, StableChoice


def remember_revocation(draft: Draft, certificate: CertificateState) -> None:
    """Certificates of this digest that were issued until then never count again."""
    drift = draft.model.drift
    entry = RevokedDigest(
        digest=certificate.digest,
        time=certificate.revoked_at,
        reason=Reason.HARMFUL,
        by=drift.tuning_run if drift else "",
    )
    draft.journal = journal.revoke(draft.journal, entry)


def record_stable(draft: Draft, choice: StableChoice) -> None:
    """Journal that everyone is sent to full depth, or back to the promoted policy."""
    observed, model = draft.state.assignment, draft.state.model
    if observed is None or model is None or observed.spec.stable == choice.assigned:
        return
    if choice.degraded and choice.assigned.digest == DENSE.digest:
        action, message = Action.FALL_BACK, f"{choice.standing.message}; full depth is served"
    elif model.status.is_true(names.DEGRADED) and not draft.decided:
        action, message = Action.RESTORE, f"{choice.standing.message}; it is served again"
    else:
        return  # a decision on a rollout says it
    known = journal.left_behind(draft.journal, observed.spec.epoch, _present(draft))
    if any(one.action == action and not one.rollout_uid for one in known):
        return  # journaled by a look that a crash cut off
    intended = draft.model.intended
    decision = Decision(
        seq=0, time=to_micro(draft.now), action=action, reason=choice.standing.reason,
        message=message,
    )  # fmt: skip
    draft.decided.append(Decided(action, choice.standing.reason))
    draft.record(
        decision,
        policy=intended.policy if intended else "",
        policy_digest=intended.digest if intended else "",
    )


def leave_full_depth(draft: Draft) -> None:
    """What is left of a model that goes, or is gone, serves full depth: no promise stands behind
    anything else. Workers outlive the model by `--cascade=orphan`, or by a finalizer of anybody's.
    """
    observed = draft.state.assignment
    if observed is None:
        return
    if observed.spec.stable.digest != DENSE.digest:
        _journal_departure(draft, observed.spec)
    draft.assign(stable=DENSE_ASSIGNED, candidate=None, weight_basis_points=0)


def _journal_departure(draft: Draft, served: PolicyAssignmentSpec) -> None:
    known = journal.left_behind(draft.journal, served.epoch, _present(draft))
    if any(one.action == Action.FALL_BACK and not one.rollout_uid for one in known):
        return  # journaled by a look that a crash cut off
    message = (
        f"AdaptiveModel {draft.state.name} was deleted; its workers serve full depth until they end"
    )
    decision = Decision(
        seq=0, time=to_micro(draft.now), action=Action.FALL_BACK, reason=Reason.MODEL_GONE,
        message=message,
    )  # fmt: skip
    draft.decided.append(Decided(Action.FALL_BACK, Reason.MODEL_GONE))
    draft.record(decision, policy_digest=served.stable.digest)


def close_pass(draft: Draft) -> None:
    """Withdraw what was journaled and never took effect; keep the journal within its bounds."""
    for rollout in draft.state.rollouts:
        if draft.unfulfilled(rollout):
            draft.withdraw(rollout)
    _withdraw_of_gone(draft)
    _clear_under_way(draft)
    _take_up(draft)
    draft.journal = journal.make_room(draft.journal, _reachable(draft))
    if draft.state.model is not None and not draft.state.cannot_read("PolicyJournal"):
        draft.update_model(rejected_digests=journal.mirror(draft.journal))


def forget(draft: Draft) -> list[Effect]:
    """The deletion of a journal that holds nothing, of a model of which nothing is left."""
    state, observed = draft.state, draft.state.journal
    something = (*state.policies, *state.rollouts, *state.runs, *state.unreadable, *state.jobs)
    if observed is None or state.model or state.assignment or something:
        return []
    if not journal.is_spent(draft.journal, observed.status.cursor):
        return []
    place = state.settings.release_namespace
    return [DeleteJournal(place, observed.metadata.name, observed.metadata.uid)]


def _withdraw_of_gone(draft: Draft) -> None:
    observed = draft.state.assignment
    if observed is None or draft.state.cannot_read("PolicyRollout"):
        return
    for one in journal.left_behind(draft.journal, observed.spec.epoch, _present(draft)):
        if draft.assignment is not None and _is_carried_now(draft, one):
            continue
        message = f"entry {one.sequence} ({one.action}) was not carried out: the operator stopped"
        decision = Decision(
            seq=one.seq + 1 if one.rollout_uid else 0,
            time=to_micro(draft.now),
            action=Action.WITHDRAW,
            reason=Reason.NOT_CARRIED_OUT,
            message=f"{message} before, and the next look differs",
        )
        draft.record(decision, rollout=one.rollout, rollout_uid=one.rollout_uid, type=one.type)


def _is_carried_now(draft: Draft, entry: JournalDecision) -> bool:
    """Whether this very pass does what the entry says of the model itself."""
    if entry.rollout_uid or draft.assignment is None:
        return False
    dense = draft.assignment.stable.digest == DENSE.digest
    return (entry.action == Action.FALL_BACK and dense) or (
        entry.action == Action.RESTORE and not dense
    )


def _clear_under_way(draft: Draft) -> None:
    known, spec = draft.journal.under_way, draft.assignment
    if known is None or spec is None or known.uid in _present(draft):
        return
    served = spec.candidate is not None and outcomes.is_decision_on_attempt(
        spec, known.rollout, known.uid
    )
    if not served and not draft.state.cannot_read("PolicyRollout"):
        draft.journal = draft.journal.model_copy(update={"under_way": None})


def _take_up(draft: Draft) -> None:
    """A canary that started before there were journals may be deleted in mid-flight as well."""
    spec = draft.assignment
    if draft.journal.under_way is not None or spec is None or spec.candidate is None:
        return
    for rollout in draft.state.rollouts:
        if phases.is_active(draft.status(rollout)) and outcomes.is_decision_on(spec, rollout):
            draft.begin(rollout)


def _present(draft: Draft) -> set[str]:
    return {one.metadata.uid for one in draft.state.rollouts}


def _reachable(draft: Draft) -> set[str]:
    """Digests that something could still serve."""
    model, spec = draft.model, draft.assignment
    digests = {digest_of_policy(one) or "" for one in draft.state.policies}
    digests |= {one.spec.policy_digest for one in draft.state.rollouts}
    digests |= {one.digest for one in (*model.history, model.intended, model.stable) if one}
    if spec is not None:
        digests |= {one.digest for one in (spec.stable, spec.candidate) if one}
    return digests
