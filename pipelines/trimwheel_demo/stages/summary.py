"""Stage 9: before and after, where the time went, and how to read every claim again."""

from __future__ import annotations

import time
from itertools import groupby

from trimwheel_api import metrics, names
from trimwheel_api.names import registered_policy_name
from trimwheel_demo.evidence import Evidence, mlflow_evidence
from trimwheel_demo.measure import SETTLED_SECONDS, period, period_evidence, query, settled
from trimwheel_demo.places import MODEL, NAMESPACE
from trimwheel_demo.recheck import claims
from trimwheel_demo.settings import REPLICAS, Options
from trimwheel_demo.world import World

AFTER_SECONDS = 15.0
SERVING_TIMEOUT = 60.0
EVERYWHERE = (
    "Grafana: dashboards are checked as JSON and by their PromQL, not drawn",
)  # fmt: skip
EMBEDDED = (
    "GPU: the node advertises fake GPUs; workers ran on the CPU",
    "isolation: pods are local processes, resource limits and security contexts are not enforced",
    "a cluster with a real kubelet: the chart renders and passes a server-side dry run there",
    "PodMonitor and PrometheusRule: tested against their released CRDs, not installed here",
    "object store, PostgreSQL, Ray cluster: tested apart; here all lives in the state folder",
)
EXISTING = (
    "the embedded control plane: the cluster of TRIMWHEEL_USE_KUBECONFIG was used",
)  # fmt: skip


def not_shown(options: Options) -> list[str]:
    """What this way of playing the story leaves out."""
    return [*(EXISTING if options.kubeconfig else EMBEDDED), *EVERYWHERE]


def measure_after(world: World, found: list[Evidence]) -> None:
    """Measure the promoted policy on the changed traffic, once no worker serves the former one."""
    digest = world.report["rollout"]["digest"]
    world.teller.wait(
        "every worker on the promoted policy", lambda: _serving(world, digest) == REPLICAS or None,
        SERVING_TIMEOUT, lambda: f"{_serving(world, digest)} of {REPLICAS}",
    )  # fmt: skip
    start = settled(world)
    time.sleep(AFTER_SECONDS)
    end = settled(world)
    world.report["after"] = period(world, start, end)
    found += period_evidence(start, end, world.report["after"])
    found.append(_stable_alias(world))


def _serving(world: World, digest: str) -> int:
    """Workers whose last scrape shows this policy as stable; what they counted before is in."""
    labels = f'model="{MODEL}",arm="{names.ARM_STABLE}",digest="{digest}"'
    resident = f"count({metrics.POLICY_INFO.name}{{{labels}}} == 1)"
    return int(query(world, resident, time.time() - SETTLED_SECONDS) or 0)


def _stable_alias(world: World) -> Evidence:
    name = registered_policy_name(NAMESPACE, MODEL)
    run_id = world.report["tuning"]["mlflow_run_id"]
    return mlflow_evidence(
        "MLflowAlias", f"{name}@{names.ALIAS_STABLE}", "registered-models/alias",
        f'"run_id":"{run_id}"', name=name, alias=names.ALIAS_STABLE,
    )  # fmt: skip


def tell(world: World) -> None:
    """Everything once more, as much as there is after an early end; what matters most comes last,
    where a terminal stops."""
    report = world.report
    _tell_checks(world)
    changed = [[r["field"], str(r["demo"]), str(r["default"])]
               for r in report["settings"].get("non_default", [])]  # fmt: skip
    world.teller.table(
        "Settings that differ from the defaults", ["field", "demo", "default"], changed
    )
    stages = [[row["name"], f"{row['seconds']:.0f} s"] for row in report["stages"]]
    world.teller.table("Stages", ["stage", "time"], stages)
    if report["before"]:
        _tell_periods(world)
    _tell_where_to_look(world)


def _tell_periods(world: World) -> None:
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


def _tell_checks(world: World) -> None:
    """Every claim with the line that re-reads it."""
    world.teller.say("Every claim, and the line that reads it again:")
    for stage, rows in groupby(claims(world.report["stages"]), key=lambda claim: claim[0]):
        world.teller.say(f"{stage}:")
        for _, item in rows:
            world.teller.command(item["check"])


def _tell_where_to_look(world: World) -> None:
    world.teller.say("")
    world.teller.command('eval "$(.venv/bin/trimwheel env)"')
    world.teller.command("trimwheel demo check          # runs all the lines above")
    world.teller.command("kubectl get trimwheel")
    world.teller.say(f"MLflow {world.mlflow}   Prometheus {world.prometheus}")
