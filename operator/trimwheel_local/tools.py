"""kubectl and helm, run as a cluster's administrator, with their caches in the cluster's folder.

Called by `Cluster`, whose methods are what others use.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trimwheel_api.errors import SetupFailed
from trimwheel_local import binaries
from trimwheel_local.files import write_atomic
from trimwheel_local.layout import Layout, checkout


def run(layout: Layout, name: str, *arguments: str, stdin: str | None = None) -> str:
    """What a tool printed. Raises CalledProcessError with its stderr."""
    cache = str(layout.root / "kubectl-cache")
    helm = {f"HELM_{kind}_HOME": str(layout.root / "helm") for kind in ("CACHE", "CONFIG")}
    kubeconfig = str(layout.admin_kubeconfig)
    done = subprocess.run(
        [str(binaries.find()[name]), *arguments],
        env={**os.environ, **helm, "KUBECONFIG": kubeconfig, "KUBECACHEDIR": cache},
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def install_chart(
    layout: Layout, values: Mapping[str, Any], release: str, namespace: str, chart: Path | None
) -> None:
    """`helm upgrade --install`. Raises SetupFailed with helm's words when it refuses."""
    root = checkout()
    path = chart or (root / "charts" / "trimwheel" if root else None)
    if path is None:
        raise SetupFailed("no chart: not in a checkout, and no chart was named")
    file = layout.root / f"values-{release}.yaml"
    write_atomic(file, yaml.safe_dump(dict(values)).encode())
    command = ["upgrade", "--install", "--force-conflicts", release, str(path)]
    command += ["--namespace", namespace, "--create-namespace", "--values", str(file)]
    try:
        run(layout, "helm", *command)
    except subprocess.CalledProcessError as error:
        raise SetupFailed(f"helm refused {path}: {error.stderr.strip()}") from error
