"""Stage 9: before and after, where the time went, and how to read every claim again."""

from __future__ import annotations

import time

from trimwheel_demo.measure import counters, period
from trimwheel_demo.places import MODEL, NAMESPACE
from trimwheel_demo.report import metric_evidence
from trimwheel_demo.world import World

AFTER_SECONDS = 15.0
NOT_SHOWN = [
    "GPU: the node advertises fake GPUs; workers ran on the CPU",
    "isolation: pods are local processes, resource limits and security contexts are not enforced",
    "a cluster with a real kubelet: the chart renders and passes a server-side dry run there",
    "PodMonitor and PrometheusRule: their CRDs are not installed here",
    "Grafana: dashboards are checked as JSON and by their PromQL, not drawn",
    "object store and PostgreSQL: records, ledger and MLflow live in the state folder",
]


def measure_after(world: World, found: list[dict[str, str]]) -> None:
    """Measure the promoted policy on the changed traffic."""
    start = counters(world)
    time.sleep(AFTER_SECONDS)
    world.report["after"] = period(world, start, counters(world))
    found.append(metric_evidence(f'sum(trimwheel_layers_run_total{{model="{MODEL}"}})'))


def tell(world: World) -> None:
    """The summary table and where to look."""
    report = world.report
    before, after = report["before"], report["after"]
    stale = world.notes.get("stale", {})

    def cells(key: str, form: str) -> list[str]:
        found = [part.get(key) for part in (before, stale, after)]
        return ["-" if value is None else form.format(value) for value in found]

    rows = [
        ["compute, share of full depth", *cells("compute_fraction", "{:.3f}")],
        ["p50 ms (client)", *cells("p50_ms", "{:.1f}")],
        ["p99 ms (client)", *cells("p99_ms", "{:.1f}")],
        ["disagreement", *cells("disagreement", "{:.2%}")],
        ["  upper limit, 95 %", *cells("disagreement_upper", "{:.2%}")],
        ["audits", *cells("n", "{}")],
    ]
    columns = ["", "certified, base traffic", "the same, after the drift", "re-tuned, promoted"]
    world.teller.table("Before and after", columns, rows)
    if (after.get("compute_fraction") or 0) > (before.get("compute_fraction") or 0):
        world.teller.say("compute rose: the changed traffic is harder, and the promise is kept")
    stages = [[row["name"], f"{row['seconds']:.0f} s"] for row in report["stages"]]
    world.teller.table("Stages", ["stage", "time"], stages)
    changed = [[r["field"], str(r["demo"]), str(r["default"])]
               for r in report["settings"].get("non_default", [])]  # fmt: skip
    world.teller.table(
        "Settings that differ from the defaults", ["field", "demo", "default"], changed
    )
    tell_checks(world)


def tell_checks(world: World) -> None:
    """Every claim with the line that re-reads it."""
    lines = [item["check"] for row in world.report["stages"] for item in row["evidence"]]
    world.teller.say("")
    world.teller.say("Read every claim again:")
    world.teller.command('eval "$(.venv/bin/trimwheel env)"')
    for line in dict.fromkeys(lines):
        world.teller.command(line)
    world.teller.command(f"kubectl -n {NAMESPACE} get trimwheel")
    world.teller.say(f"MLflow {world.mlflow}   Prometheus {world.prometheus}")
