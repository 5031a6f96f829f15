"""The story is played once on the run's embedded cluster; what it leaves running is shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.played import Story, play

from trimwheel_demo.load import Folder, stop
from trimwheel_local.cluster import Cluster
from trimwheel_local.testing import admin, as_user, cluster, namespace

__all__ = ["admin", "as_user", "cluster", "namespace", "story"]


@pytest.fixture(scope="session")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Play once on the run's cluster; the load goes on until the end."""
    found = play(cluster, tmp_path_factory.mktemp("story") / "report.json")
    yield found
    stop(Folder(found.places.load))
