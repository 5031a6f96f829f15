"""`trimwheel bench rollback`: from a rollback's decision to its last acknowledgement.

Runs many real watch-and-arms loops as pods of the embedded cluster, each under its own account and
with its own Lease, without a model behind them; so the figure is that of the control path, not of
a busy GPU. Two numbers, as in a rollout's status: how long acknowledgements take, and the bound
that holds when a worker says nothing (its lease), measured once by not renewing.
"""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from trimwheel_api import names
from trimwheel_api.errors import SetupFailed, TrimwheelError, Unavailable
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_api.times import to_micro
from trimwheel_console import emit, note, output_option, progress, text_table
from trimwheel_console.ranges import SEED, Whole
from trimwheel_kube.connection import connect
from trimwheel_operator.bench_place import cluster_for_bench
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.raw import acknowledgement

MODEL = "bench"
LEASE_SECONDS = 5
WEIGHT = 5000
STARTUP_SECONDS = 300.0
ROUND_SECONDS = 60.0
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
IMAGE = "process.trimwheel.dev/workers"
CANDIDATE = parse_policy({"exit": {"enabled": True, "thresholds": ["0.9", "0.95"]}})


@dataclass(slots=True)
class Heard:
    """What the acknowledgement watch has seen: by pod the newest epoch, when, and what it said."""

    epochs: dict[str, int] = field(default_factory=dict)
    seen_at: dict[str, float] = field(default_factory=dict)
    said_at: dict[str, datetime] = field(default_factory=dict)
    tripped: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, lease: dict[str, Any]) -> None:
        """One Lease."""
        ack = acknowledgement(lease)
        if ack is None:
            return
        with self.changed:
            if self.epochs.get(ack.pod, 0) < ack.epoch:
                self.epochs[ack.pod] = ack.epoch
                self.seen_at[ack.pod] = time.perf_counter()
                self.said_at[ack.pod] = ack.at
            if ack.tripped == names.TRIPPED_BY_LEASE:
                self.tripped.add(ack.pod)
            else:
                self.tripped.discard(ack.pod)
            self.changed.notify_all()


class Bench:
    """One namespace of workers, and the operator's rights to tell them something."""

    def __init__(self, workers: int, kubeconfig: str, seed: int) -> None:
        self.admin = KubeApi(connect(kubeconfig).api)
        acting = connect(kubeconfig).api
        self.salt = f"bench-{seed}"
        account = names.service_account_user(names.RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)
        acting.set_default_header("Impersonate-User", account)
        self.operator = KubeApi(acting)
        self.namespace = f"bench-{uuid.uuid4().hex[:8]}"
        self.pods = [f"worker-{number:03d}" for number in range(workers)]
        self.epoch = 1
        self.renewals = 0
        self.heard = Heard()
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Workers up and acknowledging; everything is removed afterwards.

        Raises SetupFailed where Trimwheel's kinds are not installed.
        """
        kind = f"policyassignments.{names.GROUP}"
        if self.admin.find(f"{CRDS}/{kind}") is None:
            raise SetupFailed(f"{kind} is not installed: trimwheel cluster up --chart")
        self.admin.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        try:
            self._prepare()
            threading.Thread(target=self._follow, daemon=True).start()
            self._start_pods()
            yield
        finally:
            self._ended.set()
            found = self.admin.find(f"/api/v1/namespaces/{self.namespace}")
            if found is not None:
                path = f"/api/v1/namespaces/{self.namespace}"
                self.admin.delete(path, found["metadata"]["uid"])

    def write(self, *, candidate: bool) -> tuple[float, datetime]:
        """One decision: (perf counter, wall clock) just before the request."""
        self.epoch += 1
        self.renewals = 0
        spec: dict[str, Any] = {
            "epoch": self.epoch,
            "renewals": 0,
            "candidate": None,
            "weightBasisPoints": 0,
            "decidedAt": to_micro(datetime.now(UTC)),
        }
        if candidate:
            document = CANDIDATE.canonical_bytes().decode()
            spec["candidate"] = {"digest": CANDIDATE.digest, "document": document}
            spec["weightBasisPoints"] = WEIGHT
        began = time.perf_counter(), datetime.now(UTC)
        self.operator.merge(path_of("PolicyAssignment", self.namespace, MODEL), {"spec": spec})
        return began

    def await_epoch(self, timeout: float = ROUND_SECONDS) -> None:
        """Until every worker acknowledged the newest epoch. Raises Unavailable."""
        self._await(
            lambda: all(self.heard.epochs.get(pod, 0) >= self.epoch for pod in self.pods), timeout
        )

    def await_lease_end(self) -> None:
        """Until every worker says that its lease ran out."""
        self._await(lambda: self.heard.tripped >= set(self.pods), LEASE_SECONDS + ROUND_SECONDS)

    def _await(self, reached: Any, timeout: float) -> None:
        with self.heard.changed:
            if not self.heard.changed.wait_for(reached, timeout):
                behind = [pod for pod in self.pods if self.heard.epochs.get(pod, 0) < self.epoch]
                raise Unavailable(
                    f"{len(behind)} of {len(self.pods)} workers did not answer within "
                    f"{timeout:g} s: {', '.join(behind[:5])}"
                )

    def _follow(self) -> None:
        """Watch acknowledgements as the operator does."""
        path, labels = path_of("Lease", self.namespace), f"{names.LABEL_MODEL}={MODEL}"
        version = ""
        while not self._ended.is_set():
            try:
                if not version:
                    items, version = self.admin.list(path, labels)
                    for item in items:
                        self.heard.take(item)
                for change, item in self.admin.watch(path, labels, version):
                    version = item["metadata"]["resourceVersion"]
                    if change in ("ADDED", "MODIFIED"):
                        self.heard.take(item)
            except TrimwheelError as error:
                version = ""
                if not self._ended.is_set():
                    note(f"watching again: {error}")
                    time.sleep(0.5)

    def _prepare(self) -> None:
        account = names.worker_account(MODEL)
        group = "rbac.authorization.k8s.io"
        rules = [
            {
                "apiGroups": [names.GROUP],
                "resources": ["policyassignments"],
                "resourceNames": [MODEL],
                "verbs": ["get", "watch"],
            },
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "verbs": ["get", "create", "update", "patch"],
            },
        ]
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.namespace}
        reference = {"apiGroup": group, "kind": "Role", "name": account}
        metadata = {"name": account}
        for kind, body in (
            ("ServiceAccount", {"metadata": metadata}),
            ("Role", {"metadata": metadata, "rules": rules}),
            ("RoleBinding", {"metadata": metadata, "roleRef": reference, "subjects": [subject]}),
        ):
            self.admin.create(path_of(kind, self.namespace), body)
        assignment = {
            "apiVersion": names.API_VERSION,
            "kind": "PolicyAssignment",
            "metadata": {"name": MODEL},
            "spec": {
                "epoch": self.epoch,
                "stable": {"digest": DENSE.digest},
                "salt": self.salt,
                "leaseSeconds": LEASE_SECONDS,
            },
        }
        self.operator.create(path_of("PolicyAssignment", self.namespace), assignment)

    def _start_pods(self) -> None:
        with progress() as bar:
            task = bar.add_task("workers", total=len(self.pods))
            for name in self.pods:
                self.admin.create(path_of("Pod", self.namespace), _pod(name))
            deadline = time.monotonic() + STARTUP_SECONDS
            while (ready := len(self.heard.epochs)) < len(self.pods):
                bar.update(task, completed=ready)
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"{ready} of {len(self.pods)} workers came up in {STARTUP_SECONDS:g} s"
                    )
                time.sleep(0.2)
            bar.update(task, completed=len(self.pods))


def _pod(name: str) -> dict[str, Any]:
    fields = {
        "POD_NAME": "metadata.name",
        "POD_UID": "metadata.uid",
        "POD_NAMESPACE": "metadata.namespace",
    }
    env: list[dict[str, Any]] = [
        {"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for key, path in fields.items()
    ]
    env += [
        {"name": "TRIMWHEEL_MODEL", "value": MODEL},
        {"name": "OMP_NUM_THREADS", "value": "1"},
    ]
    container = {
        "name": "worker",
        "image": IMAGE,
        "command": ["python", "-m", "trimwheel_workers.assignment"],
        "env": env,
    }
    return {
        "metadata": {"name": name, "labels": {names.LABEL_MODEL: MODEL}},
        "spec": {
            "serviceAccountName": names.worker_account(MODEL),
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
        },
    }


@click.command("rollback", short_help="Decision to last acknowledgement over many workers.")
@click.option(
    "--workers", type=Whole(1, 10_000), default=50, show_default=True, help="Watch-and-arms loops."
)
@click.option(
    "--rounds", type=Whole(1, 10_000), default=20, show_default=True, help="Rollbacks measured."
)
@click.option(
    "--seed",
    type=Whole(0, SEED),
    default=0,
    show_default=True,
    help="Of the cohorts' salt; nothing else is drawn.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False),
    help="Cluster to measure on, as its administrator; KUBECONFIG names one too.",
)
@click.option(
    "--index",
    type=Whole(0, 1_000),
    default=0,
    show_default=True,
    envvar="TRIMWHEEL_INDEX",
    help="Embedded cluster.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TRIMWHEEL_STATE",
    help="Folder of the embedded clusters; default: .trimwheel in the repository.",
)
@output_option
def command(
    workers: int,
    rounds: int,
    seed: int,
    kubeconfig: str | None,
    index: int,
    state: Path | None,
    output: str,
) -> None:
    """Measure rollbacks over many workers.

    The cluster is the one that --kubeconfig or KUBECONFIG names (with the chart, and you as its
    administrator), else the embedded one that runs, else one that is started for the bench and
    removed afterwards. ~/.kube/config is never used.

    \b
    trimwheel bench rollback
    trimwheel bench rollback --workers 200 --rounds 50 -o json
    """
    with cluster_for_bench(kubeconfig, state, index) as found:
        result = measure(Bench(workers, found, seed), rounds) | {"seed": seed}
    emit(result, output, table=lambda: _table(result))


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Roll back `rounds` times, then let the lease run out once."""
    seen: list[float] = []
    said: list[float] = []
    with bench.running():
        for _ in range(rounds):
            bench.write(candidate=True)
            bench.await_epoch()
            began, decided = bench.write(candidate=False)
            bench.await_epoch()
            seen.append(1000 * (max(bench.heard.seen_at[pod] for pod in bench.pods) - began))
            last = max(bench.heard.said_at[pod] for pod in bench.pods)
            said.append(1000 * (last - decided).total_seconds())
        began, _ = bench.write(candidate=True)
        bench.await_epoch()
        bench.await_lease_end()
        silent = time.perf_counter() - began
    return _result(len(bench.pods), seen, said, silent)


def _result(workers: int, seen: list[float], said: list[float], silent: float) -> dict[str, Any]:
    return {
        "workers": workers,
        "rounds": len(seen),
        "with_model": False,
        "decision_to_last_seen_ms": _quantiles(seen),
        "decision_to_last_said_ms": _quantiles(said),
        "lease_seconds": LEASE_SECONDS,
        "lease_bound_seconds": round(silent, 3),
        "host": {
            "cpus": os.cpu_count(),
            "load_1m": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
        },
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    """Nearest-rank p99: of 20 rounds it is the slowest."""
    ordered = sorted(values)
    rank = min(len(ordered) - 1, int(0.99 * len(ordered)))
    return {
        "p50": round(statistics.median(ordered), 1),
        "p99": round(ordered[rank], 1),
        "max": round(ordered[-1], 1),
    }


def _table(result: dict[str, Any]) -> str:
    rows = [
        (
            title,
            f"{result[key]['p50']} ms",
            f"{result[key]['p99']} ms",
        )
        for title, key in (
            ("last acknowledgement seen", "decision_to_last_seen_ms"),
            ("last acknowledgement written", "decision_to_last_said_ms"),
        )
    ]
    rows.append(
        (
            "no news: stable by its own lease",
            f"{result['lease_bound_seconds']} s",
            f"lease {result['lease_seconds']} s",
        )
    )
    title = f"{result['workers']} workers, {result['rounds']} rounds"
    return text_table((title, "p50", "p99"), rows)
