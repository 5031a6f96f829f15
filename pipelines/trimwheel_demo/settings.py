"""What the demo asks for: the AdaptiveModel it applies, the chart's values, and what differs.

`settings_section` compares the demo's spec and values with the defaults of the kinds and of the
chart, so the report's list of demo settings cannot drift from what is really applied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from trimwheel_api import names
from trimwheel_api.errors import InvalidInput
from trimwheel_api.kinds import AdaptiveModel, dump
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.policy import parse_policy
from trimwheel_cli.policies import read_document
from trimwheel_console import documents
from trimwheel_demo.places import MODEL, NAMESPACE, ROOT, Places, whole_number

MAX_SEED = 2**31 - 1
RATE_RPS = 100.0
AUDIT_RATE = "0.5"
EPSILON = "0.02"
CERTIFY_RECORDS = 3000
"""A minute of audits. With half of them certified policies disagree about 1.2 %, and some are so
careful that the drift does them no harm: then there is nothing to show."""
CONFIDENCE = "0.9"
REPLICAS = 2
SCRAPE_INTERVAL = "2s"
_PLACES = {"url", "uri", "publicUrl", "images", "env", "existingSecret", "imagePullSecrets"}
STEPS = (("0%", 0, "10s"), ("10%", 100, "15s"), ("25%", 250, "15s"), ("50%", 550, "15s"))
"""Weight, candidate requests, hold; 900 requests in all can show an error rate below 1 %."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the visitor chose, from the environment that the Makefile passes on."""

    seed: int = 0
    detach: bool = False
    bad_policy: dict[str, Any] | None = None
    report: Path = Path("build/demo-report.json")
    kubeconfig: Path | None = None
    prometheus: str = ""
    mlflow: str = ""
    values: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Options:
        """Read SEED, DETACH, BAD_POLICY, REPORT and the TRIMWHEEL_USE_* addresses.

        Raises InvalidInput, before anything is started.
        """
        bad, kubeconfig = environ.get("BAD_POLICY"), environ.get("TRIMWHEEL_USE_KUBECONFIG")
        values = environ.get("TRIMWHEEL_VALUES")
        if values:
            documents.read_object(values, "TRIMWHEEL_VALUES")
        return cls(
            seed=whole_number(environ, "SEED", MAX_SEED),
            detach=_switch(environ, "DETACH"),
            bad_policy=_policy_in(bad) if bad else None,
            report=_report_in(environ),
            kubeconfig=_kubeconfig_in(kubeconfig) if kubeconfig else None,
            prometheus=_address_in(environ, "TRIMWHEEL_USE_PROMETHEUS"),
            mlflow=_address_in(environ, "TRIMWHEEL_USE_MLFLOW"),
            values=Path(values) if values else None,
        )


def _switch(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "").lower()
    if text not in ("", "0", "1", "true", "false", "yes", "no"):
        raise InvalidInput(name, "must be 1 or 0", text, f"Leave it out, or set {name}=1")
    return text in ("1", "true", "yes")


def _report_in(environ: Mapping[str, str]) -> Path:
    path = Path(environ.get("REPORT") or "build/demo-report.json")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise InvalidInput("REPORT", "must name a file that can be written", str(path))
    return path


def _kubeconfig_in(text: str) -> Path:
    if not Path(text).is_file():
        rule = "must name a kubeconfig that is there"
        raise InvalidInput("TRIMWHEEL_USE_KUBECONFIG", rule, text)
    return Path(text)


def _address_in(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "")
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a bracket or port that cannot be read
        good = False
    if text and not good:
        raise InvalidInput(name, "must be an address such as http://127.0.0.1:9090", text)
    return text


def _policy_in(file: str) -> dict[str, Any]:
    """The document in BAD_POLICY, read as `trimwheel policy digest FILE` reads it."""
    try:
        document = read_document(file)
        parse_policy(document)
    except InvalidInput as error:
        remedy = error.remedy or f"Try `trimwheel policy validate {file}`"
        raise InvalidInput(
            f"BAD_POLICY ({error.field})", error.rule, error.value, remedy
        ) from error
    return dict(document)


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
                "certifyRecords": CERTIFY_RECORDS,
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


def settings_section(manifest: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of the settings, read from what is applied."""
    spec = validated(manifest).spec
    return {
        "rate_rps": RATE_RPS,
        "audit_rate": float(spec.audits.rate),
        "epsilon": float(spec.objectives.max_disagreement),
        "delta": round(1 - float(spec.objectives.confidence), 9),
        "alpha": float(spec.rollout.alpha),
        "non_default": [*non_default(manifest), *non_default_values(values)],
    }


def non_default_values(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each value of the chart that was given and differs: field, demo, default.

    Leaves out where things are (addresses, images, secrets): those are places, not settings.
    """
    defaults = yaml.safe_load((ROOT / "charts" / "trimwheel" / "values.yaml").read_text())
    rows = _differences("chart", _over(defaults, values), defaults)
    return [row for row in rows if not _PLACES & set(row["field"].split("."))]


def _over(base: Any, top: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(top, Mapping)):
        return top
    return base | {key: _over(base.get(key), value) for key, value in top.items()}


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
