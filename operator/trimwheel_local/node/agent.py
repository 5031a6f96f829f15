"""The process node: registers, sends heartbeats, and runs everything else of the node."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aiohttp

from trimwheel_local.layout import Layout
from trimwheel_local.names import GPU_RESOURCE, NODE_NAME
from trimwheel_local.node import kubelet, runtime
from trimwheel_local.node.api import MERGE, ApiClient, ApiError
from trimwheel_local.node.context import Addresses, Context
from trimwheel_local.node.events import Recorder
from trimwheel_local.node.pods import Pods
from trimwheel_local.node.services import Services
from trimwheel_local.pins import kubernetes_version

log = logging.getLogger(__name__)
Object = dict[str, Any]

LEASE_SECONDS, RENEW_SECONDS, STATUS_SECONDS = 40, 10.0, 60.0
RETRY = 0.2
MAX_PODS = 500
LOCALE = ("LANG", "LC_ALL", "TZ")


async def run(layout: Layout, fake_gpus: int, path: str) -> None:
    """Until SIGTERM; pods keep running, and the next node adopts them."""
    api = ApiClient(layout)
    events = Recorder(api)
    services = Services(api, events, layout.api_port)
    inherited = {name: os.environ[name] for name in LOCALE if name in os.environ}
    environment = {"LANG": "C.UTF-8", **inherited, "PATH": path}
    addresses = Addresses(layout.pod_range)
    pods = Pods(Context(layout, api, events, services, addresses, environment))
    runner = await kubelet.serve(layout, pods)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tasks = [
        asyncio.create_task(work)
        for work in (
            _status(api, layout, fake_gpus),
            _heartbeat(api),
            services.run(),
            pods.run(),
        )
    ]
    waiting = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    await runner.cleanup()
    await api.close()
    for task in done - {waiting}:
        # A part that ends is a bug; the supervisor starts the node anew.
        task.result()


async def _status(api: ApiClient, layout: Layout, fake_gpus: int) -> None:
    """Register, and repeat the node's status from time to time."""
    while True:
        now = runtime.timestamp()
        try:
            await _create(api, "/api/v1/nodes", _node(now))
            known = (await api.get(f"/api/v1/nodes/{NODE_NAME}")).get("status", {})
            body = {"status": _node_status(layout, fake_gpus, conditions(now, known))}
            await api.patch(f"/api/v1/nodes/{NODE_NAME}/status", body)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.info("node status: %s; trying again", error)
            await asyncio.sleep(RETRY)
        else:
            await asyncio.sleep(STATUS_SECONDS)


async def _heartbeat(api: ApiClient) -> None:
    """Renew the node's Lease; when it stops, the controllers take the node for dead."""
    folder = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    while True:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": NODE_NAME,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        }
        try:
            await _create(api, folder, {"metadata": {"name": NODE_NAME}, "spec": spec})
            await api.patch(f"{folder}/{NODE_NAME}", {"spec": spec}, MERGE)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.info("heartbeat: %s; trying again", error)
            await asyncio.sleep(RETRY)
        else:
            await asyncio.sleep(RENEW_SECONDS)


async def _create(api: ApiClient, path: str, item: Object) -> None:
    try:
        await api.post(path, item)
    except ApiError as error:
        if error.status != HTTPStatus.CONFLICT:
            raise


def _node(now: str) -> Object:
    labels = {
        "kubernetes.io/hostname": NODE_NAME,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64" if platform.machine() == "x86_64" else "arm64",
        "node.kubernetes.io/instance-type": "process",
    }
    return {"metadata": {"name": NODE_NAME, "labels": labels}}


def _node_status(layout: Layout, fake_gpus: int, found: list[Object]) -> Object:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = os.statvfs(layout.root)
    # Processors are not enforced, and requests are made for real clusters: a two-core laptop
    # would otherwise have no room for what it runs easily.
    capacity = {
        "cpu": str(16 * (os.cpu_count() or 1)),
        "memory": str(memory),
        "ephemeral-storage": str(disk.f_frsize * disk.f_blocks),
        "pods": str(MAX_PODS),
        GPU_RESOURCE: str(fake_gpus),
    }
    return {
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [
            {"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "Hostname", "address": NODE_NAME},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": layout.kubelet_port}},
        "conditions": found,
        "nodeInfo": _node_info(),
    }


def conditions(now: str, known: Object) -> list[Object]:
    """What the node says of itself; a transition is a change of status, not another heartbeat."""
    before = {one["type"]: one for one in known.get("conditions", [])}
    states = {"Ready": "True", "MemoryPressure": "False", "DiskPressure": "False"}
    states["PIDPressure"] = "False"
    return [
        {
            "type": kind,
            "status": status,
            "reason": "ProcessNode",
            "message": "pods run as local processes; nothing is isolated",
            "lastHeartbeatTime": now,
            "lastTransitionTime": _since(before.get(kind), status) or now,
        }
        for kind, status in states.items()
    ]


def _since(before: Object | None, status: str) -> str:
    same = before is not None and before["status"] == status
    return str(before.get("lastTransitionTime") or "") if before and same else ""


def _node_info() -> Object:
    return {
        "machineID": "",
        "systemUUID": "",
        "bootID": "",
        "kernelVersion": platform.release(),
        "osImage": platform.platform(),
        "containerRuntimeVersion": "process://1",
        "kubeletVersion": f"{kubernetes_version()}-trimwheel",
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": "amd64" if platform.machine() == "x86_64" else "arm64",
    }
