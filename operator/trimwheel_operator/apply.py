"""The only writer: carries out a plan's actions in order, each one only while we are the leader.

Decision writes carry the resourceVersion and uid that were observed; a conflict ends the pass,
because what comes after was decided on a world that has changed. A worker object that the API
server refuses (an admission webhook, a quota) ends nothing: the next plan says so in a condition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from trimwheel_api import names
from trimwheel_api.errors import Conflict, Refused
from trimwheel_operator import events
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.plan.actions import (
    Action,
    CreateJob,
    DeleteJob,
    Ensure,
    PatchStatus,
    Place,
    Plan,
    PostEvent,
    WriteAssignment,
)

log = logging.getLogger(__name__)


class Writer:
    """Writes to one API server, fenced by `require`, which raises when we may not."""

    def __init__(self, api: KubeApi, require: Callable[[], None]) -> None:
        self._api = api
        self._require = require

    def carry_out(self, plan: Plan) -> dict[Place, str]:
        """Do everything; the worker objects that were refused, with what the API server said.

        Raises Conflict, Unavailable, NotLeader or, for any other write, Refused; the rest is
        undone.
        """
        refused: dict[Place, str] = {}
        for action in plan.actions:
            self._require()
            try:
                self._do(action)
            except Refused as refusal:
                if not isinstance(action, Ensure):
                    raise
                refused[action.place] = str(refusal)
        return refused

    def _do(self, action: Action) -> None:
        match action:
            case Ensure():
                (kind, name), metadata = action.place, action.manifest["metadata"]
                self._api.apply(path_of(kind, metadata["namespace"], name), action.manifest)
            case WriteAssignment():
                self._write_assignment(action)
            case PatchStatus():
                path = path_of(action.kind, action.namespace, action.name, "status")
                metadata = {"resourceVersion": action.resource_version, "uid": action.uid}
                self._api.merge(path, {"metadata": metadata, "status": action.patch})
            case CreateJob():
                self._create_job(action)
            case DeleteJob():
                self._api.delete(path_of("Job", action.namespace, action.name), action.uid)
            case PostEvent():
                self._post(action)

    def _write_assignment(self, action: WriteAssignment) -> None:
        if action.resource_version:
            metadata = {"resourceVersion": action.resource_version, "uid": action.uid}
            path = path_of("PolicyAssignment", action.namespace, action.name)
            self._api.merge(path, {"metadata": metadata, "spec": action.spec})
            return
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "PolicyAssignment",
            "metadata": {
                "name": action.name,
                "namespace": action.namespace,
                "labels": {names.LABEL_PART_OF: names.PART_OF, names.LABEL_MODEL: action.name},
                "ownerReferences": [action.owner] if action.owner else [],
            },
            "spec": action.spec,
        }
        self._api.create(path_of("PolicyAssignment", action.namespace), body)

    def _create_job(self, action: CreateJob) -> None:
        """A Job of that name is that very Job: its name holds the run's uid."""
        metadata = action.manifest["metadata"]
        try:
            self._api.create(path_of("Job", metadata["namespace"]), action.manifest)
        except Conflict:
            log.info("Job %s is there already", metadata["name"])

    def _post(self, action: PostEvent) -> None:
        """Each Event is a line of the log as well; one that cannot be posted decides nothing."""
        try:
            self._api.create(path_of("Event", action.namespace), events.body(action))
        except Conflict:
            return  # it was told before
        except Refused as refusal:
            log.warning("Event not posted: %s", refusal)
        level = logging.WARNING if action.type == "Warning" else logging.INFO
        place = f"{action.kind} {action.namespace}/{action.name}"
        log.log(level, "%s: %s: %s", place, action.reason, action.message or "-")
