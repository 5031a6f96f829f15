"""The command lines of the control plane, and how each part shows that it is ready.

Pure apart from the readiness checks; `supervisor` starts what is described here. Two TCP ports
are opened, both on 127.0.0.1: the API server's and the node's. etcd speaks over Unix sockets in
a folder of mode 0700, because a TCP port without TLS would hand the cluster to every local user;
the controller manager and the scheduler serve nothing.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trimwheel_local.binaries import Binaries
from trimwheel_local.layout import Layout
from trimwheel_local.names import KUBELET_CLIENT
from trimwheel_local.rest import readyz

ISSUER = "https://kubernetes.default.svc.cluster.local"

CLIENT_SOCKET, PEER_SOCKET = "client:1", "peer:1"
"""etcd insists on host:port and takes the whole for a file name. Relative to its folder, since an
absolute path may not fit into the 108 bytes of a Unix socket's address."""


@dataclass(frozen=True)
class Component:
    """One process of the cluster: how to start it, and how to tell that it serves."""

    name: str
    command: list[str]
    folder: Path
    ready: Callable[[], bool]
    after: str | None = None
    """Started only once this component is ready."""


def components(layout: Layout, binaries: Binaries, fake_gpus: int) -> list[Component]:
    """All components in the order of starting; stopping goes the other way round."""
    return [
        _etcd(layout, binaries["etcd"]),
        _apiserver(layout, binaries["kube-apiserver"]),
        _controller_manager(layout, binaries["kube-controller-manager"]),
        _scheduler(layout, binaries["kube-scheduler"]),
        _node(layout, binaries, fake_gpus),
    ]


def _etcd(layout: Layout, binary: Path) -> Component:
    folder = layout.root / "etcd"
    client, peer = f"unix://{CLIENT_SOCKET}", f"unix://{PEER_SOCKET}"
    flags = {
        "name": "local",
        "data-dir": "data",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"local={peer}",
        "auto-compaction-retention": "5m",
        # A demo cluster survives kill -9 of its processes without fsync; a power cut may lose it.
        "unsafe-no-fsync": "true",
        "log-level": "error",
    }
    return Component("etcd", _command(binary, flags), folder, lambda: _accepts(folder))


def _apiserver(layout: Layout, binary: Path) -> Component:
    pki = layout.pki
    flags = {
        "etcd-servers": f"unix://{CLIENT_SOCKET}",
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": str(layout.api_port),
        "endpoint-reconciler-type": "none",
        "tls-cert-file": f"{pki}/apiserver.crt",
        "tls-private-key-file": f"{pki}/apiserver.key",
        "client-ca-file": f"{pki}/ca.crt",
        "anonymous-auth": "false",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "kubelet-certificate-authority": f"{pki}/ca.crt",
        "kubelet-client-certificate": f"{pki}/{KUBELET_CLIENT}.crt",
        "kubelet-client-key": f"{pki}/{KUBELET_CLIENT}.key",
        # The default tries the node's hostname first, which nothing resolves.
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-issuer": ISSUER,
        "service-account-key-file": f"{pki}/service-accounts.key",
        "service-account-signing-key-file": f"{pki}/service-accounts.key",
        # Otherwise tokens live for a year whatever was asked, and rotation is never exercised.
        "service-account-extend-token-expiration": "false",
        "service-cluster-ip-range": str(layout.service_range),
        # The node refuses privileged pods with a reason; here they would be a validation error.
        "allow-privileged": "true",
        "profiling": "false",
    }
    folder = layout.root / "etcd"
    return Component(
        "kube-apiserver", _command(binary, flags), folder, lambda: readyz(layout), after="etcd"
    )


def _controller_manager(layout: Layout, binary: Path) -> Component:
    # EndpointSlices refuse loopback addresses, so their controllers could only fail; the node
    # forwards each Service to its ready pods instead.
    off = ("endpointslice-controller", "endpoints-controller", "endpointslice-mirroring-controller")
    flags = {
        "kubeconfig": f"{layout.kubeconfigs}/kube-controller-manager",
        "controllers": ",".join(["*", *(f"-{name}" for name in off)]),
        "leader-elect": "false",
        # The only node runs beside the API server. When nothing was heard of it, it was the API
        # server that was away, and its pods, which went on serving, must not be called unready.
        "node-monitor-grace-period": "5m",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": f"{layout.pki}/service-accounts.key",
        "root-ca-file": f"{layout.pki}/ca.crt",
        "secure-port": "0",
        "kube-api-qps": "200",
        "kube-api-burst": "400",
        "profiling": "false",
    }
    return _client("kube-controller-manager", binary, flags, layout)


def _scheduler(layout: Layout, binary: Path) -> Component:
    flags = {
        "kubeconfig": f"{layout.kubeconfigs}/kube-scheduler",
        "leader-elect": "false",
        "secure-port": "0",
        "kube-api-qps": "200",
        "kube-api-burst": "400",
        "profiling": "false",
    }
    return _client("kube-scheduler", binary, flags, layout)


def _client(name: str, binary: Path, flags: dict[str, str], layout: Layout) -> Component:
    command = _command(binary, flags)
    return Component(name, command, layout.root, lambda: True, after="kube-apiserver")


def _node(layout: Layout, binaries: Binaries, fake_gpus: int) -> Component:
    options = {
        "state": str(layout.state),
        "index": str(layout.index),
        "fake-gpus": str(fake_gpus),
        "path": ":".join(str(folder) for folder in binaries.folders),
    }
    command = [sys.executable, "-m", "trimwheel_local.node"]
    command += [f"--{key}={value}" for key, value in options.items()]
    return Component("node", command, layout.root, lambda: True, after="kube-apiserver")


def _accepts(folder: Path) -> bool:
    """Whether etcd's socket answers; reached through /proc, since a long path would not fit."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"/proc/self/fd/{descriptor}/{CLIENT_SOCKET}")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _command(binary: Path, flags: dict[str, str]) -> list[str]:
    return [str(binary), *(f"--{key}={value}" for key, value in flags.items())]
