"""Pods that the tests of the node make, and what they wait for."""

from __future__ import annotations

from typing import Any

from kubernetes.client import ApiException

from trimwheel_local.testing import Clients, container, eventually, log_of

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


def gone(admin: Clients, namespace: str, name: str) -> bool:
    try:
        admin.core.read_namespaced_pod(name, namespace)
    except ApiException as error:
        return bool(error.status == 404)
    return False
