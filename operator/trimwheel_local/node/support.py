"""What a process node can run, and what it refuses.

Pure. A field that changes what a pod may do or see, and that processes cannot honour, is refused
by name: the pod waits with CreateContainerConfigError rather than run as something else than was
asked. Fields that only limit (resources, securityContext) are not enforced, and said so once. A
field that neither list knows is refused too, so that none of a later Kubernetes is passed over.
docs/how-to/embedded-cluster.md says all of it to people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trimwheel_local.names import PROCESS_IMAGE_PREFIX
from trimwheel_local.node.volumes import ACCOUNT_MOUNT

Object = dict[str, Any]
Rule = tuple[str, str]
"""(field, why it is refused)."""

POD_FIELDS = {
    "hostNetwork": "each pod has its own loopback address",
    "hostPID": "the node isolates no process ids",
    "hostIPC": "the node isolates no IPC",
    "shareProcessNamespace": "the node isolates no process ids",
    "hostAliases": "processes use the host's name resolution",
    "dnsConfig": "processes use the host's name resolution",
    "setHostnameAsFQDN": "processes see the host's name",
    "hostnameOverride": "processes see the host's name",
    "runtimeClassName": "the node has one runtime",
    "overhead": "the node has one runtime",
    "resourceClaims": "the node allocates no devices",
}
"""Refused when set to anything true."""
DNS_POLICIES = (None, "ClusterFirst", "Default")
"""ClusterFirst is what the API server fills in; Service names are rewritten, not resolved."""
KNOWN_IN_PODS = frozenset(
    """activeDeadlineSeconds affinity automountServiceAccountToken containers dnsPolicy
    enableServiceLinks ephemeralContainers hostUsers hostname imagePullSecrets initContainers
    nodeName nodeSelector os preemptionPolicy priority priorityClassName readinessGates resources
    restartPolicy schedulerName schedulingGates securityContext serviceAccount serviceAccountName
    subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes""".split()
) | frozenset(POD_FIELDS)
KNOWN_IN_CONTAINERS = frozenset(
    """args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports
    readinessProbe resizePolicy resources restartPolicy restartPolicyRules securityContext
    startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy tty volumeDevices
    volumeMounts workingDir""".split()
)
NO_DEBUGGER = "not supported; a pod's processes are the host's, so look at them there"
TERMINATION_LOG = "/dev/termination-log"
VOLUMES = ("configMap", "secret", "emptyDir", "projected", "downwardAPI")
PROJECTIONS = ("configMap", "secret", "downwardAPI", "serviceAccountToken")
HANDLERS = ("httpGet", "tcpSocket", "exec")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def refusals(pod: Object) -> list[str]:
    """Why this pod cannot run here, one sentence a field; empty when it can."""
    spec = pod["spec"]
    found = [f"spec.{field}: {why}" for field, why in _pod(pod)]
    for number, volume in enumerate(spec.get("volumes", [])):
        found += _volume(f"spec.volumes[{number}]", volume)
    for kind in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(kind, [])):
            place = f"spec.{kind}[{number}]"
            found += [f"{place}.{field}: {why}" for field, why in _container(container)]
    return found


def debuggers(pod: Object) -> list[str]:
    """Names of ephemeral containers: they come to a pod that runs, and are declined there."""
    return [one["name"] for one in pod["spec"].get("ephemeralContainers", [])]


def not_enforced(pod: Object) -> list[str]:
    """Fields that only limit, and that the node accepts without enforcing them."""
    spec = pod["spec"]
    named = ("securityContext", "resources", "subdomain")
    found = {f"spec.{field}" for field in named if spec.get(field)}
    for volume in spec.get("volumes", []):
        if (volume.get("emptyDir") or {}).get("sizeLimit"):
            found.add("volumes.emptyDir.sizeLimit")
    for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        found |= set(_limits(container))
    return sorted(found)


def _limits(container: Object) -> Iterator[str]:
    limits = container.get("resources", {}).get("limits", {})
    if {"cpu", "memory", "ephemeral-storage"} & limits.keys():
        yield "resources.limits"
    if container.get("securityContext"):
        yield "securityContext"
    if container.get("terminationMessagePath", TERMINATION_LOG) != TERMINATION_LOG:
        yield "terminationMessagePath"
    for mount in container.get("volumeMounts", []):
        # The API server mounts every account's token read-only: nothing that somebody asked for.
        if mount.get("readOnly") and mount["mountPath"] != ACCOUNT_MOUNT:
            yield "volumeMounts.readOnly"


def _pod(pod: Object) -> Iterator[Rule]:
    spec = pod["spec"]
    for field, why in POD_FIELDS.items():
        if spec.get(field):
            yield field, f"not supported; {why}"
    if spec.get("hostUsers") is False:
        yield "hostUsers", "the node makes no user namespaces"
    if spec.get("dnsPolicy") not in DNS_POLICIES:
        yield "dnsPolicy", "processes use the host's name resolution"
    if spec.get("hostname", pod["metadata"].get("name")) != pod["metadata"].get("name"):
        yield "hostname", "must be the pod's name, since processes see the host's"
    if spec.get("os", {}).get("name", "linux") != "linux":
        yield "os.name", f"must be linux, but got {spec['os']['name']!r}"
    yield from _unknown(spec, KNOWN_IN_PODS)


def _unknown(part: Object, known: frozenset[str]) -> Iterator[Rule]:
    for field in sorted(part.keys() - known):
        if part[field]:
            yield field, "this node does not know the field"


def _volume(place: str, volume: Object) -> Iterator[str]:
    kinds = volume.keys() - {"name"}
    for kind in sorted(kinds - set(VOLUMES)):
        yield f"{place}.{kind}: this volume type is not supported; use one of {', '.join(VOLUMES)}"
    if medium := (volume.get("emptyDir") or {}).get("medium"):
        yield f"{place}.emptyDir.medium: the node keeps it on disk, but got {medium!r}"
    for number, source in enumerate(volume.get("projected", {}).get("sources", [])):
        for kind in sorted(source.keys() - set(PROJECTIONS)):
            yield f"{place}.projected.sources[{number}].{kind}: this source is not supported"


def _container(container: Object) -> Iterator[Rule]:
    rules: tuple[Callable[[Object], Iterator[Rule]], ...] = (_image, _security, _mounts, _hooks)
    for rule in rules:
        yield from rule(container)
    yield from _unknown(container, KNOWN_IN_CONTAINERS)


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
    for field in ("restartPolicy", "restartPolicyRules"):
        if container.get(field):
            yield field, "sidecars and per-container policies are not supported"


def _security(container: Object) -> Iterator[Rule]:
    if container.get("securityContext", {}).get("privileged"):
        yield "securityContext.privileged", "the node grants no privileges"
    for field in ("tty", "stdin", "stdinOnce"):
        if container.get(field):
            yield field, "the node attaches nothing to a process"
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
    signal = container.get("lifecycle", {}).get("stopSignal", "SIGTERM")
    if signal != "SIGTERM":
        yield "lifecycle.stopSignal", f"the node stops with SIGTERM, but got {signal!r}"
    for probe in PROBES:
        handler = container.get(probe)
        if handler and not any(name in handler for name in HANDLERS):
            yield probe, f"must be one of {', '.join(HANDLERS)}"


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
