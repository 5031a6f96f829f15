"""Deployments behind Services: every ready pod gets traffic, and nobody else does."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from typing import Any

import pytest
from tests.cluster.pods import (
    POD_IP,
    available,
    web,
)

from trimwheel_local.testing import Clients, eventually, pod

pytestmark = pytest.mark.cluster


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
