"""Acknowledges an assignment with a Lease named after the pod, which only this pod may write.

The operator counts a change as done when every live worker's Lease names its epoch; metrics are no
proof. Server-side apply makes first and later writes the same request.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubernetes import client

from trimwheel_api import names
from trimwheel_api.errors import TrimwheelError
from trimwheel_workers.assignment.client import REQUEST_TIMEOUT, connect, unavailable
from trimwheel_workers.assignment.loop import Acknowledgement

FIELD_MANAGER = "trimwheel-worker"
_MAX_SENTENCE = 512


@dataclass(frozen=True, slots=True)
class Pod:
    """Who we are."""

    name: str
    uid: str
    namespace: str


def manifest(model: str, pod: Pod, said: Acknowledgement, now: datetime) -> dict[str, Any]:
    """The Lease. Garbage collection removes it with its pod."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": pod.name,
            "namespace": pod.namespace,
            "labels": {names.LABEL_MODEL: model, names.LABEL_PART_OF: names.PART_OF},
            "annotations": {
                names.ANNOTATION_EPOCH: str(said.epoch),
                names.ANNOTATION_STABLE: said.stable,
                names.ANNOTATION_CANDIDATE: said.candidate,
                names.ANNOTATION_REFUSED: said.refused[:_MAX_SENTENCE],
                names.ANNOTATION_TRIPPED: said.tripped,
            },
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}
            ],
        },
        "spec": {
            "holderIdentity": pod.name,
            "renewTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


class LeaseAcknowledger:
    """Callable for `AssignmentLoop`; keeps one connection, and a new one after any failure."""

    def __init__(self, model: str, pod: Pod) -> None:
        self._model = model
        self._pod = pod
        self._api: client.CoordinationV1Api | None = None

    def __call__(self, said: Acknowledgement) -> None:
        """Write the Lease. Raises Unavailable or Refused."""
        body = manifest(self._model, self._pod, said, datetime.now(UTC))
        try:
            if self._api is None:
                self._api = client.CoordinationV1Api(connect())
            with unavailable(f"Lease {self._pod.name}"):
                self._api.patch_namespaced_lease(
                    self._pod.name, self._pod.namespace, body, field_manager=FIELD_MANAGER,
                    force=True, _content_type="application/apply-patch+yaml",
                    _request_timeout=REQUEST_TIMEOUT,
                )  # fmt: skip
        except TrimwheelError:
            self._api = None
            raise
