"""MLflow as a real server: what a TuningRun leaves there, aliases, restarts, and MLflow away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from trimwheel_api import names
from trimwheel_api.errors import Refused, Unavailable
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, TuningRun
from trimwheel_api.kinds.tuning_run import TuningRunSpec
from trimwheel_api.policy import digest_of, parse_policy
from trimwheel_pipelines.open_runs import OpenRuns
from trimwheel_pipelines.patience import Patience
from trimwheel_pipelines.registry import Registry
from trimwheel_pipelines.view import View

pytestmark = pytest.mark.slow
PORT = 21080 + int(os.environ.get("TRIMWHEEL_TEST_INDEX", "4"))
URL = f"http://127.0.0.1:{PORT}"
POLICY = parse_policy({"exit": {"enabled": True, "thresholds": ["0.9", "0.85", "1.01"]}})


class Server:
    """An MLflow server that can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT),
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1",
        ]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                if requests.get(f"{URL}/health", timeout=2).ok:
                    return
            except requests.RequestException:
                time.sleep(0.3)
        raise AssertionError((self.folder / "server.log").read_text()[-2000:])

    def down(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("mlflow"))
    running.up()
    yield running
    running.down()


@pytest.fixture
def client(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=URL, registry_uri=URL)


def test_a_policy_is_registered_as_its_canonical_bytes_and_nothing_else(
    server: Server, client: Any
) -> None:
    registry = Registry(URL, "http://mlflow.example.org/")
    run = registry.open_run("shop", "one", "t1", "uid-1", {"epsilon": 0.02})
    assert run.url.startswith("http://mlflow.example.org/#/experiments/")
    version = registry.register(run, "shop", "one", POLICY, "sha256:parent")
    assert registry.register(run, "shop", "one", POLICY, "sha256:parent") == version == "1"
    stored = Path(client.download_artifacts(run.run_id, "policy.json")).read_bytes()
    assert stored == POLICY.canonical_bytes() and digest_of(stored) == POLICY.digest
    found = client.get_model_version("shop.one.policy", version)
    assert found.tags["sha256"] == POLICY.digest and found.tags["parent"] == "sha256:parent"
    assert found.status == "READY"
    assert registry.alias("shop", "one", "candidate") == "", "the watch loop moves aliases"
    assert registry.version_of("shop", "one", POLICY.digest) == version
    assert registry.version_of("shop", "one", "sha256:other") == ""


def test_a_restarted_job_with_another_winner_leaves_the_registered_bytes_alone(
    server: Server, client: Any
) -> None:
    registry = Registry(URL)
    run = registry.open_run("shop", "four", "t", "uid-5", {})
    other = parse_policy({"moe": {"topK": 1}})
    versions = [registry.register(run, "shop", "four", one, "") for one in (POLICY, other, POLICY)]
    assert versions == ["1", "2", "1"]
    for version, policy in (("1", POLICY), ("2", other)):
        found = client.get_model_version("shop.four.policy", version)
        assert found.tags["sha256"] == policy.digest
        place = found.source.partition(f"runs:/{run.run_id}/")[2]
        stored = Path(client.download_artifacts(run.run_id, place)).read_bytes()
        assert stored == policy.canonical_bytes() and place.endswith("policy.json")


def test_a_restarted_job_finds_its_run_again(server: Server, client: Any) -> None:
    registry = Registry(URL)
    first = registry.open_run("shop", "two", "t", "uid-2", {"seed": 1})
    registry.close_run(first, False, "killed")
    second = registry.open_run("shop", "two", "t", "uid-2", {"seed": 1})
    assert second == first
    assert client.get_run(first.run_id).info.status == "RUNNING"
    other = registry.open_run("shop", "two", "t", "uid-3", {"seed": 1})
    assert other.run_id != first.run_id


def test_an_alias_moves_and_is_read_back(server: Server) -> None:
    registry = Registry(URL)
    assert registry.alias("shop", "three", "stable") == ""
    run = registry.open_run("shop", "three", "t", "uid-4", {})
    version = registry.register(run, "shop", "three", POLICY, "")
    registry.move_alias("shop", "three", names.ALIAS_STABLE, version)
    assert registry.alias("shop", "three", "stable") == version


def test_a_whole_run_is_an_mlflow_users_own_project(
    server: Server, client: Any, stage: Any, model: Any, tmp_path: Path
) -> None:
    stage.with_registry(Registry(URL))
    stage.declare(model.digest)
    before, after = stage.now.timestamp() - 100, stage.now.timestamp() + 2
    stage.traffic.write(400, before)
    stage.traffic.write(400, after)
    assert stage.start(seed=3) == names.CERTIFIED
    status = stage.run.status
    parent = client.get_run(status.mlflow_run_id)
    assert client.get_experiment_by_name("trimwheel/shop/intent").experiment_id == (
        parent.info.experiment_id
    )
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["trimwheel.tuningrun"] == "shop/run"
    assert parent.data.params["seed"] == "3" and parent.data.params["executor"] == "serial"
    assert parent.data.metrics["certified_upper"] <= 0.1
    nested = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len(nested) == 3
    assert all({"cost", "risk"} <= set(run.data.metrics) for run in nested)
    assert {run.data.params["moe.topK"] for run in nested} >= {"2"}
    artifacts = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"policy.json", "certificate.json", "pareto.png", "calibration.png"}
    policy = stage.objects.get(AdaptivePolicy, "shop", status.policy)
    assert policy.spec.mlflow.run_id == status.mlflow_run_id
    stored = Path(client.download_artifacts(parent.info.run_id, "policy.json")).read_bytes()
    assert digest_of(stored) == status.policy_digest
    text = Path(client.download_artifacts(parent.info.run_id, "certificate.json")).read_text()
    assert json.loads(text)["outcome"] == "Certified"


def test_an_alias_is_taken_off_again(server: Server) -> None:
    registry = Registry(URL)
    run = registry.open_run("shop", "five", "t", "uid-6", {})
    version = registry.register(run, "shop", "five", POLICY, "")
    registry.move_alias("shop", "five", names.ALIAS_CANDIDATE, version)
    registry.remove_alias("shop", "five", names.ALIAS_CANDIDATE)
    assert registry.alias("shop", "five", names.ALIAS_CANDIDATE) == ""


def test_a_deleted_experiment_or_run_is_restored_by_the_next_run(
    server: Server, client: Any
) -> None:
    registry = Registry(URL)
    first = registry.open_run("shop", "six", "t", "uid-7", {})
    client.delete_experiment(first.experiment_id)
    second = registry.open_run("shop", "six", "u", "uid-8", {})
    assert second.experiment_id == first.experiment_id
    assert client.get_experiment(first.experiment_id).lifecycle_stage == "active"
    client.delete_run(second.run_id)
    assert registry.open_run("shop", "six", "u", "uid-8", {}) == second
    registry.log_results(second, {"cost": 0.5}, {})


def test_what_mlflow_refuses_is_said_with_its_remedy(server: Server, client: Any) -> None:
    registry = Registry(URL)
    run = registry.open_run("shop", "seven", "t", "uid-9", {})
    client.delete_run(run.run_id)
    with pytest.raises(Refused, match=r"mlflow runs restore"):
        registry.log_results(run, {"cost": 0.5}, {})


def test_a_superseded_run_ends_in_mlflow_and_says_why(
    server: Server, client: Any, stage: Any, model: Any
) -> None:
    registry = Registry(URL)
    stage.with_registry(registry)
    stage.declare(model.digest)
    stage.traffic.write(400, stage.now.timestamp() - 100)

    def harm() -> None:
        spec = TuningRunSpec.model_validate({"model": "intent", "reason": "Harmful"})
        stage.objects.put(TuningRun, "zz-harm", spec)

    stage.while_waiting = [harm]
    assert stage.start() == "Superseded"
    assert stage.condition(names.STALLED) == ("False", "Superseded")
    run = client.get_run(stage.run.status.mlflow_run_id)
    assert run.info.status == "KILLED" and run.data.tags["trimwheel.outcome"] == "Superseded"
    assert "zz-harm" in run.data.tags["mlflow.note.content"]


def test_a_run_whose_job_was_killed_is_ended_by_the_loop(server: Server, client: Any) -> None:
    registry = Registry(URL)
    run = registry.open_run("shop", "eight", "t", "uid-of-a-deleted-run", {})
    source = {"model": {"uri": "file:///m", "digest": "sha256:" + "0" * 64}}
    model = AdaptiveModel.model_validate(
        {"metadata": {"name": "eight", "namespace": "shop"}, "spec": source}
    )
    now = datetime.now(UTC) + timedelta(minutes=5)
    OpenRuns(registry).end_stale(View(model, (), (), (), now))
    ended = client.get_run(run.run_id)
    assert ended.info.status == "KILLED" and ended.data.tags["trimwheel.outcome"] == "Gone"
    assert registry.open_runs("shop", "eight") == []
    assert registry.open_runs("shop", "never-there") == []


def test_mlflow_away_is_waited_for_and_nothing_uncertified_is_made(
    server: Server, stage: Any, model: Any
) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.now.timestamp() - 100)
    stage.traffic.write(400, stage.now.timestamp() + 2)
    server.down()
    with pytest.raises(Unavailable, match="MLflow"):
        Registry(URL).alias("shop", "one", "stable")
    stage.with_registry(Registry(URL), Patience(total=3.0, first=0.5))
    assert stage.start() == "Failed"
    assert not stage.objects.list(AdaptivePolicy)
    stage.objects.delete(stage.run)
    tries: list[float] = []

    def back_soon(pause: float) -> None:
        tries.append(pause)
        if len(tries) == 2:
            server.up()
        stage.now += timedelta(seconds=pause)

    stage.with_registry(Registry(URL), Patience(total=300.0, first=0.5, sleep=back_soon))
    assert stage.start() == names.CERTIFIED
    assert len(tries) >= 2 and stage.run.status.mlflow_run_id
