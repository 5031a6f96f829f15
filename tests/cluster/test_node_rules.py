"""Who a pod is, who may ask what of the node, and what the node declines by name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.client import ApiException
from tests.cluster.pods import (
    SLEEP,
    available,
    phase,
    run,
    waiting,
    web,
)

from trimwheel_local.cluster import Cluster
from trimwheel_local.testing import Clients, container, eventually, pod

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"containers": [container("", image="nginx:1.27")]},
            "spec.containers[0].image: must start",
        ),
        (
            {"volumes": [{"name": "host", "hostPath": {"path": "/etc"}}]},
            "spec.volumes[0].hostPath: this volume type is not supported",
        ),
        (
            {"containers": [container("", securityContext={"privileged": True})]},
            "spec.containers[0].securityContext.privileged: the node grants no privileges",
        ),
        ({"hostNetwork": True}, "spec.hostNetwork: not supported; each pod has its own loopback"),
        ({"hostUsers": False}, "spec.hostUsers: the node makes no user namespaces"),
        ({"hostname": "other"}, "spec.hostname: must be the pod's name"),
        (
            {"volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]},
            "spec.volumes[0].emptyDir.medium: the node keeps it on disk",
        ),
    ],
    ids=["image", "hostPath", "privileged", "hostNetwork", "hostUsers", "hostname", "medium"],
)
def test_what_a_process_cannot_honour_is_refused_by_name(
    admin: Clients, namespace: str, change: dict[str, Any], sentence: str
) -> None:
    admin.core.create_namespaced_pod(namespace, pod("refused", SLEEP, spec=change))
    state = waiting(admin, namespace, "refused")
    assert state.reason == "CreateContainerConfigError"
    assert sentence in state.message


def test_limits_are_accepted_with_one_event_that_says_they_are_not_enforced(
    admin: Clients, namespace: str
) -> None:
    limits = {"limits": {"memory": "64Mi"}}
    run(admin, namespace, pod("limited", "print(1)", resources=limits))
    events = eventually(
        lambda: [
            one
            for one in admin.core.list_namespaced_event(namespace).items
            if one.reason == "NotEnforced"
        ],
        "the event",
    )
    assert len(events) == 1
    assert events[0].type == "Warning"
    assert "resources.limits" in events[0].message


def test_a_debugger_is_declined_in_an_event_and_the_pod_runs_on(
    cluster: Cluster, admin: Clients, namespace: str
) -> None:
    admin.core.create_namespaced_pod(namespace, pod("debugged", SLEEP))
    phase(admin, namespace, "debugged", "Running")
    cluster.kubectl(
        *("debug", "debugged", "-n", namespace, "--image=busybox", "--container=shell"),
        "--attach=false",
    )
    eventually(
        lambda: [
            one
            for one in admin.core.list_namespaced_event(namespace).items
            if "ephemeral container shell: not supported" in (one.message or "")
        ],
        "the event",
    )
    phase(admin, namespace, "debugged", "Running")


def test_a_pod_speaks_to_the_api_server_as_its_own_account(admin: Clients, namespace: str) -> None:
    script = """
from kubernetes import client, config
config.load_config()
review = client.AuthenticationV1Api().create_self_subject_review({})
user = review.status.user_info
print(user.username, user.extra["authentication.kubernetes.io/pod-name"][0])
"""
    found = run(admin, namespace, pod("self", script)).split()
    assert found == [f"system:serviceaccount:{namespace}:default", "self"]


def test_a_named_user_has_the_rights_that_rbac_gives_and_no_others(
    admin: Clients, namespace: str, as_user: Callable[..., Clients]
) -> None:
    bob = as_user("bob", ["reviewers"])
    with pytest.raises(ApiException, match="cannot list resource"):
        bob.core.list_namespaced_pod(namespace)
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    admin.rbac.create_namespaced_role(namespace, {"metadata": {"name": "see"}, "rules": [rule]})
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": "see"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "see"},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": "reviewers"}],
    }
    admin.rbac.create_namespaced_role_binding(namespace, binding)

    def allowed() -> bool:
        try:
            bob.core.list_namespaced_pod(namespace)
        except ApiException:
            return False
        return True

    eventually(allowed, "the binding bites")


def test_the_kubelet_port_refuses_everybody_but_the_api_server(cluster: Cluster) -> None:
    layout = cluster.layout
    url = f"https://127.0.0.1:{layout.kubelet_port}/pods"
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]
    command += [str(layout.pki / "ca.crt")]
    nobody = subprocess.run([*command, url], capture_output=True, text=True)
    pair = ["--cert", str(layout.pki / "admin.crt"), "--key", str(layout.pki / "admin.key")]
    admin = subprocess.run([*command, *pair, url], capture_output=True, text=True)
    assert (nobody.stdout, admin.stdout) == ("000", "403")


def test_exec_is_declined_with_a_sentence(cluster: Cluster, admin: Clients, namespace: str) -> None:
    admin.core.create_namespaced_pod(namespace, pod("shell", SLEEP))
    phase(admin, namespace, "shell", "Running")
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        cluster.kubectl("exec", "-n", namespace, "shell", "--", "true")
    assert "exec is not offered" in refusal.value.stderr


def test_deleting_a_namespace_takes_everything_in_it(admin: Clients) -> None:
    admin.core.create_namespace({"metadata": {"name": "short-lived"}})
    eventually(
        lambda: admin.core.list_namespaced_service_account("short-lived").items, "its account"
    )
    admin.apps.create_namespaced_deployment("short-lived", web(1))
    available(admin, "short-lived", 1)
    admin.core.delete_namespace("short-lived")
    eventually(
        lambda: "short-lived" not in {one.metadata.name for one in _namespaces(admin)},
        "the namespace is gone",
        timeout=40,
    )


def _namespaces(admin: Clients) -> list[Any]:
    return list(admin.core.list_namespace().items)
