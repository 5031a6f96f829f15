"""Executors: the same outcomes wherever trials run; Ray with its token, quiet and cleaned up."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from trimwheel_api.errors import Unavailable
from trimwheel_api.policy import DENSE
from trimwheel_pipelines.executors import (
    OBJECT_STORE_BYTES,
    Failure,
    RayExecutor,
    SerialExecutor,
    executor_of,
)
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
        with pytest.raises(Unavailable, match=r"0 of 1 trials ended before the run's deadline"):
            list(executor.run(search, [Signature(2, 0.0)], until=time.time()))
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


@pytest.fixture
def ray_cluster() -> Iterator[tuple[str, str]]:
    """Address and token of a Ray cluster that somebody else started: `ray start --head`."""
    token = secrets.token_hex(32)
    # Short, because Ray puts Unix sockets below it.
    folder = tempfile.mkdtemp(prefix="tw-", dir="/tmp")
    ports = [_free_port() for _ in range(3)]
    ray = [str(Path(sys.executable).parent / "ray")]
    environment = {
        "PATH": os.environ["PATH"], "HOME": folder, "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    command = [
        *ray, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
        f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--include-dashboard=false",
        f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--dashboard-agent-listen-port={ports[2]}",
    ]  # fmt: skip
    log = Path(folder, "head.log")
    with log.open("wb") as output:
        head = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for_port(ports[1], head, log)
        yield f"ray://127.0.0.1:{ports[1]}", token
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with suppress(psutil.NoSuchProcess):  # some end with their parent
                process.kill()  # asked politely, Ray drains its node for half a minute
        head.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_ray_cluster_by_address_gives_the_same_and_asks_for_its_token(
    search: Search, ray_cluster: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._raylet import AuthenticationTokenLoader

    address, token = ray_cluster
    # A process keeps the first token that it used; a Job uses one only.
    AuthenticationTokenLoader.instance().reset_cache()
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert search.model is not None
    folder = Path(shutil.copytree(search.model.folder, tmp_path / "model"))
    mine = replace(search, model=replace(search.model, folder=str(folder)))
    signature = Signature(1, 0.0)
    [serial] = SerialExecutor().run(mine, [signature])
    with RayExecutor(address, cpus=1) as executor:
        assert executor.slots == 2, "as many as the cluster has"
        [first] = executor.run(mine, [signature])
        shutil.rmtree(folder)  # its machines do not see our folders
        failed, again = executor.run(mine, [Signature(99, 0.0), signature])
    for outcome in (first, again):
        assert isinstance(outcome, TrialResult) and isinstance(serial, TrialResult)
        assert (outcome.cost, outcome.risk, outcome.chain) == (
            serial.cost,
            serial.risk,
            serial.chain,
        )
    assert isinstance(failed, Failure)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


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
