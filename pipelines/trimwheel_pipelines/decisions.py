"""What the watch loop wants done about one model: pure, from one view, the clock in it.

`wanted_run` says whether a TuningRun should start and why, `drift_updates` which status the drift
verdict belongs on. Called by `loop`, which has the effects.

One change of the traffic gets one run. A covariate alarm usually comes before the audits' verdict
of harm; a run that it started goes on as the answer to the harm when its certifying window holds
nothing from before the change, or when its candidate is being rolled out already (the guards judge
that on the traffic of now). Otherwise harm starts a run of its own, which supersedes the other.

Everything is decided from objects, never from what this process remembers, so that a restart
decides the same and nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimwheel_api.kinds import PolicyRollout, TuningRun
from trimwheel_api.kinds.adaptive_model import DriftState
from trimwheel_api.kinds.tuning_run import TuningReason
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE
from trimwheel_api.times import instant
from trimwheel_api.values import seconds
from trimwheel_pipelines.drift import Drift, DriftVerdict
from trimwheel_pipelines.tuning_plan import RENEWAL_SHARE, window_opens
from trimwheel_pipelines.view import View
from trimwheel_pipelines.watch import state_of

LEAST_COOL_DOWN = 60.0
MOST_COOL_DOWN = 86_400.0
"""A search that failed is tried again after the block length, then twice as late each time."""
FRUITLESS = (Reason.NOTHING_CERTIFIED, Reason.FAILED, Reason.SUPERSEDED, Reason.STOPPED)


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

    Harm is written on the run that answers it; an alarm on the run that it started, and the audits'
    answer to an open alarm after it.
    """
    verdict = view.verdict
    if verdict is None:
        return []
    state = _state(view, verdict)
    if verdict.verdict is Drift.HARMFUL:
        answers = _answers_to_harm(view, verdict)
        told = any(_drift_of(run) == Drift.HARMFUL for run in answers)
        return [] if told or not answers else [(answers[-1], state)]
    return [
        (run, state)
        for run in view.runs
        if run.spec.reason == Reason.COVARIATE_DRIFT
        and _created(run) >= view.stable_since
        and (
            (_drift_of(run) == "" and verdict.signal)
            or (_drift_of(run) == Drift.NOT_ENOUGH_EVIDENCE and verdict.verdict is Drift.HARMLESS)
        )
    ]


# ---------------------------------------------------------------------- rules


def _after_harm(view: View) -> Wanted | None:
    """Harm is answered once for each time a policy became stable, whatever else is going on."""
    verdict = view.verdict
    if verdict is None or verdict.verdict is not Drift.HARMFUL:
        return None
    answers = _answers_to_harm(view, verdict)
    if any(not run.status.outcome or _rolling_out(view, run) for run in answers):
        return None
    if answers and not _cooled(view):
        return None
    return Wanted("Harmful", verdict.reason, _state(view, verdict))


def _answers_to_harm(view: View, verdict: DriftVerdict) -> list[TuningRun]:
    """Runs that harm need not start again; what a person started follows the person's wishes."""

    def answers(run: TuningRun) -> bool:
        if run.spec.reason == Reason.HARMFUL:
            return True
        if run.spec.reason != Reason.COVARIATE_DRIFT:
            return False
        clean = window_opens(run) >= verdict.since
        return _rolling_out(view, run) or (not run.status.outcome and clean)

    return [run for run in view.runs if _created(run) >= view.stable_since and answers(run)]


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
    return Wanted("CovariateDrift", verdict.reason, _state(view, verdict))


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
    if (tried and not _fruitless(view, tried[-1])) or not _cooled(view):
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
        if not _fruitless(view, run):
            break
        # Overtaken by harm, or stopped with its model, is no failure of a search. Runs of earlier
        # versions that were overtaken are Failed, with the reason in a condition.
        stalled = run.status.condition("Stalled")
        overtaken = stalled is not None and stalled.reason == Reason.SUPERSEDED
        ended = run.status.outcome in (Reason.SUPERSEDED, Reason.STOPPED)
        fruitless += not (overtaken or ended)
    if not fruitless:
        return True
    first = max(LEAST_COOL_DOWN, seconds(view.model.spec.drift.block))
    pause = min(first * 2.0 ** min(fruitless - 1, 20), MOST_COOL_DOWN)
    return _since_last_run(view) >= pause


def _fruitless(view: View, run: TuningRun) -> bool:
    """Nothing came of it: no policy, or one that a guard took back. A person's no is an answer."""
    if run.status.outcome in FRUITLESS:
        return True
    rollout = _rollout_of(view, run)
    decisions = rollout.status.decisions if rollout else ()
    return any(one.reason == Reason.GUARD_FAILED for one in decisions)


def _rolling_out(view: View, run: TuningRun) -> bool:
    """Whether the run's candidate is on its way."""
    rollout = _rollout_of(view, run)
    return rollout is not None and not rollout.status.finished_at


def _rollout_of(view: View, run: TuningRun) -> PolicyRollout | None:
    name = run.status.rollout
    return next((one for one in view.rollouts if name and one.name == name), None)


def _state(view: View, verdict: DriftVerdict) -> DriftState:
    """The verdict as a status carries it, with the policy whose audits it rests on."""
    served = view.model.status.stable
    return state_of(verdict, view.now.timestamp(), served.digest if served else "")


def _drift_of(run: TuningRun) -> str:
    """The verdict that a run's status carries; empty before any."""
    return run.status.drift.verdict if run.status.drift else ""


def _since_last_run(view: View) -> float:
    ends = [run.status.finished_at for run in view.runs if run.status.finished_at]
    return (view.now - instant(max(ends))).total_seconds() if ends else float("inf")


def _rollout_active(view: View) -> bool:
    return any(not rollout.status.finished_at for rollout in view.rollouts)


def _created(run: TuningRun) -> str:
    return run.metadata.creation_timestamp
