"""`trimwheel cluster up|down|status`: the embedded Kubernetes from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trimwheel_console import NEGATIVE, UNREACHABLE, emit, note, output_option
from trimwheel_console.ranges import Whole
from trimwheel_local import addons, release
from trimwheel_local.cluster import Cluster
from trimwheel_local.names import DEFAULT_FAKE_GPUS, MAX_INDEX
from trimwheel_local.progress import progress_bar


def _place(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which cluster is meant."""
    index = click.option(
        "--index",
        type=Whole(0, MAX_INDEX),
        default=0,
        show_default=True,
        envvar="TRIMWHEEL_INDEX",
        help="Clusters of different index run side by side: own ports, own addresses.",
    )
    state = click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="TRIMWHEEL_STATE",
        help="Folder for all state; default: .trimwheel in the repository.",
    )
    return state(index(output_option(command)))


@click.group(short_help="Start, stop and inspect the embedded Kubernetes.")
def cluster() -> None:
    """Run a real Kubernetes control plane on this machine, without root or Docker.

    etcd, kube-apiserver, kube-controller-manager and kube-scheduler are the real ones, official
    releases or built from the same sources, bound to 127.0.0.0/8. One node runs each container's
    command as a local process with its own address (127.96.0.0/11), service-account token, probes
    and logs. It isolates nothing: a pod may do what you may do. Images must start with
    process.trimwheel.dev/.

    \b
    trimwheel cluster up
    eval "$(.venv/bin/trimwheel env)"   # kubectl and KUBECONFIG; ~/.kube/config is never touched
    kubectl get nodes
    trimwheel cluster down --purge
    """


@cluster.command()
@_place
@click.option(
    "--fake-gpus",
    type=Whole(0, 1_000),
    default=DEFAULT_FAKE_GPUS,
    show_default=True,
    help="How many nvidia.com/gpu the node advertises without having them.",
)
@click.option("--addons", "with_addons", is_flag=True, help="Also run Prometheus and MLflow on it.")
@click.option("--chart", is_flag=True, help="Also install Trimwheel's chart; implies --addons.")
def up(
    state: Path | None, index: int, output: str, fake_gpus: int, with_addons: bool, chart: bool
) -> None:
    """Start the cluster, or adopt the one that runs; with --chart, Trimwheel on it.

    Gets missing binaries first: downloads their official releases, or builds them with Go where
    these cannot be reached (a quarter of an hour once, on two cores). After a crash or a
    kill -9 it ends what is left over and starts again with the stored objects; pods that still
    run are taken over.

    \b
    trimwheel cluster up
    trimwheel cluster up --chart      # operator, pipelines, Prometheus and MLflow, as by helm
    """

    one = Cluster(state, index)
    with progress_bar() as progress:
        one.up(progress, fake_gpus=fake_gpus)
        if with_addons or chart:
            release.install(one, chart=chart, progress=progress)
    found = one.status()
    _finish(found | ({"addons": _addons(one)} if with_addons or chart else {}), output)
    note('next: eval "$(.venv/bin/trimwheel env)"')


@cluster.command()
@_place
@click.option("--purge", is_flag=True, help="Also remove the cluster's folder: all its objects.")
def down(state: Path | None, index: int, output: str, purge: bool) -> None:
    """Stop pods and control plane; objects are kept for the next `up` unless --purge."""

    one = Cluster(state, index)
    with progress_bar() as progress:
        one.down(progress, purge=purge)
    found = one.status()
    emit(found, output, table=lambda: _text(found))


@cluster.command()
@_place
def status(state: Path | None, index: int, output: str) -> None:
    """Say what runs. Exit code 0: ready; 1: running, not ready; 3: not running."""
    _finish(Cluster(state, index).status(), output)


def _addons(one: Cluster) -> dict[str, str]:
    """Address by variable, as `trimwheel env` exports them."""
    env = one.env()
    return {name: env[name] for name in addons.URL_VARIABLES.values() if name in env}


def _finish(found: dict[str, Any], output: str) -> None:
    emit(found, output, table=lambda: _text(found))
    if not found["ready"]:
        sys.exit(NEGATIVE if found["running"] else UNREACHABLE)


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
    lines += [f"  {name:24}{url}" for name, url in found.get("addons", {}).items()]
    for name, part in found["components"].items():
        state = "ready" if part["ready"] else "not ready"
        lines.append(f"  {name:24}{state}, {part['restarts']} restarts, log {part['log']}")
    return "\n".join(lines)
