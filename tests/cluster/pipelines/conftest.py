"""The pipelines' own credentials, and records that workers made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config
from tests.pipelines.conftest import Traffic, audits, model, model_folder

from trimwheel_api import names
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local.cluster import Cluster
from trimwheel_pipelines.kube import Objects

__all__ = ["audits", "model", "model_folder"]
LOOP, JOB = (
    names.service_account_user(RELEASE_NAMESPACE, account)
    for account in (names.PIPELINES_ACCOUNT, names.TUNING_ACCOUNT)
)


@pytest.fixture
def account() -> str:
    """The loop's username."""
    return LOOP


@pytest.fixture
def job_account() -> str:
    """The username of TuningRun Jobs."""
    return JOB


def credentials(cluster: Cluster, account: str, path: Path) -> Path:
    """A kubeconfig for an account of the release."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{RELEASE_NAMESPACE}")
    # KUBECONFIG is a list with colons between, and the account's name is full of them.
    path.write_bytes(cluster.kubeconfig_for(account, groups).read_bytes())
    return path


@pytest.fixture
def kubeconfig(cluster: Cluster, release: str, tmp_path: Path) -> Path:
    """The credentials of TuningRun Jobs."""
    return credentials(cluster, JOB, tmp_path / "job-kubeconfig")


@pytest.fixture
def objects(cluster: Cluster, release: str, tmp_path: Path) -> Objects:
    """The API server as the loop sees it."""
    path = credentials(cluster, LOOP, tmp_path / "loop-kubeconfig")
    return Objects(config.new_client_from_config(str(path)))


@pytest.fixture
def root(cluster: Cluster, release: str) -> Objects:
    """A user who may declare models."""
    return Objects(config.new_client_from_config(str(cluster.kubeconfig)))


@pytest.fixture
def records(tmp_path: Path, audits: Any, model: Any, namespace: str) -> Iterator[Traffic]:
    """The record store of model `intent` in the test's namespace."""
    made = Traffic(tmp_path / "records", audits, model.digest)
    mine = Path(made.root) / namespace / "intent"
    mine.mkdir(parents=True)
    made.folder = mine
    yield made
