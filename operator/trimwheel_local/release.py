"""Trimwheel's release on an embedded cluster: the chart, and the add-ons that it talks to.

Called by `trimwheel cluster up --chart --addons` and by benches that bring their own cluster. The
chart's own `ci/embedded-values.yaml` says how processes differ from containers; here is only what
depends on the cluster's folder: where audit records and the ledger lie.
"""

from __future__ import annotations

from typing import Any

import yaml

from trimwheel_api.errors import SetupFailed
from trimwheel_local.cluster import Cluster
from trimwheel_local.files import private_folder
from trimwheel_local.layout import Layout, checkout
from trimwheel_local.reporting import Progress, no_progress

STEPS = 3


def install(cluster: Cluster, *, chart: bool, progress: Progress = no_progress) -> None:
    """Prometheus and MLflow, then, with `chart`, Trimwheel; returns once they serve.

    Raises SetupFailed with helm's words when it refuses the chart.
    """
    progress("add-ons", 0, STEPS, "applying Prometheus and MLflow")
    cluster.install_addons()
    if chart:
        progress("add-ons", 1, STEPS, "installing the chart")
        install_chart(cluster)
    progress("add-ons", 2, STEPS, "waiting until Prometheus and MLflow serve")
    cluster.wait_addons()
    progress("add-ons", STEPS, STEPS, "ready")


def install_chart(cluster: Cluster, replicas: int = 1) -> None:
    """The chart in its embedded shape; with 0 replicas its rules are there and nobody decides."""
    values = embedded_values(cluster.layout)
    for component in ("operator", "pipelines"):
        values[component]["replicas"] = replicas
    cluster.install_chart(values)
    wait = ("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
    cluster.kubectl(*wait)


def embedded_values(layout: Layout) -> dict[str, Any]:
    """Values for a cluster whose records and ledger go when its folder goes."""
    root = checkout()
    if root is None:
        raise SetupFailed("no chart: this is not a checkout of Trimwheel")
    shape = root / "charts" / "trimwheel" / "ci" / "embedded-values.yaml"
    values: dict[str, Any] = yaml.safe_load(shape.read_text())
    records = private_folder(layout.root / "records")
    values["records"] = {"uri": f"file://{records}"}
    values["ledger"] = {"url": f"sqlite:///{layout.root / 'ledger.sqlite'}"}
    values["mlflow"] |= {"publicUrl": values["mlflow"]["url"]}
    values["models"] = {"allowedPrefixes": ["models:/"]}
    return values
