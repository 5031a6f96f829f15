"""Stage 0: what was brought up answers, and which Kubernetes it is."""

from __future__ import annotations

import json

from trimwheel_api.errors import Unavailable
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_demo.evidence import Evidence, evidence
from trimwheel_demo.world import World


def look(world: World, found: list[Evidence]) -> None:
    """Note the server's version; the API server, the release and both services can be asked."""
    answer = world.admin.kubectl("version", "-o", "json")
    if not answer.ok:
        raise Unavailable(f"kubectl version: {answer.error}")
    version = json.loads(answer.out)["serverVersion"]["gitVersion"]
    world.report["versions"]["kubernetes_server"] = version
    deployments = f"kubectl -n {RELEASE_NAMESPACE} wait deployment --all"
    found += [
        evidence("APIServer", world.server, "", "kubectl get --raw /readyz | grep -x ok"),
        evidence("APIServer", version, "",
                 f"kubectl version | grep -xF 'Server Version: {version}'"),
        evidence("Deployment", RELEASE_NAMESPACE, "",
                 f"{deployments} --for=condition=Available --timeout=10s"),
        evidence("Prometheus", world.prometheus, "",
                 'curl -sf "$PROMETHEUS_URL/-/ready" | grep .'),
        evidence("MLflow", world.mlflow, "", 'curl -sf "$MLFLOW_TRACKING_URI/health" | grep -x OK'),
    ]  # fmt: skip
