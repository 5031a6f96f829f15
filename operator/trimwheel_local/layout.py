"""Where a cluster keeps its files, and which addresses and ports are its own.

Pure: every path and number follows from the state folder and the cluster's index, so two
clusters with different indices never meet. Nothing here touches the disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from trimwheel_api.errors import InvalidInput
from trimwheel_local.names import MAX_INDEX

LOOPBACK = IPv4Network("127.96.0.0/11")
"""Services and pods live here: loopback, and far from the 127.0.x.x that other programs use."""

SLICE_PREFIX = 20
FIRST_PORT = 20_000
"""Below Linux's ephemeral range (32768) and above the ports that Ray picks for itself."""

PORTS_PER_CLUSTER = 10


@dataclass(frozen=True)
class Layout:
    """One cluster's folder, addresses and ports."""

    state: Path
    index: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.index <= MAX_INDEX:
            raise InvalidInput("index", f"must be 0 to {MAX_INDEX}", self.index)

    @property
    def root(self) -> Path:
        return self.state / f"cluster-{self.index}"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pods(self) -> Path:
        """Kept short: Unix sockets below a pod's folder must fit into 108 bytes."""
        return self.root / "pods"

    @property
    def addons(self) -> Path:
        return self.root / "addons"

    @property
    def kubeconfigs(self) -> Path:
        return self.root / "kubeconfigs"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.kubeconfigs / "admin"

    @property
    def record(self) -> Path:
        """What the supervisor last wrote about itself and its children."""
        return self.root / "supervisor.json"

    @property
    def options(self) -> Path:
        """How the supervisor was asked to start; read by it and by `up` after a crash."""
        return self.root / "options.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def api_port(self) -> int:
        return FIRST_PORT + self.index * PORTS_PER_CLUSTER

    @property
    def kubelet_port(self) -> int:
        return self.api_port + 1

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def service_range(self) -> IPv4Network:
        return self._slice(2 * self.index)

    @property
    def pod_range(self) -> IPv4Network:
        return self._slice(2 * self.index + 1)

    @property
    def kubernetes_ip(self) -> IPv4Address:
        """The ClusterIP that the API server takes for its own Service: the first of the range."""
        return self.service_range.network_address + 1

    def _slice(self, number: int) -> IPv4Network:
        size = 1 << (32 - SLICE_PREFIX)
        return IPv4Network((int(LOOPBACK.network_address) + number * size, SLICE_PREFIX))


def checkout() -> Path | None:
    """The repository that this package runs from, or None when it is installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() and (root / "charts").is_dir() else None


def default_state() -> Path:
    """`.trimwheel/` under the repository, or under the working directory outside of one."""
    return (checkout() or Path.cwd()) / ".trimwheel"


def cache_folder() -> Path:
    """The one folder outside the repository that may be written: built binaries, Go's caches."""
    chosen = os.environ.get("TRIMWHEEL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trimwheel"
