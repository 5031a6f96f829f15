"""Objects of our kinds on one API server, as the JSON that they are; `read` makes them typed.

Used by the clients of CLI, pipelines and demo. Every call has a timeout, and ends in what was asked
or in a TrimwheelError.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from kubernetes import client
from pydantic import BaseModel, ValidationError

from trimwheel_api import names
from trimwheel_api.errors import SpecInvalid
from trimwheel_api.kinds import PLURALS
from trimwheel_kube.answers import checked_items, checked_object, translated

TIMEOUT_SECONDS = 10.0
WAIT = {"_request_timeout": TIMEOUT_SECONDS}
MERGE = "application/merge-patch+json"

Json = dict[str, Any]
KindT = TypeVar("KindT", bound=BaseModel)


class Objects:
    """Kinds are given by name: `AdaptiveModel`."""

    def __init__(self, api: Any, field_manager: str) -> None:
        self._api = api
        self._custom = client.CustomObjectsApi(api)
        self._manager = field_manager

    def get(self, kind: str, namespace: str, name: str) -> Json:
        """One object. Raises NotFound when there is none of that name."""
        with self.translated():
            found = self._custom.get_namespaced_custom_object(
                *_where(kind, namespace), name, **WAIT
            )
        return checked_object(self._server, found)

    def list(self, kind: str, namespace: str = "") -> list[Json]:
        """All objects of a kind, in one namespace or everywhere, oldest first."""
        with self.translated():
            if namespace:
                found = self._custom.list_namespaced_custom_object(*_where(kind, namespace), **WAIT)
            else:
                group, version, _, plural = _where(kind, "")
                found = self._custom.list_cluster_custom_object(group, version, plural, **WAIT)
        items = checked_items(self._server, found)
        return sorted(items, key=lambda item: str(item["metadata"].get("creationTimestamp")))

    def create(self, kind: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> Json:
        """Create an object in `metadata["namespace"]`.

        Raises Conflict when there is one of that name, Refused with the API server's words.
        """
        body = {
            "apiVersion": names.API_VERSION,
            "kind": kind,
            "metadata": dict(metadata),
            "spec": dict(spec),
        }
        with self.translated():
            made = self._custom.create_namespaced_custom_object(
                *_where(kind, metadata["namespace"]), body, field_manager=self._manager, **WAIT
            )
        return checked_object(self._server, made)

    def merge(self, kind: str, namespace: str, name: str, body: Mapping[str, Any]) -> Json:
        """Merge a patch into an object."""
        return self._patch("", kind, namespace, name, body)

    def merge_status(self, kind: str, namespace: str, name: str, body: Mapping[str, Any]) -> Json:
        """Merge a patch into the status alone.

        With `metadata.uid` and `resourceVersion` in it, Conflict says that the object changed or
        was made anew since it was read; nothing is written then.
        """
        return self._patch("_status", kind, namespace, name, body)

    def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete this very object. Raises Conflict when one made anew has its name."""
        conditions = client.V1Preconditions(uid=uid)
        with self.translated():
            self._custom.delete_namespaced_custom_object(
                *_where(kind, namespace),
                name,
                body=client.V1DeleteOptions(preconditions=conditions),
                **WAIT,
            )

    def whoami(self) -> str:
        """The username under which the API server sees the caller."""
        return str(self._user().username)

    def account_uid(self) -> str:
        """The uid of the caller's account; its name where accounts have none."""
        user = self._user()
        return str(user.uid or user.username)

    def _user(self) -> Any:
        with self.translated():
            review = client.AuthenticationV1Api(self._api).create_self_subject_review(
                client.V1SelfSubjectReview(), **WAIT
            )
        return review.status.user_info

    def translated(self) -> AbstractContextManager[None]:
        """The context in which requests to this server run."""
        return translated(self._server)

    @property
    def _server(self) -> str:
        return str(self._api.configuration.host)

    def _patch(
        self, part: str, kind: str, namespace: str, name: str, body: Mapping[str, Any]
    ) -> Json:
        call = getattr(self._custom, f"patch_namespaced_custom_object{part}")
        with self.translated():
            changed = call(
                *_where(kind, namespace),
                name,
                dict(body),
                field_manager=self._manager,
                _content_type=MERGE,
                **WAIT,
            )
        return checked_object(self._server, changed)


def read(kind: type[KindT], found: Json) -> KindT:
    """An object as its kind. Raises SpecInvalid naming the field that this version cannot read."""
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SpecInvalid(
            f"{kind.__name__} {found['metadata']['name']} {field}",
            first["msg"],
            first.get("input"),
            "This program and the cluster's kinds differ in version",
        ) from error


def _where(kind: str, namespace: str) -> tuple[str, str, str, str]:
    return names.GROUP, names.VERSION, namespace, PLURALS[kind]
