"""The demo's verbs: `trimwheel env`, `trimwheel load`, `trimwheel demo`.

`env` and `load` serve whoever wants to play by hand; `demo` is what the Makefile calls.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import yaml

from trimwheel_api import names
from trimwheel_api.errors import SetupFailed, Unavailable
from trimwheel_console import NEGATIVE, documents, emit, note, output_option, progress, text_table
from trimwheel_console.exits import ErrorHandling
from trimwheel_console.ranges import SEED, Real, Whole
from trimwheel_demo import load as generator
from trimwheel_demo.places import MODEL, NAMESPACE, default_places, read_session


def session() -> dict[str, str]:
    """The exports of a running demo or, without one, of the embedded cluster and its model.

    Raises NotRunning, with its remedy, when there is neither.
    """
    path = default_places().session
    if not path.exists():
        return _of_cluster()
    found = read_session(path)
    ambient = os.environ.get("PATH", os.defpath)
    return found | {"PATH": os.pathsep.join(filter(None, [found.get("PATH"), ambient]))}


def _of_cluster() -> dict[str, str]:
    from trimwheel_local import rest
    from trimwheel_local.cluster import Cluster, require_running

    places = default_places()
    cluster = require_running(Cluster(places.state, places.index))
    found = cluster.env()
    path = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/adaptivemodels/{MODEL}"
    if (model := rest.find(cluster.layout, path)) is not None:
        found |= {"TRIMWHEEL_NAMESPACE": NAMESPACE, "TRIMWHEEL_MODEL": MODEL}
        if endpoint := model.get("status", {}).get("endpoint"):
            found["TRIMWHEEL_ENDPOINT"] = endpoint
    return found


@click.command(short_help="Print the exports that reach a running demo.")
@output_option
def env(output: str) -> None:
    """Print shell exports for a running demo or, without one, for the embedded cluster.

    They put `trimwheel`, `kubectl trimwheel`, kubectl and promtool on PATH, and name the cluster,
    Prometheus, MLflow and, once it is applied, the demo's model. ~/.kube/config is never touched.

    \b
    eval "$(.venv/bin/trimwheel env)"
    kubectl get trimwheel
    curl -s "$TRIMWHEEL_ENDPOINT/v2/health/ready"
    """
    found = session()
    lines = "\n".join(f"export {key}={shlex.quote(value)}" for key, value in found.items())
    emit(found, output, table=lines)


@click.group(short_help="Start, change or stop the demo's load generator.")
def load() -> None:
    """An open-loop load of held-out snippets: it sends on schedule, whatever the server does."""


@load.command("start", short_help="Start the load, or change a running one.")
@click.option("--rate", type=Real(generator.SLOWEST, generator.FASTEST), help="Requests a second.")
@click.option("--mix", type=click.Choice(sorted(generator.MIXES)), default=None, help="Traffic.")
@output_option
def load_start(rate: float | None, mix: str | None, output: str) -> None:
    """Start the load generator; a running one follows at once.

    \b
    trimwheel load start --rate 100 --mix base
    trimwheel load start --mix drifted      # the traffic changes, the rate stays
    """
    folder = generator.Folder(default_places().load)
    if folder.control.exists():
        control = folder.read_control()
    else:
        control = generator.Control(_endpoint(), MODEL)
    control = replace(control, rate=rate or control.rate, mix=mix or control.mix)
    pid = generator.start(folder, control)
    value = {"pid": pid, "rate": control.rate, "mix": control.mix, "endpoint": control.endpoint}
    emit(value, output, table=f"{control.rate:g} requests/s of {control.mix}, process {pid}")


def _endpoint() -> str:
    found = session().get("TRIMWHEEL_ENDPOINT")
    if not found:
        raise SetupFailed(
            f"AdaptiveModel {MODEL} in namespace {NAMESPACE} has no endpoint: apply it first, and "
            "wait with `kubectl wait --for=condition=Ready`"
        )
    return found


@load.command("stop", short_help="Stop the load.")
@output_option
def load_stop(output: str) -> None:
    """Stop the load generator; exit 1 when none was running."""
    stopped = generator.stop(generator.Folder(default_places().load))
    emit({"stopped": stopped}, output, table="stopped" if stopped else "no load was running")
    if not stopped:
        sys.exit(NEGATIVE)


@load.command("status", short_help="What the load generator sees.")
@click.option(
    "--seconds", type=Whole(1, 86_400), default=10, show_default=True, help="Look back this far."
)
@output_option
def load_status(seconds: int, output: str) -> None:
    """Rate, codes and latency of the last seconds, as the clients see them; exit 1 when idle.

    `age_seconds` is how long ago the newest of these seconds ended. Older ones are not shown: a
    generator that reports nothing counts as idle too.
    """
    folder = generator.Folder(default_places().load)
    running = folder.running() is not None
    now = time.time()
    # A window is written when its second is over: the last one began up to two seconds ago.
    rows = generator.windows(folder, since=now - seconds - 2)[-seconds:] if running else []
    value: dict[str, Any] = {"running": running} | generator.summary(rows)
    value["age_seconds"] = round(now - rows[-1]["start"] - 1, 1) if rows else None
    if running:
        control = folder.read_control()
        value |= {"rate": control.rate, "mix": control.mix}
    text = "\n".join(f"{key:<11} {item}" for key, item in value.items())
    if running and not rows:
        text += f"\nnothing was reported in the last {seconds} s: read {folder.log}"
    emit(value, output, table=text)
    if not running or not rows:
        sys.exit(NEGATIVE)


@click.group(
    cls=ErrorHandling, short_help="Play or remove the demo (what make demo and make down call)."
)
def demo() -> None:
    """The whole loop on one machine: train, serve, drift, tune, approve, roll back.

    \b
    trimwheel demo play      # as make demo does
    trimwheel demo check     # does all that its report claims still hold?
    trimwheel demo down
    """


@demo.command("play", short_help="Play the story; options come from the environment.")
@output_option
def play(output: str) -> None:
    """Play the story: SEED, DETACH, BAD_POLICY and REPORT are read from the environment.

    With -o json the story is told on stderr, and stdout carries the report when it has ended:
    at once with DETACH=1, else after Ctrl-C.

    \b
    trimwheel demo play
    DETACH=1 trimwheel demo play -o json | jq .exit_reason
    """
    from trimwheel_demo.play import main
    from trimwheel_demo.settings import Options
    from trimwheel_demo.teller import Teller, error_console

    as_json = output == "json"
    report = Options.from_environment().report
    code = main(Teller(error_console()) if as_json else None)
    if as_json:
        emit(json.loads(report.read_text()), output)
    sys.exit(code)


@demo.command("check", short_help="Read every claim of the demo's report again.")
@output_option
def check(output: str) -> None:
    """Read every claim of the demo's report again from the live system; exit 1 when one is untrue.

    Runs the report's own kubectl, curl and PromQL lines. A claim may have become untrue honestly:
    a policy that was promoted later, say.

    \b
    trimwheel demo check
    trimwheel demo check -o json | jq '.readings[] | select(.holds | not)'
    """
    from trimwheel_demo.recheck import claims, recheck

    found = session()
    path = Path(found.get("TRIMWHEEL_REPORT") or "")
    if not path.is_file():
        raise SetupFailed("there is no report of a demo: play one with `make demo`")
    report = documents.read_object(path, "TRIMWHEEL_REPORT")
    if not _is_report(report):
        raise SetupFailed(f"{path} is no report of a demo: play one with `make demo`")
    readings = []
    with progress() as bar:
        task = bar.add_task("reading claims again", total=len(claims(report["stages"])))
        for reading in recheck(report, os.environ | found):
            readings.append(reading)
            bar.advance(task)
    untrue = [one for one in readings if not one.holds]
    rows = [[one.stage, one.kind, "holds" if one.holds else "DOES NOT HOLD", one.said[:60]]
            for one in readings]  # fmt: skip
    table = text_table(["stage", "claim", "", "the system says"], rows)
    table += f"\n\n{len(readings)} claims, {len(untrue)} do not hold"
    value = {"claims": len(readings), "untrue": len(untrue)}
    emit(value | {"readings": [asdict(one) for one in readings]}, output, table=table)
    if untrue:
        sys.exit(NEGATIVE)


def _is_report(report: dict[str, Any]) -> bool:
    stages = report.get("stages")
    return isinstance(stages, list) and all(
        isinstance(row, dict) and isinstance(row.get("evidence"), list) for row in stages
    )


@demo.command("register", short_help="Register the trained encoder; print its AdaptiveModel.")
@click.option("--seed", type=Whole(0, SEED), default=0, show_default=True, help="Of the training.")
@output_option
def register(seed: int, output: str) -> None:
    """Register the demo's encoder in MLflow and print the AdaptiveModel that serves it, as YAML.

    Takes the model that `make setup` trained, or trains it now. For who plays the loop by hand:

    \b
    trimwheel cluster up --chart
    trimwheel demo register > model.yaml
    kubectl apply -f model.yaml
    """
    from mlflow.exceptions import MlflowException

    from trimwheel_demo import training
    from trimwheel_demo.settings import model_manifest
    from trimwheel_demo.world import register_model

    mlflow = session().get("MLFLOW_TRACKING_URI")
    if not mlflow:
        raise SetupFailed("there is no MLflow: bring it up with `trimwheel cluster up --chart`")
    trained = training.ensure(seed)
    metadata = dict(trained.metadata) | {"digest": trained.digest}
    try:
        uri = register_model(mlflow, trained.folder, metadata)
    except (MlflowException, OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise Unavailable(f"{mlflow} does not answer as MLflow does: {said}") from error
    manifest = model_manifest(uri, trained.digest)
    value = {"uri": uri, "digest": trained.digest, "manifest": manifest}
    note(f"registered as {uri}")
    emit(value, output, table=yaml.safe_dump(manifest, sort_keys=False), newline=False)


@demo.command("down", short_help="Stop and remove all that the demo started.")
@output_option
def down(output: str) -> None:
    """Stop and remove everything of the demo; cached binaries and the trained model stay."""
    from trimwheel_demo.world import take_down

    removed = take_down(default_places())
    emit({"removed": removed}, output, table="removed" if removed else "nothing to remove")
