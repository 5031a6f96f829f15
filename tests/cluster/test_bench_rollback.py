"""`trimwheel bench rollback` from a clean set-up: it brings its cluster, and takes it down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimwheel_local.testing import TEST_INDEX

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="tw-") as found:
        yield Path(found)


def test_a_bench_without_a_cluster_starts_one_and_leaves_nothing(folder: Path) -> None:
    state = {"TRIMWHEEL_STATE": str(folder), "TRIMWHEEL_INDEX": str(TEST_INDEX + 100)}
    ambient = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    command = [sys.executable, "-m", "trimwheel_cli.main", "bench", "rollback", "-o", "json"]
    done = subprocess.run(
        [*command, "--workers", "3", "--rounds", "2", "--seed", "4"],
        env=ambient | state, capture_output=True, text=True, timeout=220,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["workers"], told["rounds"], told["seed"]) == (3, 2, 4)
    seen = told["decision_to_last_seen_ms"]
    assert 0 < seen["p50"] <= seen["p99"] <= seen["max"]
    assert told["lease_bound_seconds"] >= told["lease_seconds"]
    assert not list((folder / "bench").iterdir())
