"""Why a pod does not start, in one sentence: read from pods and Deployments as they are.

Called by `gather`; `plan` shows the sentence in a condition and an Event of the model (or of the
TuningRun), so that nobody has to search the logs of an init container for it. Pure.

A sentence stays the same while a container goes round between crash and back-off: it names how the
container ended, never how often or how long it waits. A status that counted would never rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from trimwheel_api.names import Reason
from trimwheel_operator.plan.observed import Cause

Json = dict[str, Any]

MAX_TEXT = 400
"""Characters of a container's last words, from their end."""
LAST_LINES = 3
_ON_ITS_WAY = frozenset({"", "PodInitializing", "ContainerCreating"})
_CRASHED = frozenset({"CrashLoopBackOff"})
"""The kubelet waits before another try: how the last one ended says more."""


def cause_of(deployment: Json, pods: Iterable[Json]) -> Cause | None:
    """What keeps a model's newest pods from starting; None when nothing is known to.

    A Deployment whose pods the API server refuses (a quota, a webhook) has no pod to look at. Of
    several pods the newest is of the newest spec.
    """
    for condition in (deployment.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            text = f"the API server refuses its pods: {condition.get('message', '')}"
            return Cause(Reason.PODS_REFUSED, _short(text))
    newest = sorted(pods, key=_age, reverse=True)
    return next((cause for pod in newest if (cause := cause_of_pod(pod)) is not None), None)


def cause_of_pod(pod: Json) -> Cause | None:
    """What keeps one pod from becoming Ready; None for one that is Ready, or merely on its way."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    if metadata.get("deletionTimestamp") or conditions.get("Ready", {}).get("status") == "True":
        return None
    name = metadata["name"]
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        text = f"pod {name} has no node: {scheduled.get('message') or scheduled.get('reason')}"
        return Cause(Reason.POD_UNSCHEDULABLE, _short(text))
    if status.get("phase") == "Failed" and status.get("reason"):
        text = f"pod {name}: {status['reason']}: {status.get('message', '')}"
        return Cause(Reason.POD_CANNOT_START, _short(text))
    kinds = ("initContainerStatuses", "containerStatuses")
    containers = [one for kind in kinds for one in status.get(kind) or []]
    words = next((said for said in map(_words, containers) if said), "")
    return Cause(Reason.POD_CANNOT_START, f"pod {name}: {words}") if words else None


def _words(container: Json) -> str:
    """Why this container does not run, or ended badly before it runs now; empty when it did not."""
    state, name = container.get("state") or {}, container["name"]
    if container.get("ready"):
        return ""
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason", "")
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if reason not in _ON_ITS_WAY and not (reason in _CRASHED and ended):
        return _short(f"container {name}: {reason}: {waiting.get('message', '')}")
    code = ended.get("exitCode", 0)
    if not code:
        return ""
    said = _last_words(ended.get("message", ""))
    text = f"container {name} ended with exit code {code} ({ended.get('reason', 'Error')})"
    return f"{text}: {said}" if said else text


def _last_words(message: str) -> str:
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    return "; ".join(lines[-LAST_LINES:])[-MAX_TEXT:]


def _short(text: str) -> str:
    """One line of bounded length: the beginning names what it is about."""
    line = " ".join(text.split()).rstrip(": ")
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 3] + "..."


def _age(pod: Json) -> tuple[str, str]:
    metadata = pod["metadata"]
    return metadata.get("creationTimestamp", ""), metadata["name"]


def pods_of(labels: Json, pods: Iterable[Json]) -> Iterator[Json]:
    """Those that carry all of these labels."""
    for pod in pods:
        if labels.items() <= (pod["metadata"].get("labels") or {}).items():
            yield pod
