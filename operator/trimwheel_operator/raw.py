"""What raw objects of the API server say: the few parts of each that a plan reads.

Called by `gather`. Pure, but for the log line about an object that does not parse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from trimwheel_api import names
from trimwheel_api.kinds import AdaptiveModel, Resource
from trimwheel_api.times import parse
from trimwheel_kube.decoding import MOST_READ, is_deeper
from trimwheel_operator import manifests
from trimwheel_operator.causes import cause_of, pods_of
from trimwheel_operator.plan.observed import (
    Acknowledgement,
    DeploymentState,
    Pod,
    TuningJob,
    Unreadable,
)
from trimwheel_operator.store import Entry

log = logging.getLogger(__name__)

_MAX_EPOCH_DIGITS = 16

Json = dict[str, Any]
Read = TypeVar("Read")
Kind = TypeVar("Kind", bound=Resource[Any, Any])


def is_ours(item: Json, model: AdaptiveModel) -> bool:
    """Whether an object under a worker object's name is one: owned by the model, or made by us.

    The label is for what a model left behind that was deleted without its dependents.
    """
    metadata = item["metadata"]
    owners = {owner["uid"] for owner in metadata.get("ownerReferences", [])}
    managed = metadata.get("labels", {}).get(names.LABEL_MANAGED_BY)
    return model.metadata.uid in owners or managed == names.OPERATOR_ACCOUNT


def held_since(assignment: Json) -> datetime | None:
    """When somebody other than the operator last wrote `hold`, as the API server recorded it."""
    if not assignment.get("spec", {}).get("hold"):
        return None
    times = [
        parse(entry["time"])
        for entry in assignment["metadata"].get("managedFields", [])
        if entry.get("manager") != names.FIELD_MANAGER
        and "f:hold" in entry.get("fieldsV1", {}).get("f:spec", {})
    ]
    return max((time for time in times if time is not None), default=None)


def acknowledgement(lease: Json) -> Acknowledgement | None:
    """What a worker's Lease says; None for one that says nothing."""
    metadata, spec = lease["metadata"], lease.get("spec") or {}
    annotations = metadata.get("annotations") or {}
    epoch = annotations.get(names.ANNOTATION_EPOCH, "")
    moment = parse(spec.get("renewTime") or "")
    if not epoch.isdecimal() or len(epoch) > _MAX_EPOCH_DIGITS or moment is None:
        return None
    return Acknowledgement(
        pod=metadata["name"],
        epoch=int(epoch),
        at=moment,
        refused=annotations.get(names.ANNOTATION_REFUSED, ""),
        tripped=annotations.get(names.ANNOTATION_TRIPPED, ""),
    )


def of_epochs_until(epoch: int, said: Iterable[Acknowledgement]) -> tuple[Acknowledgement, ...]:
    """Those of epochs that the workers may have seen: this one, or one that was just written.

    Who speaks of a later one follows another assignment, or none: it is no answer to this one.
    """
    return tuple(one for one in said if one.epoch <= epoch + 1)


def serving_pod(model: str, heard: Container[str], pod: Json) -> Pod | None:
    """A pod that may be serving: one that never was Ready nor acknowledged serves nobody.

    `heard`: pods of which there is an acknowledgement.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    if not manifests.selector(model).items() <= (metadata.get("labels") or {}).items():
        return None
    ready = any(
        one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or []
    )
    if status.get("phase") != "Running" or not (ready or metadata["name"] in heard):
        return None
    return Pod(metadata["name"], metadata["uid"], ready)


def tuning_job(pods: Sequence[Json], job: Json) -> TuningJob:
    """The part of a Job that the tuning story reads; its pod is among `pods`."""
    metadata = job["metadata"]
    ended = {
        one["type"]: one
        for one in job.get("status", {}).get("conditions", [])
        if one["status"] == "True" and one["type"] in ("Complete", "Failed")
    }
    failure = ended.get("Failed", {})
    parts = (failure.get("reason", ""), failure.get("message", ""))
    run_uid = metadata["labels"].get(names.LABEL_TUNING_RUN_UID, "")
    mine = list(pods_of({names.LABEL_TUNING_RUN_UID: run_uid}, pods))
    return TuningJob(
        name=metadata["name"],
        uid=metadata["uid"],
        run_uid=run_uid,
        finished=bool(ended),
        failed="Failed" in ended,
        message=": ".join(part for part in parts if part),
        model_uid=metadata["labels"].get(names.LABEL_MODEL_UID, ""),
        cause=cause_of({}, mine),
        created=metadata.get("creationTimestamp", ""),
        has_pod=bool(mine),
    )


def deployment_state(deployment: Json) -> DeploymentState:
    """The part of a Deployment that readiness follows from."""
    status = deployment.get("status", {})
    return DeploymentState(
        generation=deployment.get("metadata", {}).get("generation", 1),
        observed_generation=status.get("observedGeneration", 0),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
    )


class Parser:
    """Cached objects as their kinds; what does not parse (an older CRD) is kept apart.

    Each version of an object is parsed once, and complained of once: the entry remembers.
    """

    def __init__(self) -> None:
        self.failed: list[Unreadable] = []

    def parse(self, kind: type[Kind], entry: Entry) -> Kind | None:
        """The object, or None when it says nothing that this version understands."""
        if entry.parsed is None:
            entry.parsed = _parsed(kind, entry.item)
        found: Kind | Unreadable = entry.parsed
        if isinstance(found, Unreadable):
            self.failed.append(found)
            return None
        return found


def _parsed(kind: type[Kind], item: Json) -> Kind | Unreadable:
    metadata = item["metadata"]
    try:
        if is_deeper(item):
            raise ValueError(f"it is nested more than {MOST_READ} levels deep")
        return kind.model_validate(item)
    except Exception as error:  # whatever somebody wrote, it is one object's fault
        detail = error.errors()[0] if isinstance(error, ValidationError) else repr(error)
        log.warning(
            "%s %s/%s does not parse as %s and is left alone: %s",
            kind.__name__,
            metadata.get("namespace", ""),
            metadata["name"],
            names.API_VERSION,
            detail,
        )
        return Unreadable(kind.__name__, metadata["name"], metadata["uid"])


def each(convert: Callable[[Json], Read | None], entries: Iterable[Entry]) -> tuple[Read, ...]:
    """What `convert` makes of each object; one that it cannot read is left out, not the others."""
    found = []
    for entry in entries:
        try:
            made = convert(entry.item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            metadata = entry.item["metadata"]
            log.warning("%s is left out: %r", metadata.get("name"), error)
            continue
        if made is not None:
            found.append(made)
    return tuple(found)
