"""A second cluster beside the run's own: credentials, kill -9, restarts, and nothing left over."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimwheel_local.cluster import Cluster
from trimwheel_local.files import read_json
from trimwheel_local.testing import TEST_INDEX, Clients, eventually, log_of, pod

pytestmark = pytest.mark.cluster

SCRIPT = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def second(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Another index, another state folder, while the run's cluster is up."""
    found = Cluster(tmp_path_factory.mktemp("state"), index=TEST_INDEX + 1)
    found.up()
    yield found
    found.down(purge=True)


@pytest.fixture(scope="module")
def root(second: Cluster) -> Clients:
    return Clients.of(second.kubeconfig)


def pid_of(root: Clients, name: str) -> int:
    text = eventually(lambda: log_of(root, "default", name), f"the process id of {name}")
    return int(text)


def restarts(root: Clients, name: str) -> int:
    status = root.core.read_namespaced_pod(name, "default").status
    return int(status.container_statuses[0].restart_count)


def test_clusters_side_by_side_share_no_port_and_no_address(
    cluster: Cluster, second: Cluster
) -> None:
    one, two = cluster.layout, second.layout
    assert {one.api_port, one.kubelet_port}.isdisjoint({two.api_port, two.kubelet_port})
    assert cluster.status()["ready"] and second.status()["ready"]
    inside = Clients.of(second.kubeconfig).core.read_namespaced_service("kubernetes", "default")
    assert inside.spec.cluster_ip == str(two.kubernetes_ip)


def test_what_holds_credentials_is_readable_by_its_owner_alone(second: Cluster) -> None:
    folders = [second.layout.root, second.layout.pki, second.layout.root / "etcd"]
    files = [*second.layout.pki.glob("*.key"), second.kubeconfig, second.kubeconfig_for("alice")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_all_listeners_are_on_loopback(second: Cluster) -> None:
    processes = [part["process"]["pid"] for part in second.status()["components"].values()]
    addresses = {address for pid in processes for address in _listening(pid)}
    assert addresses, "the API server listens on something"
    assert {address.split(".")[0] for address in addresses} == {"127"}


def test_kill_9_of_the_supervisor_and_up_leave_pods_running(second: Cluster, root: Clients) -> None:
    root.core.create_namespaced_pod("default", pod("survivor", SCRIPT))
    before = pid_of(root, "survivor")
    record = read_json(second.layout.record)
    assert record is not None
    os.kill(record["process"]["pid"], signal.SIGKILL)
    second.up()
    assert second.status()["ready"]
    assert pid_of(root, "survivor") == before
    assert restarts(root, "survivor") == 0
    root.core.delete_namespaced_pod("survivor", "default")
    eventually(lambda: not _alive(before), "the adopted process is stopped on deletion")


def test_a_killed_component_is_restarted(second: Cluster, root: Clients) -> None:
    killed = second.status()["components"]["node"]["process"]["pid"]
    os.kill(killed, signal.SIGKILL)

    def back() -> bool:
        part = second.status()["components"]["node"]
        return bool(part["ready"] and part["restarts"] and part["process"]["pid"] != killed)

    eventually(back, "another node process")
    root.core.create_namespaced_pod("default", pod("after", "print('ran')"))
    eventually(lambda: log_of(root, "default", "after") == "ran\n", "the new node runs pods")


def test_a_container_that_dies_while_the_node_is_away_is_noticed(
    second: Cluster, root: Clients
) -> None:
    spec = {"restartPolicy": "Always"}
    root.core.create_namespaced_pod("default", pod("orphan", SCRIPT, spec=spec))
    before = pid_of(root, "orphan")
    node = second.status()["components"]["node"]["process"]["pid"]
    os.kill(node, signal.SIGKILL)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: restarts(root, "orphan") == 1, "a restart")
    eventually(lambda: pid_of(root, "orphan") != before, "another process")


def test_a_pod_that_was_called_unready_while_its_node_was_silent_is_ready_again(
    second: Cluster, root: Clients
) -> None:
    """The controllers do so after 40 seconds without a heartbeat; a Service then has no targets."""
    root.core.create_namespaced_pod("default", pod("server", SCRIPT))
    pid_of(root, "server")
    eventually(lambda: _is_ready(root, "server"), "a ready pod")
    unready = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
    body = {"status": {"conditions": [unready]}}
    changed = root.core.patch_namespaced_pod_status("server", "default", body)
    assert any(one.reason == "NodeNotReady" for one in changed.status.conditions)
    eventually(lambda: _is_ready(root, "server"), "the node's own word counts")


def test_down_and_up_keep_objects_and_end_processes(second: Cluster, root: Clients) -> None:
    spec = {"restartPolicy": "Always"}
    root.core.create_namespaced_pod("default", pod("kept", SCRIPT, spec=spec))
    before = pid_of(root, "kept")
    second.down()
    assert not _alive(before)
    assert second.status()["running"] is False
    second.up()
    eventually(lambda: restarts(root, "kept") == 1, "the container is started again")


def test_up_on_a_running_cluster_adopts_it(second: Cluster) -> None:
    before = second.status()["components"]
    second.up()
    assert second.status()["components"] == before


def _is_ready(root: Clients, name: str) -> bool:
    conditions = root.core.read_namespaced_pod(name, "default").status.conditions or []
    return any(one.type == "Ready" and one.status == "True" for one in conditions)


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _listening(pid: int) -> set[str]:
    """Local IPv4 addresses on which a process listens; `::` would show up as such."""
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink())
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    found: set[str] = set()
    for table, version in (("tcp", 4), ("tcp6", 6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields: list[Any] = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(_address(fields[1]) if version == 4 else "::")
    return found


def _address(text: str) -> str:
    number = int(text.split(":")[0], 16)
    return ".".join(str((number >> shift) & 255) for shift in (0, 8, 16, 24))
