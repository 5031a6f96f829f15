"""Every metric of Trimwheel, once: name, type, labels, buckets, help.

Workers, operator and pipelines build their registries from this table; PromQL, dashboards, alerts
and the reference page take names from it. `model` is the object's name; namespace and pod come
from the scrape. Operator and pipelines live in another namespace than the models they speak of, so
their metrics name it in `model_namespace`. Label children are created at start so that every series
starts at 0: evidence is read from raw counters, and a series that appears late would lose its first
event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricType = Literal["counter", "gauge", "histogram"]
Component = Literal["worker", "operator", "pipelines"]

LATENCY_BUCKETS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Seconds. Fixed, so that policies stay comparable; a worker adds its SLO as an exact bucket."""
ROLLBACK_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    type: MetricType
    labels: tuple[str, ...]
    help: str
    component: Component = "worker"
    buckets: tuple[float, ...] = ()


LABEL_MEANINGS = {
    "model": "AdaptiveModel, by object name",
    "model_namespace": "its namespace, where the scraped pod lives in another one",
    "arm": "stable or candidate",
    "exit": "index of the exit that answered; `full` for full depth, `none` without an answer",
    "code": "HTTP status code",
    "digest": "policy digest, whole",
    "guard": "disagreement, errors, latency, capacity or parity",
    "slot": "place in a list, from 0",
    "agree": "true or false: the same answer as full depth",
    "layer": "layer number, from 1",
    "expert": "expert index, from 0",
    "verdict": "Pass, Fail or NotEnoughEvidence",
    "action": "what the operator decided",
    "reason": "why",
    "rule": "name of the rule in the operator's plan",
    "signal": "drift signal",
    "outcome": "how it ended",
}
EXIT_FULL = "full"
CODE_ANSWERED = "200"
"""Label value of a request that cost engine time and got its answer; refusals cost none."""
EXIT_NONE = "none"

REQUESTS = Metric(
    "trimwheel_requests_total",
    "counter",
    ("model", "arm", "exit", "code"),
    "Requests that ended, refused ones too.",
)
REQUEST_DURATION = Metric(
    "trimwheel_request_duration_seconds", "histogram", ("model", "arm"),
    "Time from the request's last byte to the answer's first.", buckets=LATENCY_BUCKETS,
)  # fmt: skip
LAYERS_RUN = Metric(
    "trimwheel_layers_run_total", "counter", ("model", "arm"), "Layers run for answered requests."
)
LAYERS_FULL = Metric(
    "trimwheel_layers_full_total", "counter", ("model", "arm"),
    "Layers that full depth would have run for them.",
)  # fmt: skip
AUDITS = Metric(
    "trimwheel_audits_total", "counter", ("model", "arm", "agree"),
    "Audited requests, by the policy judged and whether it agrees with full depth.",
)  # fmt: skip
GUARD_TRIALS = Metric(
    "trimwheel_guard_trials_total", "counter", ("model", "arm", "digest", "guard"),
    "Evidence of a guard: trials, at most one a session and worker for each digest.",
)  # fmt: skip
GUARD_EVENTS = Metric(
    "trimwheel_guard_events_total", "counter", ("model", "arm", "digest", "guard"),
    "Evidence of a guard: trials that went wrong.",
)  # fmt: skip
GUARD_LARGEST_SHARE = Metric(
    "trimwheel_guard_largest_identity_ratio", "gauge", ("model", "arm", "digest", "guard"),
    "Share of a guard's trials that the largest identity (token subject, else peer address) "
    "brought; at most a tenth from ten identities on.",
)  # fmt: skip
GUARD_IDENTITIES = Metric(
    "trimwheel_guard_identities", "gauge", ("model", "arm", "digest", "guard"),
    "Identities that brought trials to a guard.",
)  # fmt: skip
GUARD_SESSION_SAMPLE = Metric(
    "trimwheel_guard_session_sample", "gauge", ("model", "arm", "digest", "guard", "slot"),
    "Smallest hashes, keyed with the rollout's salt, of the sessions that a guard counted; 0 in a "
    "free slot. Pods that publish the same ones counted the same sessions.",
)  # fmt: skip
GUARD_SAMPLE_EMPTY = 0
"""Value of a slot without a session; hashes are above it."""
GUARD_SAMPLE_SLOTS = 32
"""Hashes that a pod publishes for each guard, policy and arm."""
POLICY_INFO = Metric(
    "trimwheel_policy_info", "gauge", ("model", "arm", "digest"), "1 for each resident policy."
)
POLICY_EPOCH = Metric(
    "trimwheel_policy_epoch", "gauge", ("model",), "Assignment epoch that the worker applied."
)
RECORDS_WRITTEN = Metric(
    "trimwheel_records_written_total", "counter", ("model",), "Audit records stored."
)
RECORDS_DROPPED = Metric(
    "trimwheel_records_dropped_total", "counter", ("model", "reason"),
    "Audits or records lost; they count as missing in certificates.",
)  # fmt: skip
AUDIT_BACKLOG = Metric(
    "trimwheel_audit_backlog", "gauge", ("model",), "Audits waiting for room off the response path."
)
EXPERT_TOKENS = Metric(
    "trimwheel_expert_tokens_total", "counter", ("layer", "expert"), "Tokens routed to an expert."
)
QUEUE_DEPTH = Metric("trimwheel_queue_depth", "gauge", ("model",), "Requests waiting for a batch.")
BATCH_SIZE = Metric(
    "trimwheel_batch_size", "histogram", ("model",), "Requests in a batch.", buckets=BATCH_BUCKETS
)
DEVICE_SECONDS = Metric(
    "trimwheel_device_seconds_total", "counter", ("model", "arm"),
    "Engine time spent on answered requests, shared out within a batch.",
)  # fmt: skip
AUDIT_SECONDS = Metric(
    "trimwheel_audit_seconds_total", "counter", ("model",), "Engine time spent on audits."
)
TRIPWIRE = Metric(
    "trimwheel_tripwire_total", "counter", ("model", "reason"),
    "Times that a worker went back to stable by itself.",
)  # fmt: skip
SCORE_SUM = Metric(
    "trimwheel_first_exit_scores_total", "counter", ("model",),
    "Sum of first-exit scores of audited requests.",
)  # fmt: skip
REFUSALS = Metric(
    "trimwheel_assignment_refusals_total", "counter", ("model", "arm"),
    "Assigned policies that the worker cannot serve and refused; the last good one serves.",
)  # fmt: skip
ENGINE_RESTARTS = Metric(
    "trimwheel_engine_restarts_total", "counter", ("model",), "Engine processes that died."
)
INPUT_TOKENS = Metric(
    "trimwheel_input_tokens_total", "counter", ("model",), "Tokens of answered requests."
)

ROLLBACK_SECONDS = Metric(
    "trimwheel_rollback_seconds", "histogram", (),
    "Time from a rollback's decision to its last acknowledgement.", "operator", ROLLBACK_BUCKETS,
)  # fmt: skip
DECISIONS = Metric(
    "trimwheel_decisions_total", "counter", ("model_namespace", "model", "action", "reason"),
    "Decisions of the operator.", "operator",
)  # fmt: skip
ROLLOUT_WEIGHT = Metric(
    "trimwheel_rollout_weight_ratio", "gauge", ("model_namespace", "model"),
    "Candidate's share of cohorts, 0 to 1.", "operator",
)  # fmt: skip
GUARD_VERDICT = Metric(
    "trimwheel_guard_verdict", "gauge", ("model_namespace", "model", "guard", "verdict"),
    "1 for the verdict of each guard of the active rollout; for an hour after it, of the last.",
    "operator",
)  # fmt: skip
GUARD_VALUE = Metric(
    "trimwheel_guard_value",
    "gauge",
    ("model_namespace", "model", "guard"),
    "Estimate of each guard.",
    "operator",
)
GUARD_BOUND = Metric(
    "trimwheel_guard_bound",
    "gauge",
    ("model_namespace", "model", "guard"),
    "Promise of each guard.",
    "operator",
)
DEGRADED = Metric(
    "trimwheel_degraded", "gauge", ("model_namespace", "model"),
    "1 while a model serves full depth for want of a valid certificate.", "operator",
)  # fmt: skip
RECONCILE_SECONDS = Metric(
    "trimwheel_reconcile_duration_seconds", "histogram", (), "Time of one reconcile.", "operator",
    LATENCY_BUCKETS,
)  # fmt: skip
RECONCILE_ERRORS = Metric(
    "trimwheel_reconcile_errors_total", "counter", ("reason",), "Reconciles that will be retried.",
    "operator",
)  # fmt: skip

RULE_FAILURES = Metric(
    "trimwheel_rule_failures_total", "counter", ("rule",),
    "Rules of a reconcile that raised; the others ran, and a condition names it.", "operator",
)  # fmt: skip

DRIFT_EVIDENCE = Metric(
    "trimwheel_drift_evidence_ratio", "gauge", ("model_namespace", "model"),
    "Shiryaev-Roberts statistic over its alarm level; 1 is an alarm.", "pipelines",
)  # fmt: skip
DRIFT_SIGNAL = Metric(
    "trimwheel_drift_signal_z", "gauge", ("model_namespace", "model", "signal"),
    "Newest block of a covariate signal against its reference, in standard deviations.",
    "pipelines",
)  # fmt: skip
DISAGREEMENT_ESTIMATE = Metric(
    "trimwheel_disagreement_ratio", "gauge", ("model_namespace", "model"),
    "Audited disagreement of the stable policy since its promotion.", "pipelines",
)  # fmt: skip
CERTIFICATE_EXPIRY = Metric(
    "trimwheel_certificate_expiry_timestamp_seconds", "gauge", ("model_namespace", "model"),
    "When the stable policy's certificate ends.", "pipelines",
)  # fmt: skip
TUNING_RUNS = Metric(
    "trimwheel_tuning_runs_total", "counter", ("model_namespace", "model", "reason", "outcome"),
    "Finished TuningRuns.", "pipelines",
)  # fmt: skip
LOOP_ERRORS = Metric(
    "trimwheel_loop_errors_total", "counter", ("reason",), "Passes of the watch loop that failed.",
    "pipelines",
)  # fmt: skip
LEDGER_EVENTS = Metric(
    "trimwheel_ledger_events_total", "counter", (), "Decisions copied to the ledger.", "pipelines"
)

METRICS: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)


def of_component(component: Component) -> tuple[Metric, ...]:
    """The metrics that one component exposes."""
    return tuple(metric for metric in METRICS if metric.component == component)
