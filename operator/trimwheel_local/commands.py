"""`trimwheel cluster up|down|status`: the embedded Kubernetes from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trimwheel_api.errors import InvalidInput, SetupFailed, Unavailable
from trimwheel_local.cluster import Cluster
from trimwheel_local.console import progress_bar
from trimwheel_local.layout import default_state
from trimwheel_local.names import DEFAULT_FAKE_GPUS, MAX_INDEX

NEGATIVE, USAGE, UNREACHABLE = 1, 2, 3


def _place(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which cluster is meant, and how to print."""
    options = [
        click.option(
            "--state",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder for all state; default: .trimwheel in the repository.",
        ),
        click.option(
            "--index",
            type=click.IntRange(0, MAX_INDEX),
            default=0,
            show_default=True,
            help="Clusters of different index run side by side: own ports, own addresses.",
        ),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["text", "json"]),
            default="text",
            help="json prints one object on stdout; progress goes to stderr either way.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def cluster() -> None:
    """Run a real Kubernetes control plane on this machine, without root or Docker.

    etcd, kube-apiserver, kube-controller-manager and kube-scheduler are the real ones, built
    from their released sources and bound to 127.0.0.0/8. One node runs each container's command
    as a local process with its own address (127.96.0.0/11), service-account token, probes and
    logs. It isolates nothing: a pod may do what you may do. Images must start with
    process.trimwheel.dev/.

    \b
    trimwheel cluster up
    eval "$(trimwheel env)"       # KUBECONFIG and kubectl; ~/.kube/config is never touched
    kubectl get nodes
    trimwheel cluster down --purge
    """


@cluster.command()
@_place
@click.option(
    "--fake-gpus",
    default=DEFAULT_FAKE_GPUS,
    show_default=True,
    help="How many nvidia.com/gpu the node advertises without having them.",
)
def up(state: Path | None, index: int, output: str, fake_gpus: int) -> None:
    """Start the cluster, or adopt the one that runs.

    Builds missing binaries first (about ten minutes once, on two cores). After a crash or a
    kill -9 it ends what is left over and starts again with the stored objects; pods that still
    run are taken over.
    """

    def start(one: Cluster) -> dict[str, Any]:
        with progress_bar() as progress:
            one.up(progress, fake_gpus=fake_gpus)
        return one.status()

    _finish(_guarded(state, index, start), output)


@cluster.command()
@_place
@click.option("--purge", is_flag=True, help="Also remove the cluster's folder: all its objects.")
def down(state: Path | None, index: int, output: str, purge: bool) -> None:
    """Stop pods and control plane; objects are kept for the next `up` unless --purge."""

    def stop(one: Cluster) -> dict[str, Any]:
        with progress_bar() as progress:
            one.down(progress, purge=purge)
        return {**one.status(), "stopped": True}

    _finish(_guarded(state, index, stop), output)


@cluster.command()
@_place
def status(state: Path | None, index: int, output: str) -> None:
    """Say what runs. Exit code 0: ready; 1: running, not ready; 3: not running."""
    _finish(_guarded(state, index, Cluster.status), output)


def _guarded(
    state: Path | None, index: int, action: Callable[[Cluster], dict[str, Any]]
) -> dict[str, Any]:
    """Run an action; errors become one line on stderr and the exit code of their kind."""
    try:
        return action(Cluster(state or default_state(), index))
    except InvalidInput as error:
        code, text = USAGE, str(error)
    except (Unavailable, SetupFailed) as error:
        code, text = UNREACHABLE, str(error)
    click.echo(f"error: {text}", err=True)
    raise SystemExit(code)


def _finish(found: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(_text(found))
    if found["ready"] or found.get("stopped"):
        return
    raise SystemExit(NEGATIVE if found["running"] else UNREACHABLE)


def _text(found: dict[str, Any]) -> str:
    if not found["running"]:
        return f"cluster {found['index']} is not running (state: {found['state']})"
    lines = [
        f"cluster {found['index']} is {'ready' if found['ready'] else 'not ready'}",
        f"  API server  {found['server']}",
        f"  KUBECONFIG  {found['kubeconfig']}",
        f"  Services    {found['services']}",
        f"  pods        {found['pods']}",
    ]
    for name, part in found["components"].items():
        state = "ready" if part["ready"] else "not ready"
        lines.append(f"  {name:24}{state}, {part['restarts']} restarts, log {part['log']}")
    return "\n".join(lines)
