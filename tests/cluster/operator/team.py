"""A namespace with one model, people and pipelines who work on it, and operators as processes."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from kubernetes import client

from trimwheel_api import metrics, names
from trimwheel_api.kinds import PLURALS
from trimwheel_api.policy import parse_policy
from trimwheel_local.testing import PYTHON_IMAGE, Clients, eventually
from trimwheel_telemetry.answers import Ok
from trimwheel_telemetry.client import Prometheus

STANDIN = Path(__file__).with_name("standin_worker.py")
MODEL = "router"
MODEL_DIGEST = "sha256:" + "a" * 64
SETTLED = 40.0
"""Seconds that any one expectation may take on a busy machine."""


@dataclass
class Operator:
    """One operator process."""

    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def text(self) -> str:
        return self.log.read_text()


@dataclass
class Team:
    """A namespace with one model, and people and pipelines who work on it."""

    admin: Clients
    namespace: str
    requester: Clients
    boss: Clients
    uids: dict[str, str] = field(default_factory=dict)

    def create(self, kind: str, name: str, spec: dict[str, Any], by: Clients | None = None) -> Any:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        }
        return (by or self.admin).custom.create_namespaced_custom_object(
            names.GROUP, names.VERSION, self.namespace, PLURALS[kind], body
        )

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.admin.custom.get_namespaced_custom_object(
            names.GROUP, names.VERSION, self.namespace, PLURALS[kind], name
        )
        return found

    def change(self, kind: str, name: str, by: Clients | None = None, **spec: Any) -> None:
        (by or self.admin).custom.patch_namespaced_custom_object(
            names.GROUP, names.VERSION, self.namespace, PLURALS[kind], name, {"spec": spec}
        )

    def model(self, **spec: Any) -> None:
        steps = [
            {"weight": "0%", "hold": "2s", "maxDuration": "10m"},
            {"weight": "20%", "hold": "2s", "minRequests": 50, "maxDuration": "10m"},
            {"weight": "50%", "hold": "2s", "minRequests": 50, "maxDuration": "10m"},
        ]
        rollout = {"steps": steps, "leaseSeconds": 6, "passMargin": "2"}
        base = {
            "model": {"uri": "models:/router/1", "digest": MODEL_DIGEST},
            "replicas": 0,
            "rollout": rollout,
            "objectives": {"errorBudget": "0.01"},
        }
        self.create("AdaptiveModel", MODEL, {**base, **spec})
        account = names.worker_account(MODEL)
        eventually(lambda: self._account(account), "the workers' account", SETTLED)

    def _account(self, name: str) -> Any:
        found = self.admin.core.list_namespaced_service_account(self.namespace).items
        bound = self.admin.rbac.list_namespaced_role_binding(self.namespace).items
        return name in [one.metadata.name for one in found] and name in [
            one.metadata.name for one in bound
        ]

    def policy(
        self,
        name: str,
        document: dict[str, Any],
        certified: bool = False,
        by: Clients | None = None,
    ) -> str:
        digest = parse_policy(document).digest
        spec: dict[str, Any] = {"model": MODEL, "policy": document}
        if certified:
            spec["certificate"] = {
                "epsilon": "0.02", "delta": "0.1", "n": 2000, "errors": 10, "pValue": "0.001",
                "windowStart": "2026-01-01T00:00:00Z", "windowEnd": "2026-01-02T00:00:00Z",
                "policyDigest": digest, "modelDigest": MODEL_DIGEST,
                "issuedAt": "2026-01-02T00:00:00Z", "expiresAt": "2999-01-01T00:00:00Z",
            }  # fmt: skip
        self.create("AdaptivePolicy", name, spec, by=by)
        return digest

    def rollout(self, name: str, policy: str, digest: str, **spec: Any) -> None:
        base = {
            "model": MODEL,
            "policy": policy,
            "policyDigest": digest,
            "requestedBy": "rita",
        }
        self.create("PolicyRollout", name, {**base, **spec}, by=self.requester)

    def approve(self, rollout: str) -> None:
        """Bea's approval; admission reads rollouts from a cache that lags a moment behind."""
        item = self.get("PolicyRollout", rollout)
        spec = {
            "rollout": rollout,
            "rolloutUID": item["metadata"]["uid"],
            "policyDigest": item["spec"]["policyDigest"],
            "decision": "Approve",
            "approver": "bea",
            "reason": "looks right",
        }

        def accepted() -> bool:
            try:
                self.create("PolicyApproval", f"{rollout}-by-bea", spec, by=self.boss)
            except client.ApiException as refusal:
                if refusal.status != 403:
                    raise
                return False
            return True

        eventually(accepted, f"bea approves {rollout}", SETTLED)

    def worker(self, name: str, **environment: str) -> None:
        """A pod that watches, acknowledges and counts as a worker does."""
        labels = {
            names.LABEL_NAME: "trimwheel-worker",
            names.LABEL_INSTANCE: MODEL,
            names.LABEL_COMPONENT: names.COMPONENT_WORKER,
            names.LABEL_PART_OF: names.PART_OF,
            names.LABEL_MODEL: MODEL,
        }
        fields = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid",
                  "POD_NAMESPACE": "metadata.namespace", "POD_IP": "status.podIP"}  # fmt: skip
        env: list[dict[str, Any]] = [
            {"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for key, path in fields.items()
        ]
        values = {"MODEL": MODEL, **environment}
        env += [{"name": key, "value": value} for key, value in values.items()]
        container = {
            "name": "worker",
            "image": PYTHON_IMAGE,
            "command": ["python", "-u", str(STANDIN)],
            "env": env,
        }
        annotations = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(names.WORKER_PORT),
            "prometheus.io/path": "/metrics",
        }
        spec = {
            "serviceAccountName": names.worker_account(MODEL),
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
        }
        metadata = {"name": name, "labels": labels, "annotations": annotations}
        self.admin.core.create_namespaced_pod(self.namespace, {"metadata": metadata, "spec": spec})

    def workers(self, prometheus: str, *pods: str, **environment: str) -> None:
        """Several of them, that have served for a while: acknowledged, and scraped by Prometheus.

        A rollout of workers that nobody has scraped yet waits for a minute before any guard passes,
        because nothing tells such workers from ones that have just lost their counts.
        """
        for name in pods:
            self.worker(name, **environment)
        for name in pods:
            eventually(lambda name=name: self.epoch_of(name), f"{name} acknowledges", SETTLED)
        asked = Prometheus(prometheus)
        query = f'{metrics.GUARD_TRIALS.name}{{namespace="{self.namespace}"}}'

        def scraped() -> set[str]:
            answer = asked.instant(query)
            return (
                {one.labels["pod"] for one in answer.samples} if isinstance(answer, Ok) else set()
            )

        eventually(lambda: scraped() >= set(pods), f"{pods} are scraped", SETTLED)

    def epoch_of(self, pod: str) -> int:
        """The epoch that a worker acknowledged; 0 before any."""
        try:
            lease = self.admin.coordination.read_namespaced_lease(pod, self.namespace)
        except client.ApiException:
            return 0
        return int(lease.metadata.annotations[names.ANNOTATION_EPOCH])

    @property
    def assignment(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.get("PolicyAssignment", MODEL)["spec"]
        return spec

    def status(self, rollout: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get("PolicyRollout", rollout).get("status", {})
        return status

    def phase(self, rollout: str) -> str:
        return str(self.status(rollout).get("phase", ""))

    def reaches(self, rollout: str, phase: str, timeout: float = SETTLED) -> dict[str, Any]:
        """The rollout's status as it was first seen in a phase."""

        def reached() -> dict[str, Any] | None:
            status = self.status(rollout)
            return status if status.get("phase") == phase else None

        return cast(dict[str, Any], eventually(reached, f"{rollout} is {phase}", timeout))

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        found = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == condition), {"status": "Unknown"})

    def becomes(self, kind: str, name: str, condition: str, status: str = "True") -> dict[str, Any]:
        """The condition as it was first seen with a status."""

        def reached() -> dict[str, Any] | None:
            found = self.condition(kind, name, condition)
            return found if found["status"] == status else None

        what = f"{kind} {name} is {condition}={status}"
        return cast(dict[str, Any], eventually(reached, what, SETTLED))
