"""What a session leaves behind, and what a shell finds after `eval "$(trimwheel env)"`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from trimwheel_cli.main import cli
from trimwheel_console import UNREACHABLE
from trimwheel_demo.places import NAMESPACE, Places
from trimwheel_demo.world import save_session, take_down
from trimwheel_local import pki
from trimwheel_local.cluster import Cluster
from trimwheel_local.files import private_folder

INDEX = 201
"""A cluster that nobody starts."""
SYSTEM_PATH = "/usr/bin:/bin"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("TRIMWHEEL_STATE", str(tmp_path))
    monkeypatch.setenv("TRIMWHEEL_INDEX", str(INDEX))
    found = Places(tmp_path, INDEX)
    found.demo.mkdir()
    return found


def world_of(places: Places, cluster: Any) -> Any:
    options = SimpleNamespace(report=places.demo / "report.json")
    return SimpleNamespace(
        cluster=cluster, places=places, endpoint="http://127.96.0.9:8080", options=options,
        prometheus="http://127.96.0.2:9090", mlflow="http://127.96.0.3:5000",
    )  # fmt: skip


@pytest.fixture
def saved(places: Places) -> dict[str, str]:
    """What `trimwheel env -o json` says of a session on an embedded cluster."""
    cluster = Cluster(places.state, INDEX)
    private_folder(cluster.layout.root)
    pki.ensure_pki(cluster.layout)
    save_session(world_of(places, cluster))
    return json.loads(CliRunner().invoke(cli, ["env", "-o", "json"]).stdout)


def test_the_fixed_exports_are_all_there(saved: dict[str, str]) -> None:
    assert saved.keys() >= {
        "KUBECONFIG", "PATH", "TRIMWHEEL_NAMESPACE", "TRIMWHEEL_MODEL", "TRIMWHEEL_ENDPOINT",
        "PROMETHEUS_URL", "MLFLOW_TRACKING_URI", "TRIMWHEEL_REPORT",
    }  # fmt: skip


def test_the_sessions_kubeconfig_works_in_the_models_namespace(saved: dict[str, str]) -> None:
    document = yaml.safe_load(Path(saved["KUBECONFIG"]).read_text())
    assert document["contexts"][0]["context"]["namespace"] == NAMESPACE
    assert Path(saved["KUBECONFIG"]).stat().st_mode & 0o077 == 0


def test_a_bare_shell_finds_our_commands_after_eval(saved: dict[str, str]) -> None:
    """The line of the README, in a shell that knows nothing of the virtual environment."""
    folder = Path(sys.executable).parent
    script = f'eval "$({folder}/trimwheel env)" && command -v trimwheel kubectl-trimwheel'
    keep = {key: os.environ[key] for key in ("TRIMWHEEL_STATE", "TRIMWHEEL_INDEX")}
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        env={"PATH": SYSTEM_PATH, "HOME": "/nonexistent", **keep},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{folder}/trimwheel", f"{folder}/kubectl-trimwheel"]


def test_what_an_embedded_session_left_is_removed_with_its_cluster(
    places: Places, saved: dict[str, str]
) -> None:
    assert Path(saved["KUBECONFIG"]).exists()
    assert take_down(places)
    assert not places.demo.exists() and not Path(saved["KUBECONFIG"]).exists()
    assert not take_down(places)


def test_without_a_session_and_a_cluster_the_remedy_is_named(places: Places) -> None:
    done = CliRunner().invoke(cli, ["env"])
    assert done.exit_code == UNREACHABLE
    assert done.stdout == "" and "trimwheel cluster up" in done.stderr
