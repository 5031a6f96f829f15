"""A TuningRun from start to certificate, and its rollout to promotion: twice in the story."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimwheel_api.names import registered_policy_name
from trimwheel_demo.kube import status
from trimwheel_demo.places import MODEL, NAMESPACE
from trimwheel_demo.report import evidence, object_evidence
from trimwheel_demo.stages.approval import approve, show_refusals
from trimwheel_demo.stages.following import (
    Item,
    StepLog,
    follow_rollout,
    follow_tuning,
    guards_line,
    is_awaiting,
    is_promoted,
)
from trimwheel_demo.world import World


def tune(world: World, find: Callable[[World], Item | None], found: list[dict[str, str]]) -> Item:
    """Wait for the run that pipelines start by themselves, and follow it to its certificate."""
    world.teller.command(f"kubectl -n {NAMESPACE} get tuning -w")
    run = follow_tuning(world, find)
    section = tuning_section(run)
    world.report["tuning"] = section
    certificate = section["certificate"]
    world.teller.good(
        f"{section['trials']} trials on {section['executor']}; certified: at most "
        f"{float(certificate['epsilon']):.1%} disagreement with confidence "
        f"{1 - float(certificate['delta']):.0%}, from {certificate['errors']} errors in "
        f"{certificate['n']} fresh audits; estimated compute {status(run).get('bestCost')} of full"
    )
    found.append(object_evidence(run, "tuning", ".status.outcome"))
    run_id = section["mlflow_run_id"]
    url = "$MLFLOW_TRACKING_URI/api/2.0/mlflow/runs/get"
    found.append(evidence("MLflowRun", run_id, "", f"curl -sG {url} -d run_id={run_id}"))
    policy = registered_policy_name(NAMESPACE, MODEL)
    alias = "$MLFLOW_TRACKING_URI/api/2.0/mlflow/registered-models/alias"
    found.append(
        evidence("MLflowAlias", f"{policy}@candidate", "",
                 f"curl -sG {alias} -d name={policy} -d alias=candidate")
    )  # fmt: skip
    return run


def tuning_section(run: Item) -> dict[str, Any]:
    """What the report says of a run."""
    seen = status(run)
    given = seen.get("certificate") or {}
    return {
        "name": run["metadata"]["name"],
        "executor": "ray",
        "trials": seen.get("trialsDone", 0),
        "model_run_trials": seen.get("modelRunTrials", seen.get("trialsDone", 0)),
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


def roll_out(
    world: World, run: Item, found: list[dict[str, str]], *, refusals: bool
) -> dict[str, Any]:
    """Follow the run's rollout through shadow and steps, approve it, see it promoted."""
    name = status(run)["rollout"]
    world.teller.command(f"kubectl trimwheel status {MODEL} --watch")
    log = StepLog()
    item = follow_rollout(world, name, is_awaiting, log)
    world.teller.good(f"awaiting approval; {guards_line(item)}")
    if refusals:
        show_refusals(world, item)
    approve(world, item)
    item = follow_rollout(world, name, is_promoted, log)
    digest = item["spec"]["policyDigest"]
    world.teller.good(f"promoted: {digest[:19]}")
    found.append(object_evidence(item, "prollout", ".status.phase"))
    found.append(object_evidence(item, "prollout", ".status.guards"))
    found.append(world.notes[f"approval/{name}"])
    return {"name": name, "digest": digest, "steps": log.report()}
