"""The only writer: carries out a plan's actions in order, each one only while we are the leader.

Decision writes carry the resourceVersion and uid that were observed; a conflict ends the pass,
because what comes after was decided on a world that has changed. What the API server answers goes
into the store at once, so that the next pass sees what this one wrote; after a conflict the object
is read again for the same reason. A worker object that the API
server refuses (an admission webhook, a quota) ends nothing: the next plan says so in a condition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Conflict, Refused
from trimwheel_operator import events
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.plan.actions import (
    Action,
    CreateJob,
    DeleteJob,
    DeleteJournal,
    Ensure,
    PatchStatus,
    Place,
    Plan,
    PostEvent,
    WriteAssignment,
    WriteJournal,
)
from trimwheel_operator.store import Store

log = logging.getLogger(__name__)

Json = dict[str, Any]


class Writer:
    """Writes to one API server, fenced by `require`, which raises when we may not."""

    def __init__(self, api: KubeApi, require: Callable[[], None], store: Store) -> None:
        self._api = api
        self._require = require
        self._store = store

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
                path = path_of(kind, metadata["namespace"], name)
                self._store.put(kind, self._api.apply(path, action.manifest))
            case WriteAssignment():
                self._write_assignment(action)
            case WriteJournal():
                self._write_journal(action)
            case DeleteJournal():
                path = path_of("PolicyJournal", action.namespace, action.name)
                self._api.delete(path, action.uid)
                if known := self._store.find("PolicyJournal", action.namespace, action.name):
                    self._store.remove("PolicyJournal", known.item)
            case PatchStatus():
                metadata = {"resourceVersion": action.resource_version, "uid": action.uid}
                body = {"metadata": metadata, "status": action.patch}
                self._merge(action.kind, action.namespace, action.name, "status", body)
            case CreateJob():
                self._create_job(action)
            case DeleteJob():
                self._api.delete(path_of("Job", action.namespace, action.name), action.uid)
            case PostEvent():
                self._post(action)

    def _write_assignment(self, action: WriteAssignment) -> None:
        if action.resource_version:
            metadata = {"resourceVersion": action.resource_version, "uid": action.uid}
            fenced = {"metadata": metadata, "spec": action.spec}
            self._merge("PolicyAssignment", action.namespace, action.name, "", fenced)
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
        try:
            made = self._api.create(path_of("PolicyAssignment", action.namespace), body)
        except Conflict:
            self._read_again("PolicyAssignment", action.namespace, action.name)
            raise
        self._store.put("PolicyAssignment", made)

    def _merge(self, kind: str, namespace: str, name: str, sub: str, body: Json) -> None:
        """A fenced write."""
        try:
            written = self._api.merge(path_of(kind, namespace, name, sub), body)
        except Conflict:
            self._read_again(kind, namespace, name)
            raise
        self._store.put(kind, written)

    def _read_again(self, kind: str, namespace: str, name: str) -> None:
        """The store is behind: without this the next pass would decide on the same old object."""
        found = self._api.find(path_of(kind, namespace, name))
        if found is not None:
            self._store.put(kind, found)
        elif known := self._store.find(kind, namespace, name):
            self._store.remove(kind, known.item)

    def _write_journal(self, action: WriteJournal) -> None:
        """Create or change the journal; when it cannot be, only what exposes nothing goes on.

        Somebody else's write in between is a Conflict as ever; a create that finds neither journal
        nor place for one (the kind is missing) is a refusal.
        """
        try:
            self._put_journal(action)
        except Refused as refusal:
            if action.required:
                raise
            log.error("PolicyJournal %s not written, going on without: %s", action.name, refusal)

    def _put_journal(self, action: WriteJournal) -> None:
        kind, namespace, name = "PolicyJournal", action.namespace, action.name
        if action.resource_version:
            metadata = {"resourceVersion": action.resource_version, "uid": action.uid}
            self._merge(kind, namespace, name, "", {"metadata": metadata, "spec": action.spec})
            return
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "PolicyJournal",
            "metadata": {
                "name": action.name,
                "namespace": action.namespace,
                "labels": {names.LABEL_PART_OF: names.PART_OF},
            },
            "spec": action.spec,
        }
        try:
            made = self._api.create(path_of(kind, namespace), body)
        except Conflict as conflict:
            self._read_again(kind, namespace, name)
            if self._store.find(kind, namespace, name) is None:
                raise Refused(f"no kind {kind}: upgrade the chart ({conflict})") from conflict
            raise
        self._store.put(kind, made)

    def _create_job(self, action: CreateJob) -> None:
        """A Job of that name is that very Job: its name holds the run's uid."""
        metadata = action.manifest["metadata"]
        try:
            made = self._api.create(path_of("Job", metadata["namespace"]), action.manifest)
        except Conflict:
            log.info("Job %s is there already", metadata["name"])
            self._read_again("Job", metadata["namespace"], metadata["name"])
        else:
            self._store.put("Job", made)

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
