"""Settings of the operator: one dataclass, read from the environment that the chart sets.

`__main__` reads them once; everything else gets the dataclass. Policy defaults are not here but
at the fields of the kinds.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimwheel_api import names
from trimwheel_api.environment import Environment

EnvVar = Mapping[str, Any]
"""An entry of a container's `env`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator knows before it has seen an object."""

    release_namespace: str = names.RELEASE_NAMESPACE
    """Where operator, pipelines and TuningRun Jobs live."""
    prometheus_url: str = ""
    """Where evidence is read; empty means that there is none, so nothing is promoted."""
    mlflow_tracking_uri: str = ""
    """Handed to the workers' init step, which resolves models:/ addresses."""
    records_uri: str = ""
    """fsspec root of audit records, handed to workers; empty switches records off."""
    allowed_prefixes: str = ""
    """Comma list of model addresses that the init step accepts."""
    worker_image: str = "trimwheel-workers"
    pipelines_image: str = "trimwheel-pipelines"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets with which nodes fetch the images of workers (from the model's namespace) and Jobs
    (from the release's)."""
    bind: str = "0.0.0.0"
    """Address that workers listen on; `$(POD_IP)` where pods share one network namespace."""
    service_port: int = 80
    """Port of a model's Service."""
    scrape_interval: float = 15.0
    """Seconds between scrapes: evidence cannot change faster, so rollouts are judged this often."""
    resync: float = 30.0
    """Seconds after which a model is looked at again though nothing was heard of it."""
    leader_seconds: float = 15.0
    """A new operator waits this long for a silent one; the old one stops writing before that."""
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Holder of the leader lock: the pod's uid, so that a restarted container goes straight on."""
    job_env: tuple[EnvVar, ...] = ()
    """Variables of Jobs that refer to Secrets and the like; plain ones are in a ConfigMap."""
    job_pod: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a Job's pod, such as nodeSelector and tolerations."""
    job_resources: Mapping[str, Any] = field(default_factory=dict)
    """Requests and limits of a Job's container."""
    model_cache_claim: str = ""
    """PersistentVolumeClaim that keeps fetched models between runs; empty: none are kept."""
    worker_env: tuple[EnvVar, ...] = ()
    """The same for workers; their Secrets are those of the model's namespace."""
    worker_account_annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the workers' service accounts, such as a cloud identity."""


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises SpecInvalid naming a variable that does not parse."""
    given, usual = Environment(environ), Settings()
    return Settings(
        release_namespace=given.text("TRIMWHEEL_RELEASE_NAMESPACE", usual.release_namespace),
        prometheus_url=given.text("PROMETHEUS_URL"),
        mlflow_tracking_uri=given.text("MLFLOW_TRACKING_URI"),
        records_uri=given.text("TRIMWHEEL_RECORDS_URI"),
        allowed_prefixes=given.text("TRIMWHEEL_ALLOWED_PREFIXES"),
        worker_image=given.text("TRIMWHEEL_WORKER_IMAGE", usual.worker_image),
        pipelines_image=given.text("TRIMWHEEL_PIPELINES_IMAGE", usual.pipelines_image),
        image_pull_policy=given.text("TRIMWHEEL_IMAGE_PULL_POLICY", usual.image_pull_policy),
        image_pull_secrets=given.words("TRIMWHEEL_IMAGE_PULL_SECRETS"),
        bind=given.text("TRIMWHEEL_BIND", usual.bind),
        service_port=given.count("TRIMWHEEL_SERVICE_PORT", usual.service_port, 65_535),
        scrape_interval=given.span("TRIMWHEEL_SCRAPE_INTERVAL", usual.scrape_interval, 0.1, 3_600),
        resync=given.span("TRIMWHEEL_RESYNC", usual.resync, 0.1, 86_400),
        leader_seconds=given.span("TRIMWHEEL_LEADER_SECONDS", usual.leader_seconds, 0.1, 300),
        identity=given.text("POD_UID", usual.identity),
        job_env=tuple(given.json("TRIMWHEEL_JOB_ENV", [])),
        job_pod=given.json("TRIMWHEEL_JOB_POD", {}),
        job_resources=given.json("TRIMWHEEL_JOB_RESOURCES", {}),
        model_cache_claim=given.text("TRIMWHEEL_MODEL_CACHE_CLAIM"),
        worker_env=tuple(given.json("TRIMWHEEL_WORKER_ENV", [])),
        worker_account_annotations=given.json("TRIMWHEEL_WORKER_ACCOUNT_ANNOTATIONS", {}),
    )
