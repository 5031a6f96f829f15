"""The operator as a process of its own, under its own account, on a real API server.

A test starts, stops and kills operators as it likes. Workers are pods that run the real
watch-and-arms loop and count what a test tells them to.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config
from tests.cluster.operator.team import Operator, Team

from trimwheel_api import names
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_api.policy import DENSE
from trimwheel_local.cluster import Cluster
from trimwheel_local.testing import Clients, eventually
from trimwheel_operator.admission import AdmissionTest
from trimwheel_operator.cluster import KubeApi
from trimwheel_operator.plan.witness import SETTLING

OPERATOR = (
    names.service_account_user(RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT),
    ("system:serviceaccounts", f"system:serviceaccounts:{RELEASE_NAMESPACE}"),
)
GOOD = {"exit": {"enabled": True, "thresholds": ["0.9", "0.95"]}}
BAD = {"exit": {"enabled": True, "thresholds": ["0.1", "0.1"]}}


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster, release: str) -> str:
    """A real Prometheus that scrapes every second."""
    cluster.install_addons(prometheus=True, mlflow=False, scrape_interval="1s")
    cluster.wait_addons()
    return cluster.env()["PROMETHEUS_URL"]


@pytest.fixture
def operator(cluster: Cluster, release: str, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """`operator()` starts one more operator process; all end with the test."""
    # KUBECONFIG is a list with colons between, and the account's name is full of them.
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_bytes(cluster.kubeconfig_for(*OPERATOR).read_bytes())
    started: list[Operator] = []

    def start(**environment: str) -> Operator:
        log = tmp_path / f"operator-{len(started)}.log"
        env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            # Runs side by side on one machine must not take each other's ports.
            "POD_IP": f"127.200.{1 + os.getpid() % 250}.{2 + len(started)}",
            "TRIMWHEEL_SCRAPE_INTERVAL": "1s",
            "TRIMWHEEL_RESYNC": "5s",
            "TRIMWHEEL_LEADER_SECONDS": "4",
            "OMP_NUM_THREADS": "1",
            # Admission accepts pods of the chart's images alone.
            "TRIMWHEEL_WORKER_IMAGE": "process.trimwheel.dev/workers:local",
            "TRIMWHEEL_PIPELINES_IMAGE": "process.trimwheel.dev/pipelines:local",
            **environment,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "trimwheel_operator"],
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(Operator(process, log))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="session")
def admission(cluster: Cluster, release: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Waits until what is written from now on counts: admission was not changed just now.

    What another test deleted and restored, or an install, dates everything older as unguarded.
    """
    kubeconfig = tmp_path_factory.mktemp("admission") / "kubeconfig"
    kubeconfig.write_bytes(cluster.kubeconfig_for(*OPERATOR).read_bytes())
    test = AdmissionTest(KubeApi(config.new_client_from_config(str(kubeconfig))))

    def settled() -> None:
        found = eventually(lambda: _armed(test), "every admission policy bites")
        since = (datetime.now(UTC) - found).total_seconds()
        time.sleep(max(0.0, SETTLING.total_seconds() + 1.0 - since))

    return settled


def _armed(test: AdmissionTest) -> datetime | None:
    found = test.check("default", fresh=True)
    return found.armed_since if found.armed else None


@pytest.fixture
def team(admin: Clients, namespace: str, as_user: Callable[..., Clients], admission: Any) -> Team:
    """A namespace where rita asks for rollouts and waives, and bea approves."""
    admission()
    rules = {
        "rita": [
            _rule(["policyrollouts"], ["create", "get", "patch"]),
            _rule(["adaptivepolicies"], ["create"]),
            _rule(["adaptivemodels"], [names.VERB_ROLLBACK, names.VERB_WAIVE]),
        ],
        "bea": [
            _rule(["policyapprovals"], ["create"]),
            _rule(["policyrollouts"], [names.VERB_APPROVE]),
        ],
    }
    group = "rbac.authorization.k8s.io"
    for person, allowed in rules.items():
        body = {"metadata": {"name": person}, "rules": allowed}
        admin.rbac.create_namespaced_role(namespace, body)
        subject = {"kind": "User", "name": person, "apiGroup": group}
        role = {"apiGroup": group, "kind": "Role", "name": person}
        body = {"metadata": {"name": person}, "roleRef": role, "subjects": [subject]}
        admin.rbac.create_namespaced_role_binding(namespace, body)
    return Team(admin, namespace, as_user("rita"), as_user("bea"))


@pytest.fixture
def documents() -> dict[str, dict[str, Any]]:
    return {"good": GOOD, "bad": BAD}


@pytest.fixture
def dense() -> str:
    return DENSE.digest


def _rule(resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [names.GROUP], "resources": resources, "verbs": verbs}
