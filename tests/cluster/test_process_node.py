"""The process node against the real control plane: what a pod asks for is what it gets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from trimwheel_local.cluster import Cluster
from trimwheel_local.testing import Clients, container, eventually, log_of, pod

pytestmark = pytest.mark.cluster

SERVER = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(os.environ["HOSTNAME"].encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def status_of(admin: Clients, namespace: str, name: str) -> Any:
    return admin.core.read_namespaced_pod(name, namespace).status


def phase(admin: Clients, namespace: str, name: str, wanted: str) -> Any:
    """Wait for a phase; returns the status."""

    def reached() -> Any:
        found = status_of(admin, namespace, name)
        return found if found.phase == wanted else None

    return eventually(reached, f"pod {name} {wanted}")


def run(admin: Clients, namespace: str, manifest: Any, wanted: str = "Succeeded") -> str:
    """Create a pod, wait for its end, return its log."""
    name = manifest["metadata"]["name"]
    admin.core.create_namespaced_pod(namespace, manifest)
    phase(admin, namespace, name, wanted)
    return log_of(admin, namespace, name)


def ready(admin: Clients, namespace: str, name: str) -> bool:
    conditions = status_of(admin, namespace, name).conditions or []
    return any(one.type == "Ready" and one.status == "True" for one in conditions)


def waiting(admin: Clients, namespace: str, name: str) -> Any:
    """The waiting state of the first container, once there is one with a message."""

    def found() -> Any:
        statuses = status_of(admin, namespace, name).container_statuses
        state = statuses[0].state.waiting if statuses else None
        return state if state and state.message else None

    return eventually(found, f"pod {name} waits with a message")


def web(replicas: int) -> Any:
    labels = {"app": "web"}
    main = container(
        SERVER,
        env=[POD_IP],
        ports=[{"name": "http", "containerPort": 8080}],
        readinessProbe={"httpGet": {"path": "/", "port": "http"}},
        resources={"limits": {"nvidia.com/gpu": "1"}},
    )
    spec = {"containers": [main], "terminationGracePeriodSeconds": 2}
    return {
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def available(admin: Clients, namespace: str, replicas: int) -> None:
    eventually(
        lambda: (
            admin.apps.read_namespaced_deployment("web", namespace).status.available_replicas
            == replicas
        ),
        f"{replicas} replicas are available",
    )


def test_a_deployment_is_ready_behind_its_service_and_every_pod_gets_traffic(
    admin: Clients, namespace: str
) -> None:
    admin.apps.create_namespaced_deployment(namespace, web(2))
    ports = [{"port": 8000, "targetPort": "http"}]
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    address = admin.core.create_namespaced_service(namespace, service).spec.cluster_ip
    available(admin, namespace, 2)
    pods = {one.metadata.name for one in admin.core.list_namespaced_pod(namespace).items}
    url = f"http://{address}:8000/"
    eventually(lambda: _get(url), "the Service answers")
    eventually(lambda: {_get(url) for _ in range(10)} == pods, "every pod answers")


def test_a_service_without_a_ready_pod_refuses_connections(admin: Clients, namespace: str) -> None:
    admin.apps.create_namespaced_deployment(namespace, web(1))
    spec = {"selector": {"app": "web"}, "ports": [{"port": 8000, "targetPort": 8080}]}
    service = {"metadata": {"name": "web"}, "spec": spec}
    address = admin.core.create_namespaced_service(namespace, service).spec.cluster_ip
    url = f"http://{address}:8000/"
    eventually(lambda: _get(url), "the Service answers")
    admin.apps.patch_namespaced_deployment("web", namespace, {"spec": {"replicas": 0}})
    eventually(lambda: _get(url) is None, "the Service refuses")


def test_large_transfers_through_a_service_are_whole_and_half_closed_streams_end(
    admin: Clients, namespace: str
) -> None:
    script = """
import os, socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        data = b""
        while chunk := self.request.recv(65536):
            data += chunk
        self.request.sendall(data[::-1])
socketserver.TCPServer((os.environ["POD_IP"], 8080), Echo).serve_forever()
"""
    manifest = pod("echo", script, env=[POD_IP], readinessProbe={"tcpSocket": {"port": 8080}})
    admin.core.create_namespaced_pod(namespace, manifest)
    spec = {"selector": {"app": "echo"}, "ports": [{"port": 8080}]}
    service = {"metadata": {"name": "echo"}, "spec": spec}
    address = admin.core.create_namespaced_service(namespace, service).spec.cluster_ip
    payload = os.urandom(8 * 2**20)
    assert eventually(lambda: _exchange(address, payload), "an answer") == payload[::-1]


def test_deleting_a_deployment_deletes_its_pods(admin: Clients, namespace: str) -> None:
    admin.apps.create_namespaced_deployment(namespace, web(2))
    available(admin, namespace, 2)
    admin.apps.delete_namespaced_deployment("web", namespace)
    eventually(lambda: not admin.core.list_namespaced_pod(namespace).items, "no pods are left")


def test_a_job_completes(admin: Clients, namespace: str) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [container("print('done')")]}}
    job = {"metadata": {"name": "job"}, "spec": {"template": template}}
    admin.batch.create_namespaced_job(namespace, job)
    eventually(
        lambda: admin.batch.read_namespaced_job_status("job", namespace).status.succeeded == 1,
        "the Job has succeeded",
    )


def test_a_failed_job_says_so(admin: Clients, namespace: str) -> None:
    script = "import sys; print('no luck'); sys.exit(3)"
    main = container(script, terminationMessagePolicy="FallbackToLogsOnError")
    template = {"spec": {"restartPolicy": "Never", "containers": [main]}}
    job = {"metadata": {"name": "job"}, "spec": {"backoffLimit": 0, "template": template}}
    admin.batch.create_namespaced_job(namespace, job)
    eventually(
        lambda: admin.batch.read_namespaced_job_status("job", namespace).status.failed == 1,
        "the Job has failed",
    )
    [found] = admin.core.list_namespaced_pod(namespace).items
    ended = found.status.container_statuses[0].state.terminated
    assert (ended.exit_code, ended.message) == (3, "no luck\n")


def test_init_containers_run_first_and_share_volumes(admin: Clients, namespace: str) -> None:
    mounts = [{"name": "data", "mountPath": "/data"}]
    init = container("open('/data/x', 'w').write('from init')", name="init", volumeMounts=mounts)
    spec = {"initContainers": [init], "volumes": [{"name": "data", "emptyDir": {}}]}
    manifest = pod("both", "print(open('/data/x').read())", spec=spec, volumeMounts=mounts)
    assert run(admin, namespace, manifest) == "from init\n"


def test_a_failing_init_container_is_retried_and_keeps_the_pod_pending(
    admin: Clients, namespace: str
) -> None:
    init = container("import sys; sys.exit(1)", name="init")
    spec = {"initContainers": [init], "restartPolicy": "Always"}
    admin.core.create_namespaced_pod(namespace, pod("stuck", SLEEP, spec=spec))

    def restarts() -> int:
        statuses = status_of(admin, namespace, "stuck").init_container_statuses
        return int(statuses[0].restart_count) if statuses else 0

    eventually(restarts, "the init container was restarted")
    assert status_of(admin, namespace, "stuck").phase == "Pending"


def test_environment_comes_from_literals_fields_config_maps_and_secrets(
    admin: Clients, namespace: str
) -> None:
    metadata = {"name": "settings"}
    admin.core.create_namespaced_config_map(
        namespace, {"metadata": metadata, "data": {"COLOUR": "green", "SIZE": "4"}}
    )
    admin.core.create_namespaced_secret(
        namespace, {"metadata": metadata, "stringData": {"password": "s3cret"}}
    )
    env = [
        POD_IP,
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "settings", "key": "password"}}},
        {"name": "MORE", "value": "$(NAME)/$(PASS)/$$(NAME)/$(UNKNOWN)"},
    ]
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    source = [{"configMapRef": metadata, "prefix": "CFG_"}]
    found = json.loads(run(admin, namespace, pod("env", script, env=env, envFrom=source)))
    assert found["MORE"] == "env/s3cret/$(NAME)/$(UNKNOWN)"
    assert (found["CFG_COLOUR"], found["CFG_SIZE"], found["APP"]) == ("green", "4", "env")
    assert found["POD_IP"].startswith("127.")
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "USER"} & found.keys()


def test_a_missing_config_map_holds_the_pod_until_it_appears(
    admin: Clients, namespace: str
) -> None:
    volume = {"name": "cfg", "configMap": {"name": "late"}}
    mount = [{"name": "cfg", "mountPath": "/etc/app"}]
    script = "print(open('/etc/app/key').read())"
    spec = {
        "volumes": [volume],
        "containers": [container(script, volumeMounts=mount)],
    }
    admin.core.create_namespaced_pod(namespace, pod("late", spec=spec))
    assert 'configMap "late" not found' in waiting(admin, namespace, "late").message
    data = {"metadata": {"name": "late"}, "data": {"key": "here"}}
    admin.core.create_namespaced_config_map(namespace, data)
    phase(admin, namespace, "late", "Succeeded")
    assert log_of(admin, namespace, "late") == "here\n"


def test_crashing_containers_back_off_and_the_previous_log_stays(
    admin: Clients, namespace: str
) -> None:
    script = "import os, sys; print('attempt'); sys.exit(7)"
    spec = {"restartPolicy": "Always"}
    admin.core.create_namespaced_pod(namespace, pod("crash", script, spec=spec))

    def state() -> Any:
        statuses = status_of(admin, namespace, "crash").container_statuses
        found = statuses[0] if statuses else None
        return found if found and found.restart_count >= 2 and found.state.waiting else None

    found = eventually(state, "two restarts and a wait")
    assert found.state.waiting.reason == "CrashLoopBackOff"
    assert found.last_state.terminated.exit_code == 7
    previous = log_of(admin, namespace, "crash", previous=True)
    assert previous == "attempt\n"


def test_a_failing_liveness_probe_restarts_the_container(admin: Clients, namespace: str) -> None:
    probe = {
        "exec": {"command": ["python", "-c", "import sys; sys.exit('sick')"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
        "timeoutSeconds": 5,
    }
    spec = {"restartPolicy": "Always"}
    manifest = pod("sick", SLEEP, spec=spec, livenessProbe=probe)
    admin.core.create_namespaced_pod(namespace, manifest)

    def restarted() -> bool:
        statuses = status_of(admin, namespace, "sick").container_statuses
        return bool(statuses and statuses[0].restart_count)

    eventually(restarted, "a restart")
    reasons = {one.reason for one in admin.core.list_namespaced_event(namespace).items}
    assert {"Unhealthy", "Killing"} <= reasons


def test_a_startup_probe_holds_readiness_back_which_then_comes_within_half_a_second(
    admin: Clients, namespace: str
) -> None:
    script = f"""
import os, time
time.sleep(1)
print(time.time(), flush=True)
{SERVER}"""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 10}
    manifest = pod("slow", script, env=[POD_IP], startupProbe=probe, readinessProbe=probe)
    admin.core.create_namespaced_pod(namespace, manifest)
    eventually(lambda: ready(admin, namespace, "slow"), "readiness")
    reported = time.time()
    serving = float(log_of(admin, namespace, "slow"))
    # Twice the aim, since the test's own polling and a loaded machine are in it.
    assert reported - serving < 1.0


def test_logs_can_be_tailed_stamped_and_followed(admin: Clients, namespace: str) -> None:
    script = """
import time
for number in range(20):
    print("line", number, flush=True)
    time.sleep(0.05)
"""
    admin.core.create_namespaced_pod(namespace, pod("talk", script))
    eventually(
        lambda: status_of(admin, namespace, "talk").phase in ("Running", "Succeeded"), "a start"
    )
    stream = admin.core.read_namespaced_pod_log(
        "talk", namespace, follow=True, _preload_content=False
    )
    assert stream.read().decode().splitlines() == [f"line {number}" for number in range(20)]
    assert log_of(admin, namespace, "talk", tail_lines=1) == "line 19\n"
    stamped = log_of(admin, namespace, "talk", tail_lines=1, timestamps=True)
    assert stamped.split(" ", 1)[1] == "line 19\n"
    assert stamped[:4].isdigit()


def test_a_deleted_pod_gets_sigterm_and_time_to_finish(
    admin: Clients, namespace: str, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    script = f"""
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.3)
    pathlib.Path({str(witness)!r}).write_text("finished")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(600)
"""
    spec = {"terminationGracePeriodSeconds": 20}
    admin.core.create_namespaced_pod(namespace, pod("polite", script, spec=spec))
    eventually(lambda: log_of(admin, namespace, "polite") == "up\n", "the handler is set")
    started = time.monotonic()
    admin.core.delete_namespaced_pod("polite", namespace)
    eventually(lambda: _gone(admin, namespace, "polite"), "the pod is gone")
    assert witness.read_text() == "finished"
    assert time.monotonic() - started < 5


def test_a_pod_that_ignores_sigterm_is_killed_with_all_it_started(
    admin: Clients, namespace: str
) -> None:
    script = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
    spec = {"terminationGracePeriodSeconds": 1}
    admin.core.create_namespaced_pod(namespace, pod("stubborn", script, spec=spec))
    text = eventually(lambda: log_of(admin, namespace, "stubborn"), "its process ids")
    pids = [int(word) for word in text.split()]
    admin.core.delete_namespaced_pod("stubborn", namespace)
    eventually(lambda: _gone(admin, namespace, "stubborn"), "the pod is gone")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


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
        ({"hostNetwork": True}, "spec.hostNetwork: each pod has its own loopback address"),
    ],
    ids=["image", "hostPath", "privileged", "hostNetwork"],
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


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def _exchange(address: str, payload: bytes) -> bytes:
    try:
        connection = socket.create_connection((address, 8080), timeout=20)
    except OSError:
        return b""
    with connection:
        writer = threading.Thread(target=_send, args=(connection, payload))
        writer.start()
        answer = b""
        while chunk := connection.recv(1 << 20):
            answer += chunk
        writer.join()
    return answer


def _send(connection: Any, payload: bytes) -> None:
    connection.sendall(payload)
    connection.shutdown(socket.SHUT_WR)


def _gone(admin: Clients, namespace: str, name: str) -> bool:
    try:
        admin.core.read_namespaced_pod(name, namespace)
    except ApiException as error:
        return bool(error.status == 404)
    return False
