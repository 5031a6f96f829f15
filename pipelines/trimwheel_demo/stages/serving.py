"""Stages 1 to 3: the trained model goes to MLflow, the AdaptiveModel is applied, traffic flows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from trimwheel_api import names
from trimwheel_api.policy import parse_policy
from trimwheel_demo import load, training
from trimwheel_demo.evidence import (
    Evidence,
    condition_path,
    evidence,
    metric_evidence,
    mlflow_evidence,
    object_evidence,
)
from trimwheel_demo.kube import is_true, status
from trimwheel_demo.measure import counters
from trimwheel_demo.places import MODEL, NAMESPACE
from trimwheel_demo.settings import RATE_RPS, model_manifest, settings_section, validated
from trimwheel_demo.world import World, log_model, save_session
from trimwheel_workers.model.digest import CONFIG_FILE

READY_TIMEOUT = 180.0
ENOUGH_AUDITS = 50


def train(world: World, found: list[Evidence]) -> None:
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
    found.append(
        mlflow_evidence("MLflowModelVersion", world.model_uri, "model-versions/get",
                        f'"value":"{trained.digest}"', name=name, version=version)
    )  # fmt: skip
    _check_bad_policy(world, trained.folder)


def _check_bad_policy(world: World, folder: Path) -> None:
    """BAD_POLICY has to fit the model; better said now than once the story comes to it."""
    if world.options.bad_policy is not None:
        shape = json.loads((folder / CONFIG_FILE).read_text())["encoder"]
        exits, experts = len(shape["exits"]), shape["experts"]
        parse_policy(world.options.bad_policy, exits=exits, experts=experts)


def serve(world: World, found: list[Evidence]) -> None:
    """Apply the AdaptiveModel; wait until it answers, at full depth."""
    manifest = model_manifest(world.model_uri, world.model_digest)
    model = validated(manifest)
    world.report["settings"] = settings_section(manifest, world.values)
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
    seconds = time.monotonic() - world.teller.begun
    world.report["first_answer_seconds"] = round(seconds, 1)
    parameters = answer["parameters"]
    world.teller.good(
        f"first answer after {seconds:.0f} s: layers {parameters[names.PARAM_LAYERS]}, arm "
        f"{parameters[names.PARAM_ARM]}"
    )
    if not world.options.kubeconfig:
        world.teller.say("the node's GPUs are advertised, not real: workers run on the CPU")
    item = world.teller.wait(
        "both workers Ready", lambda: _ready(world), READY_TIMEOUT, _pods(world)
    )
    found += [
        object_evidence(item, "amodel", condition_path(names.READY, "status"), "True"),
        object_evidence(item, "amodel", ".status.readyReplicas", model.spec.replicas),
        evidence("HTTP", world.endpoint, "",
                 'curl -sf "$TRIMWHEEL_ENDPOINT/v2/health/ready" -o /dev/null '
                 "-w '%{http_code}\\n' | grep -x 200"),
    ]  # fmt: skip


def start_load(world: World, found: list[Evidence]) -> None:
    """Start the open-loop generator and see audits arrive."""
    control = load.Control(world.endpoint, MODEL, RATE_RPS, "base", world.options.seed)
    load.start(world.load, control)
    world.teller.command("trimwheel load status")
    world.teller.wait(
        "audits in Prometheus",
        lambda: counters(world).audits >= ENOUGH_AUDITS or None,
        120,
        lambda: f"{counters(world).audits} audits",
    )
    rows = load.windows(world.load)
    seen = load.summary(rows[-5:])
    world.teller.good(
        f"{RATE_RPS:g} requests/s: p50 {seen['p50_ms']} ms, p99 {seen['p99_ms']} ms; a share of "
        f"{world.report['settings']['audit_rate']:g} is audited off the response path"
    )
    audits = f'sum(trimwheel_audits_total{{model="{MODEL}"}})'
    found.append(metric_evidence(f"{audits} >= {ENOUGH_AUDITS}"))


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
