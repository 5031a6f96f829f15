"""What the watch loop wants done about one model: pure, from one view, the clock in it.

`wanted_run` says whether a TuningRun should start and why, `drift_updates` which status the drift
verdict belongs on, `ledger_events` what happened that the ledger must hold, `prunable` which
finished objects may go. Called by `loop`, which has the effects.

Everything is decided from objects, never from what this process remembers, so that a restart
decides the same and nothing twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout, TuningRun, dump
from trimwheel_api.kinds.adaptive_model import DriftState
from trimwheel_api.kinds.tuning_run import TuningReason
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_api.values import seconds
from trimwheel_pipelines.drift import Drift, DriftVerdict
from trimwheel_pipelines.ledger import Event
from trimwheel_pipelines.tuning_plan import RENEWAL_SHARE, instant
from trimwheel_pipelines.watch import state_of

LEAST_COOL_DOWN = 60.0
MOST_COOL_DOWN = 86_400.0
"""A search that failed is tried again after the block length, then twice as late each time."""
_STARTED, _ENDED = 0, 1
"""Numbers of a TuningRun's own events in the ledger."""
FRUITLESS = (Reason.NOTHING_CERTIFIED, Reason.FAILED)


@dataclass(frozen=True)
class View:
    """One model and what belongs to it, oldest first, at one moment."""

    model: AdaptiveModel
    policies: Sequence[AdaptivePolicy]
    runs: Sequence[TuningRun]
    rollouts: Sequence[PolicyRollout]
    now: datetime
    audits: int = 0
    """Audits on record, by what segments say of themselves."""
    verdict: DriftVerdict | None = None
    """None: full depth is served, which cannot drift, or the records could not be read."""

    @property
    def subject(self) -> str:
        """The model as the ledger names it."""
        return f"{self.model.metadata.namespace}/{self.model.name}"

    @property
    def stable_since(self) -> str:
        """When the stable policy became stable; empty before any."""
        return self.model.status.stable.since if self.model.status.stable else ""


@dataclass(frozen=True)
class Wanted:
    """A TuningRun that should start."""

    reason: TuningReason
    why: str
    drift: DriftState | None = None


def wanted_run(view: View) -> Wanted | None:
    """The run to start now, if any; the first rule that speaks."""
    harm = _after_harm(view)
    if harm is not None:
        return harm
    if any(not run.status.outcome for run in view.runs) or _rollout_active(view):
        return None
    for rule in (_after_covariate_alarm, _without_certificate, _renewal, _bootstrap, _scheduled):
        wanted = rule(view)
        if wanted is not None:
            return wanted
    return None


def drift_updates(view: View) -> list[tuple[TuningRun, DriftState]]:
    """Runs whose `status.drift` should say something else.

    The alarm that started a run, if the loop died before writing it; and the audits' answer to an
    open covariate alarm.
    """
    verdict, updates = view.verdict, []
    if verdict is None:
        return []
    state = state_of(verdict, view.now.timestamp())
    for run in view.runs:
        if _created(run) < view.stable_since:
            continue
        harmful = run.spec.reason == Reason.HARMFUL and verdict.verdict is Drift.HARMFUL
        alarm = run.spec.reason == Reason.COVARIATE_DRIFT
        unset = run.status.drift is None and (harmful or (alarm and verdict.signal))
        judged = (
            alarm
            and verdict.verdict is Drift.HARMLESS
            and run.status.drift is not None
            and run.status.drift.verdict == Drift.NOT_ENOUGH_EVIDENCE.value
        )
        if unset or judged:
            updates.append((run, state))
    return updates


def ledger_events(view: View, operator: str, pipelines: str) -> list[Event]:
    """All that happened to a model, as the ledger numbers it; the ledger skips what it has.

    `operator`, `pipelines`: the usernames that decide where no person did.
    """
    events = [event for run in view.runs for event in _run_events(view, run, pipelines)]
    for rollout in view.rollouts:
        for decision in rollout.status.decisions:
            payload = {
                "rollout": rollout.name,
                "type": rollout.spec.type,
                "policy": rollout.spec.policy,
                "policyDigest": rollout.spec.policy_digest,
                "requestedBy": rollout.spec.requested_by,
                **dump(decision),
            }
            if decision is rollout.status.decisions[-1]:
                payload["guards"] = [dump(guard) for guard in rollout.status.guards]
            events.append(
                Event(
                    at=decision.time,
                    actor=decision.actor or operator,
                    kind=decision.action,
                    subject=view.subject,
                    uid=rollout.metadata.uid,
                    source_seq=decision.seq,
                    payload=payload,
                )
            )
    return sorted(events, key=lambda event: (event.at, event.uid, event.source_seq))


def prunable(view: View) -> list[PolicyRollout | TuningRun | AdaptivePolicy]:
    """Finished objects beyond `historyLimit`, oldest first; never one that something refers to.

    Policies made by hand are their owners'.
    """
    limit = view.model.spec.rollout.history_limit
    status = view.model.status
    active = status.candidate.rollout if status.candidate else ""
    finished = [one for one in view.rollouts if one.status.finished_at and one.name != active]
    old_rollouts = finished[: max(0, len(finished) - limit)]
    carrier = status.drift.tuning_run if status.drift else ""
    ended = [run for run in view.runs if run.status.outcome and run.name != carrier]
    old_runs = ended[: max(0, len(ended) - limit)]
    kept_rollouts = [one for one in view.rollouts if one not in old_rollouts]
    kept_runs = [one for one in view.runs if one not in old_runs]
    referred = {one.spec.policy for one in kept_rollouts} | {one.status.policy for one in kept_runs}
    referred |= {one.policy for one in (status.stable, status.intended) if one}
    referred |= {one.policy for one in status.history}
    referred |= {status.candidate.policy} if status.candidate else set()
    ours = [
        one
        for one in view.policies
        if one.spec.certificate is not None
        and one.spec.certificate.tuning_run
        and one.name not in referred
    ]
    return [*old_rollouts, *old_runs, *ours[: max(0, len(ours) - limit)]]


def promoted(view: View) -> AdaptivePolicy | None:
    """The policy that was promoted last: what alias `stable` should point at."""
    intended = view.model.status.intended
    if intended is None or intended.digest == DENSE.digest:
        return None
    return next((one for one in view.policies if one.name == intended.policy), None)


def digest_of_object(policy: AdaptivePolicy) -> str:
    """Digest of an object's document."""
    return parse_policy(policy.spec.policy).digest


# ---------------------------------------------------------------------- rules


def _after_harm(view: View) -> Wanted | None:
    """Harm is answered once for each time a policy became stable, whatever else is going on."""
    verdict = view.verdict
    if verdict is None or verdict.verdict is not Drift.HARMFUL:
        return None
    answered = [
        run
        for run in view.runs
        if run.spec.reason == Reason.HARMFUL and _created(run) >= view.stable_since
    ]
    if any(not run.status.outcome for run in answered) or (answered and not _cooled(view)):
        return None
    return Wanted("Harmful", verdict.reason, state_of(verdict, view.now.timestamp()))


def _after_covariate_alarm(view: View) -> Wanted | None:
    """An open alarm is answered once; while it is open audits run at the alarm rate."""
    verdict = view.verdict
    if verdict is None or not verdict.wants_audits:
        return None
    alarm = min(alarm.time for alarm in verdict.alarms)
    answered = any(
        run.spec.reason == Reason.COVARIATE_DRIFT
        and instant(run.metadata.creation_timestamp).timestamp() >= alarm - 1.0
        for run in view.runs
    )
    if answered or not _cooled(view):
        return None
    return Wanted("CovariateDrift", verdict.reason, state_of(verdict, view.now.timestamp()))


def _without_certificate(view: View) -> Wanted | None:
    """The certificate was revoked or ran out, full depth is served: look for another policy.

    The alarm that revoked it has started a run already; this is the retry, later each time.
    """
    certificate = view.model.status.certificate
    if certificate is None or certificate.state not in ("Revoked", "Expired"):
        return None
    revoked, intended = certificate.state == "Revoked", view.model.status.intended
    since = intended.since if revoked and intended else certificate.expires_at
    tried = [run for run in view.runs if _created(run) >= since]
    if (tried and tried[-1].status.outcome not in FRUITLESS) or not _cooled(view):
        return None
    drift = view.model.status.drift
    harmed = revoked and drift is not None and drift.verdict == Drift.HARMFUL.value
    why = f"the certificate is {certificate.state.lower()}"
    return Wanted("Harmful", why, drift) if harmed else Wanted("Scheduled", why)


def _renewal(view: View) -> Wanted | None:
    """The certificate ends soon."""
    certificate = view.model.status.certificate
    if certificate is None or certificate.state != "Valid" or not certificate.expires_at:
        return None
    ends = instant(certificate.expires_at)
    life = seconds(view.model.spec.tuning.certificate_ttl)
    left = (ends - view.now).total_seconds()
    if left > RENEWAL_SHARE * life or _since_last_run(view) < RENEWAL_SHARE * life / 4:
        return None
    return Wanted("Scheduled", f"the certificate ends in {left / 3600:.1f} h")


def _bootstrap(view: View) -> Wanted | None:
    """No policy was ever certified, and there are enough audits to search on."""
    tuning, intended = view.model.spec.tuning, view.model.status.intended
    certified = any(
        one.spec.certificate is not None
        and one.spec.certificate.model_digest == view.model.spec.model.digest
        for one in view.policies
    )
    promoted_before = intended is not None and intended.digest != DENSE.digest
    if not tuning.bootstrap or certified or promoted_before or not _cooled(view):
        return None
    if view.audits < tuning.search_records:
        return None
    return Wanted("Bootstrap", f"{view.audits} audits, and no policy was ever certified")


def _scheduled(view: View) -> Wanted | None:
    """The model's schedule, counted from the end of the last run."""
    tuning = view.model.spec.tuning
    if tuning.schedule is None or view.audits < tuning.search_records:
        return None
    if _since_last_run(view) < seconds(tuning.schedule):
        return None
    return Wanted("Scheduled", f"every {tuning.schedule}")


def _cooled(view: View) -> bool:
    """Whether enough time went by since fruitless runs: doubling, so that nothing loops."""
    fruitless = 0
    for run in reversed(view.runs):
        if run.status.outcome not in FRUITLESS:
            break
        # Overtaken by harm is no failure of a search.
        stalled = run.status.condition("Stalled")
        fruitless += stalled is None or stalled.reason != Reason.SUPERSEDED
    if not fruitless:
        return True
    first = max(LEAST_COOL_DOWN, seconds(view.model.spec.drift.block))
    pause = min(first * 2.0 ** min(fruitless - 1, 20), MOST_COOL_DOWN)
    return _since_last_run(view) >= pause


def _since_last_run(view: View) -> float:
    ends = [run.status.finished_at for run in view.runs if run.status.finished_at]
    return (view.now - instant(max(ends))).total_seconds() if ends else float("inf")


def _rollout_active(view: View) -> bool:
    return any(not rollout.status.finished_at for rollout in view.rollouts)


def _created(run: TuningRun) -> str:
    return run.metadata.creation_timestamp


def _run_events(view: View, run: TuningRun, pipelines: str) -> list[Event]:
    """A TuningRun's start and end."""
    status = run.status
    asked = {"tuningRun": run.name, "reason": run.spec.reason, "seed": run.spec.seed}
    drift = {"drift": dump(status.drift)} if status.drift else {}
    actor = "" if run.spec.reason == "Manual" else pipelines
    uid = run.metadata.uid
    start = Event(_created(run), actor, "TuningStarted", view.subject, uid, _STARTED, asked)
    if not status.outcome:
        return [start]
    ready = status.condition("Ready")
    result = {
        "outcome": status.outcome,
        "message": ready.message if ready else "",
        "policy": status.policy,
        "policyDigest": status.policy_digest,
        "rollout": status.rollout,
        "mlflowRunID": status.mlflow_run_id,
        "searchRecords": status.search_records,
        "certifyRecords": status.certify_records,
    }
    if status.certificate is not None:
        result["certificate"] = dump(status.certificate)
    at = status.finished_at or _created(run)
    ended = asked | drift | result
    return [start, Event(at, pipelines, "TuningEnded", view.subject, uid, _ENDED, ended)]
