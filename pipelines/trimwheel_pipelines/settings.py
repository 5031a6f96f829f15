"""What the pipelines process is told by its environment, in one place.

The chart sets the variables from its values; `__main__` reads them once and hands the object down.
Leaves out what belongs to one model (objectives, audits, tuning), which is in the AdaptiveModel.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from trimwheel_api import names
from trimwheel_api.environment import Environment

LOCAL_RAY = "local"
KEEP_DELETED = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Addresses and limits of one pipelines process."""

    release_namespace: str = names.RELEASE_NAMESPACE
    """Namespace of the Helm release: where this process and its Jobs live."""

    prometheus_url: str = ""
    """Anything that speaks the Prometheus query API; empty means no telemetry, audits only."""

    mlflow_tracking_uri: str = ""
    """MLflow server (or sqlite:// file in tests); empty keeps policies out of MLflow."""

    mlflow_public_url: str = ""
    """How a person's browser reaches MLflow; used for links only. Empty: the tracking address."""

    records_uri: str = ""
    """fsspec root of the audit records, shared with the workers."""

    keep_deleted: float = KEEP_DELETED
    """Seconds that records outlive their model; a model's own shorter retention holds as well."""

    ledger_url: str = ""
    """SQLAlchemy address of the ledger: sqlite:////path/file.db or postgresql+psycopg://..."""

    ray_address: str = ""
    """Empty: trials run one after another in the Job. `local`: Ray inside the Job. Else: a cluster.
    Never taken from an object: Ray unpickles results, so a requester's Ray would run code here."""

    ray_cpus: int = 2
    """Processes of a local Ray."""

    allowed_prefixes: tuple[str, ...] = ()
    """Model addresses must start with one of these; the same list that workers get."""

    bind: str = "0.0.0.0"
    """Address for metrics and health."""

    port: int = names.PIPELINES_METRICS_PORT
    """Port for metrics and health."""

    model_cache: str = ""
    """Folder for fetched models, kept between runs; empty: a temporary folder of the Job."""

    interval: float = 3.0
    """Seconds between two passes of the watch loop."""

    scrape_interval: float = 15.0
    """Seconds between two scrapes of a worker: telemetry cannot be finer."""

    @property
    def mlflow_link(self) -> str:
        """Root of links into MLflow's pages."""
        return (self.mlflow_public_url or self.mlflow_tracking_uri).rstrip("/")


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the process's settings. Raises SpecInvalid naming a variable that cannot be read."""
    given, usual = Environment(environ), Settings()
    return Settings(
        release_namespace=given.text("TRIMWHEEL_RELEASE_NAMESPACE", usual.release_namespace),
        prometheus_url=given.text("PROMETHEUS_URL"),
        mlflow_tracking_uri=given.text("MLFLOW_TRACKING_URI"),
        mlflow_public_url=given.text("MLFLOW_PUBLIC_URL"),
        records_uri=given.text("TRIMWHEEL_RECORDS_URI"),
        keep_deleted=given.span("TRIMWHEEL_RECORDS_KEEP_DELETED", usual.keep_deleted),
        ledger_url=given.text("TRIMWHEEL_LEDGER_URL"),
        ray_address=given.text("TRIMWHEEL_RAY_ADDRESS"),
        ray_cpus=given.count("TRIMWHEEL_RAY_CPUS", usual.ray_cpus, 1_024),
        allowed_prefixes=given.words("TRIMWHEEL_ALLOWED_PREFIXES"),
        bind=given.text("TRIMWHEEL_BIND", usual.bind),
        port=given.count("TRIMWHEEL_PORT", usual.port, 65_535),
        model_cache=given.text("TRIMWHEEL_MODEL_CACHE"),
        interval=given.span("TRIMWHEEL_LOOP_INTERVAL", usual.interval, 0.05, 3_600),
        scrape_interval=given.span("TRIMWHEEL_SCRAPE_INTERVAL", usual.scrape_interval, 0.1, 3_600),
    )
