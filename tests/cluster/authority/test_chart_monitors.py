"""The chart's PodMonitors and PrometheusRule against the Prometheus operator's own CRDs.

The CRDs come from its released Go module, by hash, through Go's proxy and the cache that builds the
binaries; nothing of it is kept in the repository. Without Go or a network they are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local.layout import cache_folder
from trimwheel_local.names import RELEASE_NAME

pytestmark = pytest.mark.cluster

MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
KINDS = {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}


@pytest.fixture(scope="module")
def crds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The operator's definitions of both kinds."""
    cache = cache_folder() / "go" / "pkg" / "mod"
    try:
        done = subprocess.run(
            ["go", "mod", "download", "-modcacherw", "-json", MODULE],
            env={**os.environ, "GOMODCACHE": str(cache), "GOFLAGS": "-mod=mod"},
            cwd=tmp_path_factory.mktemp("outside-of-any-module"),
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the Prometheus operator's CRDs cannot be had: {error}")
    found = json.loads(done.stdout)
    assert found["Sum"] == SUM
    folder = Path(found["Dir"]) / "example" / "prometheus-operator-crd"
    return [folder / f"monitoring.coreos.com_{plural}.yaml" for plural in KINDS.values()]


@pytest.fixture
def monitoring(stage: Any, crds: list[Path]) -> Iterator[Any]:
    """The cluster with them installed; they go again, since the others do without."""
    for file in crds:
        stage.cluster.kubectl("create", "--filename", str(file))
    names = [f"{plural}.monitoring.coreos.com" for plural in KINDS.values()]
    stage.cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", *names)
    yield stage.cluster
    stage.cluster.kubectl("delete", "crd", *names)


def test_the_prometheus_operators_own_definitions_accept_monitors_and_rules(
    monitoring: Any, helm: Callable[..., str], chart: Path
) -> None:
    values = ("--values", str(chart / "ci" / "full-values.yaml"))
    text = helm("template", RELEASE_NAME, str(chart), "--namespace", RELEASE_NAMESPACE, *values)
    objects = [one for one in yaml.safe_load_all(text) if one and one["kind"] in KINDS]
    assert {one["kind"] for one in objects} == KINDS.keys()
    dry_run = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", "-")
    said = monitoring.kubectl(*dry_run, stdin=yaml.safe_dump_all(objects))
    assert said.count("serverside-applied (server dry run)") == len(objects)
    objects[0]["spec"]["podMetricsEndpoint"] = []
    with pytest.raises(subprocess.CalledProcessError) as refused:
        monitoring.kubectl(*dry_run, stdin=yaml.safe_dump(objects[0]))
    assert "podMetricsEndpoint" in refused.value.stderr
