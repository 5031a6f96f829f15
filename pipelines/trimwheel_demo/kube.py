"""The demo's view of the API server: objects as plain JSON, and kubectl as a named person.

Reads go through the Kubernetes client; what a visitor would type goes through kubectl, so that the
lines shown are the lines run.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client

from trimwheel_api.errors import Refused
from trimwheel_kube.answers import NotFound
from trimwheel_kube.connection import connect
from trimwheel_kube.objects import Objects

FIELD_MANAGER = "trimwheel-demo"


@dataclass(frozen=True, slots=True)
class Answer:
    """What kubectl said."""

    ok: bool
    out: str
    error: str


class Kube:
    """One person's access."""

    def __init__(self, kubeconfig: Path, namespace: str, path: str, cache: Path) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace
        self._env = {"KUBECONFIG": str(kubeconfig), "PATH": path, "KUBECACHEDIR": str(cache)}
        api = connect(str(kubeconfig)).api
        self._objects = Objects(api, FIELD_MANAGER)
        self.core = client.CoreV1Api(api)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object of ours, or None."""
        try:
            return self._objects.get(kind, self.namespace, name)
        except NotFound:
            return None

    def items(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind, oldest first."""
        return self._objects.list(kind, self.namespace)

    def create(self, kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object of ours. Raises Refused with the API server's words."""
        return self._objects.create(kind, {"name": name, "namespace": self.namespace}, spec)

    def patch_spec(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        """Merge a change into an object's spec. Raises Refused."""
        self._objects.merge(kind, self.namespace, name, {"spec": dict(change)})

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> Answer:
        """Run kubectl as this person."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env={**os.environ, **self._env},
            input=stdin, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        return Answer(done.returncode == 0, done.stdout.strip(), done.stderr.strip())

    def apply(self, manifest: Mapping[str, Any] | list[Any]) -> Answer:
        """`kubectl apply -f -` of one manifest or several. Raises Refused."""
        items = manifest if isinstance(manifest, list) else [manifest]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        answer = self.kubectl("apply", "-f", "-", stdin=text)
        if not answer.ok:
            raise Refused(answer.error)
        return answer


def condition(item: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """A condition of an object; empty when it was never set."""
    found = ((item or {}).get("status") or {}).get("conditions") or []
    return next((dict(one) for one in found if one["type"] == kind), {})


def is_true(item: Mapping[str, Any] | None, kind: str) -> bool:
    """Whether a condition is True."""
    return condition(item, kind).get("status") == "True"


def status(item: Mapping[str, Any] | None) -> dict[str, Any]:
    """An object's status, empty when absent."""
    return dict((item or {}).get("status") or {})
