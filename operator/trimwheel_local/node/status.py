"""The status of a pod from the states of its containers. Pure; the clock is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass
class ContainerState:
    """What is known about one container; `containers` keeps it up to date."""

    name: str
    image: str
    state: Object = field(default_factory=lambda: waiting("ContainerCreating"))
    last: Object = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""
    over: bool = False
    """It has ended for good: the restart policy asks for no further run."""

    @property
    def code(self) -> int | None:
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])

    @property
    def ran(self) -> bool:
        return "waiting" not in self.state or bool(self.last)

    def describe(self) -> Object:
        """As `status.containerStatuses[]` wants it."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "containerID": self.container_id,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }


@dataclass(frozen=True)
class Verdict:
    """An end that the node decides for the whole pod."""

    phase: str
    reason: str = ""
    message: str = ""


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def pod_status(
    pod: Object,
    init: Sequence[ContainerState],
    main: Sequence[ContainerState],
    now: str,
    verdict: Verdict | None = None,
) -> Object:
    """The status to patch: phase, conditions with stable transition times, container statuses.

    `pod` is the object as last known, with the addresses in its status.
    """
    phase = verdict.phase if verdict else _phase(init, main)
    ended = phase in ("Succeeded", "Failed")
    conditions = _conditions(pod, init, main, phase)
    before = {one["type"]: one for one in pod.get("status", {}).get("conditions", [])}
    return {
        "phase": phase,
        "reason": verdict.reason if verdict and verdict.reason else None,
        "message": verdict.message if verdict and verdict.message else None,
        "observedGeneration": pod["metadata"].get("generation", 0),
        "conditions": [_dated(one, before.get(one["type"]), now) for one in conditions],
        "initContainerStatuses": [one.describe() for one in init],
        "containerStatuses": [{**one.describe(), "ready": one.ready and not ended} for one in main],
    }


def is_ready(pod: Object) -> bool:
    """Whether Services may send traffic to the pod."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _phase(init: Sequence[ContainerState], main: Sequence[ContainerState]) -> str:
    if any(one.over and one.code != 0 for one in init):
        return "Failed"
    if any(one.code != 0 for one in init) or not all(one.ran for one in main):
        return "Pending"
    if all(one.over for one in main):
        return "Succeeded" if all(one.code == 0 for one in main) else "Failed"
    return "Running"


def _conditions(
    pod: Object, init: Sequence[ContainerState], main: Sequence[ContainerState], phase: str
) -> list[Object]:
    initialized = all(one.code == 0 for one in init)
    unready = [one.name for one in main if not one.ready]
    gates = _closed_gates(pod)
    ended = "PodCompleted" if phase == "Succeeded" else "PodFailed" if phase == "Failed" else ""
    message = f"containers with unready status: {unready}" if unready else ""
    pending = [one.name for one in init if one.code != 0]
    open_gates = f"readiness gates are not open: {gates}" if gates else ""
    ready = not unready and not ended
    return [
        _condition("PodReadyToStartContainers", not ended),
        _condition(
            "Initialized",
            initialized,
            "ContainersNotInitialized",
            f"containers with incomplete status: {pending}",
        ),
        _condition("ContainersReady", ready, ended or "ContainersNotReady", message),
        _condition(
            "Ready",
            ready and not gates,
            ended or ("ContainersNotReady" if unready else "ReadinessGatesNotReady"),
            message or open_gates,
        ),
    ]


def _closed_gates(pod: Object) -> list[str]:
    conditions = pod.get("status", {}).get("conditions", [])
    open_ = {one["type"] for one in conditions if one["status"] == "True"}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", [])]
    return [gate for gate in gates if gate not in open_]


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Object:
    """Reason and message explain why it does not hold; null clears what was there before."""
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": None if holds else reason or None,
        "message": None if holds else message or None,
    }


def _dated(condition: Object, before: Object | None, now: str) -> Object:
    same = before is not None and before["status"] == condition["status"]
    stamp = before["lastTransitionTime"] if same and before else now
    return {**condition, "lastTransitionTime": stamp}
