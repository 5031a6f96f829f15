"""Brings the demo's world up and takes it down: cluster, add-ons, chart, people, the model's home.

Called by `play` (up) and by `make down`. Slow parts run side by side. After `up` everything is
reachable from this host: Services of the embedded cluster have loopback addresses.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trimwheel_api import names
from trimwheel_api.errors import SetupFailed
from trimwheel_console import documents
from trimwheel_demo import load
from trimwheel_demo.existing import ExistingCluster
from trimwheel_demo.kube import Kube
from trimwheel_demo.memory import MemoryWatch
from trimwheel_demo.places import (
    APPROVER,
    EDITOR,
    MODEL,
    MODEL_NAME,
    NAMESPACE,
    OPERATOR_ON_CALL,
    ROOT,
    WAIVER,
    Places,
    read_session,
)
from trimwheel_demo.report import Report
from trimwheel_demo.settings import Options, chart_values
from trimwheel_demo.setup.cached import needed_binaries
from trimwheel_demo.teller import Teller
from trimwheel_local import pins
from trimwheel_local.cluster import Cluster

RBAC = "rbac.authorization.k8s.io"
WRITES_APPROVALS = "writes-approvals"
"""A Role that lets the editor create PolicyApprovals: it is verb `approve` that he lacks."""
AnyCluster = Cluster | ExistingCluster
ROLES = {
    APPROVER: ("view", "trimwheel-approver"),
    EDITOR: ("edit", WRITES_APPROVALS),
    WAIVER: ("edit", "trimwheel-waiver"),
    OPERATOR_ON_CALL: ("view", "trimwheel-rollback"),
}
PROMETHEUS_SERVICE = "http://prometheus.trimwheel-addons.svc:9090"
MLFLOW_SERVICE = "http://mlflow.trimwheel-addons.svc:5000"
ADDON_TIMEOUT = 180.0


@dataclass
class World:
    """Everything the stages need."""

    options: Options
    places: Places
    cluster: AnyCluster
    teller: Teller
    report: Report
    admin: Kube
    people: dict[str, Kube]
    prometheus: str
    mlflow: str
    memory: MemoryWatch
    values: dict[str, Any]
    """What the chart was installed with."""
    model_uri: str = ""
    model_digest: str = ""
    endpoint: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def load(self) -> load.Folder:
        """The load generator's folder."""
        return load.Folder(self.places.load)

    @property
    def server(self) -> str:
        """The API server's address."""
        return _server(self.cluster)

    def account_token(self, account: str) -> str:
        """A real token of a service account of the release (TokenRequest)."""
        ns = names.RELEASE_NAMESPACE
        answer = self.admin.kubectl("create", "token", account, "-n", ns, "--duration=10m")
        if not answer.ok:
            raise SetupFailed(f"token of {account}: {answer.error}")
        return answer.out


def bring_up(options: Options, places: Places, teller: Teller, report: Report) -> World:
    """Start or adopt everything below the model; returns once the chart is installed."""
    if places.session.exists():
        teller.say("removing what an earlier demo left running")
        take_down(places)
    places.demo.mkdir(parents=True, exist_ok=True)
    places.records.mkdir(parents=True, exist_ok=True)
    memory = MemoryWatch(_embedded(places).layout.record, load.Folder(places.load))
    memory.start()
    cluster = _existing(options, places) if options.kubeconfig else _embedded(places)
    if isinstance(cluster, ExistingCluster):
        cluster.up()
    else:
        cluster.up(wanted=needed_binaries(pins.all_names()))
    teller.good(f"API server at {_server(cluster)}")
    values = _values(cluster, places, options)
    with ThreadPoolExecutor(max_workers=2) as pool:
        addons = pool.submit(_addons, cluster, options)
        pool.submit(_chart, cluster, values).result()
        teller.good("chart installed: CRDs, admission policies, operator, pipelines")
        addons.result()
    env = cluster.env()
    prometheus = options.prometheus or env["PROMETHEUS_URL"]
    mlflow = options.mlflow or env["MLFLOW_TRACKING_URI"]
    teller.good(f"Prometheus {prometheus}   MLflow {mlflow}")
    path, cache = env["PATH"], places.demo / "kubectl-cache"
    people = {name: Kube(cluster.kubeconfig_for(name), NAMESPACE, path, cache) for name in ROLES}
    world = World(
        options, places, cluster, teller, report, Kube(cluster.kubeconfig, NAMESPACE, path, cache),
        people, prometheus, mlflow, memory, values,
    )  # fmt: skip
    save_session(world)
    return world


def _embedded(places: Places) -> Cluster:
    return Cluster(places.state, places.index)


def _existing(options: Options, places: Places) -> ExistingCluster:
    if not (options.prometheus and options.mlflow and options.values):
        raise SetupFailed(
            "TRIMWHEEL_USE_KUBECONFIG needs TRIMWHEEL_USE_PROMETHEUS, TRIMWHEEL_USE_MLFLOW and "
            "TRIMWHEEL_VALUES (a chart values file with images, records.uri and ledger.url)"
        )
    assert options.kubeconfig is not None, "the caller looked"
    return ExistingCluster(options.kubeconfig, places.demo, ROOT / "charts" / "trimwheel")


def _server(cluster: AnyCluster) -> str:
    if isinstance(cluster, ExistingCluster):
        return cluster.server()
    return str(cluster.status()["server"])


def _addons(cluster: AnyCluster, options: Options) -> None:
    if isinstance(cluster, ExistingCluster):
        return
    cluster.install_addons(prometheus=not options.prometheus, mlflow=not options.mlflow)
    cluster.wait_addons(ADDON_TIMEOUT)


def _values(cluster: AnyCluster, places: Places, options: Options) -> dict[str, Any]:
    shape = options.values or ROOT / "charts" / "trimwheel" / "ci" / "embedded-values.yaml"
    values = documents.read_object(shape, "TRIMWHEEL_VALUES")
    prometheus = options.prometheus or PROMETHEUS_SERVICE
    ours = chart_values(places, prometheus, options.mlflow or MLFLOW_SERVICE)
    if isinstance(cluster, ExistingCluster):  # its records and ledger are named by its own values
        ours = {key: ours[key] for key in ("prometheus", "mlflow", "models")}
    return _merged(values, ours)


def _chart(cluster: AnyCluster, values: dict[str, Any]) -> None:
    cluster.install_chart(values)
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(people_manifests()))


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if nested else value
    return out


def people_manifests() -> list[dict[str, Any]]:
    """The model's namespace, and what each person of the story may do in it."""
    writes = [{"apiGroups": [names.GROUP], "resources": ["policyapprovals"], "verbs": ["create"]}]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        _rbac("Role", WRITES_APPROVALS, rules=writes),
        *(_binding(person, role) for person, roles in ROLES.items() for role in roles),
    ]


def _binding(person: str, role: str) -> dict[str, Any]:
    kind = "Role" if role == WRITES_APPROVALS else "ClusterRole"
    return _rbac(
        "RoleBinding",
        f"{person}-{role}",
        roleRef={"apiGroup": RBAC, "kind": kind, "name": role},
        subjects=[{"apiGroup": RBAC, "kind": "User", "name": person}],
    )


def _rbac(kind: str, name: str, **rest: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": metadata} | rest


def log_model(world: World, folder: Path, metadata: dict[str, Any]) -> str:
    """Register the artifact with the world's MLflow; returns its `models:/NAME/VERSION` address."""
    return register_model(world.mlflow, folder, metadata)


def register_model(tracking_uri: str, folder: Path, metadata: dict[str, Any]) -> str:
    """Log an artifact to MLflow and register it, once; returns its `models:/NAME/VERSION`."""
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    found = client.search_model_versions(f"name = '{MODEL_NAME}'")
    digest = metadata["digest"]
    for version in found:
        if version.tags.get("digest") == digest:
            return f"models:/{MODEL_NAME}/{version.version}"
    experiment = client.get_experiment_by_name("trimwheel/training")
    number = experiment.experiment_id if experiment else client.create_experiment(
        "trimwheel/training"
    )  # fmt: skip
    run = client.create_run(number, run_name=f"encoder-{digest[7:15]}")
    for key, value in metadata.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            client.log_metric(run.info.run_id, key, float(value))
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.set_terminated(run.info.run_id)
    if not found:
        client.create_registered_model(MODEL_NAME)
    source = f"{run.info.artifact_uri}/model"
    version = client.create_model_version(
        MODEL_NAME, source, run.info.run_id, tags={"digest": digest}
    )
    return f"models:/{MODEL_NAME}/{version.version}"


def save_session(world: World) -> None:
    """Leave for `trimwheel env` and `make down` what they need.

    The session's kubeconfig works in the model's namespace, so that its commands need no `-n`.
    """
    env = world.cluster.env()
    record = {
        "KUBECONFIG": str(world.cluster.session_kubeconfig(NAMESPACE)),
        "KUBECACHEDIR": str(world.places.demo / "kubectl-cache"),
        "PATH": env["PATH"].removesuffix(os.pathsep + os.environ.get("PATH", os.defpath)),
        "TRIMWHEEL_NAMESPACE": NAMESPACE,
        "TRIMWHEEL_MODEL": MODEL,
        "TRIMWHEEL_ENDPOINT": world.endpoint,
        "PROMETHEUS_URL": world.prometheus,
        "MLFLOW_TRACKING_URI": world.mlflow,
        "TRIMWHEEL_REPORT": str(world.options.report.resolve()),
    }
    world.places.session.write_text(json.dumps(record, indent=2) + "\n")


def take_down(places: Places) -> bool:
    """Stop and remove all of a demo; False when there was nothing."""
    load.stop(load.Folder(places.load))
    found = read_session(places.session) if places.session.exists() else {}
    cluster = Cluster(places.state, places.index)
    there = bool(found) or cluster.layout.root.exists()
    foreign = Path(found.get("KUBECONFIG", cluster.kubeconfig))
    if not foreign.is_relative_to(cluster.layout.root):
        ExistingCluster(foreign, places.demo, ROOT / "charts" / "trimwheel").down(
            namespace=NAMESPACE
        )
    else:
        cluster.down(purge=True)
    shutil.rmtree(places.demo, ignore_errors=True)
    return there
