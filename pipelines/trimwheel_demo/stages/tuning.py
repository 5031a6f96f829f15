"""A TuningRun from start to certificate, and its rollout to promotion: twice in the story."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimwheel_api.names import registered_policy_name
from trimwheel_demo.evidence import Evidence, mlflow_evidence, object_evidence
from trimwheel_demo.kube import status
from trimwheel_demo.places import MODEL, NAMESPACE
from trimwheel_demo.stages.approval import approve, show_refusals
from trimwheel_demo.stages.following import (
    Item,
    StepLog,
    demand_rollout,
    follow_rollout,
    follow_tuning,
    guards_line,
    is_awaiting,
    is_promoted,
    steps_report,
)
from trimwheel_demo.world import World


def tune(world: World, find: Callable[[World], Item | None], found: list[Evidence]) -> Item:
    """Wait for the run that pipelines start by themselves, and follow it to its certificate.

    The report has it however it ended. Raises KeptFullDepth when it certified nothing.
    """
    world.teller.command(f"kubectl -n {NAMESPACE} get tuning -w")
    run = follow_tuning(world, find)
    section = tuning_section(run)
    world.report["tuning"] = section
    found += tuning_evidence(run)
    demand_rollout(run)
    certificate = section["certificate"]
    world.teller.good(
        f"{section['trials']} trials on {section['executor']}, {section['model_run_trials']} ran "
        f"the model; certified: at most {float(certificate['epsilon']):.1%} disagreement with "
        f"confidence {1 - float(certificate['delta']):.0%}, from {certificate['errors']} errors in "
        f"{certificate['n']} fresh audits; estimated compute {status(run).get('bestCost')} of full"
    )
    return run


def tuning_section(run: Item) -> dict[str, Any]:
    """What the report says of a run."""
    seen = status(run)
    given = seen.get("certificate") or {}
    return {
        "name": run["metadata"]["name"],
        "reason": run["spec"].get("reason", ""),
        "executor": seen.get("executor", ""),
        "trials": seen.get("trialsDone", 0),
        "model_run_trials": seen.get("modelRunTrials", 0),
        "mlflow_run_id": seen.get("mlflowRunID", ""),
        "search_records": seen.get("searchRecords", 0),
        "certify_records": seen.get("certifyRecords", 0),
        "certificate": {
            "epsilon": given.get("epsilon"),
            "delta": given.get("delta"),
            "n": given.get("n"),
            "errors": given.get("errors"),
            "design_effect": given.get("designEffect"),
        },
        "outcome": seen.get("outcome", ""),
    }


def tuning_evidence(run: Item) -> list[Evidence]:
    """The run in Kubernetes and in MLflow, as far as it came."""
    seen = status(run)
    fields = ("outcome", "executor", "trialsDone", "modelRunTrials", "searchRecords")
    found = [
        object_evidence(run, "tuning", f".status.{name}", seen[name])
        for name in fields
        if seen.get(name)
    ]
    run_id = seen.get("mlflowRunID")
    if run_id:
        holds = f'"key":"executor","value":"{seen["executor"]}"'
        found.append(mlflow_evidence("MLflowRun", run_id, "runs/get", holds, run_id=run_id))
    if run_id and seen.get("policy"):
        name = registered_policy_name(NAMESPACE, MODEL)
        asked = {"filter": f"name='{name}' and run_id='{run_id}'"}
        found.append(
            mlflow_evidence("MLflowModelVersion", name, "model-versions/search",
                            f'"run_id":"{run_id}"', **asked)
        )  # fmt: skip
    return found


def roll_out(world: World, run: Item, found: list[Evidence], *, refusals: bool) -> dict[str, Any]:
    """Follow the run's rollout through shadow and steps, approve it, see it promoted."""
    name = status(run)["rollout"]
    world.teller.command(f"kubectl trimwheel status {MODEL} --watch")
    log = StepLog()
    item = follow_rollout(world, name, is_awaiting, log)
    world.teller.good(f"awaiting approval; {guards_line(item)}")
    if refusals:
        found += show_refusals(world, item)
    found.append(approve(world, item))
    item = follow_rollout(world, name, is_promoted, log)
    digest = item["spec"]["policyDigest"]
    world.teller.good(f"promoted: {digest[:19]}")
    found.append(object_evidence(item, "prollout", ".status.phase", status(item)["phase"]))
    found.append(object_evidence(item, "prollout", ".status.verdict", status(item)["verdict"]))
    return {"name": name, "digest": digest, "steps": steps_report(item, log)}
