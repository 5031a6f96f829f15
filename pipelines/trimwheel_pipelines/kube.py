"""The pipelines' way to the API server: objects of our kinds in and out, failures as our errors.

Used by the watch loop and by TuningRun Jobs, under their service account's rights. Every write that
follows from something read carries the `resourceVersion` that was read, so a decision on old news
ends as a `Conflict`, never as an overwrite.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from pydantic import BaseModel, ValidationError
from urllib3.exceptions import HTTPError

from trimwheel_api import names
from trimwheel_api.errors import (
    Conflict,
    Refused,
    SetupFailed,
    SpecInvalid,
    TrimwheelError,
    Unavailable,
)
from trimwheel_api.kinds import PLURALS, Resource, dump

log = logging.getLogger(__name__)

FIELD_MANAGER = "trimwheel-pipelines"
TIMEOUT_SECONDS = 10.0
_WAIT = {"_request_timeout": TIMEOUT_SECONDS}

ResourceT = TypeVar("ResourceT", bound=Resource[Any, Any])


class Objects:
    """Our kinds on one API server."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._custom = client.CustomObjectsApi(api)

    def get(self, kind: type[ResourceT], namespace: str, name: str) -> ResourceT | None:
        """One object, or None when there is none of that name."""
        try:
            with _translated():
                found = self._custom.get_namespaced_custom_object(
                    *_where(kind, namespace), name, **_WAIT
                )
        except _NotFound:
            return None
        return _read(kind, found)

    def list(self, kind: type[ResourceT], namespace: str = "") -> list[ResourceT]:
        """All objects of a kind, in one namespace or everywhere, oldest first.

        One that this version cannot read is left out with a warning: the others are still right.
        """
        with _translated():
            if namespace:
                found = self._custom.list_namespaced_custom_object(
                    *_where(kind, namespace), **_WAIT
                )
            else:
                group, version, _, plural = _where(kind, "")
                found = self._custom.list_cluster_custom_object(group, version, plural, **_WAIT)
        items = sorted(found["items"], key=lambda item: item["metadata"]["creationTimestamp"])
        return [one for one in (_readable(kind, item) for item in items) if one is not None]

    def create(self, kind: type[ResourceT], metadata: dict[str, Any], spec: BaseModel) -> ResourceT:
        """Create an object in `metadata["namespace"]`.

        Raises Conflict when there is one of that name, Refused with the API server's words.
        """
        body = {
            "apiVersion": names.API_VERSION,
            "kind": kind.__name__,
            "metadata": metadata,
            "spec": dump(spec),
        }
        with _translated():
            made = self._custom.create_namespaced_custom_object(
                *_where(kind, metadata["namespace"]), body, field_manager=FIELD_MANAGER, **_WAIT
            )
        return _read(kind, made)

    def write_status(self, observed: ResourceT, status: BaseModel) -> ResourceT:
        """Write the status of the object as it was read.

        Raises Conflict when it changed or was made anew meanwhile; nothing of it is written then.
        """
        kind = type(observed)
        body = {
            "metadata": {
                "uid": observed.metadata.uid,
                "resourceVersion": observed.metadata.resource_version,
            },
            "status": dump(status),
        }
        with _translated():
            made = self._custom.patch_namespaced_custom_object_status(
                *_where(kind, observed.metadata.namespace),
                observed.metadata.name,
                body,
                field_manager=FIELD_MANAGER,
                _content_type="application/merge-patch+json",
                **_WAIT,
            )
        return _read(kind, made)

    def delete(self, observed: Resource[Any, Any]) -> None:
        """Delete exactly this object; one that is gone, or was made anew, is left alone."""
        conditions = client.V1Preconditions(uid=observed.metadata.uid)
        try:
            with _translated():
                self._custom.delete_namespaced_custom_object(
                    *_where(type(observed), observed.metadata.namespace),
                    observed.metadata.name,
                    body=client.V1DeleteOptions(preconditions=conditions),
                    **_WAIT,
                )
        except (_NotFound, Conflict):
            return

    def whoami(self) -> str:
        """The username under which the API server sees this process."""
        with _translated():
            review = client.AuthenticationV1Api(self._api).create_self_subject_review(
                client.V1SelfSubjectReview(), **_WAIT
            )
        return str(review.status.user_info.username)


def connect() -> Objects:
    """A connection by service account or, outside a pod, by KUBECONFIG.

    Raises SetupFailed when there is neither.
    """
    settings = client.Configuration()
    # Our own loops retry; a request of theirs must fail while somebody still waits for it.
    settings.retries = 1
    try:
        config.load_kube_config(client_configuration=settings, persist_config=False)
    except ConfigException:
        try:
            config.load_incluster_config(settings)
        except ConfigException as error:
            raise SetupFailed("no service account and no KUBECONFIG: run in a pod") from error
    return Objects(client.ApiClient(settings))


class _NotFound(SpecInvalid):
    """The API server knows no such object."""


def _where(kind: type[Any], namespace: str) -> tuple[str, str, str, str]:
    return names.GROUP, names.VERSION, namespace, PLURALS[kind.__name__]


def _read(kind: type[ResourceT], found: dict[str, Any]) -> ResourceT:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SpecInvalid(
            f"{kind.__name__} {found['metadata']['name']} {field}", first["msg"], first.get("input")
        ) from error


def _readable(kind: type[ResourceT], found: dict[str, Any]) -> ResourceT | None:
    try:
        return _read(kind, found)
    except SpecInvalid as error:
        log.warning("Left out: %s", error)
        return None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise _of_status(error) from error
    except (HTTPError, OSError) as error:
        raise Unavailable(f"the API server does not answer ({error})") from error


def _of_status(error: Any) -> TrimwheelError:
    """Our error of an API answer; the message stays the API server's."""
    try:
        answer = json.loads(error.body or "{}")
    except json.JSONDecodeError:
        answer = {}
    message = str(answer.get("message") or error.reason)
    if error.status == 404:
        return _NotFound("name", "must exist", message)
    if error.status == 409:
        return Conflict(message)
    if error.status in (401, 403) or "ValidatingAdmissionPolicy" in message:
        return Refused(message)
    if error.status == 422:
        return SpecInvalid("object", message, (answer.get("details") or {}).get("name"))
    return Unavailable(f"the API server answered {error.status}: {message}")
