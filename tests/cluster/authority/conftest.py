"""The chart on a real API server with nobody deciding, and people and accounts who try things.

Operator and pipelines are installed with 0 replicas: their accounts exist, and the tests speak with
those accounts' own tokens. People are client certificates. An `Answer` says which layer refused.
"""

from __future__ import annotations

import copy
import json
import re
import ssl
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS
from trimwheel_local.cluster import Cluster
from trimwheel_local.layout import checkout
from trimwheel_local.names import RELEASE_NAME, RELEASE_NAMESPACE
from trimwheel_local.testing import Clients, eventually

ROOT = checkout() or Path.cwd()
CHART = ROOT / "charts" / "trimwheel"
DIGEST = "sha256:" + "a" * 64
OTHER_DIGEST = "sha256:" + "b" * 64
NOW = "2026-01-01T00:00:00Z"

SETTLE = 10.0
"""Seconds; the lag is milliseconds, but a changed CRD makes the cache start anew."""

GUARDED_BY = re.compile(r"ValidatingAdmissionPolicy '([^']+)'")
MEDIA = {"PATCH": "application/merge-patch+json"}


@dataclass(frozen=True)
class Answer:
    """What the API server said: HTTP status, its words, and the object when it agreed."""

    code: int
    message: str
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> bool:
        return self.code < 300

    @property
    def policy(self) -> str:
        """The admission policy that refused; empty when RBAC, the schema or nobody did."""
        found = GUARDED_BY.search(self.message)
        return found[1] if found else ""

    @property
    def rbac(self) -> bool:
        """Whether the authorizer refused before any admission."""
        return self.code == 403 and "cannot" in self.message and not self.policy


@dataclass(frozen=True)
class Actor:
    """Somebody with credentials, working in one namespace unless a call names another."""

    http: httpx.Client
    namespace: str

    def create(self, body: dict[str, Any], **query: str) -> Answer:
        """POST an object of ours (its kind says where), or any object with `_path` set."""
        body = copy.deepcopy(body)
        return self.call("POST", body.pop("_path", None) or self._path(body["kind"]), body, **query)

    def get(self, kind: str, name: str) -> Answer:
        return self.call("GET", self._path(kind, name))

    def patch(self, kind: str, name: str, body: dict[str, Any], sub: str = "") -> Answer:
        """A JSON merge patch of an object or of its subresource."""
        return self.call("PATCH", self._path(kind, name, sub), body)

    def put(self, body: dict[str, Any], sub: str = "") -> Answer:
        return self.call("PUT", self._path(body["kind"], body["metadata"]["name"], sub), body)

    def delete(self, kind: str, name: str) -> Answer:
        return self.call("DELETE", self._path(kind, name))

    def call(self, verb: str, path: str, body: Any = None, **query: str) -> Answer:
        """One request; errors become Answers."""
        headers = {"Content-Type": MEDIA.get(verb, "application/json")}
        content = None if body is None else json.dumps(body)
        response = self.http.request(verb, path, content=content, headers=headers, params=query)
        said = response.json()
        return Answer(response.status_code, str(said.get("message", "")), said)

    def _path(self, kind: str, name: str = "", sub: str = "") -> str:
        parts = ["/apis", names.API_VERSION, "namespaces", self.namespace, PLURALS[kind], name, sub]
        return "/".join(part for part in parts if part)


def made(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


@dataclass
class Stage:
    """One namespace with a model, a policy, and a rollout that waits for a person."""

    cluster: Cluster
    admin: Clients
    namespace: str

    # --- who ---------------------------------------------------------------------------------
    def person(self, name: str, *roles: str, groups: tuple[str, ...] = ()) -> Actor:
        """A client certificate for `name`, bound to ClusterRoles in this namespace."""
        for role in roles:
            self.bind(role, {"kind": "User", "name": name, "apiGroup": _RBAC})
        return self._actor(self.cluster.kubeconfig_for(name, groups))

    def account(self, name: str, *roles: str) -> Actor:
        """A service account of this namespace with a token of its own."""
        self.admin.core.create_namespaced_service_account(
            self.namespace, {"metadata": {"name": name}}
        )
        for role in roles:
            subject = {"kind": "ServiceAccount", "name": name, "namespace": self.namespace}
            self.bind(role, subject)
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
    def root(self) -> Actor:
        """The cluster's administrator, of system:masters."""
        return self._actor(self.cluster.kubeconfig)

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
        return made("TuningRun", name, {"model": "m", **spec})

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
        """A rollout that the pipelines asked for."""
        user = names.service_account_user(RELEASE_NAMESPACE, names.PIPELINES_ACCOUNT)
        return _agreed(self.pipelines.create(self.rollout(name, user, **spec)))

    def await_approval(self, rollout: dict[str, Any]) -> dict[str, Any]:
        """The operator says that a person is asked."""
        times = {"lastTransitionTime": NOW, "observedGeneration": 1}
        asked = {"type": "AwaitingApproval", "status": "True", "reason": "ApprovalRequired"}
        patch = {"status": {"conditions": [{**asked, **times}]}}
        name = rollout["metadata"]["name"]
        return _agreed(self.operator.patch("PolicyRollout", name, patch, "status"))

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
        """A rollout by the pipelines that waits for a person."""
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


@pytest.fixture(scope="module")
def release(cluster: Cluster, admin: Clients) -> Iterator[str]:
    """The chart, with nobody deciding; afterwards the release is as it was found."""
    before = _values(cluster)
    shape = yaml.safe_load((CHART / "ci" / "embedded-values.yaml").read_text())
    for component in ("operator", "pipelines"):
        shape[component]["replicas"] = 0
    cluster.install_chart(shape)
    eventually(lambda: _forgery_refused(admin), "admission policies bite")
    yield RELEASE_NAMESPACE
    if before not in (None, shape):
        cluster.install_chart(before)


@pytest.fixture
def stage(release: str, cluster: Cluster, admin: Clients, namespace: str) -> Stage:
    """A namespace of the test's own, on the installed chart."""
    return Stage(cluster, admin, namespace)


@pytest.fixture
def chart() -> Path:
    """The chart's folder."""
    return CHART


@pytest.fixture
def helm(cluster: Cluster) -> Callable[..., str]:
    """Runs helm against the cluster; returns what it printed. Raises CalledProcessError."""

    def run(*arguments: str) -> str:
        return _tool(cluster, "helm", *arguments)

    return run


def _tool(cluster: Cluster, name: str, *arguments: str) -> str:
    return subprocess.run(
        [name, *arguments], env=cluster.env(), capture_output=True, text=True, check=True
    ).stdout


def _values(cluster: Cluster) -> dict[str, Any] | None:
    """The installed release's own values; None when there is no release."""
    releases = _tool(cluster, "helm", "list", "--namespace", RELEASE_NAMESPACE, "--short").split()
    if RELEASE_NAME not in releases:
        return None
    command = ("get", "values", RELEASE_NAME, "--namespace", RELEASE_NAMESPACE, "--output", "yaml")
    return yaml.safe_load(_tool(cluster, "helm", *command)) or {}


def _forgery_refused(admin: Clients) -> bool:
    """Whether every policy is in force: a new one bites about a second after it was created."""
    forged = made(
        "PolicyApproval",
        "forged",
        {
            "rollout": "none",
            "rolloutUID": "none",
            "policyDigest": DIGEST,
            "decision": "Approve",
            "approver": "somebody-else",
        },
    )
    actor = Actor(_http(admin), "default")
    answer = actor.create(forged, dryRun="All")
    written = made("PolicyAssignment", "forged", {"epoch": 1, "stable": {"digest": DIGEST}})
    other = actor.create(written, dryRun="All")
    # Two policies guard approvals; which of them speaks first is the API server's choice.
    guarded = answer.policy in ("trimwheel-approvers", "trimwheel-approvals")
    return guarded and other.policy == "trimwheel-operator-only"
