"""README's first commands and the tutorial's session, typed into a bare shell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS
from trimwheel_demo.existing import ExistingCluster
from trimwheel_demo.places import NAMESPACE, Places
from trimwheel_demo.world import save_session
from trimwheel_local.cluster import Cluster
from trimwheel_local.layout import checkout
from trimwheel_local.testing import Clients

pytestmark = pytest.mark.cluster
ROOT = checkout() or Path.cwd()
EVAL = 'eval "$(.venv/bin/trimwheel env)"'
Shell = Callable[[str], "subprocess.CompletedProcess[str]"]


def readme_block() -> list[str]:
    """The lines that README says to type into another terminal."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = next(block for block in blocks if EVAL in block)
    return [line.split("#")[0].strip() for line in found.strip().splitlines()]


@pytest.fixture
def shell(cluster: Cluster) -> Shell:
    """A bare shell in the checkout that runs a script after the README's first line."""
    place = {
        "TRIMWHEEL_STATE": str(cluster.layout.state),
        "TRIMWHEEL_INDEX": str(cluster.layout.index),
    }
    first = EVAL.replace(".venv/bin", str(Path(sys.executable).parent))

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-c", f"{first}\n{script}"],
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **place},
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


@pytest.fixture
def model(cluster: Cluster, admin: Clients, release: str) -> Iterator[None]:
    """The demo's model as an object: nobody reconciles it here."""
    admin.core.create_namespace({"metadata": {"name": NAMESPACE}})
    spec = {"model": {"uri": "models:/m/1", "digest": "sha256:" + "a" * 64}}
    body = {"apiVersion": names.API_VERSION, "kind": "AdaptiveModel",
            "metadata": {"name": NAMESPACE}, "spec": spec}  # fmt: skip
    admin.custom.create_namespaced_custom_object(
        names.GROUP, names.VERSION, NAMESPACE, PLURALS["AdaptiveModel"], body
    )
    yield
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true")


@pytest.fixture
def session(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """What a demo on this cluster would have saved."""
    places = Places(cluster.layout.state, cluster.layout.index)
    places.demo.mkdir(exist_ok=True)
    world: Any = SimpleNamespace(
        cluster=cluster, places=places, endpoint="http://127.0.0.1:9", prometheus="", mlflow="",
        options=SimpleNamespace(report=Path("report.json")),
    )  # fmt: skip
    save_session(world)
    yield json.loads(places.session.read_text())
    places.session.unlink()


def test_every_command_of_the_readme_is_found_and_looks_where_the_model_is(
    shell: Shell, model: None, session: dict[str, Any]
) -> None:
    first, check, get, status, rollback = readme_block()
    assert first == EVAL
    checked = shell(check)
    assert checked.returncode == 2 and "there is no report of a demo" in checked.stderr
    listed = shell(get)
    assert listed.returncode == 0, listed.stderr
    assert f"adaptivemodel.trimwheel.dev/{NAMESPACE}" in listed.stdout
    shown = shell(status)
    assert shown.returncode == 1, shown.stderr  # not Ready: nobody reconciles
    assert f"namespace {NAMESPACE}" in shown.stdout
    plugin = shell("kubectl " + status)
    assert plugin.stdout.splitlines()[0] == shown.stdout.splitlines()[0], plugin.stderr
    asked = shell(rollback + " --no-wait -o json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["action"] == "Rollback"


def test_without_a_session_the_clusters_own_exports_reach_the_model(
    shell: Shell, model: None
) -> None:
    done = shell('echo "$TRIMWHEEL_NAMESPACE/$TRIMWHEEL_MODEL${TRIMWHEEL_ENDPOINT-}"')
    assert done.stdout.strip() == f"{NAMESPACE}/{NAMESPACE}", done.stderr
    load = shell("trimwheel load start")
    assert load.returncode == 2
    assert "no endpoint" in load.stderr


def test_a_session_on_somebody_elses_cluster_leaves_their_kubeconfig_as_it_is(
    cluster: Cluster, tmp_path: Path
) -> None:
    before = cluster.kubeconfig.read_bytes()
    foreign = ExistingCluster(cluster.kubeconfig, tmp_path, ROOT / "charts" / "trimwheel")
    path = foreign.session_kubeconfig(NAMESPACE)
    view = ("config", "view", "--minify", "-o", "jsonpath={..namespace}")
    assert cluster.kubectl("--kubeconfig", str(path), *view) == NAMESPACE
    assert "Ready" in cluster.kubectl("--kubeconfig", str(path), "get", "nodes")
    assert cluster.kubeconfig.read_bytes() == before
    assert path.stat().st_mode & 0o077 == 0
