"""Dashboard "rollout": weight, verdicts with numbers, decisions, actuation, the control plane."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from trimwheel_api.metrics import (
    DECISIONS,
    ENGINE_RESTARTS,
    GUARD_BOUND,
    GUARD_EVENTS,
    GUARD_IDENTITIES,
    GUARD_LARGEST_SHARE,
    GUARD_SAMPLE_EMPTY,
    GUARD_SESSION_SAMPLE,
    GUARD_TRIALS,
    GUARD_VALUE,
    GUARD_VERDICT,
    LEDGER_EVENTS,
    LOOP_ERRORS,
    POLICY_EPOCH,
    POLICY_INFO,
    RECONCILE_ERRORS,
    RECONCILE_SECONDS,
    RECORDS_DROPPED,
    REFUSALS,
    ROLLBACK_SECONDS,
    ROLLOUT_WEIGHT,
    TRIPWIRE,
)
from trimwheel_api.names import VERDICT_FAIL, VERDICT_PASS
from trimwheel_dashboards.panels import (
    GREEN,
    RED,
    YELLOW,
    bars,
    graph,
    number,
    page,
    states,
    table,
)
from trimwheel_dashboards.promql import INTERVAL, of_model, or_zero, rate

UID = "trimwheel-rollout"
_VERDICT_NAMES = {0: ("NotEnoughEvidence", YELLOW), 1: ("Pass", GREEN), 2: ("Fail", RED)}


def rollout() -> Dashboard:
    """The page to open while a policy changes."""
    board = page(UID, "Trimwheel / Rollout", "How a candidate does, and what was decided.")
    for add in (_now, _guards, _decisions, _machinery):
        board = add(board)
    return board


def _now(board: Dashboard) -> Dashboard:
    weight = f"max({of_model(ROLLOUT_WEIGHT)})"
    lag = f"max({of_model(POLICY_EPOCH)}) - min({of_model(POLICY_EPOCH)})"
    behind = [(None, GREEN), (1, YELLOW)]
    return (
        board.with_panel(number("Candidate's weight", "percentunit", "Share of cohorts.", weight))
        .with_panel(
            number("Workers", "none", "Workers that report.",
                   f"count({of_model(POLICY_EPOCH)})")
        )
        .with_panel(
            number("Epochs behind", "none", "Newest applied epoch less the oldest; 0 when all "
                   "workers run the same.", lag, steps=behind)
        )
        .with_panel(
            number("Rollbacks", "none", "Rollbacks of all models that reached every worker.",
                   f"sum({ROLLBACK_SECONDS.name}_count)")
        )
        .with_panel(
            number("Mean actuation", "s", "Decision to last acknowledgement; 0 when none.",
                   or_zero(f"sum({ROLLBACK_SECONDS.name}_sum) / "
                           f"(sum({ROLLBACK_SECONDS.name}_count) > 0)"))
        )
        .with_panel(
            number("Tripwire", "none", "Times that workers went back to stable by themselves.",
                   or_zero(f"sum({of_model(TRIPWIRE)})"), steps=behind)
        )
    )  # fmt: skip


def _guards(board: Dashboard) -> Dashboard:
    def guard(metric: object) -> str:
        return f"max by (guard) ({metric})"

    failing = guard(f"{of_model(GUARD_VERDICT, verdict=VERDICT_FAIL)} == 1")
    passing = guard(f"{of_model(GUARD_VERDICT, verdict=VERDICT_PASS)} == 1")
    any_verdict = guard(of_model(GUARD_VERDICT))
    verdict = f"({failing} * 2) or {passing} or ({any_verdict} * 0)"
    value, bound = guard(of_model(GUARD_VALUE)), guard(of_model(GUARD_BOUND))
    used = f"{value} / ({bound} > 0)"
    trials = f"sum by (guard, arm) ({of_model(GUARD_TRIALS)})"
    events = f"sum by (guard, arm) ({of_model(GUARD_EVENTS)})"
    largest = f"max by (guard, arm) ({of_model(GUARD_LARGEST_SHARE)})"
    sampled = f"{of_model(GUARD_SESSION_SAMPLE)} > {GUARD_SAMPLE_EMPTY}"
    apart = f'count by (guard, arm) (count_values by (guard, arm) ("hash", {sampled}))'
    again = f"count by (guard, arm) ({sampled}) / {apart}"
    identities = f"min by (guard, arm) ({of_model(GUARD_IDENTITIES)})"
    return (
        board.with_row(Row("Verdicts"))
        .with_panel(
            graph("Candidate's share of cohorts", "percentunit", "A ramp is monotone: nobody flips "
                  "back while it grows.", (f"max({of_model(ROLLOUT_WEIGHT)})", "weight"), width=12,
                  top=1)
        )
        .with_panel(
            states("Verdict by guard", "No data is never Pass.", (verdict, "{{guard}}"),
                   names=_VERDICT_NAMES)
        )
        .with_panel(
            bars("Budget used", "percentunit", "Estimate over promise: above 100 % breaks it, once "
                 "the evidence suffices.", (used, "{{guard}}"),
                 steps=[(None, GREEN), (0.8, YELLOW), (1, RED)])
        )
        .with_panel(
            graph("Estimate and promise", "percentunit", "Of each guard of the newest rollout.",
                  (value, "{{guard}}"), (bound, "{{guard}} promise"))
        )
        .with_panel(
            graph("Evidence", "short", "Raw counters of the living workers: at most one trial a "
                  "session, worker and digest.", (trials, "{{guard}} {{arm}} trials"),
                  (events, "{{guard}} {{arm}} events"))
        )
        .with_panel(
            graph("Largest identity", "percentunit", "Share of a guard's trials that one identity "
                  "brought to a worker; at most a tenth from ten identities on.",
                  (largest, "{{guard}} {{arm}}"))
        )
        .with_panel(
            graph("Identities", "short", "Identities that brought trials, at the worker with the "
                  "fewest.", (identities, "{{guard}} {{arm}}"))
        )
        .with_panel(
            graph("Pods that count one session", "short", "Mean over the sampled sessions; 1 with "
                  "session affinity. Evidence is divided by the design effect, which is larger "
                  "where sessions differ.",
                  (again, "{{guard}} {{arm}}"))
        )
    )  # fmt: skip


def _decisions(board: Dashboard) -> Dashboard:
    resident = f"count by (arm, digest) ({of_model(POLICY_INFO)} == 1)"
    taken = f"sum by (action, reason) ({of_model(DECISIONS)})"
    return (
        board.with_row(Row("Policies and decisions"))
        .with_panel(table("Resident policies", "Workers that hold each policy.", resident))
        .with_panel(table("Decisions", "Since the operator started.", taken))
    )


def _machinery(board: Dashboard) -> Dashboard:
    buckets = f"sum by (le) (rate({RECONCILE_SECONDS.name}_bucket[{INTERVAL}]))"
    reconcile = f"histogram_quantile(0.99, {buckets}) >= 0"
    operator_errors = or_zero(f"sum by (reason) (rate({RECONCILE_ERRORS.name}[{INTERVAL}]))")
    loop_errors = or_zero(f"sum by (reason) (rate({LOOP_ERRORS.name}[{INTERVAL}]))")
    epochs = f"max by (pod) ({of_model(POLICY_EPOCH)})"
    restarts = or_zero(f"sum({of_model(ENGINE_RESTARTS)})")
    refusals = or_zero(f"sum({of_model(REFUSALS)})")
    return (
        board.with_row(Row("Machinery"))
        .with_panel(
            graph("Epoch of each worker", "none", "Lines that part are workers behind.",
                  (epochs, "{{pod}}"))
        )
        .with_panel(
            graph("Records lost", "short", "A second, by reason: they count as missing.",
                  (or_zero(rate(RECORDS_DROPPED, "reason")), "{{reason}}"))
        )
        .with_panel(
            graph("Workers in trouble", "short", "Engine processes that died, and assigned "
                  "policies that workers refused, since the workers started.",
                  (restarts, "engines died"), (refusals, "policies refused"))
        )
        .with_panel(
            graph("Control plane", "short", "Failed passes a second, by reason.",
                  (operator_errors, "operator {{reason}}"), (loop_errors, "pipelines {{reason}}"))
        )
        .with_panel(graph("Reconcile p99", "s", "All models.", (reconcile, "p99")))
        .with_panel(
            graph("Ledger", "short", "Decisions copied to the ledger.",
                  (f"sum({LEDGER_EVENTS.name})", "events"))
        )
    )  # fmt: skip
