"""Which cluster a bench may use: one that is named, or an embedded one; never the work cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trimwheel_cli.main import cli
from trimwheel_console import USAGE
from trimwheel_local import release
from trimwheel_local.cluster import Cluster
from trimwheel_operator.bench_place import cluster_for_bench

INDEX = 203
"""A cluster that nobody starts."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is asked of embedded clusters, in order; none is started."""
    made: list[tuple[str, Any]] = []
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(Cluster, "up", lambda self, progress: made.append(("up", self)))
    monkeypatch.setattr(Cluster, "down", lambda self, purge: made.append(("down", purge)))
    monkeypatch.setattr(
        release, "install_chart", lambda one, replicas: made.append(("chart", replicas))
    )
    return made


def test_the_cluster_that_is_named_is_used_as_it_is(
    calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/of/the/environment")
    with cluster_for_bench(None, tmp_path, INDEX) as found:
        assert found == "/of/the/environment"
    with cluster_for_bench("/of/the/option", tmp_path, INDEX) as found:
        assert found == "/of/the/option"
    assert calls == []


def test_a_work_cluster_in_the_home_folder_is_never_used(
    calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "home" / ".kube" / "config"
    work.parent.mkdir(parents=True)
    work.write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with cluster_for_bench(None, tmp_path / "state", INDEX) as found:
        assert Path(found).is_relative_to(tmp_path / "state")
    assert [name for name, _ in calls] == ["up", "chart", "down"]


def test_a_cluster_of_its_own_has_rules_without_deciders_and_goes_also_after_a_failure(
    calls: list[tuple[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError), cluster_for_bench(None, tmp_path, INDEX):
        raise RuntimeError("a worker did not come up")
    assert calls[1:] == [("chart", 0), ("down", True)]
    assert calls[0][1].layout.state == tmp_path / "bench"


def test_a_kubeconfig_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("a: b: c")
    done = CliRunner().invoke(cli, ["bench", "rollback", "--kubeconfig", str(path)])
    assert done.exit_code == USAGE
    assert str(path) in done.stderr
