"""Tests below need a real API server: the run's one cluster, a namespace each, and the chart.

The chart is installed once, with nobody deciding: the accounts and admission policies are the real
ones, and a test starts whom it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local.cluster import Cluster
from trimwheel_local.layout import checkout
from trimwheel_local.testing import Clients, admin, as_user, cluster, eventually, namespace

__all__ = ["admin", "as_user", "cluster", "namespace"]

CHART = (checkout() or Path.cwd()) / "charts" / "trimwheel"
DIGEST = "sha256:" + "a" * 64
FORGERIES: dict[str, tuple[str, dict[str, Any]]] = {
    # Two policies guard approvals; which of them speaks first is the API server's choice.
    "trimwheel-approv": (
        "PolicyApproval",
        {
            "rollout": "none", "rolloutUID": "none", "policyDigest": DIGEST,
            "decision": "Approve", "approver": "somebody-else",
        },
    ),
    "trimwheel-rollouts": (
        "PolicyRollout",
        {"model": "m", "policy": "p", "policyDigest": DIGEST, "requestedBy": "somebody-else"},
    ),
    "trimwheel-alarms": ("TuningRun", {"model": "m", "reason": "Harmful"}),
    "trimwheel-operator-only": ("PolicyAssignment", {"epoch": 1, "stable": {"digest": DIGEST}}),
}  # fmt: skip
"""What not even the administrator may create, by the policy that refuses it."""


@pytest.fixture(scope="session")
def install(cluster: Cluster, admin: Clients) -> Callable[..., None]:
    """`install(operator={...})`: the chart with 0 replicas of everything, and changes on top."""

    def run(**change: dict[str, Any]) -> None:
        values = yaml.safe_load((CHART / "ci" / "embedded-values.yaml").read_text())
        for component in ("operator", "pipelines"):
            values[component] = {**values[component], "replicas": 0, **change.get(component, {})}
        cluster.install_chart(values)
        # A new policy bites about a second after it was created.
        eventually(
            lambda: all(_refused(admin, *forgery) for forgery in FORGERIES.items()),
            "every admission policy bites",
        )

    return run


@pytest.fixture(scope="session")
def release(install: Callable[..., None]) -> str:
    """The installed chart; returns its namespace."""
    install()
    return RELEASE_NAMESPACE


def _refused(admin: Clients, policy: str, forgery: tuple[str, dict[str, Any]]) -> bool:
    kind, spec = forgery
    body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": "forged"}}
    try:
        admin.custom.create_namespaced_custom_object(
            names.GROUP, names.VERSION, "default", PLURALS[kind], {**body, "spec": spec},
            dry_run="All",
        )  # fmt: skip
    except client.ApiException as refusal:
        return f"'{policy}" in json.loads(refusal.body)["message"]
    return False
