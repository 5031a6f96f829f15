"""What a process node can run, and what it refuses.

Pure. A field that changes what a pod may do or see, and that processes cannot honour, is refused
by name: the pod waits with CreateContainerConfigError rather than run as something else than was
asked. Fields that only limit (resources, securityContext) are not enforced, and said so once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trimwheel_local.names import PROCESS_IMAGE_PREFIX

Object = dict[str, Any]
Rule = tuple[str, str]
"""(field, why it is refused)."""

POD_FLAGS = {
    "hostNetwork": "each pod has its own loopback address",
    "hostPID": "the node isolates no process ids",
    "hostIPC": "the node isolates no IPC",
    "shareProcessNamespace": "the node isolates no process ids",
}
POD_FIELDS = {
    "hostAliases": "processes use the host's name resolution",
    "runtimeClassName": "the node has one runtime",
    "resourceClaims": "the node allocates no devices",
}
VOLUMES = ("configMap", "secret", "emptyDir", "projected", "downwardAPI")
PROJECTIONS = ("configMap", "secret", "downwardAPI", "serviceAccountToken")
HANDLERS = ("httpGet", "tcpSocket", "exec")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def refusals(pod: Object) -> list[str]:
    """Why this pod cannot run here, one sentence a field; empty when it can."""
    spec = pod["spec"]
    found = [f"spec.{f}: {why}" for f, why in POD_FLAGS.items() if spec.get(f)]
    found += [f"spec.{f}: not supported; {why}" for f, why in POD_FIELDS.items() if spec.get(f)]
    for number, volume in enumerate(spec.get("volumes", [])):
        found += _volume(f"spec.volumes[{number}]", volume)
    for kind in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(kind, [])):
            place = f"spec.{kind}[{number}]"
            found += [f"{place}.{field}: {why}" for field, why in _container(container)]
    return found


def not_enforced(pod: Object) -> list[str]:
    """Fields that only limit, and that the node accepts without enforcing them."""
    spec = pod["spec"]
    found = {"spec.securityContext"} if spec.get("securityContext") else set()
    for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        limits = container.get("resources", {}).get("limits", {})
        if {"cpu", "memory", "ephemeral-storage"} & limits.keys():
            found.add("resources.limits")
        if container.get("securityContext"):
            found.add("securityContext")
    return sorted(found)


def _volume(place: str, volume: Object) -> Iterator[str]:
    kinds = volume.keys() - {"name"}
    for kind in sorted(kinds - set(VOLUMES)):
        yield f"{place}.{kind}: this volume type is not supported; use one of {', '.join(VOLUMES)}"
    for number, source in enumerate(volume.get("projected", {}).get("sources", [])):
        for kind in sorted(source.keys() - set(PROJECTIONS)):
            yield f"{place}.projected.sources[{number}].{kind}: this source is not supported"


def _container(container: Object) -> Iterator[Rule]:
    rules: tuple[Callable[[Object], Iterator[Rule]], ...] = (_image, _security, _mounts, _hooks)
    for rule in rules:
        yield from rule(container)


def _image(container: Object) -> Iterator[Rule]:
    image = container.get("image", "")
    if not image.startswith(PROCESS_IMAGE_PREFIX):
        yield (
            "image",
            f"must start with {PROCESS_IMAGE_PREFIX} (containers run as local processes here), "
            f"but got {image!r}",
        )
    if not container.get("command"):
        yield "command", "must be given, since a process image has no entry point of its own"
    if container.get("restartPolicy"):
        yield "restartPolicy", "sidecars and per-container policies are not supported"


def _security(container: Object) -> Iterator[Rule]:
    if container.get("securityContext", {}).get("privileged"):
        yield "securityContext.privileged", "the node grants no privileges"
    if container.get("tty"):
        yield "tty", "the node attaches no terminals"
    for number, port in enumerate(container.get("ports", [])):
        if port.get("hostPort"):
            yield f"ports[{number}].hostPort", "the pod's own address is reachable from the host"


def _mounts(container: Object) -> Iterator[Rule]:
    if container.get("volumeDevices"):
        yield "volumeDevices", "block devices are not supported"
    mounts = container.get("volumeMounts", [])
    for number, mount in enumerate(mounts):
        for field in ("subPathExpr", "mountPropagation"):
            if mount.get(field) not in (None, "None"):
                yield f"volumeMounts[{number}].{field}", "not supported"
    folder = container.get("workingDir")
    if folder and not any(_below(folder, mount["mountPath"]) for mount in mounts):
        yield "workingDir", f"must be in a mounted volume, but got {folder!r}"


def _hooks(container: Object) -> Iterator[Rule]:
    if container.get("lifecycle", {}).get("postStart"):
        yield "lifecycle.postStart", "not supported; use an init container"
    for probe in PROBES:
        handler = container.get(probe)
        if handler and not any(name in handler for name in HANDLERS):
            yield probe, f"must be one of {', '.join(HANDLERS)}"


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
