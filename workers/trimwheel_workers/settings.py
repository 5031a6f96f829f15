"""What a worker process reads from its environment beside `trimwheel_api.worker_config`.

The operator sets the pod fields; the rest have defaults that fit production and are shortened by
tests. Read once by `serve`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimwheel_api.errors import SetupFailed
from trimwheel_api.values import seconds

BIND = "TRIMWHEEL_BIND"
ASSIGNMENT_FILE = "TRIMWHEEL_ASSIGNMENT_FILE"
RECORD_AGE = "TRIMWHEEL_RECORD_AGE"
DRAIN_NOTICE = "TRIMWHEEL_DRAIN_NOTICE"


@dataclass(frozen=True, slots=True)
class Settings:
    """One worker process."""

    bind: str = "0.0.0.0"
    """Address to listen on."""
    pod_name: str = "worker"
    """Names the acknowledging Lease and the record segments."""
    pod_uid: str = ""
    """Owner of that Lease."""
    assignment_file: Path | None = None
    """Reads the assignment from this file instead of the API server."""
    record_age: float = 5.0
    """Seconds after which records are stored, full segment or not."""
    drain_notice: float = 2.0
    """Seconds between "not ready" and refusing connections: routers need a moment to notice."""


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings of this process. Raises SetupFailed naming the variable that is broken."""
    default = Settings()
    file = environ.get(ASSIGNMENT_FILE)
    return Settings(
        bind=environ.get(BIND, default.bind),
        pod_name=environ.get("POD_NAME", default.pod_name),
        pod_uid=environ.get("POD_UID", default.pod_uid),
        assignment_file=Path(file) if file else None,
        record_age=_duration(environ, RECORD_AGE, default.record_age),
        drain_notice=_duration(environ, DRAIN_NOTICE, default.drain_notice),
    )


def _duration(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if text is None:
        return default
    try:
        return seconds(text)
    except ValueError as error:
        raise SetupFailed(f"{name}: {error}") from error
