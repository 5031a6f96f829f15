"""The pipelines' way to the API server: objects of our kinds in and out, typed.

Used by the watch loop and by TuningRun Jobs, under their service account's rights. Every write that
follows from something read carries the `resourceVersion` that was read, so a decision on old news
ends as a `Conflict`, never as an overwrite.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from pydantic import BaseModel

from trimwheel_api.errors import Conflict, SpecInvalid
from trimwheel_api.kinds import Resource, dump
from trimwheel_kube.answers import NotFound
from trimwheel_kube.connection import connect as connect_by
from trimwheel_kube.objects import Objects as AnyObjects
from trimwheel_kube.objects import read

log = logging.getLogger(__name__)

FIELD_MANAGER = "trimwheel-pipelines"

ResourceT = TypeVar("ResourceT", bound=Resource[Any, Any])


class Objects:
    """Our kinds on one API server."""

    def __init__(self, api: Any) -> None:
        self._objects = AnyObjects(api, FIELD_MANAGER)
        self._broken: set[tuple[str, str]] = set()
        """(kind, uid) of objects that could not be read, each told once."""

    def get(self, kind: type[ResourceT], namespace: str, name: str) -> ResourceT | None:
        """One object, or None when there is none of that name."""
        try:
            return read(kind, self._objects.get(kind.__name__, namespace, name))
        except NotFound:
            return None

    def list(self, kind: type[ResourceT], namespace: str = "") -> list[ResourceT]:
        """All objects of a kind, in one namespace or everywhere, oldest first.

        One that this version cannot read is left out with a warning: the others are still right.
        """
        items = self._objects.list(kind.__name__, namespace)
        broken = {key for key in self._broken if key[0] == kind.__name__}
        objects = []
        for item in items:
            try:
                objects.append(read(kind, item))
            except SpecInvalid as error:
                key = (kind.__name__, str(item.get("metadata", {}).get("uid", "")))
                broken.discard(key)
                if key not in self._broken:
                    log.warning("Left out: %s", error)
                    self._broken.add(key)
        if not namespace:
            self._broken -= broken
        return objects

    def names(self, kind: type[ResourceT]) -> set[tuple[str, str]]:
        """(namespace, name) of all objects of a kind, those that cannot be read included."""
        items = self._objects.list(kind.__name__)
        return {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in items}

    def create(self, kind: type[ResourceT], metadata: dict[str, Any], spec: BaseModel) -> ResourceT:
        """Create an object in `metadata["namespace"]`.

        Raises Conflict when there is one of that name, Refused with the API server's words.
        """
        return read(kind, self._objects.create(kind.__name__, metadata, dump(spec)))

    def write_status(self, observed: ResourceT, status: BaseModel) -> ResourceT:
        """Write the status of the object as it was read.

        Raises Conflict when it changed or was made anew meanwhile; nothing of it is written then.
        """
        kind, metadata = type(observed), observed.metadata
        as_read = {"uid": metadata.uid, "resourceVersion": metadata.resource_version}
        body = {"metadata": as_read, "status": dump(status)}
        return read(
            kind,
            self._objects.merge_status(kind.__name__, metadata.namespace, metadata.name, body),
        )

    def delete(self, observed: Resource[Any, Any]) -> None:
        """Delete exactly this object; one that is gone, or was made anew, is left alone."""
        metadata = observed.metadata
        try:
            self._objects.delete(
                type(observed).__name__, metadata.namespace, metadata.name, metadata.uid
            )
        except (NotFound, Conflict):
            return

    def whoami(self) -> str:
        """The username under which the API server sees this process."""
        return self._objects.whoami()

    def account_uid(self) -> str:
        """The uid of this process's account: another release, or cluster, has another."""
        return self._objects.account_uid()


def connect() -> Objects:
    """A connection by KUBECONFIG or, inside a pod, by its service account.

    Raises SetupFailed when there is neither.
    """
    return Objects(connect_by().api)
