"""The only file that calls the Kubernetes client: reads, fenced writes, watches, as plain JSON.

Used by `gather`, `apply`, `leader`, `admission` and `informers`, always in threads. Every error of
the client becomes one of ours, so that callers decide by class: `Conflict` (gather again),
`Unavailable` (later), `Refused` (never, as things stand).
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from kubernetes import client
from kubernetes.dynamic import DynamicClient

from trimwheel_api import names
from trimwheel_api.errors import Conflict, Refused, TrimwheelError, Unavailable
from trimwheel_api.kinds import PLURALS
from trimwheel_kube.answers import NETWORK, words_of
from trimwheel_kube.connection import connect as connect_by
from trimwheel_kube.decoding import decode

Json = dict[str, Any]

CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 10.0
PAGE = 500
"""Objects in one answer to a list."""
CONNECTIONS = 64
"""Kept open: a watch a kind, and one for each worker that reads or writes."""
WATCH_SECONDS = 60
WATCH_READ_TIMEOUT = 75.0
"""A watch that says nothing for longer than the server would keep it open is dead."""
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"

_BUILT_IN = {
    "Pod": ("v1", "pods"),
    "Service": ("v1", "services"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "Event": ("v1", "events"),
    "Deployment": ("apps/v1", "deployments"),
    "Job": ("batch/v1", "jobs"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
    "Role": ("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings"),
    "ValidatingAdmissionPolicy": (
        "admissionregistration.k8s.io/v1",
        "validatingadmissionpolicies",
    ),
    "ValidatingAdmissionPolicyBinding": (
        "admissionregistration.k8s.io/v1",
        "validatingadmissionpolicybindings",
    ),
}
_CONFLICTS = (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_BROKEN = (*NETWORK, ValueError)
"""A connection that fails, and an answer that is cut off or is no JSON: whatever sent it, later
it may be better."""
_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.UNAUTHORIZED)


class KubeApi:
    """One API server, as the account of this process. Safe to share between threads."""

    def __init__(self, api: client.ApiClient) -> None:
        self._dynamic = DynamicClient(api, discoverer=_NoDiscovery)

    def find(self, path: str) -> Json | None:
        """The object, or None when there is none."""
        try:
            return self._json("get", path)
        except Conflict:
            return None

    def list(self, path: str, labels: str = "") -> tuple[list[Json], str]:
        """The objects of a collection, and the resourceVersion of the list.

        In pages of one snapshot, so that thousands of objects neither time out nor hold up other
        threads while they are decoded. Raises Conflict when the snapshot ran out meanwhile.
        """
        query: Json = {"label_selector": labels} if labels else {}
        items: list[Json] = []
        while True:
            found = self._json("get", path, limit=PAGE, **query)
            items += found.get("items") or []
            metadata = found["metadata"]
            if not metadata.get("continue"):
                return items, metadata["resourceVersion"]
            query["_continue"] = metadata["continue"]

    def create(self, path: str, body: Json, *, dry_run: bool = False) -> Json:
        """Create an object. Raises Conflict when it is there already."""
        extra: Json = {"dry_run": "All"} if dry_run else {}
        return self._json("post", path, body, field_manager=names.FIELD_MANAGER, **extra)

    def merge(self, path: str, body: Json) -> Json:
        """Merge a patch; with `metadata.resourceVersion` and `uid` in it the write is fenced."""
        return self._json(
            "patch", path, body, content_type=MERGE, field_manager=names.FIELD_MANAGER
        )

    def apply(self, path: str, manifest: Json, *, dry_run: bool = False) -> Json:
        """Server-side apply; fields of ours that somebody else changed come back to us."""
        extra: Json = {"dry_run": "All"} if dry_run else {}
        return self._json(
            "patch",
            path,
            manifest,
            content_type=APPLY,
            field_manager=names.FIELD_MANAGER,
            force_conflicts="true",
            **extra,
        )

    def replace(self, path: str, body: Json) -> Json:
        """Write a whole object that carries the resourceVersion it was read with."""
        return self._json("put", path, body, field_manager=names.FIELD_MANAGER)

    def delete(self, path: str, uid: str) -> None:
        """Delete this very object, its dependents in the background; one that is gone is fine."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            self._json("delete", path, body)
        except Conflict:
            return

    def watch(self, path: str, labels: str, version: str) -> Iterator[tuple[str, Json]]:
        """(type, object) of each change after `version`, until the server ends the watch.

        Raises Conflict when the version is too old: list again.
        """
        response = self._send(
            "get",
            path,
            None,
            label_selector=labels,
            resource_version=version,
            watch="true",
            allow_watch_bookmarks="true",
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=(CONNECT_TIMEOUT, WATCH_READ_TIMEOUT),
        )
        try:
            for line in _lines(response):
                change = decode(line)
                if change["type"] == "ERROR":
                    raise Conflict(str(change["object"].get("message", "watch ended")))
                yield change["type"], change["object"]
        except _BROKEN as error:
            raise Unavailable(f"watch {path}: {error!r}") from error
        finally:
            response.close()

    def _json(self, method: str, path: str, body: Json | None = None, **query: Any) -> Json:
        response = self._send(method, path, body, **query)
        try:
            found: Json = decode(response.data)
        except _BROKEN as error:
            raise Unavailable(f"{method} {path}: the answer broke off: {error!r}") from error
        return found

    def _send(self, method: str, path: str, body: Json | None, **query: Any) -> Any:
        query.setdefault("_request_timeout", (CONNECT_TIMEOUT, READ_TIMEOUT))
        # The client fills these two in place: a default of its own would be shared by all calls.
        query |= {"query_params": [], "header_params": {}}
        try:
            return self._dynamic.request(method, path, body, serialize=False, **query)
        except client.ApiException as error:
            raise _translated(method, path, error) from error
        except _BROKEN as error:
            raise Unavailable(f"{method} {path}: {error}") from error


def connect() -> KubeApi:
    """The API server that this process belongs to: by KUBECONFIG, else by the pod's account."""
    # Retrying is ours: a hidden retry would hold back the news that the server is away.
    return KubeApi(connect_by(retries=False, connections=CONNECTIONS).api)


def path_of(kind: str, namespace: str = "", name: str = "", sub: str = "") -> str:
    """URL path of a collection, an object or a subresource; no namespace means all of them."""
    if kind in PLURALS:
        version, plural = names.API_VERSION, PLURALS[kind]
    else:
        version, plural = _BUILT_IN[kind]
    root = f"/api/{version}" if version == "v1" else f"/apis/{version}"
    place = f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"
    return "/".join(part for part in (place, name, sub) if part)


class _NoDiscovery:
    """Paths are known: asking the server for its kinds would cost more than the whole start."""

    def __init__(self, dynamic: DynamicClient, cache_file: str | None) -> None:
        del dynamic, cache_file


def _translated(method: str, path: str, error: client.ApiException) -> TrimwheelError:
    status = int(error.status or 0)
    message = f"{method} {path}: {status} {words_of(error)}"
    if status in _CONFLICTS:
        return Conflict(message)
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR or not status:
        return Unavailable(message)
    return Refused(message)


def _lines(response: Any) -> Iterator[bytes]:
    """Whole lines of a chunked answer."""
    rest = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line)
