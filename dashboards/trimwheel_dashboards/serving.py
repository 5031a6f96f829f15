"""Dashboard "serving": traffic and SLO, depth and compute, quality by audits, drift."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from trimwheel_api.metrics import (
    AUDIT_BACKLOG,
    AUDIT_SECONDS,
    AUDITS,
    BATCH_SIZE,
    CERTIFICATE_EXPIRY,
    DEGRADED,
    DEVICE_SECONDS,
    DISAGREEMENT_ESTIMATE,
    DRIFT_EVIDENCE,
    DRIFT_SIGNAL,
    EXPERT_TOKENS,
    INPUT_TOKENS,
    LAYERS_FULL,
    LAYERS_RUN,
    POLICY_EPOCH,
    QUEUE_DEPTH,
    RECORDS_DROPPED,
    RECORDS_WRITTEN,
    REQUEST_DURATION,
    REQUESTS,
    SCORE_SUM,
    TUNING_RUNS,
)
from trimwheel_api.names import ARM_STABLE
from trimwheel_dashboards.panels import GREEN, RED, YELLOW, graph, number, page
from trimwheel_dashboards.promql import (
    INTERVAL,
    mean,
    of_model,
    or_zero,
    quantile,
    rate,
    share,
)

UID = "trimwheel-serving"
SERVER_ERRORS = "=~5.."
OVERLOAD = "=~429|503"


def serving() -> Dashboard:
    """The page to open when somebody asks whether the model is fine."""
    board = page(
        UID, "Trimwheel / Serving", "Traffic, depth, quality and drift of one AdaptiveModel."
    )
    for add in (_now, _traffic, _depth, _quality, _drift):
        board = add(board)
    return board


def _now(board: Dashboard) -> Dashboard:
    requests = rate(REQUESTS)
    errors = share(rate(REQUESTS, code=SERVER_ERRORS), requests)
    compute = f"{rate(LAYERS_RUN)} / ({rate(LAYERS_FULL)} > 0)"
    disagreement = share(rate(AUDITS, arm=ARM_STABLE, agree="false"), rate(AUDITS, arm=ARM_STABLE))
    degraded = {0: ("as intended", GREEN), 1: ("full depth", YELLOW)}
    return (
        board.with_panel(number("Requests", "reqps", "Answered requests a second.", requests))
        .with_panel(
            number("Errors", "percentunit", "Share answered 5xx.", errors,
                   steps=[(None, GREEN), (0.002, YELLOW), (0.01, RED)])
        )
        .with_panel(
            number("p99", "s", "99 % of requests are faster.",
                   quantile(REQUEST_DURATION, 0.99, "model"))
        )
        .with_panel(
            number("Compute", "percentunit", "Layers run, of what full depth would run.", compute)
        )
        .with_panel(
            number("Disagreement", "percentunit", "Audited answers of stable that differ from "
                   "full depth.", disagreement)
        )
        .with_panel(
            number("Mode", "none", "Full depth is served while no valid certificate stands.",
                   f"max({of_model(DEGRADED)})", names=degraded)
        )
    )  # fmt: skip


def _traffic(board: Dashboard) -> Dashboard:
    by_arm = rate(REQUESTS, "arm")
    p50, p99 = (quantile(REQUEST_DURATION, which, "arm") for which in (0.5, 0.99))
    return (
        board.with_row(Row("Traffic and SLO"))
        .with_panel(graph("Requests by arm", "reqps", "Answered requests.", (by_arm, "{{arm}}")))
        .with_panel(
            graph("Latency", "s", "From the request's last byte to the answer's first.",
                  (p50, "{{arm}} p50"), (p99, "{{arm}} p99"))
        )
        .with_panel(
            graph("Errors and refusals", "percentunit", "5xx are failures; 429 and 503 say later.",
                  (share(rate(REQUESTS, "arm", code=SERVER_ERRORS), by_arm), "{{arm}} 5xx"),
                  (share(rate(REQUESTS, code=OVERLOAD), rate(REQUESTS)), "429 or 503"))
        )
        .with_panel(
            graph("Waiting for a batch", "short", "Requests in the queue of each worker.",
                  (f"sum by (pod) ({of_model(QUEUE_DEPTH)})", "{{pod}}"))
        )
        .with_panel(
            graph("Batch size", "short", "Mean requests in a batch.", (mean(BATCH_SIZE), "mean"))
        )
        .with_panel(
            graph("Tokens a request", "short", "Input length moves cost and depth.",
                  (f"{rate(INPUT_TOKENS)} / ({rate(REQUESTS)} > 0)", "mean"))
        )
    )  # fmt: skip


def _depth(board: Dashboard) -> Dashboard:
    compute = f"{rate(LAYERS_RUN, 'arm')} / ({rate(LAYERS_FULL, 'arm')} > 0)"
    exits = rate(REQUESTS, "exit", code="200")
    exit_share = f"{exits} / on() group_left() ({rate(REQUESTS, code='200')} > 0)"
    # Experts carry no model label; a worker's pod says which model they belong to.
    workers = f"and on (namespace, pod) {of_model(POLICY_EPOCH)}"
    tokens = f"rate({of_model(EXPERT_TOKENS)}[{INTERVAL}]) {workers}"
    load = (
        f"sum by (layer, expert) ({tokens}) / on (layer) group_left() "
        f"(sum by (layer) ({tokens}) > 0)"
    )
    device = f"{rate(DEVICE_SECONDS, 'arm')} / ({rate(REQUESTS, 'arm')} > 0)"
    audit_time = f"{rate(AUDIT_SECONDS)} / ({rate(AUDIT_SECONDS)} + {rate(DEVICE_SECONDS)} > 0)"
    return (
        board.with_row(Row("Depth and compute"))
        .with_panel(
            graph("Answered at exit", "percentunit", "Share of answers by exit, shallow first.",
                  (exit_share, "exit {{exit}}"), stacked=True, top=1)
        )
        .with_panel(
            graph("Compute", "percentunit", "Layers run, of what full depth would run.",
                  (compute, "{{arm}}"), top=1)
        )
        .with_panel(
            graph("Expert load", "percentunit", "Share of tokens by expert; equal is balanced.",
                  (load, "layer {{layer}} expert {{expert}}"), stacked=True, top=1)
        )
        .with_panel(
            graph("Device time a request", "s", "Engine time, shared out within a batch.",
                  (device, "{{arm}}"), width=12)
        )
        .with_panel(
            graph("Device time for audits", "percentunit", "Share of engine time spent on audits.",
                  (audit_time, "audits"), width=12)
        )
    )  # fmt: skip


def _quality(board: Dashboard) -> Dashboard:
    wrong, audits = rate(AUDITS, "arm", agree="false"), rate(AUDITS, "arm")
    promoted = f"max({of_model(DISAGREEMENT_ESTIMATE)})"
    score = f"{rate(SCORE_SUM)} / ({rate(AUDITS, arm=ARM_STABLE)} > 0)"
    return (
        board.with_row(Row("Quality by audits"))
        .with_panel(
            graph("Disagreement", "percentunit", "Audited answers that differ from full depth.",
                  (share(wrong, audits), "{{arm}}"), (promoted, "stable since promotion"))
        )
        .with_panel(
            graph("First-exit score", "percentunit", "Mean of audited requests: a covariate.",
                  (score, "mean"), top=1)
        )
        .with_panel(
            graph("Audits", "short", "Audits a second, records stored and lost, audits waiting.",
                  (rate(AUDITS, arm=ARM_STABLE), "audited"), (rate(RECORDS_WRITTEN), "stored"),
                  (or_zero(rate(RECORDS_DROPPED)), "lost"),
                  (f"sum({of_model(AUDIT_BACKLOG)})", "waiting"))
        )
    )  # fmt: skip


def _drift(board: Dashboard) -> Dashboard:
    evidence = f"max({of_model(DRIFT_EVIDENCE)})"
    signals = f"max by (signal) ({of_model(DRIFT_SIGNAL)})"
    left = or_zero(f"max({of_model(CERTIFICATE_EXPIRY)} > 0) - time()")
    runs = or_zero(f"sum by (reason, outcome) ({of_model(TUNING_RUNS)})")
    return (
        board.with_row(Row("Drift"))
        .with_panel(
            graph("Evidence of harm", "percentunit", "Shiryaev-Roberts over its alarm level; at "
                  "100 % the certificate is revoked.", (evidence, "evidence"), limit=1)
        )
        .with_panel(
            graph("Covariates", "short", "Newest block against the reference, in standard "
                  "deviations.", (signals, "{{signal}}"))
        )
        .with_panel(
            number("Certificate ends in", "s", "0 when none stands: dense needs none.", left,
                   steps=[(None, RED), (86400, YELLOW), (3 * 86400, GREEN)])
        )
        .with_panel(
            graph("TuningRuns", "short", "Finished runs.", (runs, "{{reason}} {{outcome}}"),
                  width=4)
        )
    )  # fmt: skip
