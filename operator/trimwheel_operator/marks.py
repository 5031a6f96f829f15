"""Which models a change concerns, and how soon they are to be looked at.

Called by `informers` with every change, and once when all kinds were listed. A model that is there
gets a key. One that is not gets none, however many objects name it, unless something is left to
bring to an end: an assignment, a Job, a rollout or TuningRun without an end. So thousands of
policies of absent models cost memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trimwheel_api import names
from trimwheel_operator.schedule import Key, Lane
from trimwheel_operator.store import Store

Json = dict[str, Any]
Mark = Callable[[Key, Lane], None]
_MARKING = (
    "AdaptiveModel", "PolicyAssignment", "PolicyRollout", "TuningRun", "Job", "PolicyJournal",
)  # fmt: skip
_SAID = (names.ANNOTATION_REFUSED, names.ANNOTATION_TRIPPED)
"""On a worker's Lease: it does not serve what it was told to."""


class Marker:
    """Marks keys of one store."""

    def __init__(self, store: Store, mark: Mark) -> None:
        self._store = store
        self._mark = mark
        self._begun = False

    def begin(self) -> None:
        """All kinds are listed: mark every model, and whatever has none and no end yet."""
        self._begun = True
        for kind in _MARKING:
            for group in self._store.groups(kind):
                for entry in self._store.of_group(kind, group):
                    self._mark_key(group, kind, entry.item)

    def changed(self, kind: str, item: Json) -> None:
        """An object came, changed or went; what is not listed yet is not absent."""
        if self._begun:
            for key in self._keys_of(kind, item):
                self._mark_key(key, kind, item)

    def _keys_of(self, kind: str, item: Json) -> Iterator[Key]:
        metadata = item["metadata"]
        if kind != "PolicyApproval":
            yield self._store.group_of(kind, item)
            return
        # An approval names a rollout, which names the model.
        rollout = str(item.get("spec", {}).get("rollout", ""))
        entry = self._store.find("PolicyRollout", metadata["namespace"], rollout)
        if entry is not None:
            yield entry.group

    def _mark_key(self, key: Key, kind: str, item: Json) -> None:
        if not all(key):
            return
        if self._store.find("AdaptiveModel", *key) is not None:
            self._mark(key, lane_of(kind, item))
        elif kind == "AdaptiveModel":
            self._mark(key, Lane.NORMAL)  # it went: its Jobs are to be stopped
        elif has_no_end(kind, item):
            self._mark(key, Lane.ORPHAN)


def has_no_end(kind: str, item: Json) -> bool:
    """Whether an object whose model is not there waits to be told so, or to be ended."""
    status = item.get("status") or {}
    match kind:
        case "PolicyAssignment" | "Job":
            return True
        case "PolicyRollout":
            return not status.get("finishedAt")
        case "TuningRun":
            return not status.get("outcome")
        case "PolicyJournal":
            # A canary that ended with its model, or nothing to remember any more.
            spec = item.get("spec") or {}
            return bool(spec.get("underWay") or not (spec.get("rejected") or spec.get("revoked")))
        case _:
            return False


def lane_of(kind: str, item: Json) -> Lane:
    """How soon a model that is there is looked at because of this object."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    annotations = item["metadata"].get("annotations") or {}
    match kind:
        case "PolicyRollout":
            ends = spec.get("type") == "Rollback" or spec.get("abort")
            urgent = bool(ends) and not status.get("finishedAt")
        case "PolicyApproval":
            urgent = spec.get("decision") == "Reject"
        case "TuningRun":
            urgent = (status.get("drift") or {}).get("verdict") == "Harmful"
        case "PolicyAssignment":
            urgent = bool(spec.get("hold"))
        case "Lease":
            urgent = any(annotations.get(name) for name in _SAID)
        case _:
            urgent = False
    return Lane.URGENT if urgent else Lane.NORMAL
