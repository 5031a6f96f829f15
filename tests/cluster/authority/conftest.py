"""People and accounts who try things on the installed chart.

Nobody decides there: operator and pipelines have accounts and no pods, and the tests speak with
those accounts' own tokens. People are client certificates. An `Answer` says which layer refused.
"""

from __future__ import annotations

import ssl
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.cluster.authority.actors import Actor, Answer, made

from trimwheel_api import names
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local.cluster import Cluster
from trimwheel_local.layout import checkout
from trimwheel_local.testing import Clients, eventually

ROOT = checkout() or Path.cwd()
CHART = ROOT / "charts" / "trimwheel"
DIGEST = "sha256:" + "a" * 64
OTHER_DIGEST = "sha256:" + "b" * 64
NOW = "2026-01-01T00:00:00Z"
ADMIN = "admin"
"""Username of the cluster's administrator."""
SETTLE = 10.0
"""Seconds; the lag is milliseconds, but a changed CRD makes the cache start anew."""


@dataclass
class Stage:
    """One namespace with a model, a policy, and a rollout that waits for a person."""

    cluster: Cluster
    admin: Clients
    namespace: str

    # --- who ---------------------------------------------------------------------------------
    def person(self, name: str, *roles: str, groups: tuple[str, ...] = ()) -> Actor:
        """A client certificate for `name`, bound to ClusterRoles in this namespace."""
        subject = {"kind": "User", "name": name, "apiGroup": _RBAC}
        for role in roles:
            self.bind(role, subject)
        self.await_rights(name, subject)
        return self._actor(self.cluster.kubeconfig_for(name, groups))

    def account(self, name: str, *roles: str) -> Actor:
        """A service account of this namespace with a token of its own."""
        self.admin.core.create_namespaced_service_account(
            self.namespace, {"metadata": {"name": name}}
        )
        subject = {"kind": "ServiceAccount", "name": name, "namespace": self.namespace}
        for role in roles:
            self.bind(role, subject)
        self.await_rights(names.service_account_user(self.namespace, name), subject)
        return self.token(self.namespace, name)

    def token(self, namespace: str, account: str, pod: Any = None) -> Actor:
        """The account as its pod sees it: a token from TokenRequest, bound to `pod` if given."""
        spec: dict[str, Any] = {"expirationSeconds": 600, "audiences": []}
        if pod is not None:
            reference = {"name": pod.metadata.name, "uid": pod.metadata.uid}
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", **reference}
        token = self.admin.core.create_namespaced_service_account_token(
            account, namespace, {"spec": spec}
        ).status.token
        return Actor(_http(self.admin, {"Authorization": f"Bearer {token}"}), self.namespace)

    @cached_property
    def operator(self) -> Actor:
        return self.token(RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)

    @cached_property
    def pipelines(self) -> Actor:
        return self.token(RELEASE_NAMESPACE, names.PIPELINES_ACCOUNT)

    @cached_property
    def tuning_job(self) -> Actor:
        return self.token(RELEASE_NAMESPACE, names.TUNING_ACCOUNT)

    @cached_property
    def root(self) -> Actor:
        """The cluster's administrator, of system:masters."""
        return self._actor(self.cluster.kubeconfig)

    def impersonating(self, user: str, groups: tuple[str, ...] = ()) -> Actor:
        """The administrator, acting as somebody whose credentials nobody has."""
        actor = self._actor(self.cluster.kubeconfig)
        actor.http.headers["Impersonate-User"] = user
        for group in (*groups, "system:authenticated"):
            actor.http.headers = httpx.Headers(
                [*actor.http.headers.raw, (b"Impersonate-Group", group.encode())]
            )
        return actor

    def wildcard(self, name: str = "nadia") -> Actor:
        """Somebody with every verb on every resource of this namespace."""
        rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        self.role("everything", [rule])
        return self.person(name, "Role/everything")

    def _actor(self, kubeconfig: Path) -> Actor:
        return Actor(_http(Clients.of(kubeconfig)), self.namespace)

    def role(self, name: str, rules: list[dict[str, Any]]) -> None:
        body = {"metadata": {"name": name}, "rules": rules}
        self.admin.rbac.create_namespaced_role(self.namespace, body)

    def bind(self, role: str, subject: dict[str, Any]) -> None:
        kind, _, name = role.rpartition("/")
        body = {
            "metadata": {"generateName": "test-"},
            "roleRef": {"apiGroup": _RBAC, "kind": kind or "ClusterRole", "name": name},
            "subjects": [subject],
        }
        self.admin.rbac.create_namespaced_role_binding(self.namespace, body)

    def await_rights(self, user: str, subject: dict[str, Any]) -> None:
        """Wait until the authorizer, which reads from a cache, knows every right given so far.

        It learns of roles and of bindings in the order in which they were made: once it grants a
        last right that nothing else gives, it has seen those before.
        """
        last = f"last-{uuid.uuid4().hex[:8]}"
        right = {"group": "test.trimwheel.dev", "resource": last, "verb": "get"}
        self.role(last, [{"apiGroups": [right["group"]], "resources": [last], "verbs": ["get"]}])
        self.bind(f"Role/{last}", subject)
        where = {"namespace": self.namespace, **right}
        review = {"spec": {"user": user, "resourceAttributes": where}}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        eventually(
            lambda: self.root.call("POST", path, review).body["status"]["allowed"],
            f"{user} has the rights that were given",
        )

    # --- what --------------------------------------------------------------------------------
    def model(self, name: str = "m", **rollout: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {"model": {"uri": "models:/m/1", "digest": DIGEST}}
        return made("AdaptiveModel", name, spec | ({"rollout": rollout} if rollout else {}))

    def policy(self, name: str = "p", **spec: Any) -> dict[str, Any]:
        return made("AdaptivePolicy", name, {"model": "m", "policy": {"moe": {"topK": 1}}, **spec})

    def certificate(self, **fields: Any) -> dict[str, Any]:
        counts = {"epsilon": "0.02", "delta": "0.1", "n": 2000, "errors": 20, "pValue": "0.01"}
        times = dict.fromkeys(("windowStart", "windowEnd", "issuedAt", "expiresAt"), NOW)
        return {**counts, **times, "policyDigest": DIGEST, "modelDigest": DIGEST, **fields}

    def rollout(self, name: str, requested_by: str, **spec: Any) -> dict[str, Any]:
        base = {"model": "m", "policy": "p", "policyDigest": DIGEST, "requestedBy": requested_by}
        return made("PolicyRollout", name, {**base, **spec})

    def tuning(self, name: str = "t", **spec: Any) -> dict[str, Any]:
        return made("TuningRun", name, {"model": "m", "requestedBy": ADMIN, **spec})

    def approval(self, rollout: dict[str, Any], approver: str, **spec: Any) -> dict[str, Any]:
        """An approval that is right in every respect but what `spec` changes."""
        bound = {
            "rollout": rollout["metadata"]["name"],
            "rolloutUID": rollout["metadata"]["uid"],
            "policyDigest": rollout["spec"]["policyDigest"],
        }
        right = {**bound, "decision": "Approve", "approver": approver}
        return made("PolicyApproval", f"a-{uuid.uuid4().hex[:8]}", {**right, **spec})

    def assignment(self, name: str = "m", **spec: Any) -> dict[str, Any]:
        base = {"epoch": 1, "stable": {"digest": DIGEST}}
        return made("PolicyAssignment", name, {**base, **spec})

    # --- in which state ----------------------------------------------------------------------
    def requested(self, name: str = "r", **spec: Any) -> dict[str, Any]:
        """A rollout that a TuningRun's Job asked for."""
        user = names.service_account_user(RELEASE_NAMESPACE, names.TUNING_ACCOUNT)
        made = _agreed(self.tuning_job.create(self.rollout(name, user, **spec)))
        self.await_admission(made, "Reject")
        return made

    def await_approval(self, rollout: dict[str, Any]) -> dict[str, Any]:
        """The operator says that a person is asked."""
        times = {"lastTransitionTime": NOW, "observedGeneration": 1}
        asked = {"type": "AwaitingApproval", "status": "True", "reason": "ApprovalRequired"}
        patch = {"status": {"conditions": [{**asked, **times}]}}
        name = rollout["metadata"]["name"]
        asking = _agreed(self.operator.patch("PolicyRollout", name, patch, "status"))
        if asking["spec"]["requestedBy"] != ADMIN:
            self.await_admission(asking, "Approve")
        return asking

    def await_admission(self, rollout: dict[str, Any], decision: str) -> None:
        """Wait until admission lets the administrator decide; it reads from a cache."""
        tried = self.approval(rollout, ADMIN, decision=decision)
        eventually(
            lambda: self.root.create(tried, dryRun="All").allowed,
            f"admission knows that {rollout['metadata']['name']} may get {decision}",
            SETTLE,
        )

    def settle(self, ask: Callable[[], Answer], wanted: Callable[[Answer], bool]) -> Answer:
        """The first answer that is `wanted`, else the last one after some seconds.

        Admission reads rollouts from a cache of the API server that lags a moment behind.
        """
        deadline = time.monotonic() + SETTLE
        while not wanted(answer := ask()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return answer

    def approve(self, actor: Actor, approval: dict[str, Any]) -> Answer:
        """Create an approval that should pass."""
        return self.settle(lambda: actor.create(approval), lambda answer: answer.allowed)

    def waiting(self, name: str = "r") -> dict[str, Any]:
        """A rollout by a Job that waits for a person."""
        return self.await_approval(self.requested(name))


_RBAC = "rbac.authorization.k8s.io"


def _http(clients: Clients, headers: dict[str, str] | None = None) -> httpx.Client:
    """The user's own connection; with `headers`, one that brings a token and no certificate."""
    found = clients.api.configuration
    context = ssl.create_default_context(cafile=found.ssl_ca_cert)
    if headers is None:
        context.load_cert_chain(found.cert_file, found.key_file)
    return httpx.Client(base_url=found.host, verify=context, headers=headers, timeout=30)


def _agreed(answer: Answer) -> dict[str, Any]:
    assert answer.allowed, answer.message
    return answer.body


@pytest.fixture
def stage(release: str, cluster: Cluster, admin: Clients, namespace: str) -> Stage:
    """A namespace of the test's own, on the installed chart."""
    return Stage(cluster, admin, namespace)


@pytest.fixture(scope="session")
def chart() -> Path:
    """The chart's folder."""
    return CHART


@pytest.fixture(scope="session")
def helm(cluster: Cluster) -> Callable[..., str]:
    """Runs helm against the cluster; returns what it printed. Raises CalledProcessError."""

    def run(*arguments: str) -> str:
        command = ["helm", *arguments]
        return subprocess.run(
            command, env=cluster.env(), capture_output=True, text=True, check=True
        ).stdout

    return run
