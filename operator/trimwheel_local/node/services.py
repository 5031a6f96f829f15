"""Services: each `ClusterIP:port` listens here and forwards to the ready pods, round robin.

EndpointSlices refuse loopback addresses, and without kube-proxy a ClusterIP leads nowhere; so
the node does both jobs from its own view of Services and pods. A port without a ready pod does
not listen, hence a refused connection as with kube-proxy. Connections are balanced, not
requests. UDP, NodePorts and session affinity are not offered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trimwheel_local.node.api import ApiClient
from trimwheel_local.node.events import Recorder
from trimwheel_local.node.forward import Forwarder
from trimwheel_local.node.status import is_ready

log = logging.getLogger(__name__)
Object = dict[str, Any]
Address = tuple[str, int]
Key = tuple[str, str]
"""(namespace, name)."""
API_SERVICE: Key = ("default", "kubernetes")


@dataclass
class Services:
    """All Services, and the listeners for those that have a ClusterIP."""

    api: ApiClient
    events: Recorder
    api_port: int
    known: dict[Key, Object] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    """Pods by uid, as the watch of pods last saw them."""
    forwarders: dict[Address, Forwarder] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _refused: set[Address] = field(default_factory=set)

    @property
    def addresses(self) -> dict[Key, str]:
        """ClusterIP by (namespace, name)."""
        found = {key: item["spec"].get("clusterIP", "None") for key, item in self.known.items()}
        return {key: address for key, address in found.items() if address not in ("", "None")}

    def pod_changed(self, pod: Object) -> None:
        self.pods[pod["metadata"]["uid"]] = pod
        self._changed.set()

    def pod_removed(self, pod: Object) -> None:
        self.pods.pop(pod["metadata"]["uid"], None)
        self._changed.set()

    async def run(self) -> None:
        """Follow Services for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._update())
            group.create_task(self._follow())

    async def _follow(self) -> None:
        async for kind, item in self.api.watch("/api/v1/services"):
            if kind == "LIST":
                self.known = {_key(one): one for one in item["items"]}
            elif kind == "DELETED":
                self.known.pop(_key(item), None)
            else:
                self.known[_key(item)] = item
            self._changed.set()

    async def _update(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._apply(self._wanted())

    def _wanted(self) -> dict[Address, tuple[Object, list[Address]]]:
        """Where to listen, and which pods are behind it; only what has a ready pod."""
        found = {}
        for key, address in self.addresses.items():
            service = self.known[key]
            for port in service["spec"].get("ports", []):
                if port.get("protocol", "TCP") != "TCP":
                    continue
                targets = self._targets(service, port)
                if key == API_SERVICE:
                    targets = [("127.0.0.1", self.api_port)]
                if targets:
                    found[address, int(port["port"])] = (service, targets)
        return found

    def _targets(self, service: Object, port: Object) -> list[Address]:
        return targets(service, port, list(self.pods.values()))

    async def _apply(self, wanted: dict[Address, tuple[Object, list[Address]]]) -> None:
        for address in self.forwarders.keys() - wanted.keys():
            await self.forwarders.pop(address).close()
        self._refused &= wanted.keys()
        for address, (service, ready) in wanted.items():
            if address in self.forwarders:
                self.forwarders[address].targets = ready
            elif address not in self._refused:
                await self._listen(address, service, ready)

    async def _listen(self, address: Address, service: Object, ready: list[Address]) -> None:
        forwarder = Forwarder(ready)
        try:
            await forwarder.listen(*address)
        except OSError as error:
            # Ports below 1024 need root, as they would on any machine.
            self._refused.add(address)
            about = {**service, "kind": "Service"}
            message = f"cannot listen on {address[0]}:{address[1]}: {error.strerror}"
            self.events.say(about, "Warning", "FailedToListen", message)
            log.warning("Service %s: %s", service["metadata"]["name"], message)
        else:
            self.forwarders[address] = forwarder


def targets(service: Object, port: Object, pods: Sequence[Object]) -> list[Address]:
    """The addresses of the pods behind one port of a Service, in a stable order."""
    spec = service["spec"]
    selector = spec.get("selector")
    if not selector:
        return []
    found = []
    for pod in pods:
        metadata = pod["metadata"]
        if metadata["namespace"] != service["metadata"]["namespace"]:
            continue
        if not selector.items() <= metadata.get("labels", {}).items():
            continue
        address = pod.get("status", {}).get("podIP")
        if address and (is_ready(pod) or spec.get("publishNotReadyAddresses")):
            number = _target_port(port, pod)
            if number is not None:
                found.append((address, number))
    return sorted(found)


def _target_port(port: Object, pod: Object) -> int | None:
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for one in container.get("ports", []):
            if one.get("name") == target:
                return int(one["containerPort"])
    return None


def _key(item: Object) -> Key:
    return item["metadata"]["namespace"], item["metadata"]["name"]
