"""Stages 1 to 3: the trained model goes to MLflow, the AdaptiveModel is applied, traffic flows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from trimwheel_api import names
from trimwheel_demo import load, training
from trimwheel_demo.kube import is_true, status
from trimwheel_demo.measure import counters
from trimwheel_demo.places import MODEL, NAMESPACE
from trimwheel_demo.report import evidence, metric_evidence, object_evidence
from trimwheel_demo.settings import (
    ALPHA,
    AUDIT_RATE,
    CONFIDENCE,
    EPSILON,
    RATE_RPS,
    model_manifest,
    non_default,
    validated,
)
from trimwheel_demo.world import World, log_model, save_session

READY_TIMEOUT = 180.0
Evidence = list[dict[str, str]]


def train(world: World, found: Evidence) -> None:
    """The trained encoder, from the cache or trained now, registered in MLflow."""
    trained = training.ensure(world.options.seed)
    metadata = dict(trained.metadata) | {"digest": trained.digest}
    world.model_digest = trained.digest
    world.model_uri = log_model(world, trained.folder, metadata)
    world.report["model"] = {
        "digest": trained.digest,
        "uri": world.model_uri,
        "classes": metadata.get("classes"),
        "accuracy_full": metadata.get("accuracy_full"),
        "majority_share": metadata.get("majority_share"),
        "oracle_cost": metadata.get("oracle_cost"),
    }
    world.teller.good(
        f"{metadata.get('classes')} classes, full-depth accuracy "
        f"{metadata.get('accuracy_full', 0):.1%} (always the commonest class: "
        f"{metadata.get('majority_share', 0):.1%}); {world.model_uri}"
    )
    name, version = world.model_uri.removeprefix("models:/").split("/")
    url = "$MLFLOW_TRACKING_URI/api/2.0/mlflow/model-versions/get"
    found.append(
        evidence("MLflowModelVersion", world.model_uri, "",
                 f"curl -sG {url} -d name={name} -d version={version}")
    )  # fmt: skip


def serve(world: World, found: Evidence) -> None:
    """Apply the AdaptiveModel; wait until it answers, at full depth."""
    manifest = model_manifest(world.model_uri, world.model_digest)
    validated(manifest)
    world.report["settings"] = {
        "rate_rps": RATE_RPS,
        "audit_rate": float(AUDIT_RATE),
        "epsilon": float(EPSILON),
        "delta": round(1 - float(CONFIDENCE), 6),
        "alpha": float(ALPHA),
        "non_default": non_default(manifest),
    }
    path = world.places.demo / "model.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    world.teller.command(f"kubectl apply -f {path}")
    world.admin.apply(manifest)
    item = world.teller.wait(
        "the model's endpoint", lambda: _with_endpoint(world), READY_TIMEOUT, _pods(world)
    )
    world.endpoint = status(item)["endpoint"]
    save_session(world)
    answer = world.teller.wait("the first answer", lambda: first_answer(world), READY_TIMEOUT,
                               _pods(world))  # fmt: skip
    world.notes["first_answer_seconds"] = time.monotonic() - world.teller.begun
    parameters = answer["parameters"]
    world.teller.good(
        f"first answer after {world.notes['first_answer_seconds']:.0f} s: layers "
        f"{parameters[names.PARAM_LAYERS]}, arm {parameters[names.PARAM_ARM]}; the node's GPUs are "
        "advertised, not real: workers run on the CPU and say so"
    )
    item = world.teller.wait(
        "both workers Ready", lambda: _ready(world), READY_TIMEOUT, _pods(world)
    )
    found.append(object_evidence(item, "amodel", '.status.conditions[?(@.type=="Ready")].status'))
    found.append(object_evidence(item, "amodel", ".status.stable.digest"))


def start_load(world: World, found: Evidence) -> None:
    """Start the open-loop generator and see audits arrive."""
    control = load.Control(world.endpoint, MODEL, RATE_RPS, "base", world.options.seed)
    load.start(world.load, control)
    world.teller.command("trimwheel load status")
    world.teller.wait(
        "audits in Prometheus",
        lambda: counters(world).audits >= 50 or None,
        120,
        lambda: f"{counters(world).audits} audits",
    )
    rows = load.windows(world.load)
    seen = load.summary(rows[-5:])
    world.teller.good(
        f"{RATE_RPS:g} requests/s: p50 {seen['p50_ms']} ms, p99 {seen['p99_ms']} ms; every second "
        "request is audited off the response path"
    )
    found.append(metric_evidence(f'sum(trimwheel_audits_total{{model="{MODEL}"}})'))


def first_answer(world: World) -> dict[str, Any] | None:
    """One inference through the Service, or None while nobody answers."""
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES",
                        "data": ["import json\njson.loads(text)"]}]}  # fmt: skip
    try:
        url = f"{world.endpoint}/v2/models/{MODEL}/infer"
        answer = httpx.post(url, json=body, timeout=5)
    except httpx.HTTPError:
        return None  # not up yet: the caller keeps asking until its own timeout
    return dict(answer.json()) if answer.status_code == 200 else None


def _with_endpoint(world: World) -> dict[str, Any] | None:
    item = world.admin.get("AdaptiveModel", MODEL)
    return item if status(item).get("endpoint") else None


def _ready(world: World) -> dict[str, Any] | None:
    item = world.admin.get("AdaptiveModel", MODEL)
    return item if is_true(item, names.READY) else None


def _pods(world: World) -> Callable[[], str]:
    def line() -> str:
        pods = world.admin.core.list_namespaced_pod(NAMESPACE, _request_timeout=10).items
        return ", ".join(f"{pod.metadata.name[-5:]} {pod.status.phase}" for pod in pods)

    return line
