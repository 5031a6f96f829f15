"""Pipelines under their own account on a real API server: a whole TuningRun, and the watch loop.

The chart is installed with nobody running, so the account's rights and the admission policies are
the real ones; the Job's command is run as a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.errors import Conflict, Refused
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout, TuningRun
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.kinds.tuning_run import TuningRunSpec
from trimwheel_api.policy import parse_policy
from trimwheel_local.testing import eventually
from trimwheel_pipelines.exposition import Heartbeat, PipelinesMetrics
from trimwheel_pipelines.kube import Objects
from trimwheel_pipelines.ledger import Ledger
from trimwheel_pipelines.loop import Loop
from trimwheel_workers.model.artifact import LoadedModel

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def declare(root: Objects, namespace: str, folder: Path, digest: str) -> AdaptiveModel:
    spec = {
        "model": {"uri": f"file://{folder}", "digest": digest},
        "replicas": 0,
        "objectives": {"maxDisagreement": "0.1"},
        "audits": {"inputs": "sampled"},
        "tuning": {
            "searchRecords": 300, "certifyRecords": 300, "trials": 4, "timeout": "10m",
        },
        "rollout": {"historyLimit": 1},
    }  # fmt: skip
    metadata = {"name": "intent", "namespace": namespace}
    return root.create(AdaptiveModel, metadata, AdaptiveModelSpec.model_validate(spec))


def start(root: Objects, namespace: str, name: str = "first") -> TuningRun:
    spec = TuningRunSpec(model="intent", requested_by="admin")
    return root.create(TuningRun, {"name": name, "namespace": namespace}, spec)


def test_a_tuning_job_certifies_and_asks_for_a_rollout_in_its_own_name(
    root: Objects,
    namespace: str,
    job_account: str,
    kubeconfig: Path,
    records: Any,
    model_folder: Path,
    model: LoadedModel,
) -> None:
    declare(root, namespace, model_folder, model.digest)
    records.write(400, time.time() - 100)
    start(root, namespace)
    # Workers go on answering while the Job starts and searches.
    records.write(500, time.time() + 2, step=0.01)
    command = [
        sys.executable, "-m", "trimwheel_pipelines", "tune",
        "--namespace", namespace, "--name", "first",
    ]  # fmt: skip
    environment = os.environ | {
        "KUBECONFIG": str(kubeconfig),
        "TRIMWHEEL_RECORDS_URI": records.root,
        "TRIMWHEEL_ALLOWED_PREFIXES": f"file://{model_folder.parent}",
        "MLFLOW_TRACKING_URI": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("Collecting", "Searching", "trial   1/4", "look 1: Certified", "PolicyRollout"):
        assert part in done.stdout, done.stdout
    run = root.get(TuningRun, namespace, "first")
    assert run is not None and run.status.outcome == names.CERTIFIED
    assert run.status.is_true(names.READY) and run.status.observed_generation == 1
    policy = root.get(AdaptivePolicy, namespace, run.status.policy)
    assert policy is not None and policy.spec.certificate is not None
    assert parse_policy(policy.spec.policy).digest == run.status.policy_digest
    rollout = root.get(PolicyRollout, namespace, run.status.rollout)
    assert rollout is not None and rollout.spec.requested_by == job_account
    assert rollout.spec.on_behalf_of == "admin"


def test_a_refused_model_address_fails_the_run_and_says_which_rule(
    root: Objects,
    namespace: str,
    kubeconfig: Path,
    records: Any,
    model_folder: Path,
    model: LoadedModel,
) -> None:
    declare(root, namespace, model_folder, model.digest)
    records.write(400, time.time() - 100)
    start(root, namespace)
    command = [
        sys.executable, "-m", "trimwheel_pipelines", "tune",
        "--namespace", namespace, "--name", "first",
    ]  # fmt: skip
    environment = os.environ | {
        "KUBECONFIG": str(kubeconfig),
        "TRIMWHEEL_RECORDS_URI": records.root,
        "TRIMWHEEL_ALLOWED_PREFIXES": "models:/",
        "MLFLOW_TRACKING_URI": "",
    }
    subprocess.run(command, env=environment, capture_output=True, timeout=300, check=True)
    run = root.get(TuningRun, namespace, "first")
    assert run is not None and run.status.outcome == "Failed"
    ready = run.status.condition(names.READY)
    assert ready is not None and "spec.model.uri" in ready.message
    assert not root.list(AdaptivePolicy, namespace)


def test_the_loop_starts_a_run_writes_its_drift_and_prunes_what_the_ledger_has(
    root: Objects,
    objects: Objects,
    namespace: str,
    records: Any,
    tmp_path: Path,
    model_folder: Path,
    model: LoadedModel,
) -> None:
    declare(root, namespace, model_folder, model.digest)
    records.write(400, time.time() - 100)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    loop = Loop(
        objects=objects, records_uri=records.root, prometheus=None, ledger=ledger, aliases=None,
        exposed=PipelinesMetrics(), heartbeat=Heartbeat(60.0), operator_user="the-operator",
    )  # fmt: skip
    loop.once()
    [run] = root.list(TuningRun, namespace)
    assert run.spec.reason == "Bootstrap"
    loop.once()
    assert len(root.list(TuningRun, namespace)) == 1
    # A stale reader's write is refused whole.
    ended = run.status.model_copy(
        update={"outcome": "Failed", "finished_at": "2026-01-01T00:00:00Z"}
    )
    objects.write_status(run, ended)
    with pytest.raises(Conflict):
        objects.write_status(run, run.status)
    for name in ("older", "newer"):
        made = start(root, namespace, name)
        objects.write_status(made, ended)
    loop.once()
    left = eventually(lambda: root.list(TuningRun, namespace), "runs")
    finished = [one for one in left if one.status.outcome]
    assert len(finished) == 1, "historyLimit is 1"
    told = [entry.kind for entry in ledger.entries(f"{namespace}/intent")]
    assert told.count("TuningEnded") == 3 and ledger.verify() is None


def test_nobody_but_pipelines_may_raise_an_alarm(
    root: Objects,
    objects: Objects,
    namespace: str,
    account: str,
    model_folder: Path,
    model: LoadedModel,
) -> None:
    declare(root, namespace, model_folder, model.digest)
    alarm = TuningRunSpec(model="intent", reason="Harmful", requested_by=account)
    with pytest.raises(Refused):
        root.create(TuningRun, {"name": "forged", "namespace": namespace}, alarm)
    made = objects.create(TuningRun, {"name": "real", "namespace": namespace}, alarm)
    assert made.spec.reason == "Harmful"
    assert objects.whoami() == account
    objects.delete(made)
    objects.delete(made)
    assert root.get(TuningRun, namespace, "real") is None
