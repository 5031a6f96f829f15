"""The story is played once on the run's embedded cluster; what it leaves running is shared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimwheel_demo.load import Folder, stop
from trimwheel_local.cluster import Cluster
from trimwheel_local.testing import admin, as_user, cluster, namespace

sys.path.insert(0, str(Path(__file__).parent))

from played import Story, play

__all__ = ["admin", "as_user", "cluster", "namespace", "story"]


@pytest.fixture(scope="session")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Play once on the run's cluster; the load goes on until the end."""
    found = play(cluster, tmp_path_factory.mktemp("story") / "report.json")
    yield found
    stop(Folder(found.places.load))
