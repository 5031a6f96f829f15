"""Which pods a process node refuses, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from trimwheel_local.names import PROCESS_IMAGE_PREFIX
from trimwheel_local.node.support import debuggers, not_enforced, refusals

IMAGE = f"{PROCESS_IMAGE_PREFIX}python"


def pod(container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    main = {"name": "main", "image": IMAGE, "command": ["true"], **(container or {})}
    return {"metadata": {"name": "p"}, "spec": {"containers": [main], **spec}}


ORDINARY = pod(
    {
        "args": ["--x"],
        "env": [{"name": "A", "value": "b"}],
        "ports": [{"containerPort": 8080}],
        "livenessProbe": {"httpGet": {"path": "/", "port": 8080}},
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
        "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}],
        "workingDir": "/v/deeper",
    },
    volumes=[
        {"name": "v", "emptyDir": {}},
        {"name": "c", "configMap": {"name": "c"}},
        {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    ],
)


def test_an_ordinary_pod_is_not_refused() -> None:
    assert refusals(ORDINARY) == []


CONTAINER_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "foreign image": ({"image": "nginx"}, "image"),
    "prefix alone does not match a longer host": (
        {"image": "process.trimwheel.dev.evil/x"},
        "image",
    ),
    "no command": ({"command": []}, "command"),
    "privileged": ({"securityContext": {"privileged": True}}, "securityContext.privileged"),
    "host port": ({"ports": [{"containerPort": 80, "hostPort": 80}]}, "ports[0].hostPort"),
    "terminal": ({"tty": True}, "tty"),
    "block device": ({"volumeDevices": [{"name": "d", "devicePath": "/d"}]}, "volumeDevices"),
    "sub path expression": (
        {"volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "$(A)"}]},
        "volumeMounts[0].subPathExpr",
    ),
    "working folder outside of volumes": ({"workingDir": "/app"}, "workingDir"),
    "gRPC probe": ({"readinessProbe": {"grpc": {"port": 1}}}, "readinessProbe"),
    "postStart hook": ({"lifecycle": {"postStart": {"exec": {}}}}, "lifecycle.postStart"),
    "sidecar": ({"restartPolicy": "Always"}, "restartPolicy"),
    "restart rules": ({"restartPolicyRules": [{"action": "Restart"}]}, "restartPolicyRules"),
    "standard input": ({"stdin": True}, "stdin"),
    "another stop signal": ({"lifecycle": {"stopSignal": "SIGINT"}}, "lifecycle.stopSignal"),
    "a field of a later Kubernetes": ({"teleport": {"to": "mars"}}, "teleport"),
}


@pytest.mark.parametrize(("change", "field"), CONTAINER_CASES.values(), ids=CONTAINER_CASES.keys())
def test_a_container_field_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    [sentence] = refusals(pod(change))
    assert sentence.startswith(f"spec.containers[0].{field}: ")


POD_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "host network": ({"hostNetwork": True}, "spec.hostNetwork"),
    "host processes": ({"hostPID": True}, "spec.hostPID"),
    "shared processes": ({"shareProcessNamespace": True}, "spec.shareProcessNamespace"),
    "host aliases": ({"hostAliases": [{"ip": "1.2.3.4"}]}, "spec.hostAliases"),
    "no user namespace": ({"hostUsers": False}, "spec.hostUsers"),
    "own resolver": ({"dnsPolicy": "None"}, "spec.dnsPolicy"),
    "resolver settings": ({"dnsConfig": {"searches": ["x"]}}, "spec.dnsConfig"),
    "host name": ({"hostname": "other"}, "spec.hostname"),
    "qualified host name": ({"setHostnameAsFQDN": True}, "spec.setHostnameAsFQDN"),
    "Windows": ({"os": {"name": "windows"}}, "spec.os.name"),
    "memory volume": (
        {"volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]},
        "spec.volumes[0].emptyDir.medium",
    ),
    "a field of a later Kubernetes": ({"teleport": True}, "spec.teleport"),
    "runtime class": ({"runtimeClassName": "kata"}, "spec.runtimeClassName"),
    "host path": ({"volumes": [{"name": "h", "hostPath": {}}]}, "spec.volumes[0].hostPath"),
    "claim": (
        {"volumes": [{"name": "h", "persistentVolumeClaim": {}}]},
        "spec.volumes[0].persistentVolumeClaim",
    ),
    "trust bundle": (
        {"volumes": [{"name": "p", "projected": {"sources": [{"clusterTrustBundle": {}}]}}]},
        "spec.volumes[0].projected.sources[0].clusterTrustBundle",
    ),
}


@pytest.mark.parametrize(("change", "field"), POD_CASES.values(), ids=POD_CASES.keys())
def test_a_pod_field_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    [sentence] = refusals(pod(**change))
    assert sentence.startswith(f"{field}: ")


def test_what_the_api_server_fills_in_is_not_refused() -> None:
    token = "/var/run/secrets/kubernetes.io/serviceaccount"
    container = {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "Always",
        "resources": {},
        "volumeMounts": [{"name": "kube-api-access-x", "mountPath": token, "readOnly": True}],
    }
    defaults = pod(
        container,
        dnsPolicy="ClusterFirst", enableServiceLinks=True, preemptionPolicy="PreemptLowerPriority",
        priority=0, restartPolicy="Always", schedulerName="default-scheduler", securityContext={},
        serviceAccount="default", serviceAccountName="default", terminationGracePeriodSeconds=30,
        tolerations=[{"key": "k"}], nodeName="local", hostname="p", hostUsers=True,
        os={"name": "linux"},
    )  # fmt: skip
    assert refusals(defaults) == []
    assert not_enforced(defaults) == []


def test_what_only_limits_runs_and_is_named() -> None:
    container = {
        "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
        "terminationMessagePath": "/v/last-words",
    }
    limited = pod(
        container,
        volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
        resources={"limits": {"cpu": "1"}}, subdomain="web",
    )  # fmt: skip
    assert refusals(limited) == []
    assert not_enforced(limited) == [
        "spec.resources", "spec.subdomain", "terminationMessagePath", "volumeMounts.readOnly",
        "volumes.emptyDir.sizeLimit",
    ]  # fmt: skip


def test_an_ephemeral_container_is_no_reason_to_end_a_pod_that_runs() -> None:
    debugged = pod(ephemeralContainers=[{"name": "shell", "image": "busybox"}])
    assert refusals(debugged) == []
    assert debuggers(debugged) == ["shell"]


def test_all_reasons_are_given_at_once_and_init_containers_are_looked_at() -> None:
    init = {"name": "init", "image": "busybox", "command": ["true"]}
    found = refusals(pod({"tty": True}, hostNetwork=True, initContainers=[init]))
    assert [sentence.split(":")[0] for sentence in found] == [
        "spec.hostNetwork",
        "spec.initContainers[0].image",
        "spec.containers[0].tty",
    ]


def test_limits_and_security_contexts_are_named_once_and_gpus_are_not() -> None:
    container = {
        "resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": "1"}},
        "securityContext": {"runAsNonRoot": True},
    }
    found = not_enforced(pod(container, securityContext={"runAsUser": 1}))
    assert found == ["resources.limits", "securityContext", "spec.securityContext"]
    assert not_enforced(pod({"resources": {"limits": {"nvidia.com/gpu": "1"}}})) == []
