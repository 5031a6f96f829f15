"""Executors: the same outcomes wherever trials run; Ray with its token, quiet and cleaned up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trimwheel_api.policy import DENSE
from trimwheel_pipelines.executors import Failure, RayExecutor, SerialExecutor, executor_of
from trimwheel_pipelines.knobs import search_space
from trimwheel_pipelines.settings import Settings
from trimwheel_pipelines.study import run_study
from trimwheel_pipelines.trials import Audits, ModelRef, Search, TrialResult
from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import Signature


@pytest.fixture
def search(audits: Audits, model: LoadedModel, model_ref: ModelRef) -> Search:
    return Search(audits, model.config, model_ref, epsilon=0.1, aim=0.05, seed=7)


def test_the_chart_chooses_the_executor() -> None:
    assert isinstance(executor_of(Settings()), SerialExecutor)
    ray = executor_of(Settings(ray_address="local", ray_cpus=3))
    assert isinstance(ray, RayExecutor) and ray.slots == 3


def test_a_trial_that_raises_is_an_outcome_and_the_next_one_runs(search: Search) -> None:
    bad, good = SerialExecutor().run(search, [Signature(99, 0.0), Signature(1, 0.0)])
    assert isinstance(bad, Failure) and bad.signature == Signature(99, 0.0) and bad.reason
    assert isinstance(good, TrialResult)


@pytest.mark.slow
def test_ray_gives_what_serial_gives_with_a_token_and_leaves_nothing(search: Search) -> None:
    space = search_space(("moe.topK", "moe.routerBlend"), search.config)
    serial = run_study(search, space, DENSE, 8, SerialExecutor())
    with RayExecutor("local", cpus=2) as executor:
        import ray

        assert os.environ["RAY_AUTH_MODE"] == "token"
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.stat().st_mode & 0o077 == 0
        assert not (Path.home() / ".ray" / "auth_token").exists() or token.read_text()
        parallel = run_study(search, space, DENSE, 8, executor)
        failed, worked = executor.run(search, [Signature(99, 0.0), Signature(1, 0.0)])
        address = ray.get_runtime_context().gcs_address
        assert _knock(address, token.read_text()) == "in"
        assert "InvalidAuthToken" in _knock(address, "0" * 64)
    assert isinstance(failed, Failure) and isinstance(worked, TrialResult)
    assert not token.exists() and not token.parent.exists()
    assert [t.params for t in parallel.trials] == [t.params for t in serial.trials]
    for ours, theirs in zip(serial.results, parallel.results, strict=True):
        assert ours.signature == theirs.signature and ours.chain == theirs.chain
        assert (ours.cost, ours.risk, ours.floor) == (theirs.cost, theirs.risk, theirs.floor)
        np.testing.assert_array_equal(ours.records.scores, theirs.records.scores)


def _knock(address: str, token: str) -> str:
    """What Ray's control port, which listens on every interface, tells another process."""
    knock = (
        "import sys, ray\n"
        "from ray._raylet import GcsClient\n"
        "try:\n"
        "    GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, timeout=5)\n"
        "    print('in', end='')\n"
        "except Exception as error:\n"
        "    print(error, end='')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", knock, address],
        env=environment | {"RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout
