"""Pytest fixtures for tests that need a real Kubernetes: one cluster a run, one namespace a test.

A `conftest.py` imports the fixtures it wants. TRIMWHEEL_TEST_INDEX picks the cluster (9 unless
said otherwise); TRIMWHEEL_KEEP=1 leaves it running at the end, to look at it or to start the next
run faster.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubernetes import client, config

from trimwheel_local.cluster import Cluster
from trimwheel_local.names import PROCESS_IMAGE_PREFIX

TEST_INDEX = int(os.environ.get("TRIMWHEEL_TEST_INDEX", "9"))
PYTHON_IMAGE = f"{PROCESS_IMAGE_PREFIX}python"
POLL = 0.05

Found = TypeVar("Found")


@dataclass(frozen=True)
class Clients:
    """The Kubernetes client's APIs, all as one user."""

    api: client.ApiClient
    core: client.CoreV1Api
    apps: client.AppsV1Api
    batch: client.BatchV1Api
    rbac: client.RbacAuthorizationV1Api
    custom: client.CustomObjectsApi
    coordination: client.CoordinationV1Api

    @classmethod
    def of(cls, kubeconfig: Path) -> Clients:
        api = config.new_client_from_config(str(kubeconfig))
        return cls(
            api=api,
            core=client.CoreV1Api(api),
            apps=client.AppsV1Api(api),
            batch=client.BatchV1Api(api),
            rbac=client.RbacAuthorizationV1Api(api),
            custom=client.CustomObjectsApi(api),
            coordination=client.CoordinationV1Api(api),
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The run's cluster, adopted when it runs already."""
    found = Cluster(index=TEST_INDEX)
    if not found.status()["running"]:
        # What an interrupted run left in etcd must not decide the outcome of this one.
        found.down(purge=True)
    found.up()
    yield found
    if os.environ.get("TRIMWHEEL_KEEP") != "1":
        found.down(purge=True)


@pytest.fixture(scope="session")
def admin(cluster: Cluster) -> Clients:
    """Clients as the cluster's administrator (system:masters)."""
    return Clients.of(cluster.kubeconfig)


@pytest.fixture
def namespace(admin: Clients) -> Iterator[str]:
    """A fresh namespace with its default account; its deletion is asked for, not waited for."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    admin.core.create_namespace({"metadata": {"name": name}})
    eventually(lambda: _accounts(admin, name), "the default service account")
    yield name
    admin.core.delete_namespace(name)


@pytest.fixture
def as_user(cluster: Cluster) -> Callable[..., Clients]:
    """`as_user("alice", ["reviewers"])`: clients as a named person without any rights yet."""

    def make(user: str, groups: Sequence[str] = ()) -> Clients:
        return Clients.of(cluster.kubeconfig_for(user, groups))

    return make


def eventually(check: Callable[[], Found], what: str, timeout: float = 20) -> Found:
    """The first truthy answer of `check`; fails with the last one after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: still {found!r} after {timeout:g} s")
        time.sleep(POLL)


def container(script: str, **fields: Any) -> dict[str, Any]:
    """A container `main` that runs a Python script, unless `fields` say otherwise."""
    command = ["python", "-u", "-c", script]
    return {"name": "main", "image": PYTHON_IMAGE, "command": command, **fields}


def pod(name: str, script: str = "", *, spec: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A pod of one such container; it never restarts and stops at once, unless `spec` says so."""
    base = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2}
    containers = {"containers": [container(script, **fields)]}
    metadata = {"name": name, "labels": {"app": name}}
    return {"metadata": metadata, "spec": {**base, **containers, **(spec or {})}}


def log_of(admin: Clients, namespace: str, name: str, **query: Any) -> str:
    """A pod's log so far; empty also while there is none."""
    try:
        text = admin.core.read_namespaced_pod_log(name, namespace, **query)
    except client.ApiException:
        return ""
    # The client says None for an empty body.
    return str(text or "")


def _accounts(admin: Clients, namespace: str) -> list[Any]:
    """ServiceAccount and CA bundle: without either, pods are refused or wait."""
    accounts = admin.core.list_namespaced_service_account(namespace).items
    bundles = admin.core.list_namespaced_config_map(namespace).items
    return [*accounts, *bundles] if accounts and bundles else []
