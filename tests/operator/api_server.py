"""The API server's part of the small world: it keeps what is written, and refuses what is stale."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trimwheel_api.kinds import (
    AdaptiveModel,
    AdaptivePolicy,
    PolicyApproval,
    PolicyJournal,
    PolicyRollout,
    TuningRun,
)
from trimwheel_api.names import journal_name
from trimwheel_api.times import to_text
from trimwheel_operator import manifests
from trimwheel_operator.plan.actions import (
    Action,
    CreateJob,
    DeleteJob,
    DeleteJournal,
    Ensure,
    PatchStatus,
    PostEvent,
    WriteAssignment,
    WriteJournal,
)
from trimwheel_operator.plan.observed import TuningJob

START = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
NAMESPACE, MODEL = "team", "router"
JOURNAL = journal_name(NAMESPACE, MODEL)
KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (AdaptiveModel, AdaptivePolicy, PolicyRollout, PolicyApproval, TuningRun)
}


class StaleWrite(Exception):
    """What the API server answers with a 409."""


def merged(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    out = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


@dataclass
class ApiServer:
    """Objects of one namespace in memory; `carry_out` does one action of a plan."""

    now: datetime = START
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    ensured: dict[tuple[str, str], str] = field(default_factory=dict)
    refusing: dict[str, str] = field(default_factory=dict)
    """Kind -> what an admission webhook says of objects of that kind."""
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    jobs: dict[str, TuningJob] = field(default_factory=dict)
    events: list[PostEvent] = field(default_factory=list)
    last_renewal: datetime | None = None
    writes: list[dict[str, Any]] = field(default_factory=list)
    """Every spec that the assignment ever had."""
    _version: int = 0
    _born: Counter[tuple[str, str]] = field(default_factory=Counter)

    def delete(self, kind: str, name: str) -> None:
        del self.objects[kind, name]

    def put(self, kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
        self._version += 1
        known = self.objects.get((kind, name))
        if known is None:
            self._born[kind, name] += 1
        nth = self._born[kind, name]
        uid = f"uid-{kind}-{name}" if nth == 1 else f"uid-{kind}-{name}-{nth}"
        item = {
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": uid,
                "resourceVersion": str(self._version),
                "generation": known["metadata"]["generation"] + 1 if known else 1,
                "creationTimestamp": known["metadata"]["creationTimestamp"]
                if known
                else to_text(self.now),
                **metadata,
            },
            "kind": kind,
            "spec": spec,
            "status": known["status"] if known else {},
        }
        self.objects[kind, name] = item
        return item

    def touch(self, item: dict[str, Any]) -> None:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)

    def carry_out(self, action: Action) -> None:
        match action:
            case Ensure():
                self.refused.pop(action.place, None)
                if said := self.refusing.get(action.place[0]):
                    self.refused[action.place] = said
                else:
                    self.ensured[action.place] = manifests.hash_of(action.manifest)
            case WriteAssignment() | WriteJournal() | DeleteJournal():
                self._decide(action)
            case PatchStatus():
                item = self.objects[action.kind, action.name]
                if item["metadata"]["resourceVersion"] != action.resource_version:
                    raise StaleWrite
                item["status"] = merged(item["status"], action.patch)
                KINDS[action.kind].model_validate(item)
                self.touch(item)
            case CreateJob():
                metadata = action.manifest["metadata"]
                run_uid = metadata["labels"]["trimwheel.dev/tuning-run-uid"]
                self.jobs.setdefault(
                    metadata["name"], TuningJob(metadata["name"], f"uid-{run_uid}", run_uid)
                )
            case DeleteJob():
                self.jobs.pop(action.name)
            case PostEvent():
                self.events.append(action)

    def _decide(self, action: WriteAssignment | WriteJournal | DeleteJournal) -> None:
        match action:
            case WriteAssignment():
                self._write_assignment(action)
            case WriteJournal():
                self._write_journal(action)
            case DeleteJournal():
                self.delete("PolicyJournal", action.name)

    def _write_journal(self, action: WriteJournal) -> None:
        known = self.objects.get(("PolicyJournal", action.name))
        if (known["metadata"]["resourceVersion"] if known else "") != action.resource_version:
            raise StaleWrite
        spec = merged(known["spec"] if known else {}, action.spec)
        PolicyJournal.model_validate({"metadata": {"name": action.name}, "spec": spec})
        if known is None:
            self.put("PolicyJournal", action.name, spec)
        else:
            assert spec.get("sequence", 0) >= known["spec"].get("sequence", 0)
            known["spec"] = spec
            self.touch(known)

    def _write_assignment(self, action: WriteAssignment) -> None:
        place = ("PolicyAssignment", MODEL)
        known = self.objects.get(place)
        if known is None:
            if action.resource_version:
                raise StaleWrite
            self.put(*place, action.spec)
        else:
            if known["metadata"]["resourceVersion"] != action.resource_version:
                raise StaleWrite
            before, after = known["spec"], merged(known["spec"], action.spec)
            changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
            grew = after["epoch"] > before["epoch"]
            assert grew or changed <= {"renewals"}, f"epoch did not grow with {changed}"
            assert after["weightBasisPoints"] == 0 or "candidate" in after
            known["spec"] = after
            self.touch(known)
        self.last_renewal = self.now
        self.writes.append(copy.deepcopy(self.objects[place]["spec"]))
