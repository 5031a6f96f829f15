"""Prometheus and MLflow as plain Deployments for machines that have neither.

Pure: returns manifests, which `Cluster.install_addons` applies. On a real cluster both are
expected to be there already. Their data lies in the cluster's folder, since a process node
mounts no host paths; so the folders are given as arguments, and a restart loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trimwheel_local.layout import Layout
from trimwheel_local.names import ADDONS_NAMESPACE, PROCESS_IMAGE_PREFIX

Object = dict[str, Any]

URL_VARIABLES = {"prometheus": "PROMETHEUS_URL", "mlflow": "MLFLOW_TRACKING_URI"}
"""The variable that carries each add-on's address."""
PROMETHEUS_PORT, MLFLOW_PORT = 9090, 5000
RULES = "prometheus-rules"
"""The ConfigMap with rule files (`*.yaml`); it may appear, change and go at any time."""

SCRAPE_MARK = "__meta_kubernetes_pod_annotation_prometheus_io_"
META = "__meta_kubernetes_"


def manifests(
    layout: Layout,
    *,
    prometheus: bool,
    mlflow: bool,
    scrape_interval: str,
    rules: Mapping[str, str] | None = None,
) -> list[Object]:
    """What to apply, the namespace first. `rules` is rule-file text by name ending in .yaml."""
    found: list[Object] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ADDONS_NAMESPACE}}
    ]
    if prometheus:
        found += _prometheus(layout.addons / "prometheus", scrape_interval)
    if rules is not None:
        found.append(_config_map(RULES, dict(rules)))
    if mlflow:
        found += _mlflow(layout.addons / "mlflow")
    return found


def prometheus_config(scrape_interval: str) -> Object:
    """Scrape every pod that is annotated `prometheus.io/scrape: "true"`.

    The same target labels as a PodMonitor gives: `namespace`, `pod`, `container`, `job`.
    """
    # Relative paths start at this file's folder, PODS/UID/v/config.
    discovery = {"role": "pod", "kubeconfig_file": "../../kubeconfig"}
    relabel = [
        {"source_labels": [f"{SCRAPE_MARK}scrape"], "action": "keep", "regex": "true"},
        # One target a pod, however many ports its containers name.
        {"source_labels": [f"{META}pod_container_init"], "action": "drop", "regex": "true"},
        {"source_labels": [f"{META}pod_phase"], "action": "keep", "regex": "Running"},
        {
            "source_labels": [f"{META}pod_ip", f"{SCRAPE_MARK}port"],
            "separator": ":",
            "target_label": "__address__",
        },
        {
            "source_labels": [f"{SCRAPE_MARK}path"],
            "regex": "(.+)",
            "target_label": "__metrics_path__",
        },
        _copy("namespace", "namespace"),
        _copy("pod_name", "pod"),
        {
            "source_labels": [f"{META}namespace", f"{META}pod_label_app_kubernetes_io_component"],
            "separator": "/",
            "target_label": "job",
        },
    ]
    return {
        "global": {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval},
        "rule_files": ["../rules/*.yaml"],
        "scrape_configs": [
            {
                "job_name": "pods",
                "kubernetes_sd_configs": [discovery],
                "relabel_configs": relabel,
            }
        ],
    }


def _copy(source: str, target: str) -> Object:
    return {"source_labels": [f"{META}{source}"], "target_label": target}


def _prometheus(data: Path, scrape_interval: str) -> list[Object]:
    name = "prometheus"
    container = {
        "name": name,
        "image": f"{PROCESS_IMAGE_PREFIX}prometheus",
        "command": ["prometheus"],
        "args": [
            "--config.file=/etc/prometheus/prometheus.yml",
            f"--storage.tsdb.path={data}",
            "--storage.tsdb.retention.time=7d",
            f"--web.listen-address=$(POD_IP):{PROMETHEUS_PORT}",
            "--config.auto-reload",
            "--config.auto-reload-interval=5s",
            "--log.level=warn",
        ],
        "readinessProbe": {"httpGet": {"path": "/-/ready", "port": "http"}, "periodSeconds": 5},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/prometheus"},
            {"name": "rules", "mountPath": "/etc/prometheus-rules"},
        ],
    }
    volumes = [
        {"name": "config", "configMap": {"name": f"{name}-config"}},
        {"name": "rules", "configMap": {"name": RULES, "optional": True}},
    ]
    config = yaml.safe_dump(prometheus_config(scrape_interval), sort_keys=False)
    reads = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": ADDONS_NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"}
    rbac = "rbac.authorization.k8s.io/v1"
    full = f"trimwheel-addons-{name}"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(name)},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": full}, "rules": [reads]},
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": full},
            "roleRef": {**role, "name": full},
            "subjects": [subject],
        },
        _config_map(f"{name}-config", {"prometheus.yml": config}),
        _deployment(name, container, PROMETHEUS_PORT, volumes, account=name),
        _service(name, PROMETHEUS_PORT),
    ]


def _mlflow(data: Path) -> list[Object]:
    container = {
        "name": "mlflow",
        "image": f"{PROCESS_IMAGE_PREFIX}mlflow",
        "command": ["python", "-m", "mlflow", "server"],
        "args": [
            "--host=$(POD_IP)",
            f"--port={MLFLOW_PORT}",
            "--workers=1",
            f"--backend-store-uri=sqlite:///{data}/mlflow.db",
            f"--artifacts-destination={data}/artifacts",
            # Its guard against DNS rebinding knows private addresses, not 127.96.0.0/11.
            "--allowed-hosts=127.*,localhost:*",
            "--cors-allowed-origins=http://127.*",
        ],
        # Job execution and telemetry cost 1.3 GB and a dozen processes, and serve nothing here.
        "env": [
            {"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"},
            {"name": "MLFLOW_DISABLE_TELEMETRY", "value": "true"},
            {"name": "OMP_NUM_THREADS", "value": "1"},
        ],
        "startupProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "failureThreshold": 120,
            "periodSeconds": 1,
        },
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5},
    }
    return [_deployment("mlflow", container, MLFLOW_PORT, []), _service("mlflow", MLFLOW_PORT)]


def _deployment(
    name: str, container: Object, port: int, volumes: list[Object], account: str | None = None
) -> Object:
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    complete = {
        **container,
        "env": [address, *container.get("env", [])],
        "ports": [{"name": "http", "containerPort": port}],
    }
    spec: Object = {"containers": [complete], "volumes": volumes}
    # Nobody but Prometheus has anything to ask the API server.
    spec |= {"serviceAccountName": account} if account else {"automountServiceAccountToken": False}
    labels = _labels(name)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**_metadata(name), "labels": labels},
        "spec": {
            "replicas": 1,
            # Both lock their data folder; two at a time would fight over it.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _service(name: str, port: int) -> Object:
    ports = [{"name": "http", "port": port, "targetPort": "http"}]
    spec = {"selector": _labels(name), "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name), "spec": spec}


def _config_map(name: str, data: Mapping[str, str]) -> Object:
    metadata = _metadata(name)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


def _metadata(name: str) -> Object:
    return {"name": name, "namespace": ADDONS_NAMESPACE}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "trimwheel-addons"}
