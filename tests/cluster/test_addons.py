"""The add-ons: Prometheus finds annotated pods through its own account; MLflow answers."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

import pytest

from trimwheel_local.cluster import Cluster
from trimwheel_local.testing import Clients, container, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

EXPORTER = """
import os, time
import prometheus_client
prometheus_client.Gauge("trimwheel_test_answer", "For the test.").set(42)
prometheus_client.start_http_server(9000, addr=os.environ["POD_IP"])
time.sleep(600)
"""


def ask(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def test_prometheus_scrapes_annotated_pods_and_labels_them_by_namespace_and_pod(
    cluster: Cluster, admin: Clients, namespace: str
) -> None:
    rules = {"test.yaml": "groups: [{name: t, rules: [{record: one, expr: vector(1)}]}]"}
    cluster.install_addons(mlflow=False, scrape_interval="1s", rules=rules)
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    marks = {"prometheus.io/scrape": "true", "prometheus.io/port": "9000"}
    metadata = {"name": "exporter", "annotations": marks}
    spec = {"containers": [container(EXPORTER, env=[address])], "terminationGracePeriodSeconds": 1}
    admin.core.create_namespaced_pod(namespace, {"metadata": metadata, "spec": spec})
    cluster.wait_addons()
    base = cluster.env()["PROMETHEUS_URL"]

    def series(expression: str) -> Any:
        query = urllib.parse.urlencode({"query": expression})
        return ((ask(f"{base}/api/v1/query?{query}") or {}).get("data") or {}).get("result")

    query = f'trimwheel_test_answer{{namespace="{namespace}"}}'
    [found] = eventually(lambda: series(query), "the sample", 60)
    assert found["value"][1] == "42"
    assert found["metric"]["pod"] == "exporter"
    assert eventually(lambda: series("one"), "the recording rule", 60)[0]["value"][1] == "1"


def test_mlflow_answers_behind_its_service(cluster: Cluster) -> None:
    cluster.install_addons(prometheus=False)
    cluster.wait_addons()
    url = cluster.env()["MLFLOW_TRACKING_URI"]
    body = json.dumps({"max_results": 1}).encode()
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        [experiment] = json.load(answer)["experiments"]
    assert experiment["artifact_location"].startswith("mlflow-artifacts:")
