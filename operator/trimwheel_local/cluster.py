"""One embedded cluster, seen from outside: up, down, status, credentials, the chart.

Used by the CLI verbs, the demo and the tests. All state is in the cluster's folder, so any
process may make a `Cluster` for the same state and index and find the same cluster. Nothing
outside that folder and the binaries' cache is written; `~/.kube/config` is never touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from trimwheel_api.errors import SetupFailed
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local import addons, binaries, pki, rest, tools
from trimwheel_local.errors import NotRunning, StartError
from trimwheel_local.files import private_folder, read_json, tail, write_json
from trimwheel_local.layout import Layout, default_state
from trimwheel_local.names import (
    ADDONS_NAMESPACE,
    DEFAULT_FAKE_GPUS,
    NODE_NAME,
    RELEASE_NAME,
    SUPERVISOR_COMPONENTS,
)
from trimwheel_local.node.runtime import stop_every_pod
from trimwheel_local.processes import ProcessId, stop_all
from trimwheel_local.reporting import Progress, no_progress

POLL = 0.05
START_TIMEOUT = 90.0
STOP_TIMEOUT = 40.0
STALE_GRACE = 5.0


class Cluster:
    """The cluster number `index` in the state folder `state`."""

    def __init__(self, state: Path | None = None, index: int = 0) -> None:
        self.layout = Layout((state or default_state()).resolve(), index)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials (group system:masters)."""
        return self.layout.admin_kubeconfig

    def kubeconfig_for(self, user: str, groups: Sequence[str] = (), *, namespace: str = "") -> Path:
        """Credentials for a named person; what they may do is up to RBAC. The file is 0600.

        `namespace` is that of its context, `default` unless said otherwise.
        """
        return pki.write_kubeconfig(self.layout, user, groups, namespace)

    def session_kubeconfig(self, namespace: str) -> Path:
        """The administrator's credentials for a session that works in one namespace."""
        return self.kubeconfig_for("admin", ["system:masters"], namespace=namespace)

    def up(
        self,
        progress: Progress = no_progress,
        *,
        fake_gpus: int = DEFAULT_FAKE_GPUS,
        wanted: frozenset[str] | None = None,
    ) -> Cluster:
        """Start the cluster, or adopt the one that runs; returns once its node is Ready.

        `wanted` are the binaries that have to be there, all unless said otherwise.

        After a crash it first ends what is left over. Raises BinaryError, or StartError with the
        end of the log of the part that did not come up.
        """
        if not sys.platform.startswith("linux"):
            raise SetupFailed(f"the embedded cluster needs Linux, but this is {sys.platform}")
        binaries.ensure(progress, wanted)
        for folder in ("state", "root", "logs", "pods"):
            private_folder(getattr(self.layout, folder))
        with (self.layout.root / "up.lock").open("w") as lock:
            # Of several that start the same cluster at once, one does, and the others adopt it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            supervisor = None
            if not self._supervised():
                self._clean()
                pki.ensure_pki(self.layout)
                write_json(self.layout.options, {"fake_gpus": fake_gpus})
                supervisor = self._spawn()
            self._wait(progress, supervisor)
        return self

    def down(self, progress: Progress = no_progress, *, purge: bool = False) -> None:
        """Stop everything, pods included; `purge` also removes the cluster's folder."""
        supervisor = self._supervisor()
        if supervisor:
            progress("cluster down", 0, 2, "stopping pods and control plane")
            stop_all([supervisor], STOP_TIMEOUT)
        self._clean()
        stop_every_pod(self.layout.pods)
        progress("cluster down", 1, 2, "stopped")
        if purge:
            shutil.rmtree(self.layout.root, ignore_errors=True)
        progress("cluster down", 2, 2, "state removed" if purge else "state kept")

    def status(self) -> dict[str, Any]:
        """What runs, and where; `ready` is True only when every part is and the node is Ready."""
        parts = self._parts()
        node = rest.find(self.layout, f"/api/v1/nodes/{NODE_NAME}") if parts else None
        live = self._supervised()
        ready = live and _is_ready(node) and len(parts) == len(SUPERVISOR_COMPONENTS)
        return {
            "ready": ready and all(part["ready"] for part in parts.values()),
            "running": live,
            "index": self.layout.index,
            "state": str(self.layout.root),
            "server": self.layout.server,
            "kubeconfig": str(self.kubeconfig),
            "services": str(self.layout.service_range),
            "pods": str(self.layout.pod_range),
            "components": parts,
        }

    def env(self) -> dict[str, str]:
        """Variables with which a shell finds our commands, kubectl, the cluster and the add-ons.

        PROMETHEUS_URL and MLFLOW_TRACKING_URI are there once the add-ons are installed.
        """
        found = {
            "KUBECONFIG": str(self.kubeconfig),
            # kubectl would otherwise keep its discovery cache in ~/.kube.
            "KUBECACHEDIR": str(self.layout.root / "kubectl-cache"),
            "PATH": binaries.search_path(),
        }
        for name, variable in addons.URL_VARIABLES.items():
            if url := self.service_url(name, ADDONS_NAMESPACE):
                found[variable] = url
        return found

    def service_url(self, name: str, namespace: str) -> str | None:
        """`http://ClusterIP:port` of a Service's first port: reachable from the host as it is."""
        path = f"/api/v1/namespaces/{namespace}/services/{name}"
        service = rest.find(self.layout, path)
        if service is None:
            return None
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as admin; returns its output. Raises CalledProcessError with its stderr."""
        return tools.run(self.layout, "kubectl", *arguments, stdin=stdin)

    def install_chart(
        self,
        values: Mapping[str, Any],
        release: str = RELEASE_NAME,
        namespace: str = RELEASE_NAMESPACE,
        chart: Path | None = None,
    ) -> None:
        """`helm upgrade --install` of the repository's chart, with `values` on top of its own.

        Raises SetupFailed with helm's words when it refuses.
        """
        tools.install_chart(self.layout, values, release, namespace, chart)

    def install_addons(
        self,
        prometheus: bool = True,
        mlflow: bool = True,
        scrape_interval: str = "2s",
        rules: Mapping[str, str] | None = None,
    ) -> None:
        """Apply Prometheus and MLflow; `wait_addons` waits until they serve.

        `rules` are Prometheus rule files by name (ending in .yaml); None leaves them as they are.
        """
        manifests = addons.manifests(
            self.layout,
            prometheus=prometheus,
            mlflow=mlflow,
            scrape_interval=scrape_interval,
            rules=rules,
        )
        for name in addons.URL_VARIABLES:
            private_folder(self.layout.addons / name)
        command = ["apply", "--server-side", "--force-conflicts", "--filename", "-"]
        self.kubectl(*command, stdin=yaml.safe_dump_all(manifests))

    def wait_addons(self, timeout: float = 120) -> None:
        """Until every add-on's Deployment is available. Raises CalledProcessError on timeout."""
        self.kubectl(
            *("wait", "deployment", "--all", "--for=condition=Available"),
            *("--namespace", ADDONS_NAMESPACE, f"--timeout={timeout:.0f}s"),
        )

    def _record(self) -> dict[str, Any]:
        return read_json(self.layout.record) or {}

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = self._record().get("components", {})
        return parts

    def _supervisor(self) -> ProcessId | None:
        found = ProcessId.load(self._record().get("process"))
        return found if found and found.alive() else None

    def _supervised(self) -> bool:
        """Whether a supervisor holds the lock; the record may lag a moment behind it."""
        if not self.layout.lock.exists():
            return False
        with self.layout.lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _clean(self) -> None:
        """End what a killed supervisor left; pods stay, the next node adopts them."""
        identities = (ProcessId.load(part["process"]) for part in self._parts().values())
        stop_all([left for left in identities if left], STALE_GRACE, group=True)
        self.layout.record.unlink(missing_ok=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        place = [f"--state={self.layout.state}", f"--index={self.layout.index}"]
        with (self.layout.logs / "supervisor.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "trimwheel_local.supervisor", *place],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.layout.root,
                env=_daemon_environment(),
            )

    def _wait(self, progress: Progress, supervisor: subprocess.Popen[bytes] | None = None) -> None:
        """Until etcd, the API server, the node and the default account are there, in this order."""
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        since = datetime.now(UTC) if supervisor else datetime.min.replace(tzinfo=UTC)
        steps: list[tuple[str, str, Callable[[], bool]]] = [
            ("etcd", "etcd", lambda: self._part_ready("etcd")),
            ("API server", "kube-apiserver", lambda: self._part_ready("kube-apiserver")),
            ("node", "node", lambda: self._node_ready(since)),
            (
                "controllers",
                "kube-controller-manager",
                lambda: rest.find(self.layout, account) is not None and self.status()["ready"],
            ),
        ]
        deadline = time.monotonic() + START_TIMEOUT
        for number, (title, component, ready) in enumerate(steps):
            progress("cluster up", number, len(steps), f"waiting for {title}")
            while not ready():
                died = supervisor is not None and supervisor.poll() is not None
                if died or time.monotonic() > deadline:
                    failure = self._failure(component)
                    self.down()
                    raise failure
                time.sleep(POLL)
        progress("cluster up", len(steps), len(steps), "ready")

    def _part_ready(self, name: str) -> bool:
        return bool(self._parts().get(name, {}).get("ready"))

    def _node_ready(self, since: datetime) -> bool:
        """Ready, and heard of after `since`: what an earlier node said no longer counts."""
        lease = rest.find(
            self.layout,
            f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE_NAME}",
        )
        if lease is None or datetime.fromisoformat(lease["spec"]["renewTime"]) < since:
            return False
        return _is_ready(rest.find(self.layout, f"/api/v1/nodes/{NODE_NAME}"))

    def _failure(self, component: str) -> StartError:
        own = tail(self.layout.logs / "supervisor.log", 5)
        text = tail(self.layout.logs / f"{component}.log")
        return StartError(
            f"{component} did not become ready; the end of its log in "
            f"{self.layout.logs}:\n{text}\n{own}".rstrip()
        )


def require_running(cluster: Cluster) -> Cluster:
    """The same cluster. Raises NotRunning, naming the remedy, when it does not answer."""
    if not rest.readyz(cluster.layout):
        raise NotRunning(
            f"cluster {cluster.layout.index} in {cluster.layout.state} does not answer; "
            "start it with `trimwheel cluster up`"
        )
    return cluster


def _is_ready(node: Mapping[str, Any] | None) -> bool:
    conditions = (node or {}).get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _daemon_environment() -> dict[str, str]:
    """The caller's variables without those that would change what daemons or pods do."""
    dropped = ("KUBECONFIG", "PROMETHEUS_URL", "MLFLOW_TRACKING_URI")
    return {key: value for key, value in os.environ.items() if key not in dropped}
