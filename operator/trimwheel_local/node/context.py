"""What all parts of the node share, and the addresses that pods get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from trimwheel_local.layout import Layout
from trimwheel_local.node.api import ApiClient
from trimwheel_local.node.events import Recorder
from trimwheel_local.node.services import Services


class Addresses:
    """Hands out the pod addresses of a cluster's slice, the longest unused first."""

    def __init__(self, network: IPv4Network) -> None:
        self._first = int(network.network_address) + 1
        self._count = network.num_addresses - 2
        self._taken: set[str] = set()
        self._next = 0

    def take(self, wanted: str | None = None) -> str:
        """`wanted` if it is free (a pod that is adopted keeps its address), else a fresh one."""
        if wanted and wanted not in self._taken:
            self._taken.add(wanted)
            return wanted
        for _ in range(self._count):
            address = str(IPv4Address(self._first + self._next % self._count))
            self._next += 1
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise RuntimeError(f"all {self._count} pod addresses are taken")

    def free(self, address: str) -> None:
        self._taken.discard(address)


@dataclass(frozen=True)
class Context:
    """The node's parts, made once by `agent`."""

    layout: Layout
    api: ApiClient
    events: Recorder
    services: Services
    addresses: Addresses
    environment: Mapping[str, str]
    """What every container inherits: PATH and the locale."""
