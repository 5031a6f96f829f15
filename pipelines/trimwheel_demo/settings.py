"""What the demo asks for: the AdaptiveModel it applies, the chart's values, and what differs.

`non_default` compares the demo's spec with the kinds' defaults, so the report's list of demo
settings cannot drift from what is really applied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimwheel_api import names
from trimwheel_api.kinds import AdaptiveModel, dump
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_demo.places import MODEL, NAMESPACE, Places

RATE_RPS = 100.0
AUDIT_RATE = "0.5"
EPSILON = "0.02"
CONFIDENCE = "0.9"
ALPHA = "0.001"
REPLICAS = 2
SCRAPE_INTERVAL = "2s"
STEPS = (("0%", 0, "10s"), ("10%", 100, "15s"), ("25%", 250, "15s"), ("50%", 550, "15s"))
"""Weight, candidate requests, hold; 900 requests in all can show an error rate below 1 %."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the visitor chose, from the environment that the Makefile passes on."""

    seed: int = 0
    detach: bool = False
    bad_policy: Path | None = None
    report: Path = Path("build/demo-report.json")
    kubeconfig: Path | None = None
    prometheus: str = ""
    mlflow: str = ""
    values: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Options:
        """Read SEED, DETACH, BAD_POLICY, REPORT and the TRIMWHEEL_USE_* addresses."""
        bad, kubeconfig = environ.get("BAD_POLICY"), environ.get("TRIMWHEEL_USE_KUBECONFIG")
        values = environ.get("TRIMWHEEL_VALUES")
        return cls(
            seed=int(environ.get("SEED") or 0),
            detach=environ.get("DETACH") in ("1", "true", "yes"),
            bad_policy=Path(bad) if bad else None,
            report=Path(environ.get("REPORT") or "build/demo-report.json"),
            kubeconfig=Path(kubeconfig) if kubeconfig else None,
            prometheus=environ.get("TRIMWHEEL_USE_PROMETHEUS", ""),
            mlflow=environ.get("TRIMWHEEL_USE_MLFLOW", ""),
            values=Path(values) if values else None,
        )


def model_manifest(uri: str, digest: str) -> dict[str, Any]:
    """The AdaptiveModel that the demo applies."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "AdaptiveModel",
        "metadata": {"name": MODEL, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": uri, "digest": digest},
            "replicas": REPLICAS,
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
            "engine": {"deadline": "5s"},
            "objectives": {
                "maxDisagreement": EPSILON,
                "confidence": CONFIDENCE,
                "errorBudget": "0.01",
                "capacityTarget": "0.95",
                "latency": {"slo": "500ms", "budget": "0.05"},
            },
            "audits": {"rate": AUDIT_RATE, "alarmRate": AUDIT_RATE, "inputs": "sampled"},
            "drift": {"falseAlarmAudits": "100000", "block": "5s", "reference": "45s"},
            "tuning": {
                "trials": 10,
                "searchRecords": 1000,
                "certifyRecords": 1500,
                "timeout": "10m",
                "certificateTTL": "1d",
            },
            "rollout": {
                "passMargin": "2",
                "parityBudget": "0.01",
                "leaseSeconds": 10,
                "steps": [
                    {"weight": weight, "minRequests": count, "hold": hold, "maxDuration": "3m"}
                    for weight, count, hold in STEPS
                ],
            },
        },
    }


def chart_values(places: Places, prometheus: str, mlflow: str) -> dict[str, Any]:
    """Values on top of the chart's embedded shape: where records, ledger and models are."""
    return {
        "records": {"uri": f"file://{places.records}"},
        "ledger": {"url": f"sqlite:///{places.ledger}"},
        "prometheus": {"url": prometheus, "scrapeInterval": SCRAPE_INTERVAL},
        "mlflow": {"url": mlflow, "publicUrl": mlflow},
        "ray": {"address": "local", "cpus": 1},
        "models": {"allowedPrefixes": ["models:/"]},
    }


def non_default(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each field of the applied spec that differs from its default: field, demo, default."""
    spec = AdaptiveModelSpec.model_validate(manifest["spec"])
    plain = AdaptiveModelSpec.model_validate({"model": manifest["spec"]["model"]})
    rows = _differences("spec", dump(spec), dump(plain))
    return [row for row in rows if not row["field"].startswith("spec.model.")]


def _differences(path: str, ours: Any, default: Any) -> list[dict[str, Any]]:
    if isinstance(ours, dict) and isinstance(default, dict):
        keys = sorted(ours.keys() | default.keys())
        rows = [_differences(f"{path}.{key}", ours.get(key), default.get(key)) for key in keys]
        return [row for group in rows for row in group]
    return [] if ours == default else [{"field": path, "demo": ours, "default": default}]


def validated(manifest: dict[str, Any]) -> AdaptiveModel:
    """The manifest as an object; a wrong field fails here, before anything starts."""
    return AdaptiveModel.model_validate(manifest)
