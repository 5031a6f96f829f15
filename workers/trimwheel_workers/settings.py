"""What a worker process reads from its environment beside `trimwheel_api.worker_config`.

The operator sets the pod fields; the rest have defaults that fit production and are shortened by
tests. Read once by `serve`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimwheel_api.environment import Environment

BIND = "TRIMWHEEL_BIND"
ASSIGNMENT_FILE = "TRIMWHEEL_ASSIGNMENT_FILE"
RECORD_AGE = "TRIMWHEEL_RECORD_AGE"
DRAIN_NOTICE = "TRIMWHEEL_DRAIN_NOTICE"
RECEIVE_TIME = "TRIMWHEEL_RECEIVE_TIME"
MAX_CONNECTIONS = "TRIMWHEEL_MAX_CONNECTIONS"


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
    receive_time: float = 10.0
    """Seconds in which a request has to arrive whole."""
    max_connections: int = 1000
    """Connections of clients that are held at once."""


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings of this process. Raises SpecInvalid naming the variable that is broken."""
    given, usual = Environment(environ), Settings()
    file = given.text(ASSIGNMENT_FILE)
    return Settings(
        bind=given.text(BIND, usual.bind),
        pod_name=given.text("POD_NAME", usual.pod_name),
        pod_uid=given.text("POD_UID", usual.pod_uid),
        assignment_file=Path(file) if file else None,
        record_age=given.span(RECORD_AGE, usual.record_age, most=3_600),
        drain_notice=given.span(DRAIN_NOTICE, usual.drain_notice, most=3_600),
        receive_time=given.span(RECEIVE_TIME, usual.receive_time, 0.01, 3_600),
        max_connections=given.count(MAX_CONNECTIONS, usual.max_connections),
    )
