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

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from trimwheel_api.errors import Refused, Unavailable
from trimwheel_api.kinds import PLURALS
from trimwheel_api.names import API_VERSION, GROUP, VERSION


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
        api = config.new_client_from_config(config_file=str(kubeconfig))
        self._custom = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object of ours, or None."""
        try:
            return dict(
                self._custom.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURALS[kind], name, _request_timeout=10
                )
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise Unavailable(f"API server: {error.status} {error.reason}") from error

    def items(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind, oldest first."""
        found = self._custom.list_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURALS[kind], _request_timeout=10
        )
        items: list[dict[str, Any]] = found["items"]
        return sorted(items, key=lambda item: item["metadata"]["creationTimestamp"])

    def create(self, kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object of ours. Raises Refused with the API server's words."""
        body = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": dict(spec),
        }
        try:
            return dict(
                self._custom.create_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURALS[kind], body, _request_timeout=10
                )
            )
        except ApiException as error:
            raise Refused(_words(error)) from error

    def patch_spec(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        """Merge a change into an object's spec. Raises Refused."""
        try:
            self._custom.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURALS[kind], name, {"spec": dict(change)}
            )
        except ApiException as error:
            raise Refused(_words(error)) from error

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


def _words(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


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
