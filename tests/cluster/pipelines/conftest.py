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
ACCOUNT = names.service_account_user(RELEASE_NAMESPACE, names.PIPELINES_ACCOUNT)


@pytest.fixture
def account() -> str:
    """The pipelines' username."""
    return ACCOUNT


@pytest.fixture
def kubeconfig(cluster: Cluster, release: str, tmp_path: Path) -> Path:
    """The pipelines' own credentials."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{RELEASE_NAMESPACE}")
    # KUBECONFIG is a list with colons between, and the account's name is full of them.
    path = tmp_path / "kubeconfig"
    path.write_bytes(cluster.kubeconfig_for(ACCOUNT, groups).read_bytes())
    return path


@pytest.fixture
def objects(kubeconfig: Path) -> Objects:
    return Objects(config.new_client_from_config(str(kubeconfig)))


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
