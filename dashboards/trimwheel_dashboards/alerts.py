"""Alerts, each with severity, how long it must hold, one sentence, and its entry in the runbook.

Thresholds stand here once. `critical` wakes a person: users are hurt, or the loop is blind.
`warning` waits for office hours: the loop protected users by itself, or a promise will lapse.
Rollouts themselves are judged by the operator's verdicts, never by these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trimwheel_api.kinds.adaptive_model import Objectives, RolloutSpec
from trimwheel_api.metrics import (
    AUDITS,
    CERTIFICATE_EXPIRY,
    DECISIONS,
    DEGRADED,
    DRIFT_EVIDENCE,
    ENGINE_RESTARTS,
    GUARD_VERDICT,
    LEDGER_EVENTS,
    LOOP_ERRORS,
    POLICY_EPOCH,
    RECONCILE_ERRORS,
    RECONCILE_SECONDS,
    REFUSALS,
    REQUESTS,
    ROLLBACK_SECONDS,
    ROLLOUT_WEIGHT,
    RULE_FAILURES,
    TRIPWIRE,
    TUNING_RUNS,
)
from trimwheel_api.names import VERDICT_NOT_ENOUGH, Reason
from trimwheel_dashboards.promql import new_events, select
from trimwheel_dashboards.rules import ERROR_RATIO, LOST_RATIO, REFUSED_RATIO

RUNBOOK = "docs/runbook.md"
ERROR_LIMIT = 0.01
REFUSED_LIMIT = 0.05
LOST_LIMIT = float(Objectives.model_fields["max_disagreement"].default) / 4
"""A certificate is void when more than a quarter of epsilon is lost."""
EXPIRY_WARNING_SECONDS = 3 * 86400
SLOW_BUCKET = f"{RolloutSpec.model_fields['lease_seconds'].default}.0"
_OWN = "model_namespace, model"
_OF_OPERATOR = "{{ $labels.model_namespace }}/{{ $labels.model }}"
_OF_WORKER = "{{ $labels.namespace }}/{{ $labels.model }}"


@dataclass(frozen=True)
class Alert:
    """One alert; the runbook entry is the heading of the same name."""

    name: str
    severity: Literal["critical", "warning"]
    expr: str
    holds: str
    summary: str
    description: str
    labels: dict[str, str] = field(default_factory=dict)

    def rule(self) -> dict[str, Any]:
        """The alert in the shape of a Prometheus rule file."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.holds,
            "labels": {"severity": self.severity} | self.labels,
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook": f"{RUNBOOK}#{self.name.lower()}",
            },
        }


def _worker_name(expression: str) -> str:
    """A worker's series under the label by which the operator names the model's namespace."""
    return f'label_replace({expression}, "model_namespace", "$1", "namespace", "(.*)")'


_REQUEST_RATE = f"sum by (namespace, model) (rate({REQUESTS.name}[15m]))"
_AUDIT_RATE = f"sum by (namespace, model) (rate({AUDITS.name}[15m]))"
_EPOCHS = f"by (namespace, model) ({POLICY_EPOCH.name})"
_SLOW = (
    f"sum(increase({ROLLBACK_SECONDS.name}_count[15m])) - "
    f"sum(increase({select(ROLLBACK_SECONDS.name + '_bucket', le=SLOW_BUCKET)}[15m]))"
)

ALERTS: tuple[Alert, ...] = (
    Alert(
        "TrimwheelErrors", "critical", f"{ERROR_RATIO} > {ERROR_LIMIT}", "5m",
        f"{_OF_WORKER} answers too many requests with 5xx.",
        "{{ $value | humanizePercentage }} of requests fail.",
    ),
    Alert(
        "TrimwheelOverloaded", "warning", f"{REFUSED_RATIO} > {REFUSED_LIMIT}", "5m",
        f"{_OF_WORKER} turns requests away.",
        "{{ $value | humanizePercentage }} of requests are answered 429 or 503: the queue is full.",
    ),
    Alert(
        "TrimwheelWorkersNotScraped", "critical",
        f"max by ({_OWN}) ({DEGRADED.name}) unless on ({_OWN}) {_worker_name(POLICY_EPOCH.name)}",
        "5m",
        f"Prometheus has no series of the workers of {_OF_OPERATOR}.",
        "Without counters no guard can pass and no harm can be seen.",
    ),
    Alert(
        "TrimwheelAuditsStopped", "critical",
        f"({_REQUEST_RATE} > 0) unless on (namespace, model) ({_AUDIT_RATE} > 0)", "15m",
        f"{_OF_WORKER} serves requests, and none is audited.",
        "Quality is unknown: drift cannot be seen and no policy can be certified.",
    ),
    Alert(
        "TrimwheelDriftHarmful", "critical", f"max by ({_OWN}) ({DRIFT_EVIDENCE.name}) >= 1", "0m",
        f"Audits show that {_OF_OPERATOR} breaks its promise.",
        "The certificate is revoked and a TuningRun starts; onHarm says what is served meanwhile.",
    ),
    Alert(
        "TrimwheelDegraded", "warning", f"max by ({_OWN}) ({DEGRADED.name}) == 1", "30m",
        f"{_OF_OPERATOR} serves full depth for want of a valid certificate.",
        "Answers are right and compute is at its highest: mind capacity.",
    ),
    Alert(
        "TrimwheelCertificateExpires", "warning",
        f"(max by ({_OWN}) ({CERTIFICATE_EXPIRY.name}) > 0) - time() < {EXPIRY_WARNING_SECONDS}",
        "10m",
        f"The certificate of {_OF_OPERATOR} ends soon.",
        "It ends in {{ $value | humanizeDuration }}; then full depth is served.",
    ),
    Alert(
        "TrimwheelGuardFailed", "warning",
        new_events(DECISIONS, _OWN, "15m", reason=Reason.GUARD_FAILED), "0m",
        f"A guard failed a candidate of {_OF_OPERATOR}.",
        "It was rolled back without anybody's help, and its digest is not tried again by itself.",
    ),
    Alert(
        "TrimwheelRolloutWithoutEvidence", "warning",
        f"(max by ({_OWN}) ({ROLLOUT_WEIGHT.name}) > 0) and on ({_OWN}) "
        f"(max by ({_OWN}) ({select(GUARD_VERDICT, verdict=VERDICT_NOT_ENOUGH)}) == 1)", "2h",
        f"A rollout of {_OF_OPERATOR} finds no evidence.",
        "Some guard has been NotEnoughEvidence for two hours while a candidate serves.",
    ),
    Alert(
        "TrimwheelTripwire", "critical",
        new_events(TRIPWIRE, "namespace, model, reason", "15m"), "0m",
        f"Workers of {_OF_WORKER} left the candidate by themselves.",
        "{{ $value }} times in 15 minutes, because of {{ $labels.reason }}.",
    ),
    Alert(
        "TrimwheelEngineDied", "warning",
        new_events(ENGINE_RESTARTS, "namespace, model", "15m"), "0m",
        f"Engine processes of {_OF_WORKER} died.",
        "{{ $value }} in 15 minutes; a worker starts its engine anew and is not Ready meanwhile.",
    ),
    Alert(
        "TrimwheelPolicyRefused", "warning",
        new_events(REFUSALS, "namespace, model, arm", "15m"), "0m",
        f"Workers of {_OF_WORKER} refuse an assigned policy.",
        "Arm {{ $labels.arm }}: they cannot serve it, and keep the last good one.",
    ),
    Alert(
        "TrimwheelWorkersBehind", "warning", f"max {_EPOCHS} - min {_EPOCHS} > 0", "5m",
        f"Workers of {_OF_WORKER} run different epochs.",
        "Some worker does not apply the newest assignment; its lease keeps it on stable.",
    ),
    Alert(
        "TrimwheelRollbackSlow", "critical", f"{_SLOW} > 0.5", "0m",
        "A rollback took longer than the default lease.",
        "Some worker neither acknowledged nor gave its candidate up in time.",
    ),
    Alert(
        "TrimwheelRecordsLost", "warning", f"{LOST_RATIO} > {LOST_LIMIT:g}", "15m",
        f"{_OF_WORKER} loses audit records.",
        "{{ $value | humanizePercentage }} are lost; above a quarter of epsilon nothing certifies.",
    ),
    Alert(
        "TrimwheelOperatorDown", "critical", f"absent({RECONCILE_SECONDS.name}_count)", "5m",
        "Prometheus has no series of the operator.",
        "Nothing is promoted, nothing is rolled back by verdict; leases end canaries.",
    ),
    Alert(
        "TrimwheelPipelinesDown", "warning", f"absent({LEDGER_EVENTS.name})", "10m",
        "Prometheus has no series of the pipelines.",
        "Drift is not watched, nothing is tuned, decisions are not copied to the ledger.",
    ),
    Alert(
        "TrimwheelReconcileErrors", "warning",
        f"sum by (reason) (rate({RECONCILE_ERRORS.name}[10m])) > 0.05", "15m",
        "The operator keeps failing to reconcile.",
        "Reason {{ $labels.reason }}; it retries with back-off.",
    ),
    Alert(
        "TrimwheelRuleFailed", "warning",
        f"sum by (rule) (increase({RULE_FAILURES.name}[10m])) > 0", "5m",
        "A rule of the operator keeps raising.",
        "Rule {{ $labels.rule }}; the other rules run, and a failed guard ends a canary.",
    ),
    Alert(
        "TrimwheelLoopErrors", "warning",
        f"sum by (reason) (rate({LOOP_ERRORS.name}[10m])) > 0.01", "15m",
        "The pipelines' watch loop keeps failing.",
        "Reason {{ $labels.reason }}; drift may go unseen while it does.",
    ),
    Alert(
        "TrimwheelTuningFailed", "warning",
        new_events(TUNING_RUNS, _OWN, "1h", outcome="Failed"), "0m",
        f"A TuningRun of {_OF_OPERATOR} failed.",
        "The incumbent policy stays; the run's Stalled condition says why.",
    ),
)  # fmt: skip


def alert_rules() -> list[dict[str, Any]]:
    """All alerts in the shape of a Prometheus rule file."""
    return [alert.rule() for alert in ALERTS]
