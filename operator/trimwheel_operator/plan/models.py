"""One AdaptiveModel: its worker objects, what its workers are told, and what its status says.

Called by `plan` around the rollouts' story: before it, drift is mirrored and the assignment made;
after it, the stable policy follows from what is intended, and the status from everything.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from trimwheel_api import names
from trimwheel_api.errors import SpecInvalid
from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.kinds.adaptive_model import CandidatePolicy, DriftState, StablePolicy
from trimwheel_api.kinds.policy_assignment import MOST_WRITES, PolicyAssignmentSpec
from trimwheel_api.limits import beyond
from trimwheel_api.names import Reason
from trimwheel_api.times import EPOCH, parse, parse_or, to_micro
from trimwheel_operator import manifests
from trimwheel_operator.plan import memory
from trimwheel_operator.plan.actions import Action, Ensure
from trimwheel_operator.plan.certificates import harm_since, of_intended
from trimwheel_operator.plan.draft import Draft, event_key, owner_reference
from trimwheel_operator.plan.isolation import attempt, failures
from trimwheel_operator.plan.observed import Cause, DeploymentState, ObservedState
from trimwheel_operator.plan.outcomes import is_decision_on
from trimwheel_operator.plan.phases import beyond_limits
from trimwheel_operator.plan.stable import (
    DENSE_ASSIGNED,
    UNKNOWN_PROMISE,
    StableChoice,
    audit_rate,
    choose,
    is_unjudged_alarm,
    policy_of_digest,
)

RENEWALS_PER_LEASE = 3
UNREACHED_EPOCH = MOST_WRITES // 2
"""A thousand writes a second take 140,000 years to it."""


def worker_manifests(draft: Draft, model: AdaptiveModel) -> list[Action]:
    """The worker objects that are absent, out of date, or due to be checked."""
    state, owner = draft.state, owner_reference(model.kind, model.metadata)
    found: list[Action] = []
    for manifest in manifests.worker_objects(model, owner, state.settings):
        wanted = Ensure(manifest)
        if wanted.place in state.children.taken:
            continue  # a forced apply would make somebody else's object ours
        known = state.children.hashes.get(wanted.place)
        if state.children.check or known != manifests.hash_of(manifest):
            found.append(wanted)
    return found


def mirror_drift(draft: Draft) -> bool:
    """Copy the newest drift verdict of any TuningRun into the model's status; True when done.

    A verdict ends with the policy that it speaks of: of the one that took its place nothing is
    known yet, and the status says that.
    """
    reported = [
        run.status.drift.model_copy(update={"tuning_run": run.name})
        for run in draft.state.runs
        if run.status.drift is not None and run.status.drift.time
    ]
    known = draft.model.drift
    told = [*reported, *([known] if known else [])]
    newest = max((one for one in told if _is_of_intended(draft, one)), key=_time_of, default=None)
    if newest is None and known is not None:
        newest = DriftState()
    if newest is not None and newest != known:
        draft.update_model(drift=newest)
    return True


def _is_of_intended(draft: Draft, drift: DriftState) -> bool:
    """Whether a verdict speaks of the policy that is meant to be served now."""
    intended = draft.model.intended
    if intended is None or not drift.time:
        return True
    if drift.policy_digest and drift.policy_digest != intended.digest:
        return False
    promoted = parse(intended.since)
    return promoted is None or parse_or(drift.time, EPOCH) > promoted


def _time_of(drift: DriftState) -> tuple[datetime, bool]:
    """By time; of two that are alike the one that carries a verdict."""
    return parse_or(drift.time, EPOCH), drift.verdict != names.VERDICT_NOT_ENOUGH


def begin_assignment(draft: Draft, model: AdaptiveModel) -> None:
    """A new model starts at full depth; a lost assignment goes on behind the newest epoch known.

    Of epochs that workers claim those are left out that no number of writes reaches: a claim near
    the field's limit would leave no room for the decisions to come.
    """
    if draft.assignment is not None:
        return
    claimed = (ack.epoch for ack in draft.state.acknowledgements)
    epoch = max((one for one in claimed if one < UNREACHED_EPOCH), default=0) + 1
    draft.assignment = PolicyAssignmentSpec(
        epoch=epoch,
        stable=DENSE_ASSIGNED,
        audit_rate=model.spec.audits.rate,
        lease_seconds=model.spec.rollout.lease_seconds,
        decided_at=to_micro(draft.now),
    )


def tell_workers(
    draft: Draft, model: AdaptiveModel, mistake: SpecInvalid | None, drift_known: bool
) -> StableChoice:
    """The part of the assignment that is not a rollout's: stable policy, audit rate, lease.

    When whether the promise stands cannot be decided, it does not.
    """
    choice = UNKNOWN_PROMISE
    if drift_known:
        choice = attempt(draft, choose_stable, model, otherwise=UNKNOWN_PROMISE)
    if draft.assignment is None:
        return choice
    draft.assign(stable=choice.assigned)
    attempt(draft, memory.record_stable, choice, otherwise=None)
    if mistake is None:
        attempt(draft, set_audit_rate, model, otherwise=None)
        attempt(draft, set_lease, model, otherwise=None)
    attempt(draft, renew, otherwise=None)
    return choice


def choose_stable(draft: Draft, model: AdaptiveModel) -> StableChoice:
    """The rule that harm and a lapsed certificate meet: what everyone shall be served."""
    policy = None
    if intended := draft.model.intended:
        policy = policy_of_digest(draft.state, intended.digest, intended.policy)
        if not intended.model_digest:  # promoted before it was remembered
            known = {"model_digest": model.spec.model.digest}
            draft.update_model(intended=intended.model_copy(update=known))
    certificate, found = of_intended(draft.remembered, model, policy, draft.now)
    draft.update_model(certificate=certificate)
    if certificate.revoked_at:
        memory.remember_revocation(draft, certificate)
    return choose(draft, model, found)


def set_audit_rate(draft: Draft, model: AdaptiveModel) -> None:
    """The share of requests that workers audit."""
    draft.assign(audit_rate=audit_rate(draft.state, model))


def set_lease(draft: Draft, model: AdaptiveModel) -> None:
    """How long a worker serves a candidate without news; a canary under way keeps its own."""
    if draft.assignment is not None and draft.assignment.candidate is None:
        draft.assign(lease_seconds=model.spec.rollout.lease_seconds)


def renew(draft: Draft) -> None:
    """Tell the workers that the operator lives, when it is time."""
    if renewal_due(draft):
        draft.renew()


def renewal_due(draft: Draft) -> bool:
    """Whether a candidate with weight waits to hear that the operator lives."""
    spec, last = draft.assignment, draft.state.last_renewal
    if spec is None or spec.candidate is None or not spec.weight_basis_points:
        return False
    return last is None or draft.now - last >= renewal_interval(spec)


def renewal_interval(spec: PolicyAssignmentSpec) -> timedelta:
    """Thrice a lease, so that one lost write does not end a canary."""
    return timedelta(seconds=spec.lease_seconds / RENEWALS_PER_LEASE)


# --- what the status says ----------------------------------------------------------------------


def report(
    draft: Draft, model: AdaptiveModel, choice: StableChoice, mistake: SpecInvalid | None
) -> None:
    """Everything in the model's status that follows from the rest."""
    rules = (_report_workers, _report_serving, _report_promise, _report_drift, _report_limits)
    attempt(draft, _report_policies, choice, otherwise=None)
    for rule in rules:
        attempt(draft, rule, model, choice, mistake, otherwise=None)


Mistake = SpecInvalid | None


def _report_workers(
    draft: Draft, model: AdaptiveModel, choice: StableChoice, mistake: Mistake
) -> None:
    state = draft.state
    draft.update_model(
        observed_generation=model.metadata.generation,
        replicas=state.children.deployment.replicas,
        ready_replicas=state.children.deployment.ready,
        selector=",".join(f"{k}={v}" for k, v in sorted(manifests.selector(model.name).items())),
        endpoint=_endpoint(state),
    )


def _endpoint(state: ObservedState) -> str:
    """Reachable from inside the cluster; on the embedded one from the host as well."""
    address, port = state.children.cluster_ip, state.settings.service_port
    if not address:
        return ""
    tls = state.model is not None and state.model.spec.access.tls_secret
    scheme, usual = ("https", 443) if tls else ("http", 80)
    return f"{scheme}://{address}" if port == usual else f"{scheme}://{address}:{port}"


def _report_policies(draft: Draft, choice: StableChoice) -> None:
    spec, known = draft.assignment, draft.model.stable
    if spec is None:
        return
    if known is None or known.digest != spec.stable.digest:
        draft.update_model(
            stable=StablePolicy(
                digest=spec.stable.digest, policy=choice.policy, since=spec.decided_at
            )
        )
    candidate = None
    if spec.candidate is not None:
        owner = next((one for one in draft.state.rollouts if is_decision_on(spec, one)), None)
        candidate = CandidatePolicy(
            digest=spec.candidate.digest,
            policy=owner.spec.policy if owner else "",
            rollout=spec.rollout,
        )
    draft.update_model(candidate=candidate)
    if draft.model.intended is None:
        draft.update_model(intended=draft.model.stable)


def _report_serving(
    draft: Draft, model: AdaptiveModel, choice: StableChoice, mistake: Mistake
) -> None:
    deployment, wanted = draft.state.children.deployment, model.spec.replicas
    applied, cause = deployment.applied(wanted), draft.state.children.cause
    trouble = _trouble(draft.state, mistake)
    if trouble:
        draft.model_condition(names.RECONCILING, False, trouble[0], "")
    else:
        reason = Reason.APPLIED if applied else cause.reason if cause else Reason.APPLYING
        said = "" if applied else _progress(deployment, wanted, cause)
        draft.model_condition(names.RECONCILING, not applied, reason, said)
    behind = _behind(draft)
    reachable = bool(draft.state.children.cluster_ip)
    ready = deployment.ready >= wanted and applied and not behind and reachable
    message = f"{deployment.ready} of {wanted} workers are ready"
    if not reachable:
        message += ", and there is no Service yet"
    reason = Reason.WORKERS_READY if ready else Reason.WORKERS_NOT_READY
    if not applied and deployment.ready >= wanted:
        message += f", {deployment.updated} of them run this spec"
    if behind:
        message += f"; behind the current epoch: {', '.join(behind[:5])}"
    if cause and not ready:
        reason, message = cause.reason, f"{message}: {cause.message}"
    if trouble:
        ready, (reason, message) = False, trouble
    if cause and not trouble:
        _tell_cause(draft, model, cause)
    draft.model_condition(names.READY, ready, reason, message)


def _progress(deployment: DeploymentState, wanted: int, cause: Cause | None) -> str:
    said = f"{deployment.updated} of {wanted} workers run this spec"
    return f"{said}: {cause.message}" if cause else said


def _tell_cause(draft: Draft, model: AdaptiveModel, cause: Cause) -> None:
    """An Event when another cause keeps the workers from starting than the last that was told."""
    before = model.status.condition(names.READY)
    if before is None or cause.message not in before.message:
        key = event_key("cause", cause.message)
        draft.tell(model.kind, model.metadata, cause.reason, cause.message, "Warning", key)


def report_stalled(draft: Draft, model: AdaptiveModel, mistake: Mistake) -> None:
    """Say what keeps the spec from being applied, and which rules raised; asked last of all."""
    if trouble := _trouble(draft.state, mistake):
        reason, why = trouble
        message = f"{why}. What was applied before goes on serving"
        draft.model_condition(names.STALLED, True, reason, message)
    elif failed := failures(draft):
        draft.model_condition(names.STALLED, True, Reason.RULE_FAILED, failed)
    else:
        draft.model_condition(names.STALLED, False, Reason.APPLIED, "")


def _trouble(state: ObservedState, mistake: SpecInvalid | None) -> tuple[str, str] | None:
    """Reason and message of what keeps the spec from being applied; None when nothing does."""
    if mistake is not None:
        return Reason.INVALID_SPEC, mistake.sentence()
    for kind, name in sorted(state.children.taken):
        return Reason.NAME_TAKEN, (
            f"metadata.name: must be free for the model's {kind}, but there is a {kind} {name} "
            f"that neither belongs to this model nor is {names.LABEL_MANAGED_BY}="
            f"{names.OPERATOR_ACCOUNT}. Delete it, or create the model under another name"
        )
    for (kind, name), said in state.children.refused.items():
        return Reason.APPLY_REFUSED, f"{kind} {name}: the API server refuses it: {said}"
    return None


def _behind(draft: Draft) -> list[str]:
    """Ready pods that have not applied the observed epoch within its lease.

    Before that they are merely on their way: readiness must not flap at each step of a canary.
    """
    observed = draft.state.assignment
    if observed is None:
        return []
    decided = parse(observed.spec.decided_at)
    if decided and draft.now < decided + timedelta(seconds=observed.spec.lease_seconds):
        return []
    epochs = {ack.pod: ack.epoch for ack in draft.state.acknowledgements}
    newest = observed.spec.epoch
    return sorted(
        pod.name for pod in draft.state.pods if pod.ready and epochs.get(pod.name, 0) < newest
    )


def _report_promise(
    draft: Draft, model: AdaptiveModel, choice: StableChoice, mistake: Mistake
) -> None:
    found = choice.standing
    draft.model_condition(names.CERTIFIED, found.valid, found.reason, found.message)
    if choice.no_room:
        _report_no_room(draft, model)
        return
    if not choice.degraded:
        draft.model_condition(names.DEGRADED, False, Reason.HEALTHY, "")
        return
    message = f"{found.message}; every worker serves full depth"
    draft.model_condition(names.DEGRADED, True, Reason.SERVING_FULL_DEPTH, message)


def _report_no_room(draft: Draft, model: AdaptiveModel) -> None:
    """Harm goes on because full depth would overload the workers: a person has to know.

    Said once, with the load of that moment: a status that follows the load would never rest.
    """
    before = model.status.condition(names.DEGRADED)
    if before is not None and before.reason == Reason.NO_ROOM_FOR_FULL_DEPTH:
        draft.model_condition(names.DEGRADED, False, before.reason, before.message)
        return
    message = (
        f"the policy does harm and keeps serving: full depth would bring the workers' utilisation "
        f"to {draft.state.full_depth_load:.2f}, objectives.capacityTarget is "
        f"{model.spec.objectives.capacity_target}; add replicas"
    )
    draft.model_condition(names.DEGRADED, False, Reason.NO_ROOM_FOR_FULL_DEPTH, message)
    draft.tell(model.kind, model.metadata, Reason.NO_ROOM_FOR_FULL_DEPTH, message, "Warning")


def _report_limits(
    draft: Draft, model: AdaptiveModel, choice: StableChoice, mistake: Mistake
) -> None:
    """Name what was stored before a limit of its field was made; the API server refuses it now."""
    broken = [one.sentence() for one in beyond(model.spec)]
    if broken:
        draft.model_condition(
            names.OUTSIDE_LIMITS, True, Reason.LIMIT_EXCEEDED, beyond_limits(broken)
        )
    elif draft.model.condition(names.OUTSIDE_LIMITS) is not None:
        draft.model_condition(names.OUTSIDE_LIMITS, False, Reason.WITHIN_LIMITS, "")


def _window(drift: DriftState) -> str:
    return f" since {drift.since}" if drift.since else ""


def _report_drift(
    draft: Draft, model: AdaptiveModel, choice: StableChoice, mistake: Mistake
) -> None:
    intended, drift = draft.model.intended, draft.model.drift
    if intended and drift and harm_since(intended, drift):
        message = (
            f"{drift.signal}: {drift.value} against a bound of {drift.bound} in "
            f"{drift.audits} audits{_window(drift)} (TuningRun {drift.tuning_run})"
        )
        draft.model_condition(names.DRIFTED, True, Reason.HARMFUL, message)
    elif alarm := next((run for run in draft.state.runs if is_unjudged_alarm(run)), None):
        message = f"inputs moved (TuningRun {alarm.name}); audits decide whether that does harm"
        draft.model_condition(names.DRIFTED, True, Reason.COVARIATE_DRIFT, message)
    elif drift and drift.verdict == "Harmless":
        message = f"{drift.signal} moved, audited disagreement did not"
        draft.model_condition(names.DRIFTED, False, Reason.HARMLESS, message)
    else:
        draft.model_condition(names.DRIFTED, False, Reason.NOT_ENOUGH_EVIDENCE, "no alarm")
