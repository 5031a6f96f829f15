"""The audits that a covariate alarm may spend: when they are done, the operator has to hear of it.

An open alarm raises the audit rate (`spec.audits.alarmRate`) until the audits have judged it, or
until it has spent `spec.audits.alarmAudits`. Audits are counted here, from records; the operator
sets the rate. They meet in `status.drift.alarmAudits` of the TuningRun that the alarm started,
written once, when the budget is spent: audits under way meanwhile (a pass, a record segment, the
operator's next look) come on top. Pure; called by `loop`, after `decisions`, which writes verdicts.
"""

from __future__ import annotations

from trimwheel_api.kinds import TuningRun
from trimwheel_api.kinds.adaptive_model import DriftState
from trimwheel_api.names import Reason
from trimwheel_pipelines.drift import Drift
from trimwheel_pipelines.view import View
from trimwheel_pipelines.watch import state_of


def spent_alarms(view: View) -> list[tuple[TuningRun, DriftState]]:
    """Runs of an open alarm whose status does not say yet that its audits are spent."""
    verdict, budget = view.verdict, view.model.spec.audits.alarm_audits
    if verdict is None or verdict.verdict is not Drift.NOT_ENOUGH_EVIDENCE:
        return []
    if verdict.alarm_audits < budget:
        return []
    state = state_of(verdict, view.now.timestamp())
    return [
        (run, state)
        for run in view.runs
        if run.spec.reason == Reason.COVARIATE_DRIFT
        and not run.status.outcome
        and run.metadata.creation_timestamp >= view.stable_since
        and run.status.drift is not None
        and run.status.drift.verdict == Drift.NOT_ENOUGH_EVIDENCE.value
        and run.status.drift.alarm_audits < budget
    ]
